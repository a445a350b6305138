"""Trainer callbacks: metrics to a file first, what they say of the training, complete checkpoints."""

import ctypes
import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from medgrpo.errors import TrainingAlarm
from medgrpo.manifests import COMPLETE, is_sealed, seal, write_json
from medgrpo.training.metrics import gpu_memory, read_metrics
from medgrpo.training.sampling import SpreadOrder
from medgrpo.training.watch import ALWAYS_STOP, Watch

ORDER = "order.json"

logger = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """Appends every logged step to `metrics.jsonl`: phase, step, steps, time left, the numbers, what the watch adds.

    Args:
        path: the file.
        phase: "warmup" or "grpo".
        watch: a new one; after a resume it first sees the rows up to the checkpoint.
    """

    def __init__(self, path: Path, phase: str, watch: Watch) -> None:
        self._path, self._phase, self._watch = path, phase, watch
        self._ringing: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, and let the watch see what was before."""
        self._started, self._first_step = time.monotonic(), state.global_step
        for row in read_metrics(self._path):
            if row["phase"] == self._phase and row["step"] <= state.global_step:
                self._ringing = set(self._watch.look(row).get("alarms", {}))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Write one row; only the main process does.

        Raises:
            TrainingAlarm: an alarm rings that ends the training.
        """
        if not logs or "loss" not in logs:
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
            **gpu_memory(),
        }
        row |= self._watch.look(row)
        if state.is_world_process_zero:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        self._ring(row.get("alarms", {}), state)

    def _ring(self, alarms: Mapping[str, str], state: Any) -> None:
        """Say which alarms have begun to ring, and end the training if one does."""
        for alarm, sentence in alarms.items():
            if alarm not in self._ringing:
                logger.warning("alarm %s at step %d: %s", alarm, state.global_step, sentence)
        self._ringing = set(alarms)
        for alarm in filter(self._watch.stops, alarms):
            last = state.best_model_checkpoint
            kept = f"The last checkpoint from before is {last}." if last else "No checkpoint is from before."
            advice = "" if alarm in ALWAYS_STOP else " To go on all the same, set watch.action = 'warn' and run again."
            raise TrainingAlarm(f"{alarms[alarm]} {kept}{advice}")


class CompleteCheckpoints(TrainerCallback):
    """Seals a checkpoint once everything in it is on disk; only a sealed one is resumed from. Older ones go.

    The last one that was saved while the watch was calm is kept until the next such one.

    Args:
        watch: what follows the training; after a resume it must have seen what was before, so `MetricsFile` goes first.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a resume, the checkpoint that it is from may be the last good one."""
        if state.global_step:
            self._keep(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the mark, and remove what is not needed any more."""
        self._keep(args, state)
        if state.is_world_process_zero:
            seal(saved(args, state))
            _prune(args, state)

    def _keep(self, args: Any, state: Any) -> None:
        if self._watch.calm:
            state.best_model_checkpoint = str(saved(args, state))


class KeptOrder(TrainerCallback):
    """Keeps the order of the prompts in each checkpoint; goes before `CompleteCheckpoints`.

    Args:
        order: the order to keep.
    """

    def __init__(self, order: SpreadOrder) -> None:
        self._order = order

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write `order.json`."""
        if state.is_world_process_zero:
            write_json(saved(args, state) / ORDER, self._order.state())


class TrimmedHeap(TrainerCallback):
    """Gives back to the system, after each step, the whole pages that lie free in glibc's heap.

    What a training process frees it keeps for the next tensor (see `medgrpo.training.launch`). Micro-batches of ever
    other lengths leave gaps that none fits into, so that a warm-up on a CPU would come to hold half as much again.
    """

    def __init__(self) -> None:
        # https://man7.org/linux/man-pages/man3/malloc_trim.3.html; other C libraries have no such function.
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Trim all of the heap."""
        self._trim(0)


def saved(args: Any, state: Any) -> Path:
    """Where the checkpoint of a trainer's present step has its place."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def last_complete_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that is whole and unchanged; None where there is none. Says which newer ones are not."""
    for path in _newest_first(directory):
        if is_sealed(path):
            return path
        logger.warning("%s is passed over: it is half-written, or was changed since", path)
    return None


def _newest_first(directory: Path) -> list[Path]:
    return sorted(directory.glob("checkpoint-*[0-9]"), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _prune(args: Any, state: Any) -> None:
    """Keep `save_total_limit` checkpoints: the one just saved, the last good one, and the newest of the others.

    One of a later step is from before a resume that passed it over.
    """
    newest = saved(args, state)
    kept = {newest.name, Path(state.best_model_checkpoint or newest).name}
    for path in _newest_first(newest.parent):
        usable = _step(path) < state.global_step and (path / COMPLETE).is_file()
        if usable and len(kept) < args.save_total_limit:
            kept.add(path.name)
        elif path.name not in kept:
            shutil.rmtree(path)
