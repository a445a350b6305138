"""A sweep as Prefect runs it: trials as runs of the training flow, here or on the workers of a deployment."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import UUID

import httpx
from prefect import Flow, State, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, MedgrpoError, TrainingAlarm, TrainingCrashed, TrialPruned
from medgrpo.provenance import fingerprint
from medgrpo.registry import fail_run
from medgrpo.runs import SUMMARY_FILE
from medgrpo.sweep import report, tracking
from medgrpo.sweep.loop import Runner
from medgrpo.sweep.study import Study
from medgrpo.sweep.trials import Proposal, Result, Trial
from tasks.running import RETRIED

POLL_SECONDS = 2
CRASHED, CRASH_SECONDS = "Crashed", 600
"""How long a run in this state may take to be put back by the automation that does so, before it counts as failed: that
waits for a tenth of `deployments`' `--dead-after`. One that is given up has another state."""
LONGEST_REASON = 500
RAISED = "encountered an exception: "
"""What Prefect says of a run before the name of the error that ended it."""

Training = Flow[..., dict[str, Any]]


class TrainingRunner(Runner, Protocol):
    """Runs trials, and in the end the chosen one."""

    def finish(self, config: RunConfig, reason: str) -> dict[str, Any]:
        """Run the ordinary training of the chosen trial; returns its summary, as far as it can be read here."""


def find_runner(config: RunConfig, sweep: str, training: Training) -> TrainingRunner:
    """Runs of the deployment that the sweep names, where there is a server; otherwise runs in this process."""
    server, name = PREFECT_API_URL.value(), config.sweep.deployment
    if name and server:
        return Deployed(name, sweep, config.sweep.parallel)
    if name or config.sweep.parallel > 1:
        why = f"no Prefect server is set for the deployment {name}" if name else "sweep.deployment names no deployment"
        get_run_logger().warning("%s (PREFECT_API_URL), so the trials run here, one after another.", why)
    return InProcess(training)


class InProcess(TrainingRunner):
    """Runs trials as subflows, one after another."""

    capacity = 1

    def __init__(self, training: Training) -> None:
        self._training = training
        self._results: dict[int, Result] = {}

    def start(self, proposal: Proposal) -> None:
        """Run a trial to its end."""
        state = cast(State[Any], self._training(proposal.config, return_state=True))
        self._results[proposal.number] = _result(state, proposal)

    def ended(self, proposal: Proposal) -> Result | None:
        """What came of it."""
        return self._results.pop(proposal.number)

    def finish(self, config: RunConfig, reason: str) -> dict[str, Any]:
        """Run the chosen one's training."""
        return self._training(config, reason)


class Deployed(TrainingRunner):
    """Starts trials as runs of a deployment and looks how they are.

    Args:
        deployment: FLOW/NAME.
        sweep: identity of the study, by which runs are found again.
        capacity: runs at the same time.
    """

    def __init__(self, deployment: str, sweep: str, capacity: int) -> None:
        self.capacity = capacity
        self._deployment, self._sweep = deployment, sweep
        self._runs: dict[int, UUID] = {}

    def start(self, proposal: Proposal) -> None:
        """Start a trial's run; one that an earlier sweep has started is found by its key, and not started again."""
        assert proposal.config
        key = f"{self._sweep}-{proposal.number}-{fingerprint(proposal.values)}"
        self._runs[proposal.number] = self._create(proposal.config, key)

    def ended(self, proposal: Proposal) -> Result | None:
        """What came of it; None while it is under way, or the server does not answer."""
        state = _final_state(self._runs[proposal.number])
        return _result(state, proposal) if state else None

    def finish(self, config: RunConfig, reason: str) -> dict[str, Any]:
        """Run the chosen one's training; one that failed is tried anew when the sweep is run again.

        Raises:
            TrainingCrashed: it did not complete.
        """
        for attempt in count():
            run_id = self._create(config, f"{self._sweep}-chosen-{attempt}", reason=reason)
            state = _final_state(run_id)
            # One that had ended before was started, and seen to fail, by an earlier try.
            is_new = state is None
            while state is None:
                time.sleep(POLL_SECONDS)
                state = _final_state(run_id)
            if state.is_completed():
                return _read_summary(config, run_id)
            if is_new:
                raise TrainingCrashed(f"run {config.name} of the chosen trial ended as {state.name}: {state.message}")
        raise AssertionError

    def _create(self, config: RunConfig, key: str, **parameters: Any) -> UUID:
        given = {"config": config.model_dump(mode="json"), **parameters}
        with get_client(sync_client=True) as client:
            try:
                deployment = client.read_deployment_by_name(self._deployment)
            except ObjectNotFound as error:
                raise InputError(
                    f"the Prefect server has no deployment {self._deployment}, which sweep.deployment names. Deploy it "
                    "(`make deploy`), name another as FLOW/NAME, or leave it empty to run the trials here."
                ) from error
            tags = ["medgrpo", "sweep"]
            return client.create_flow_run_from_deployment(
                deployment.id, parameters=given, name=str(config.name), tags=tags, idempotency_key=key
            ).id


@contextmanager
def tracked(config: RunConfig, study: Study) -> Iterator[None]:
    """Keep the sweep's MLflow run open, and end it as failed, with the reason, where the sweep does."""
    study.parent = open_sweep(config, study.id, study.parent)
    try:
        yield
    except MedgrpoError as error:
        # What ended the sweep is what its user must hear.
        with suppress(MedgrpoError):
            fail_run(config, study.parent, str(error))
        raise


@task(name="open sweep", **RETRIED)
def open_sweep(config: RunConfig, study: str, known: str) -> str:
    """Open, or find again, the sweep's MLflow run."""
    return tracking.open_sweep(config, study, known, {"medgrpo.flow_run": str(flow_run.id or "none")})


@task(name="read trial", **RETRIED)
def read_trial(config: RunConfig) -> Result:
    """What a completed trial found."""
    assert config.trial
    return tracking.read_result(config, config.trial)


@task(name="close sweep", **RETRIED)
def close_sweep(config: RunConfig, summary: Mapping[str, Any], files: Path) -> None:
    """Log the sweep's figures and table, and post the table as an artifact."""
    create_markdown_artifact(report.markdown(summary), key="sweep-medgrpo-summary")
    tracking.close_sweep(config, summary["mlflow_run_id"], summary, files)


def show_progress(study: Study, last: Trial) -> None:
    """Post the trials so far as a table artifact, and log what came of the one that has just ended."""
    trials = study.trials()
    ended = sum(trial.result.state != "running" for trial in trials)
    get_run_logger().info("trial %d: %s. %d ended. %s", last.number, last.result.state, ended, last.result.reason)
    try:
        create_table_artifact(report.progress_rows(trials), key="sweep-medgrpo-trials", description=f"{ended} ended")
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("The table of trials could not be posted (%s); the sweep goes on.", error)


def _final_state(run_id: UUID) -> State[Any] | None:
    """The state of a run that does not leave it by itself; None otherwise, or while the server does not answer."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run_id).state
    except ObjectNotFound:
        return Failed(message="its flow run was deleted from the Prefect server.")
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("The Prefect server did not answer (%s); the trials go on.", error)
        return None
    if state is None or not state.is_final():
        return None
    waits = state.name == CRASHED and (datetime.now(UTC) - state.timestamp).total_seconds() < CRASH_SECONDS
    return None if waits else state


def _result(state: State[Any], proposal: Proposal) -> Result:
    """What the last state of a trial's run means."""
    assert proposal.config
    if state.is_completed():
        try:
            return read_trial(proposal.config)
        except InputError as error:
            # Where MLflow is away the sweep ends instead, and finds the trial's run when it goes on.
            return Result("failed", reason=str(error)[:LONGEST_REASON])
    message = f"{state.name}: {state.message}"
    for kind in (TrialPruned, TrainingAlarm):
        _, found, sentence = message.partition(f"{kind.__name__}: ")
        if found:
            return Result("pruned", reason=sentence[:LONGEST_REASON])
    return Result("failed", reason=(message.partition(RAISED)[2] or message)[:LONGEST_REASON])


def _read_summary(config: RunConfig, run_id: UUID) -> dict[str, Any]:
    """The summary that a run on a worker left, where its runs directory is this one."""
    path = config.runs_dir / str(config.name) / SUMMARY_FILE
    if path.is_file():
        summary: dict[str, Any] = json.loads(path.read_text())
        return summary
    return {"name": config.name, "flow_run": str(run_id)}
