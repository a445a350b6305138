"""Servers that go away while a run is under way, and come back: the run goes on, or is put back, and loses nothing."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from e2e.stack import WAIT_SECONDS, Run, Stack, check_result

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = 60


def _until(condition: Callable[[], Any], run: Run, what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come: {run.states()}\n{run.log()}"
        time.sleep(0.1)


def _underway(stack: Stack, name: str, pool: str = "cpu") -> Run:
    """A run that trains."""
    run = stack.train(pool, stack.config(name, grpo={"steps": STEPS, "save_steps": 5}))
    _until(lambda: _step(run) > 0, run, "a step of GRPO")
    return run


def _step(run: Run) -> int:
    return max((row["step"] for row in run.rows() if row["phase"] == "grpo"), default=0)


def _trained(run: Run) -> bool:
    return _step(run) == STEPS


def test_prefect_restarts(stack: Stack) -> None:
    """The server is killed and started while a run trains: the run keeps its slot, goes on, and is completed once."""
    run = _underway(stack, "prefect-away")
    stack.kill("prefect")
    # Training needs no server; its end is what must be told.
    _until(lambda: _step(run) > STEPS // 4, run, "more steps without the server")
    stack.start("prefect")
    with stack.client() as client:
        state = client.read_flow_run(run.id).state
        assert state
        lease = state.state_details.deployment_concurrency_lease_id
        assert lease
        if state.is_running():
            client.renew_concurrency_lease(lease, 300)
    check_result(run, run.completed())
    assert run.states().count("Running") == 1, "it did not start again"


def test_mlflow_is_away(stack: Stack) -> None:
    """MLflow is killed while a run trains and comes back after the run has asked for the champion, and was not told.

    It asks again and registers, and every metric is there afterwards.
    """
    run = _underway(stack, "mlflow-away")
    stack.kill("mlflow")
    _until(lambda: "Retry 1/" in run.log(), run, "a question without an answer")
    assert _trained(run)
    stack.start("mlflow")
    summary = run.completed()
    check_result(run, summary)
    assert "did not answer" not in json.dumps(summary["gate"])
    points = run.history(summary["mlflow_run_id"], "grpo/loss")
    assert points == list(range(1, STEPS + 1))


def test_postgres_restarts(stack: Stack) -> None:
    """The database of both servers is stopped as by a crash while a run trains, and comes back when it has."""
    run = _underway(stack, "postgres-away")
    stack.postgres.stop()
    _until(lambda: _trained(run), run, "the last step")
    stack.postgres.start()
    summary = run.completed()
    check_result(run, summary)
    assert run.history(summary["mlflow_run_id"], "grpo/loss") == list(range(1, STEPS + 1))


def test_prefect_is_away_for_long(stack: Stack) -> None:
    """A run that died meanwhile is found and goes on; one that lives is put back beside itself, and ends as one run."""
    alive = _underway(stack, "outlives")
    training = alive.process("training")
    assert training
    # It takes as long as the rest of this.
    training.suspend()
    dead = _underway(stack, "outlived", pool="t4")
    stack.kill("prefect")
    stack.kill("worker-t4")
    for process in dead.processes():
        process.kill()
    stack.let_time_pass(3600)
    stack.start("prefect", "worker-t4")
    _until(lambda: "Resuming" in alive.states(), alive, "being taken for dead")
    _until(lambda: alive.states().count("Running") == 2, alive, "a second process")
    assert len([process for process in alive.processes() if "prefect.engine" in process.cmdline()]) == 2
    training.resume()
    for run in (dead, alive):
        check_result(run, run.completed())
        assert not {"Failed", "GivenUp"} & set(run.states()), run.states()
