"""Training: supervised warm-up, then GRPO, in a process of its own.

`launch.run` starts the process and follows it; `python -m medgrpo.training DIRECTORY` is that process. Everything
passes through the directory:

    job.json         what to do                        warmup/adapter/   the adapter after the warm-up
    metrics.jsonl    one row per step, append-only     grpo/adapter/     the adapter after GRPO
    train.log        what the process prints           model/            base and adapter merged, float32
    failure.json     why it stopped, in plain words    training.json     how it went, written last
    writer.lock      locked by whoever writes here     settled.json      what "auto" stands for in it
    resources.json   what each attempt used            reductions.json   micro-batches that memory allows
"""
