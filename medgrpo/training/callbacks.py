"""Trainer callbacks: metrics to a file first, complete checkpoints, alarms in plain words."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from medgrpo.errors import TrainingAlarm

COMPLETE = "complete"


class MetricsFile(TrainerCallback):
    """Appends every logged step to `metrics.jsonl`, with the phase, the step count and the time left."""

    def __init__(self, path: Path, phase: str) -> None:
        self._path, self._phase = path, phase

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._started, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Write one row; only the main process does."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        seconds = time.monotonic() - self._started
        done = max(1, state.global_step - self._first_step)
        row = {
            "phase": self._phase,
            "step": state.global_step,
            "steps": state.max_steps,
            "time": time.time(),
            "seconds_left": round(seconds / done * (state.max_steps - state.global_step), 1),
            **{key: value for key, value in logs.items() if isinstance(value, int | float)},
        }
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once everything in it is on disk; only a marked one is resumed from."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the mark."""
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


class Alarms(TrainerCallback):
    """Stops a training that cannot come to anything, with the reason and a remedy.

    Args:
        patience: consecutive logged steps with only empty completions that are tolerated.
    """

    def __init__(self, patience: int) -> None:
        self._patience, self._empty = patience, 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Look at one step's metrics.

        Raises:
            TrainingAlarm: a loss or gradient that is not finite, or completions that stay empty.
        """
        logs = logs or {}
        for name in ("loss", "grad_norm"):
            value = logs.get(name)
            if value is not None and not math.isfinite(value):
                raise TrainingAlarm(
                    f"{name} is {value} at step {state.global_step}: the numbers overflowed. Lower the learning rate, "
                    "and compute in float32 (policy.autocast = 'none')."
                )
        length = logs.get("completions/mean_length")
        if length is None:
            return
        # A completion that is only the end-of-turn token is empty.
        self._empty = self._empty + 1 if length <= 1 else 0
        if self._empty >= self._patience:
            raise TrainingAlarm(
                f"every completion has been empty for {self._empty} steps (at step {state.global_step}). Check the "
                "chat template and the end-of-turn token, warm up longer, or compute in float32."
            )


def last_complete_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was wholly written; None where there is none."""
    marked = [path.parent for path in directory.glob(f"checkpoint-*/{COMPLETE}")]
    return max(marked, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
