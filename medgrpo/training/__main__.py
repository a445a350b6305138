"""The training process: `python -m medgrpo.training DIRECTORY` does what DIRECTORY/job.json says."""

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.errors import MedgrpoError
from medgrpo.manifests import friendly_disk_errors, is_sealed, seal, write_json
from medgrpo.training.stopping import SAVE_SECONDS, Stopping, leave_note, only_writer

logger = logging.getLogger("medgrpo.training")


def main(directory: Path) -> int:
    """Train as the job says; on a failure made on purpose, or a signal, leave a sentence in failure.json."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    _die_with_parent()
    # Of several processes the first one writes.
    first = os.environ.get("RANK", "0") == "0"
    with only_writer(directory) if first else contextlib.nullcontext(), Stopping(directory):
        job = json.loads((directory / "job.json").read_text())
        try:
            with friendly_disk_errors(directory):
                train(RunConfig.model_validate(job["config"]), Path(job["data"]), directory)
        except MedgrpoError as error:
            leave_note(directory, error)
            logger.error("%s", error)
            return error.exit_code
    return 0


def train(config: RunConfig, data: Path, directory: Path) -> None:
    """Warm-up, GRPO and merge; each finished phase is kept and not repeated after a restart."""
    import datasets

    from medgrpo.preparation import check_leaks, load_records, prompt_text
    from medgrpo.training import logprobs
    from medgrpo.training.grpo import train_grpo
    from medgrpo.training.metrics import METRICS_FILE, raised_alarms, read_metrics
    from medgrpo.training.precision import settle
    from medgrpo.training.warmup import train_warmup

    logprobs.install()
    # Cached maps would be written into the prepared data, which must stay as it was hashed.
    datasets.disable_caching()
    started = time.monotonic()
    config = settle(config, directory)
    metrics = directory / METRICS_FILE
    rows = datasets.load_from_disk(str(data / "train"))
    prompts = {row["record_id"]: prompt_text(row["prompt"]) for row in rows.select_columns(["record_id", "prompt"])}
    check_leaks(prompts, load_records(data, "train"), [record.id for record in load_records(data, "test")])
    adapter = None
    if config.warmup.enabled:
        adapter = _phase(config, None, directory / "warmup", rows, metrics, train_warmup)
    start = adapter
    adapter = _phase(config, adapter, directory / "grpo", rows, metrics, train_grpo)
    summary: dict[str, Any] = {
        "adapter_change": adapter_change(start, adapter),
        **_merge(config, adapter, directory / "model"),
        "autocast": config.policy.autocast,
        "seconds": round(time.monotonic() - started, 1),
    }
    summary["flags"] = [*_flags(summary), *map(str, raised_alarms(read_metrics(metrics)))]
    write_json(directory / "training.json", summary)


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

    from medgrpo.policies import load_trainable

    adapter = directory / "adapter"
    if not is_sealed(adapter):
        if adapter.exists():
            logger.warning("%s is made again: it is not what was saved", adapter)
            shutil.rmtree(adapter)
        # A fresh adapter is random, and the trainers set the seed only after it.
        torch.manual_seed(config.seed)
        model, tokenizer = load_trainable(config.policy, start)
        logger.info("%s: starting on %d rows", directory.name, len(rows))
        trainer(model, tokenizer, rows, config, directory, metrics)
        unfinished = directory / "adapter.partial"
        model.save_pretrained(unfinished, selected_adapters=["default"])
        seal(unfinished)
        unfinished.rename(adapter)
    return adapter


def _merge(config: RunConfig, adapter: Path, target: Path) -> dict[str, Any]:
    """Fold the adapter into the float32 base once, measure that the logits did not move, and note the device."""
    import torch

    from medgrpo.policies import load_model, load_trainable, resolve_base

    model, tokenizer = load_model(resolve_base(config.policy), adapter, config.policy.revision)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    unmerged, _ = load_trainable(config.policy, adapter)
    probe = tokenizer("The trial found no difference between the groups.", return_tensors="pt").to(model.device)
    with torch.inference_mode():
        difference = (model(**probe).logits - unmerged.eval()(**probe).logits).abs().max()
    return {"merge_difference": float(difference), "device": model.device.type}


def _flags(summary: dict[str, Any]) -> list[str]:
    """What a reviewer should know about this training, in plain words."""
    flags = []
    if summary["adapter_change"] == 0:
        flags.append("GRPO did not move the policy: every group earned equal rewards, or the learning rate is 0.")
    if summary["merge_difference"] > 1e-2:
        flags.append(f"merging the adapter moved a logit by {summary['merge_difference']:.3f}.")
    return flags


def _die_with_parent() -> None:
    """Stop this process when the one that follows it is gone, so that nothing trains unseen on its files."""
    parent, started_by = int(os.environ.get("MEDGRPO_PARENT", "0")), os.getppid()

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
