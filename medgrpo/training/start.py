"""The adapter that a training goes on from, where `policy.start_from` names one: it lies in the training's directory.

A copy of its own lets a training that was killed resume, and a reviewer look, whatever became of where it came from.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.manifests import COMPLETE, describe

START, START_FILE, ADAPTER = "start", "start.json", "adapter"


def hand_over(start: Path, directory: Path) -> None:
    """Copy a starting point, as `medgrpo.starting.fetch` leaves it, to a training's directory; once is enough."""
    target, unfinished = directory / START, directory / f"{START}.partial"
    if target.exists():
        return
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(start / ADAPTER, unfinished / ADAPTER)
    shutil.copy(start / START_FILE, unfinished)
    unfinished.rename(target)


def starting_adapter(config: RunConfig, directory: Path) -> Path | None:
    """The adapter that the training in a directory goes on from; None for a fresh one.

    Raises:
        InputError: one is set, but nobody has put it there.
    """
    if config.policy.start_from is None:
        return None
    adapter = directory / START / ADAPTER
    if not adapter.is_dir():
        raise InputError(
            f"policy.start_from is {config.policy.start_from!r}, but {directory} holds no adapter to go on from, and a "
            "fresh one would be trained instead. Start a training with train-medgrpo or medgrpo.stages, not by hand."
        )
    return adapter


def adapter_digest(adapter: Path) -> str:
    """sha256 of an adapter's files, the mark that they are whole left out."""
    return describe(adapter, COMPLETE).sha256


def read_start(directory: Path) -> dict[str, Any] | None:
    """Where the training in a directory started: {source, digest, base}; None where it was a fresh adapter."""
    path = directory / START / START_FILE
    return json.loads(path.read_text()) if path.is_file() else None
