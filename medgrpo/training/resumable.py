"""A trainer whose checkpoints appear whole or not at all, and that can save its last finished step at any moment."""

import contextlib
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from medgrpo.manifests import is_sealed, require_space
from medgrpo.training import stopping
from medgrpo.training.callbacks import last_complete_checkpoint, saved
from medgrpo.training.stopping import Stopping

UNFINISHED = "unfinished"
"""Where a checkpoint is written before it gets its place."""

Moment = dict[str, Any]


class Resumable(Trainer):
    """Goes before one of TRL's trainers.

    In a training process (see `medgrpo.training.stopping`) it remembers, at the end of each step, what else a
    checkpoint of that step holds beside weights, optimiser and schedule: those stay as they are until the next step is
    applied, while random states, say, move on with the rollouts.
    """

    _stopping: Stopping | None = None
    _moment: Moment | None = None
    _unfinished: Path | None = None

    def train(self, *arguments: Any, **options: Any) -> Any:
        """Train; a signal saves the last finished step, of several processes the one that they are in."""
        self._stopping = stopping.installed()
        if not self._stopping:
            return super().train(*arguments, **options)
        self.add_callback(_StepBegins(self._stopping))
        with self._stopping.saving(self, together=self.args.world_size > 1):
            return super().train(*arguments, **options)

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*arguments, **options)
        if self._stopping:
            self._moment = self._remember()
            self._stopping.end_step()

    def save_finished_step(self) -> str:
        """Write the checkpoint that the last finished step would have had, unless there is one, or it would not be
        exact; what was computed since is lost. For the very end of a process: the random states are wound back.

        Returns:
            A sentence on what there is to go on from.
        """
        phase, step = Path(self.args.output_dir).name, self.state.global_step  # type: ignore[arg-type]
        if self._moment and self._is_exact(step) and not is_sealed(saved(self.args, self.state)):
            self._wind_back(self._moment)
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        # The first of several processes seals it.
        self.accelerator.wait_for_everyone()
        checkpoint = last_complete_checkpoint(Path(self.args.output_dir))  # type: ignore[arg-type]
        if not checkpoint:
            return f"No step of {phase} is saved: running it again starts {phase} anew."
        return f"Step {checkpoint.name.rpartition('-')[2]} of {phase} is saved: running it again goes on from there."

    def heard(self, number: int) -> int:
        """See `medgrpo.training.stopping.Saver`."""
        mine = torch.tensor([number], device=self.accelerator.device)
        return int(self.accelerator.gather(mine).max())

    def _is_exact(self, step: int) -> bool:
        """Whether a checkpoint of a step holds everything that the next step depends on."""
        return True

    def _remember(self) -> Moment:
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "flos": self.current_flos,
        }

    def _wind_back(self, moment: Moment) -> None:
        random.setstate(moment["python"])
        np.random.set_state(moment["numpy"])
        torch.set_rng_state(moment["cpu"])
        if moment["cuda"] is not None:
            torch.cuda.set_rng_state(moment["cuda"])
        self.current_flos = moment["flos"]

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished) if self._unfinished else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Transformers' own, in a directory aside; renamed once everything is in it."""
        target = saved(self.args, self.state)
        self._unfinished = target.parent / UNFINISHED
        if self.is_world_process_zero():
            shutil.rmtree(self._unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with contextlib.ExitStack() as failed:
                # Each library that writes here has an error of its own for a full disk.
                failed.callback(require_space, target.parent)
                super()._save_checkpoint(model, trial)
                failed.pop_all()
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                # Only one that is not whole can be there: training would have gone on behind it.
                shutil.rmtree(target, ignore_errors=True)
                (self._unfinished / target.name).rename(target)
        finally:
            if self.is_world_process_zero():
                shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished = None
        self.accelerator.wait_for_everyone()


class _StepBegins(TrainerCallback):
    """Says when a step is about to be applied."""

    def __init__(self, stopping: Stopping) -> None:
        self._stopping = stopping

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """From here until it is saved the step must not be torn apart."""
        self._stopping.begin_step()
