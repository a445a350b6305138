"""Run a task as a stage: believe a cached result only if its artifact is intact, and know how long it took."""

import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.results import ResultRecord
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from prefect.states import Failed

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, MedgrpoError, TrainingAlarm
from medgrpo.logs import remember
from medgrpo.manifests import MANIFEST, Manifest, hold, verify
from medgrpo.provenance import fingerprint

RETRIES = 2
RETRY_SECONDS = 10
OUTAGE_SECONDS = (10, 30, 60, 120, 240)
"""Waits between tries of what only the registry can do: nearly eight minutes in all, in which a server comes back."""
CACHED, PRUNED = "Cached", "Pruned"

P = ParamSpec("P")
R = TypeVar("R")

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
    """Run a task; where Prefect answers from its cache, check record and artifact, and run again if one is damaged.

    Args:
        stage: a task that returns a Manifest.
        arguments: its arguments.
        still_valid: whether a cached manifest can be believed.
    """
    started = time.monotonic()
    if _record_is_damaged(stage, arguments):
        logger.warning("%s: the record of its cached result cannot be read, so it is made again", stage.name)
        stage = stage.with_options(refresh_cache=True)
    state: State[Any] = stage(*arguments, return_state=True)  # type: ignore[assignment]
    manifest = _result(state)
    cached = state.name == CACHED
    hold(manifest.path / MANIFEST)
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
    """Crashes, outages and full disks are retried; bad input and training alarms would only fail again.

    Prefect silently ignores a condition that is not a plain function.
    """
    error = state.result(raise_on_failure=False)
    return not isinstance(error, InputError | TrainingAlarm)


def name_lines(run: str | None = None) -> None:
    """Let the lines of this process's log, and of the training that it starts, say which run they belong to.

    Those of a flow within a flow go on to name the outer one, which is the one that a person started.
    """
    context = FlowRunContext.get()
    is_inner = context and context.flow_run and context.flow_run.parent_task_run_id
    remember(run=run, **({} if is_inner else getattr(get_run_logger(), "extra", None) or {}))


def prunable(training: Callable[P, R]) -> Callable[P, R]:
    """A flow's function; a trial whose training is ended by an alarm, or by the trials before it, ends as `Pruned`.

    That is no failure of which people would have to be told.
    """

    @wraps(training)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return training(*args, **kwargs)
        except TrainingAlarm as alarm:
            config = inspect.signature(training).bind(*args, **kwargs).arguments["config"]
            if getattr(config, "trial", None) is None:
                raise
            return cast(R, Failed(name=PRUNED, message=f"{type(alarm).__name__}: {alarm}"))

    return run


RETRIED: dict[str, Any] = {
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_SECONDS,
    "retry_condition_fn": worth_retrying,
}
"""Options of a task that a crash or an outage does not end."""
OUTLASTS: dict[str, Any] = {**RETRIED, "retries": len(OUTAGE_SECONDS), "retry_delay_seconds": [*OUTAGE_SECONDS]}
"""The same for a task without which hours of training would lead to nothing, or to too little."""


class PlainErrors(logging.Filter):
    """Leaves the traceback out of log records whose error already says in one sentence what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record; drop its traceback where the error was raised on purpose."""
        if record.exc_info and isinstance(record.exc_info[1], MedgrpoError):
            record.msg, record.args = str(record.exc_info[1]), ()
            record.exc_info = record.exc_text = None
        return True


def _record_is_damaged(stage: Task[..., Manifest], arguments: tuple[Any, ...]) -> bool:
    """Whether Prefect would take a stage's result from a file that holds no manifest (cut short by a full disk, say).

    Prefect itself reads such a file again at each retry, and in each later run.
    """
    if stage.cache_key_fn is None:
        return False
    bound = inspect.signature(stage.fn).bind(*arguments)
    bound.apply_defaults()
    # The keys of the stages follow from their arguments alone.
    key = stage.cache_key_fn(None, bound.arguments)  # type: ignore[arg-type]
    record = PREFECT_LOCAL_STORAGE_PATH.value() / str(key)
    try:
        Manifest.model_validate(ResultRecord.deserialize(record.read_bytes()).result)
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _result(state: State[Any]) -> Manifest:
    return Manifest.model_validate(state.result())
