"""Run a task as a stage: believe a cached result only if its artifact is intact, and know how long it took."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, MedgrpoError, TrainingAlarm
from medgrpo.manifests import Manifest, verify
from medgrpo.provenance import fingerprint

RETRIES = 2
RETRY_SECONDS = 10
CACHED = "Cached"

logger = logging.getLogger("prefect.medgrpo")


@dataclass(frozen=True)
class StageResult:
    """What a stage left, and what it cost.

    Attributes:
        name: the task's name.
        manifest: its artifact.
        seconds: wall time, retries included.
        cached: whether an earlier result was reused.
    """

    name: str
    manifest: Manifest
    seconds: float
    cached: bool

    def as_row(self) -> dict[str, Any]:
        """The stage as summary.json lists it."""
        return {"name": self.name, "seconds": self.seconds, "cached": self.cached}


def run_stage(
    stage: Task[..., Manifest], *arguments: Any, still_valid: Callable[[Manifest], bool] = verify
) -> StageResult:
    """Run a task; where Prefect answers from its cache, check the artifact and run again if it is damaged or gone.

    Args:
        stage: a task that returns a Manifest.
        arguments: its arguments.
        still_valid: whether a cached manifest can be believed.
    """
    started = time.monotonic()
    state: State[Any] = stage(*arguments, return_state=True)  # type: ignore[assignment]
    manifest = _result(state)
    cached = state.name == CACHED
    if cached and not still_valid(manifest):
        lost = "%s: the cached result %s no longer holds (its files or its registration), so it is made again"
        logger.warning(lost, stage.name, manifest.uri)
        state = stage.with_options(refresh_cache=True)(*arguments, return_state=True)  # type: ignore[assignment]
        manifest = _result(state)
        cached = False
    return StageResult(stage.name, manifest, round(time.monotonic() - started, 2), cached)


def cache_key(config: RunConfig, key: str) -> str:
    """Prefect's cache key of an artifact: its own key, and the runs directory it lies in."""
    return f"{key}-{fingerprint(str(config.runs_dir.absolute()))}"


def worth_retrying(task: Any, task_run: TaskRun, state: State[Any]) -> bool:
    """Crashes and outages are retried; bad input and training alarms would only fail again.

    Prefect silently ignores a condition that is not a plain function.
    """
    error = state.result(raise_on_failure=False)
    return not isinstance(error, InputError | TrainingAlarm)


class PlainErrors(logging.Filter):
    """Leaves the traceback out of log records whose error already says in one sentence what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record; drop its traceback where the error was raised on purpose."""
        if record.exc_info and isinstance(record.exc_info[1], MedgrpoError):
            record.msg, record.args = str(record.exc_info[1]), ()
            record.exc_info = record.exc_text = None
        return True


def _result(state: State[Any]) -> Manifest:
    return Manifest.model_validate(state.result())
