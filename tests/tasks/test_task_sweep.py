"""How a sweep's trials run in Prefect, and what their states mean."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed, Crashed, Failed, Running

import tasks.sweep as module
from medgrpo.config import RunConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.sweep.settings import TrialConfig
from medgrpo.sweep.trials import Proposal, Result
from medgrpo.testing import tiny_config

FOUND = Result("complete", (0.4, 0.1, 0.9))


@pytest.fixture
def proposal(tmp_path: Path) -> Proposal:
    """Trial 2."""
    trial = TrialConfig(sweep="s", study="s", number=2, parent="p")
    return Proposal(2, {"grpo.beta": 0.1}, RunConfig(name="s-002", runs_dir=tmp_path, trial=trial))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow holds a result."""
    monkeypatch.setattr(module, "read_trial", lambda config: FOUND)


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize(
    ("message", "state", "reason"),
    [
        ("Flow run encountered an exception: TrialPruned: up to step 3.", "pruned", "up to step 3."),
        ("Flow run encountered an exception: TrainingAlarm: every completion.", "pruned", "every completion."),
        ("Flow run encountered an exception: InputError: no GPU.", "failed", "no GPU."),
        ("Process exited with code 137", "failed", "Process exited"),
    ],
)
def test_an_alarm_prunes_and_any_other_end_fails(message: str, state: str, reason: str, proposal: Proposal) -> None:
    """A training that was ended on purpose is a pruned trial, any other failure a failed one, each with its reason."""
    result = module._result(Failed(message=message), proposal)
    assert result.state == state
    assert reason in result.reason


def test_a_completed_run_is_read_from_mlflow(proposal: Proposal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values count; a refusal fails the trial, and where MLflow stays away the sweep ends and can go on later."""
    monkeypatch.setattr(module, "read_trial", lambda config: FOUND)
    assert module._result(Completed(), proposal) == FOUND

    def away(config: RunConfig) -> Result:
        raise ServiceUnreachable("MLflow did not answer.")

    def refuses(config: RunConfig) -> Result:
        raise InputError("MLflow refused.")

    monkeypatch.setattr(module, "read_trial", refuses)
    assert module._result(Completed(), proposal) == Result("failed", reason="MLflow refused.")
    monkeypatch.setattr(module, "read_trial", away)
    with pytest.raises(ServiceUnreachable, match="did not answer"):
        module._result(Completed(), proposal)


class FakeClient:
    """A Prefect server with one run; `key` is what it was asked for by."""

    def __init__(self, state: State[Any] | Exception) -> None:
        self.state = state

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read_flow_run(self, run_id: object) -> Any:
        if isinstance(self.state, Exception):
            raise self.state
        return type("FlowRun", (), {"state": self.state})


def _crashed(age: timedelta) -> State[Any]:
    return Crashed(timestamp=datetime.now(UTC) - age)


@pytest.mark.parametrize(
    ("state", "final"),
    [
        (Running(), False),
        (Completed(), True),
        (Failed(), True),
        (timedelta(seconds=5), False),
        (timedelta(minutes=10), True),
        (Crashed(name="GivenUp"), True),
        (State(type=StateType.CANCELLED), True),
        (httpx.ConnectError("refused"), False),
    ],
    ids=lambda given: getattr(given, "name", None) or str(given),
)
def test_only_what_a_run_does_not_leave_is_its_end(
    state: State[Any] | timedelta | Exception, final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash may yet be put right by the automation, and a server that is away says nothing about the trial."""
    # The age of a crash counts from now: between collecting this test and running it minutes may pass.
    state = _crashed(state) if isinstance(state, timedelta) else state
    monkeypatch.setattr(module, "get_client", lambda sync_client: FakeClient(state))
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
    assert (module._final_state(uuid4()) is not None) is final


def test_a_deleted_run_is_a_failed_trial(monkeypatch: pytest.MonkeyPatch, proposal: Proposal) -> None:
    """A run that somebody deleted is not waited for."""
    from prefect.exceptions import ObjectNotFound

    monkeypatch.setattr(module, "get_client", lambda sync_client: FakeClient(ObjectNotFound(http_exc=OSError())))
    state = module._final_state(uuid4())
    assert state
    assert "was deleted" in module._result(state, proposal).reason


def test_without_a_server_trials_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment needs a server; without one, or without a deployment, trials run in the sweep's process."""
    monkeypatch.setattr(module, "get_run_logger", lambda: logging.getLogger("test"))
    server = type("Setting", (), {"value": staticmethod(lambda: "http://prefect/api")})
    none = type("Setting", (), {"value": staticmethod(lambda: None)})
    training: Any = object()

    def found(setting: Any, **sweep: Any) -> tuple[str, int]:
        monkeypatch.setattr(module, "PREFECT_API_URL", setting)
        runner = module.find_runner(tiny_config(tmp_path, sweep=sweep), "s", training)
        return type(runner).__name__, runner.capacity

    assert found(server, deployment="a/b", parallel=3) == ("Deployed", 3)
    assert found(server, parallel=3) == ("InProcess", 1)
    assert found(none, deployment="a/b", parallel=3) == ("InProcess", 1)


def test_in_process_a_trial_is_a_run_of_the_flow(proposal: Proposal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is known when it was started; the chosen one's summary is what the flow returns."""
    monkeypatch.setattr(module, "read_trial", lambda config: FOUND)
    ran: list[Any] = []

    def training(config: RunConfig, reason: str = "", return_state: bool = False) -> Any:
        ran.append((config.name, reason))
        return Completed() if return_state else {"name": config.name}

    runner = module.InProcess(training)  # type: ignore[arg-type]
    runner.start(proposal)
    assert runner.ended(proposal) == FOUND
    assert proposal.config
    assert runner.finish(proposal.config, "why") == {"name": "s-002"}
    assert ran == [("s-002", ""), ("s-002", "why")]
