"""SIGTERM, as a service manager, a container's end or a person who cancels sends it: what was trained is kept."""

import json
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from services import start

from e2e.stack import ROOT, WAIT_SECONDS, Run, Stack, check_result, gone_within

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

STEPS = 60
UNSAVED = {"steps": STEPS, "save_steps": 10 * STEPS}
"""A training that saves nothing of GRPO unless it is told to stop."""
SECONDS = 30


def _until(condition: Callable[[], Any], run: Run, what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come: {run.states()}\n{run.log()}"
        time.sleep(0.1)


def _held(run: Run) -> psutil.Process:
    """The run's training, halted in one of its first steps: it must not be through before it is told to stop."""
    _until(lambda: _steps(run), run, "a step of GRPO")
    training = _process(run, "training")
    training.suspend()
    return training


def _process(run: Run, kind: str) -> psutil.Process:
    found = run.process(kind)
    assert found, run.states()
    return found


def _steps(run: Run) -> list[int]:
    return [row["step"] for row in run.rows() if row["phase"] == "grpo"]


def _nothing_was_repeated(run: Run) -> None:
    assert _steps(run) == list(range(1, STEPS + 1)), "each step was trained once, in order"


def test_runs_that_are_told_to_stop(stack: Stack) -> None:
    """Each saves its last step, says that it has stopped, and goes on from there: with the worker, or without it."""
    stopped, preempted = (stack.train(pool, stack.config(f"stopped-{pool}", grpo=UNSAVED)) for pool in ("t4", "cpu"))
    trainings = [_held(run) for run in (stopped, preempted)]
    told = _process(preempted, "flow")
    for process in (told, psutil.Process(stack.started["worker-t4"].process.pid)):
        process.terminate()
    for training in trainings:
        training.resume()
    stack.ended("worker-t4", SECONDS)
    assert stopped.processes() == [], "the run outlived its worker"
    assert stopped.states()[-1] in ("Crashed", "Resuming"), stopped.states()
    assert not gone_within(lambda: [process for process in [told] if process.is_running()], SECONDS)
    assert _steps(stopped)[-1] < STEPS
    stack.start("worker-t4")
    for run in (stopped, preempted):
        check_result(run, run.completed())
        _nothing_was_repeated(run)
        assert run.states().count("Running") == 2


def test_an_evicted_pod(stack: Stack) -> None:
    """What a pod of the Kubernetes template runs saves its last step on SIGTERM, and the run is scheduled again."""
    template = json.loads((ROOT / "deployments/kubernetes-t4.json").read_text(encoding="utf-8"))
    settings = template["variables"]["properties"]["env"]["default"]
    behaviour = {name: value for name, value in settings.items() if name.startswith("PREFECT_")}
    stack.kill("worker-cpu")
    run = stack.train("cpu", stack.config("evicted", grpo=UNSAVED))
    command = ["prefect", "flow-run", "execute", run.id]
    pod = start(command, stack.root / "pod.log", stack.environment | behaviour, ROOT)
    training = _held(run)
    pod.process.terminate()
    training.resume()
    pod.process.wait(SECONDS)
    assert run.processes() == []
    assert run.states()[-1] == "AwaitingRetry", pod.log.read_text()
    assert _steps(run)[-1] < STEPS
    stack.start("worker-cpu")
    check_result(run, run.completed())
    _nothing_was_repeated(run)


def test_a_cancelled_run(stack: Stack) -> None:
    """It ends in seconds and keeps what it trained; the next run of these settings has its slot and goes on there."""
    config = stack.config("cancelled", grpo=UNSAVED)
    run = stack.train("t4", config)
    training = _held(run)
    following = stack.train("t4", config)
    following.wait(lambda state: state.name == "AwaitingConcurrencySlot", "was to wait for the slot")
    stack.run("prefect", "flow-run", "cancel", str(run.id))
    training.resume()
    assert not gone_within(run.processes, SECONDS), "a cancelled run has processes left"
    kept = _steps(run)
    assert kept[-1] < STEPS
    _until(lambda: (state := run.state()) and state.is_final(), run, "its end")
    assert run.state().name == "Cancelled"
    check_result(following, following.completed())
    _nothing_was_repeated(following)
    assert run.state().name == "Cancelled", "it is not put back"
