"""The stages of train-medgrpo and evaluate-medgrpo as retryable, cached tasks.

Their result is a small manifest, never a model.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger
from prefect.runtime import flow_run, task_run

from medgrpo import stages
from medgrpo.config import RunConfig
from medgrpo.errors import InputError, MedgrpoError, ServiceUnreachable, TrainingAlarm
from medgrpo.manifests import Manifest
from medgrpo.registry import trial_tags
from medgrpo.sweep.pruning import Pruner
from tasks.events import Alarms, announce_candidate
from tasks.progress import StageProgress
from tasks.running import OUTAGE_SECONDS, OUTLASTS, RETRIED, cache_key

# How long a tracking server that did not answer is left alone, so that an outage does not slow training.
SILENT_SECONDS = 120

_SURVIVES: dict[str, Any] = {**RETRIED, "persist_result": True, "result_serializer": "json"}


def _prepare_key(_: TaskRunContext, given: dict[str, Any]) -> str:
    return cache_key(given["config"], stages.prepare_key(given["config"]))


def _audit_key(_: TaskRunContext, given: dict[str, Any]) -> str:
    return cache_key(given["config"], stages.audit_key(given["config"], given["data"]))


def _train_key(_: TaskRunContext, given: dict[str, Any]) -> str:
    return cache_key(given["config"], stages.train_key(given["config"], given["data"], given.get("start")))


def _evaluate_key(_: TaskRunContext, given: dict[str, Any]) -> str:
    inputs = [given[name] for name in ("config", "data", "audited", "trained", "champion")]
    return cache_key(given["config"], stages.evaluate_key(*inputs))


def _register_key(_: TaskRunContext, given: dict[str, Any]) -> str:
    return cache_key(given["config"], stages.register_key(given["config"], given["trained"], given["evaluated"]))


@task(name="prepare", cache_key_fn=_prepare_key, **_SURVIVES)
def prepare(config: RunConfig) -> Manifest:
    """Split, check and store the data."""
    return stages.prepare(config)


@task(name="audit", cache_key_fn=_audit_key, **_SURVIVES)
def audit(config: RunConfig, data: Manifest) -> Manifest:
    """Attack the rewards on every training record, before a policy does."""
    audited = stages.audit(config, data)
    create_table_artifact(stages.audit_rows(audited), key="train-medgrpo-audit", description="Attacks on the rewards")
    return audited


@task(name="fetch start", **RETRIED)
def fetch_start(config: RunConfig) -> Manifest | None:
    """Fetch the adapter that training goes on from; which one an alias means is asked once, before training."""
    return stages.fetch_start(config)


@task(name="train", cache_key_fn=_train_key, **_SURVIVES)
def train(config: RunConfig, data: Manifest, start: Manifest | None = None) -> Manifest:
    """Warm up and train in a process of its own; a retry resumes from the last checkpoint."""
    with StageProgress("train-medgrpo-training", f"Training {config.policy.base}") as progress:
        tracker, alarms, pruner = _Tracker(config), Alarms(config), Pruner(config)

        def begin(directory: Path) -> None:
            tracker.begin(directory)
            alarms.begin(directory)
            pruner.begin(directory)

        def follow(row: Mapping[str, Any]) -> None:
            progress.training(row)
            tracker.catch_up()
            alarms.look(row)
            pruner.look(row)

        try:
            return stages.train(config, data, follow, begin, start)
        except (TrainingAlarm, InputError) as error:
            tracker.fail(str(error))
            raise


@task(name="fetch champion", **OUTLASTS)
def fetch_champion(config: RunConfig, data: Manifest) -> stages.Champion:
    """Fetch the model in service; which one that is, is asked anew each time.

    Where MLflow stays away, the model is evaluated without a champion beside it, and the gate says why.
    """
    try:
        return stages.fetch_champion(config, data)
    except ServiceUnreachable as error:
        if task_run.run_count <= len(OUTAGE_SECONDS):
            raise
        get_run_logger().warning("%s The model is evaluated without a champion beside it.", error)
        return stages.Champion(unknown=str(error))


@task(name="evaluate", cache_key_fn=_evaluate_key, **_SURVIVES)
def evaluate(
    config: RunConfig, data: Manifest, audited: Manifest, trained: Manifest, champion: stages.Champion
) -> Manifest:
    """Let base, champion, warm-up and tuned model answer the same cases, and judge the tuned one."""
    with StageProgress("train-medgrpo-evaluation", "Evaluating") as progress:
        return stages.evaluate(config, data, audited, trained, champion, progress.answers)


@task(name="locate", **RETRIED)
def locate(config: RunConfig, model: str) -> str:
    """Fetch a model that is to be evaluated, or find where it is."""
    return stages.locate(config, model)


@task(name="compare", **RETRIED)
def compare(config: RunConfig, data: Manifest, models: Mapping[str, str]) -> Manifest:
    """Let any models answer the same cases, and judge the last one."""
    with StageProgress("evaluate-medgrpo-progress", "Evaluating") as progress:
        return stages.compare(config, data, models, progress.answers)


@task(name="register", cache_key_fn=_register_key, **_SURVIVES | OUTLASTS)
def register(config: RunConfig, data: Manifest, audited: Manifest, trained: Manifest, evaluated: Manifest) -> Manifest:
    """Log the run and register the model version."""
    registered = stages.register(config, data, audited, trained, evaluated, _tags(config))
    announce_candidate(config, registered)
    return registered


class _Tracker:
    """Passes training metrics on to MLflow; while MLflow is away they wait in metrics.jsonl."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._run_id, self._directory = config, "", Path()
        self._silent_until = float("-inf")

    def begin(self, directory: Path) -> None:
        """Open, or find again, the MLflow run of this training."""
        self._directory = directory
        self._attempt(self._open)

    def catch_up(self) -> None:
        """Send the rows that MLflow does not have yet; open the run first if that failed before.

        Once training is under way nothing that MLflow answers ends it: what it refuses now, the registration reports.
        """
        self._attempt(self._sync if self._run_id else self._open, survives=MedgrpoError)

    def fail(self, reason: str) -> None:
        """End the MLflow run as failed, with the reason; running the same again takes it up."""
        from medgrpo.registry import fail_run

        if self._run_id:
            self._attempt(lambda: fail_run(self._config, self._run_id, reason), survives=MedgrpoError)

    def _open(self) -> None:
        from medgrpo.registry import open_run

        self._run_id = open_run(self._config, self._directory, _tags(self._config))

    def _sync(self) -> None:
        from medgrpo.registry import SYNC_FILE, sync_metrics
        from medgrpo.training.metrics import METRICS_FILE

        sync_metrics(self._config, self._run_id, self._directory / METRICS_FILE, self._directory / SYNC_FILE)

    def _attempt(self, call: Callable[[], None], survives: type[MedgrpoError] = ServiceUnreachable) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            call()
        except survives as error:
            get_run_logger().warning("%s Training goes on; metrics wait in metrics.jsonl.", error)
            self._silent_until = time.monotonic() + SILENT_SECONDS


def _tags(config: RunConfig) -> dict[str, str]:
    """Which flow run trains, and why, where it was given a reason; of a trial, which one it is."""
    tags = {"medgrpo.flow_run": str(flow_run.id or "none"), "medgrpo.flow_run_name": str(flow_run.name or "none")}
    reason = flow_run.parameters.get("reason")
    return tags | ({"medgrpo.reason": str(reason)} if reason else {}) | trial_tags(config)
