"""Progress of long work: a terminal bar, log lines, and a Prefect progress artifact."""

import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LOG_SECONDS = 15


class StageProgress:
    """Follows one piece of work; use it as a context manager inside a task.

    Args:
        key: key of the Prefect artifact (lower case, dashes).
        description: what is under way.
    """

    def __init__(self, key: str, description: str) -> None:
        # Prefect's call is synchronous here; its type also covers asynchronous callers.
        self._artifact = cast(UUID, create_progress_artifact(progress=0.0, key=key, description=description))
        self._logger = get_run_logger()
        self._logged = float("-inf")
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def training(self, row: Mapping[str, Any]) -> None:
        """Report a row of metrics.jsonl."""
        parts = [f"{name} {row[name]:.3f}" for name in ("reward", "loss") if name in row]
        left = f"{row['seconds_left'] / 60:.1f} min left"
        alarms = [f"alarm {name}" for name in row.get("alarms", {})]
        self.advance(row["phase"], row["step"], row["steps"], ", ".join([*parts, left, *alarms]))

    def answers(self, model: str, done: int, total: int) -> None:
        """Report answers that a model has given."""
        self.advance(f"answers of {model}", done, total, "")

    def advance(self, name: str, done: int, total: int, note: str) -> None:
        """Move the bar called `name`; log and update the artifact every 15 seconds and at its end."""
        if name not in self._bars:
            self._bars[name] = self._bar.add_task(name, total=total, note=note)
        self._bar.update(self._bars[name], completed=done, note=note)
        if done == total or time.monotonic() - self._logged > LOG_SECONDS:
            self._logged = time.monotonic()
            self._log(logging.INFO, f"{name} {done}/{total} {note}".rstrip())
            self._publish(100.0 * done / total, f"{name} {note}".rstrip())

    def _log(self, level: int, message: str) -> None:
        """Log a line with the bar taken away meanwhile: Prefect writes past it, in the middle of its line."""
        drawn = self._bar.live.is_started
        if drawn:
            self._bar.stop()
        self._logger.log(level, message)
        if drawn:
            self._bar.start()

    def _publish(self, percent: float, description: str) -> None:
        """Update the artifact; without Prefect's server the work goes on and the log still tells how far it is."""
        try:
            update_progress_artifact(self._artifact, progress=percent, description=description)
        except (httpx.HTTPError, PrefectException) as error:
            self._log(logging.WARNING, f"Prefect's progress artifact was not updated ({error}); the work goes on.")
