"""The training process: `python -m medgrpo.training DIRECTORY` does what DIRECTORY/job.json says."""

import contextlib
import gc
import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, MedgrpoError
from medgrpo.manifests import friendly_disk_errors, is_sealed, seal, write_json
from medgrpo.training.reductions import apply_reductions, retried_smaller
from medgrpo.training.stopping import SAVE_SECONDS, Stopping, leave_note, only_writer

logger = logging.getLogger("medgrpo.training")


def main(directory: Path) -> int:
    """Train as the job says; on a failure made on purpose, or a signal, leave a sentence in failure.json."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    _die_with(int(os.environ.get("MEDGRPO_PARENT", "0")))
    # Of several processes the first one writes.
    first = os.environ.get("RANK", "0") == "0"
    with only_writer(directory) if first else contextlib.nullcontext(), Stopping(directory), _without_collector():
        job = json.loads((directory / "job.json").read_text())
        try:
            config = apply_reductions(RunConfig.model_validate(job["config"]), directory)
            with friendly_disk_errors(directory), retried_smaller(config, directory):
                train(config, Path(job["data"]), directory)
        except MedgrpoError as error:
            leave_note(directory, error)
            logger.error("%s", error)
            return error.exit_code
    return 0


def train(config: RunConfig, data: Path, directory: Path) -> None:
    """Warm-up, GRPO and merge; each finished phase is kept and not repeated after a restart."""
    import datasets

    from medgrpo.policies import describe_base
    from medgrpo.policies.fitting import as_prepared, check_memory
    from medgrpo.preparation import check_leaks, load_records, prompt_text
    from medgrpo.training.metrics import METRICS_FILE, raised_alarms, read_metrics
    from medgrpo.training.precision import settle
    from medgrpo.training.start import read_start, starting_adapter

    # Cached maps would be written into the prepared data, which must stay as it was hashed.
    datasets.disable_caching()
    started = time.monotonic()
    state = _meet(config)
    with state.main_process_first():
        # What the first process decides, the others find.
        config = settle(config, directory)
    train_warmup, train_grpo = _trainers(config)
    _settle_collector()
    metrics = directory / METRICS_FILE
    rows = datasets.load_from_disk(str(data / "train"))
    prompts = {row["record_id"]: prompt_text(row["prompt"]) for row in rows.select_columns(["record_id", "prompt"])}
    check_leaks(prompts, load_records(data, "train"), [record.id for record in load_records(data, "test")])
    plan = check_memory(as_prepared(config, data))
    start = starting_adapter(config, directory)
    if config.warmup.enabled:
        start = _phase(config, start, directory / "warmup", rows, metrics, train_warmup)
    adapter = _phase(config, start, directory / "grpo", rows, metrics, train_grpo)
    if not state.is_main_process:
        return
    summary: dict[str, Any] = {
        "adapter_change": adapter_change(start, adapter),
        **_merged(config, adapter, directory / "model"),
        **config.policy.model_dump(include={"backend", "quantization", "autocast"}),
        "base": describe_base(config.policy),
        "started_from": read_start(directory),
        "memory_plan_gb": plan.in_gb() if plan else None,
        "seconds": round(time.monotonic() - started, 1),
    }
    summary["flags"] = [*_flags(summary), *map(str, raised_alarms(read_metrics(metrics)))]
    write_json(directory / "training.json", summary)


def _meet(config: RunConfig) -> Any:
    """Connect the processes of a training, each with a GPU of its own where there are any.

    Raises:
        InputError: fewer GPUs than processes, or another number of processes was started than the settings say.
    """
    import torch
    from accelerate import PartialState

    gpus = torch.cuda.device_count()
    if gpus and config.processes > gpus:
        raise InputError(
            f"processes is {config.processes}, but PyTorch sees {gpus} GPU(s) here (CUDA_VISIBLE_DEVICES?), and each "
            f"process needs its own. Use --set processes={gpus}."
        )
    if config.processes == 1 and gpus > 1:
        raise InputError(
            f"processes is 1, but PyTorch sees {gpus} GPUs here, and the trainer would spread each batch over them. "
            f"Set CUDA_VISIBLE_DEVICES to one of them, or --set processes={gpus}."
        )
    if not gpus and config.processes > 1:
        # Otherwise each would compute on a processor with a number, which a checkpoint cannot be loaded onto.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    state = PartialState(cpu=not gpus)
    if state.num_processes != config.processes:
        # Each would take its share of a step, and nobody the others'.
        raise InputError(
            f"processes is {config.processes}, but {state.num_processes} were started. Start a training with "
            "train-medgrpo or medgrpo.training.launch, not by hand."
        )
    return state


def _trainers(config: RunConfig) -> tuple[Any, Any]:
    """`train_warmup` and `train_grpo`, with what the backend does to TRL done before they import it.

    Raises:
        InputError: the backend cannot run here.
    """
    if config.policy.backend == "unsloth":
        from medgrpo.policies import fast

        fast.start()
    elif config.policy.quantization != "none":
        raise InputError(
            f"policy.quantization is {config.policy.quantization!r}, but the transformers backend needs whole weights. "
            "Use --set policy.backend=unsloth or --set policy.quantization=none."
        )
    else:
        from medgrpo.training import logprobs

        _leave_out_sklearn()
        logprobs.install()
    from medgrpo.training.grpo import train_grpo
    from medgrpo.training.warmup import train_warmup

    return train_warmup, train_grpo


def _leave_out_sklearn() -> None:
    """Keep transformers from importing scikit-learn, and that from SciPy's statistics, for assisted decoding alone.

    It takes a second of each start. Nothing here decodes with an assistant, which is all that looks at this answer.
    """
    from transformers import utils

    utils.is_sklearn_available = lambda: False


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Rest the garbage collector while libraries are imported: it would walk their ever more objects over and over."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _settle_collector() -> None:
    """Collect garbage from now on, but never among what the imports have left, which stays to the end."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def adapter_change(before: Path | None, after: Path) -> float:
    """Euclidean norm of the change of the adapter's effective weights from before GRPO to after it.

    A fresh adapter starts with B = 0, so without a warm-up the norm of the B matrices says whether anything was learnt.
    """
    import torch
    from safetensors.torch import load_file

    new = load_file(after / "adapter_model.safetensors")
    old = load_file(before / "adapter_model.safetensors") if before else {}
    changes = [
        (tensor - old.get(name, torch.zeros_like(tensor))).square().sum()
        for name, tensor in new.items()
        if before or "lora_B" in name
    ]
    return float(torch.stack(changes).sum().sqrt())


def _phase(config: RunConfig, start: Path | None, directory: Path, rows: Any, metrics: Path, trainer: Any) -> Path:
    """Run one phase unless its adapter is already there, and is what was saved."""
    import torch
    from accelerate import PartialState

    from medgrpo.policies import load_trainable
    from medgrpo.policies.fast import load_fast

    adapter, state = directory / "adapter", PartialState()
    finished = is_sealed(adapter)
    state.wait_for_everyone()
    if not finished:
        if adapter.exists() and state.is_main_process:
            logger.warning("%s is made again: it is not what was saved", adapter)
            shutil.rmtree(adapter)
        _forget()
        # A fresh adapter is random, and the trainers set the seed only after it.
        torch.manual_seed(config.seed)
        fast = config.policy.backend == "unsloth"
        model, tokenizer = load_fast(config, start) if fast else load_trainable(config.policy, start)
        logger.info("%s: starting on %d rows", directory.name, len(rows))
        trainer(model, tokenizer, rows, config, directory, metrics)
        if state.is_main_process:
            unfinished = directory / "adapter.partial"
            model.save_pretrained(unfinished, selected_adapters=["default"])
            seal(unfinished)
            unfinished.rename(adapter)
        state.wait_for_everyone()
    return adapter


def _merged(config: RunConfig, adapter: Path, target: Path) -> dict[str, Any]:
    """Merge with the transformers that is installed: where Unsloth has rewritten it, in a process of its own."""
    if config.policy.backend != "unsloth":
        return _merge(config, adapter, target)
    # Under these names the new process can import them; it does not know what this one calls `__main__`.
    from medgrpo.training.__main__ import _die_with as die_with
    from medgrpo.training.__main__ import _merge as merge

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=die_with, initargs=(os.getpid(),)) as pool:
        return pool.submit(merge, config, adapter, target).result()


def _merge(config: RunConfig, adapter: Path, target: Path) -> dict[str, Any]:
    """Fold the adapter into the float32 base once, measure that the logits did not move, and note what trained it.

    On the processor: two whole float32 models might not fit on the GPU that trained one in 4 bits.
    """
    import torch

    from medgrpo.policies import load_model, load_trainable, resolve_base

    _forget()
    model, tokenizer = load_model(resolve_base(config.policy), adapter, config.policy.revision, device="cpu")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    unmerged, _ = load_trainable(config.policy, adapter, device="cpu")
    probe = tokenizer("The trial found no difference between the groups.", return_tensors="pt")
    with torch.inference_mode():
        difference = (model(**probe).logits - unmerged.eval()(**probe).logits).abs().max()
    return {"merge_difference": float(difference), "device": "cuda" if torch.cuda.is_available() else "cpu"}


def _forget() -> None:
    """Free the weights of the phase before: a trainer that is done holds itself in cycles, and its model with it."""
    gc.collect()


def _flags(summary: dict[str, Any]) -> list[str]:
    """What a reviewer should know about this training, in plain words."""
    flags = []
    if summary["adapter_change"] == 0:
        flags.append("GRPO did not move the policy: every group earned equal rewards, or the learning rate is 0.")
    if summary["merge_difference"] > 1e-2:
        flags.append(f"merging the adapter moved a logit by {summary['merge_difference']:.3f}.")
    return flags


def _die_with(parent: int) -> None:
    """Stop this process when the one that follows it is gone, so that nothing works unseen on its files; 0 is none."""
    started_by = os.getppid()

    def watch() -> None:
        # A killed parent that nobody waits for stays as a zombie, but its children get another parent at once.
        while _alive(parent) and os.getppid() == started_by:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SAVE_SECONDS)
        os._exit(9)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
