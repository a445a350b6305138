"""Warm-ups that trials share: the first trial that finishes one lends it to those that would train the same."""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.manifests import Manifest, is_sealed, locked, write_text
from medgrpo.policies import base_identity
from medgrpo.provenance import code_version, fingerprint
from medgrpo.training.metrics import METRICS_FILE, read_metrics
from medgrpo.training.start import read_start

PHASE, ADAPTER = "warmup", "adapter"

logger = logging.getLogger(__name__)


@contextmanager
def shared_warmup(config: RunConfig, data: Manifest, directory: Path) -> Iterator[None]:
    """Let the training of a trial in a directory start from a lent warm-up, and lend its own, however it ends.

    An ordinary run neither borrows nor lends.
    """
    if config.trial is None or not config.warmup.enabled:
        yield
        return
    # Lent warm-ups lie beside the prepared data, among the other artifacts.
    shared = data.path.parent / warmup_key(config, data, read_start(directory))
    borrow(shared, directory)
    try:
        yield
    finally:
        try:
            lend(directory, shared)
        except OSError as error:
            # Lending is a favour: a full disk must not hide how the trial ended.
            logger.warning("The warm-up could not be kept for other trials (%s).", error)


def warmup_key(config: RunConfig, data: Manifest, start: Mapping[str, Any] | None = None) -> str:
    """Key of a warm-up: everything that shapes its adapter, which leaves out GRPO and the payments.

    Args:
        config: the trial's settings.
        data: the prepared data.
        start: the adapter that it goes on from, as `training.start` describes it; a setting may name another by now.
    """
    inputs = {
        "data": data.path.name,
        "policy": config.policy.model_dump(exclude={"start_from"}),
        "start": start,
        "base": base_identity(config.policy),
        "warmup": config.warmup.model_dump(),
        "checkpointing": config.grpo.gradient_checkpointing,
        "seed": config.seed,
        "processes": config.processes,
        "code": code_version("medgrpo.training.__main__"),
    }
    return f"warmup-{fingerprint(inputs)}"


def borrow(shared: Path, directory: Path) -> bool:
    """Copy a finished warm-up, and its rows of metrics.jsonl, into a training that has not begun; whether it was done.

    Args:
        shared: the lent warm-up.
        directory: the training's directory.
    """
    begun = (directory / PHASE / ADAPTER).exists() or any((directory / PHASE).glob("checkpoint-*"))
    if begun or not is_sealed(shared / ADAPTER):
        return False
    # The adapter comes last: it says that the phase is finished.
    write_text(directory / METRICS_FILE, (shared / METRICS_FILE).read_text(encoding="utf-8"))
    _copy(shared / ADAPTER, directory / PHASE / ADAPTER)
    return True


def lend(directory: Path, shared: Path) -> None:
    """Keep the finished warm-up of a training for others, unless it is there already."""
    adapter = directory / PHASE / ADAPTER
    if not is_sealed(adapter):
        return
    with locked(shared.with_name(f"{shared.name}.lock")):
        if is_sealed(shared / ADAPTER):
            return
        shutil.rmtree(shared, ignore_errors=True)
        rows = [row for row in read_metrics(directory / METRICS_FILE) if row["phase"] == PHASE]
        write_text(shared / METRICS_FILE, "".join(f"{json.dumps(row)}\n" for row in rows))
        _copy(adapter, shared / ADAPTER)


def _copy(source: Path, target: Path) -> None:
    """Copy a directory so that it is there whole or not at all."""
    unfinished = target.with_name(f"{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    unfinished.rename(target)
