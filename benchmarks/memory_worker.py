"""A short training of one size, which says what memory it took: `python -m benchmarks.memory_worker DIRECTORY`."""

import gc
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

    from medgrpo.config import RunConfig

SHARED = (
    "warmup.epochs=1",
    "warmup.batch_size=8",
    "grpo.steps=1",
    "grpo.rollout_dtype=float32",
    "policy.autocast=none",
)


def train(folder: Path) -> None:
    """Train as FOLDER/job.json says, and write FOLDER/result.json."""
    import datasets

    from medgrpo.config import load_config
    from medgrpo.policies import load_tokenizer, load_trainable, resolve_base
    from medgrpo.policies.backends import read_model_config
    from medgrpo.policies.memory import GB, plan_memory
    from medgrpo.training import grpo, logprobs, warmup

    logprobs.install()
    datasets.disable_caching()
    config = load_config("demo", [*SHARED, *json.loads((folder / "job.json").read_text())])
    peaks = {"runtime": peak()}
    rows = long_rows(config, load_tokenizer(resolve_base(config.policy)))
    if config.warmup.enabled:
        model, tokenizer = load_trainable(config.policy)
        peaks["loaded"] = peak()
        warmup.train_warmup(model, tokenizer, rows, config, folder / "warmup", folder / "metrics.jsonl")
        model.save_pretrained(folder / "adapter")
        del model
        gc.collect()
        peaks["warm-up"] = peak()
    model, tokenizer = load_trainable(config.policy, folder / "adapter" if config.warmup.enabled else None)
    # A token that is never written, so that every completion runs to the cap; the template ends turns with it.
    ended = str(tokenizer.eos_token)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    tokenizer.chat_template = tokenizer.chat_template.replace(ended, tokenizer.eos_token)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    grpo.reward_functions = lambda *_: [_reward]
    _note_rollout(grpo.WatchedGRPOTrainer, peaks)
    grpo.train_grpo(model, tokenizer, rows, config, folder / "grpo", folder / "metrics.jsonl")
    peaks["GRPO"] = peak()
    plan = plan_memory(config, read_model_config(config.policy))
    measured = {name: round(size / GB, 3) for name, size in peaks.items()}
    (folder / "result.json").write_text(json.dumps({"plan_gb": plan.in_gb(), "measured_gb": measured}))


def long_rows(config: "RunConfig", tokenizer: Any) -> "Dataset":
    """Prepared training rows, as many as a step of the warm-up has, each as long as the settings allow."""
    import datasets

    from medgrpo.domains import synthetic
    from medgrpo.prompts import gold_completion, render_prompt

    cap = config.grpo.max_completion_length
    rows = []
    for record in synthetic.generate(count=config.warmup.batch_size, seed=7):
        long = record
        while _prompt_tokens(long, tokenizer) < config.data.max_length - cap - 12:
            missing = config.data.max_length - cap - _prompt_tokens(long, tokenizer)
            long = long.model_copy(update={"contexts": (*long.contexts, "so it was " * max(1, missing // 4))})
        gold = gold_completion(record)
        while len(tokenizer(gold)["input_ids"]) < cap - 8:
            gold = gold.replace("</thought>", " so it was</thought>")
        rows.append(
            {
                "record_id": record.id,
                "prompt": render_prompt(long),
                "completion": gold,
                "verdict": record.verdict,
                "record": record.model_dump_json(),
            }
        )
    return datasets.Dataset.from_list(rows)


def _prompt_tokens(record: Any, tokenizer: Any) -> int:
    from medgrpo.prompts import render_prompt

    messages = render_prompt(record)
    return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def peak() -> int:
    """Most resident memory that this process has had, in bytes."""
    from medgrpo.resources import Meter

    return Meter().stop().peak_memory_bytes


def _reward(completions: list[Any], **_: Any) -> list[float]:
    """Different within every group."""
    # Squares: no completion earns exactly its group's mean, which would leave it out of the loss.
    return [float(place % 16) ** 2 for place in range(len(completions))]


def _note_rollout(trainer: Any, peaks: dict[str, int]) -> None:
    generate = trainer._generate_single_turn

    def noted(*args: Any, **options: Any) -> Any:
        peaks["loaded"] = peaks.get("loaded", peak())
        found = generate(*args, **options)
        peaks["rollout"] = peak()
        return found

    trainer._generate_single_turn = noted


if __name__ == "__main__":
    train(Path(sys.argv[1]))
