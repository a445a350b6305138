"""A real Prefect server is brought in line with what is declared, and nothing of anybody else's is touched."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from deployments import DECLARED, MANAGED, Declaration, Schedule
from deployments.__main__ import app
from medgrpo.errors import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

pytestmark = pytest.mark.slow

TRAIN = "train-medgrpo/train-medgrpo"
CPU = "train-medgrpo/train-medgrpo-cpu"
REVIEW = "review-medgrpo/review-medgrpo"


@pytest.fixture
def client(
    prefect_server: None, declared_once: Callable[[Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator["SyncPrefectClient"]:
    """A client of a server where everything declared is deployed."""
    from prefect.client.orchestration import get_client

    monkeypatch.setattr("deployments.server._declared_deployment", declared_once)
    with get_client(sync_client=True) as client:
        _apply(client)
        yield client


def _apply(client: "SyncPrefectClient", declaration: Declaration = DECLARED) -> list[str]:
    from deployments import server

    return list(server.apply(client, declaration))


def _differences(client: "SyncPrefectClient", declaration: Declaration = DECLARED) -> set[tuple[str, str]]:
    from deployments import server

    return {(difference.thing, difference.setting) for difference in server.differences(client, declaration)}


def _with(name: str, **changes: Any) -> Declaration:
    """What is declared, with one deployment changed."""
    changed = [replace(each, **changes) if each.name == name else each for each in DECLARED.deployments]
    return replace(DECLARED, deployments=tuple(changed))


def _delete(client: "SyncPrefectClient", *full_names: str) -> None:
    """Remove deployments by hand, where they are there."""
    from prefect.exceptions import ObjectNotFound

    for name in full_names:
        with suppress(ObjectNotFound):
            client.delete_deployment(client.read_deployment_by_name(name).id)


def _foreign(client: "SyncPrefectClient", name: str, tags: list[str]) -> "DeploymentResponse":
    """A deployment that was made elsewhere."""
    flow = client.create_flow_from_name("train-medgrpo")
    return client.read_deployment(client.create_deployment(flow, name, work_pool_name="cpu", tags=tags))


def test_a_new_server_is_brought_in_line(prefect_server: None) -> None:
    """`check` names everything that is missing and exits with 1; `apply` makes it; then nothing differs or changes."""
    from prefect.client.orchestration import get_client

    run = CliRunner().invoke
    with get_client(sync_client=True) as client:
        _delete(client, *(each.full_name for each in DECLARED.deployments))
        assert {(f"deployment {each.full_name}", "exists") for each in DECLARED.deployments} <= _differences(client)
        checked = run(app, ["check"])
        assert checked.exit_code == 1
        assert TRAIN in checked.stdout
        applied = run(app, ["apply"])
        assert applied.exit_code == 0, applied.output
        assert f"deployment {TRAIN}: created" in applied.stdout
        assert _apply(client) == []
    checked = run(app, ["check"])
    assert checked.exit_code == 0, checked.output
    assert "as declared" in checked.stdout
    assert run(app, ["check", "--json"]).stdout.strip() == "[]"
    more = run(app, ["check", "--json"], env={"MEDGRPO_T4S": "2"})
    expected = {"thing": "limit medgrpo-t4", "setting": "slots", "deployed": 1, "declared": 2}
    assert (json.loads(more.stdout), more.exit_code) == ([expected], 1)


def test_what_is_deployed(client: "SyncPrefectClient") -> None:
    """A deployment has its pool, queue `default`, the shared named limit, its tags, and runs wait for a slot."""
    found = client.read_deployment_by_name(TRAIN)
    assert (found.work_pool_name, found.work_queue_name, found.enforce_parameter_schema) == ("t4", "default", True)
    assert found.global_concurrency_limit is not None
    assert (found.global_concurrency_limit.name, found.global_concurrency_limit.limit) == ("medgrpo-t4", 1)
    assert set(found.tags) == {"medgrpo", MANAGED}
    assert client.read_work_pool("t4").type == "process"
    assert client.read_deployment_by_name(REVIEW).global_concurrency_limit is None


def test_drift_is_named_and_repaired(client: "SyncPrefectClient") -> None:
    """Whatever somebody changed by hand is a row of the check, and `apply` sets exactly that back."""
    from prefect.client.schemas.actions import DeploymentUpdate, GlobalConcurrencyLimitUpdate, WorkPoolUpdate

    found = client.read_deployment_by_name(TRAIN)
    changed = DeploymentUpdate(description="mine", tags=found.tags, job_variables={"working_dir": "/elsewhere"})
    client.update_deployment(found.id, changed)
    client.update_global_concurrency_limit("medgrpo-t4", GlobalConcurrencyLimitUpdate(limit=5, active=False))
    client.update_work_pool("cpu", WorkPoolUpdate(description="mine"))
    _delete(client, REVIEW)
    assert {
        (f"deployment {TRAIN}", "description"),
        (f"deployment {TRAIN}", "job_variables"),
        ("limit medgrpo-t4", "slots"),
        ("limit medgrpo-t4", "active"),
        ("work pool cpu", "description"),
        (f"deployment {REVIEW}", "exists"),
    } <= _differences(client)
    changes = _apply(client)
    assert "limit medgrpo-t4: updated slots, active" in changes
    assert f"deployment {REVIEW}: created" in changes
    assert _differences(client) == set()


def test_an_altered_profile_differs(client: "SyncPrefectClient") -> None:
    """The profile's settings are the deployed parameters: one that was edited since shows up, and is deployed."""
    assert _differences(client, _with("train-medgrpo", profile="demo")) == {(f"deployment {TRAIN}", "parameters")}


def test_what_is_no_longer_declared_is_removed(client: "SyncPrefectClient") -> None:
    """A deployment of ours that is not declared any more goes, and the limit that it shared with others stays."""
    more = replace(DECLARED.deployments[0], name="train-medgrpo-old")
    _apply(client, replace(DECLARED, deployments=(*DECLARED.deployments, more)))
    assert client.read_deployment_by_name(more.full_name).global_concurrency_limit is not None
    assert _differences(client) == {(f"deployment {more.full_name}", "exists")}
    assert _apply(client) == [f"deployment {more.full_name}: removed, as it is not declared any more"]
    limit = client.read_deployment_by_name(TRAIN).global_concurrency_limit
    assert limit is not None
    assert limit.name == "medgrpo-t4"
    assert _differences(client) == set()


@pytest.mark.parametrize("tags", [[], ["medgrpo"], ["somebody"]], ids=str)
def test_what_others_deployed_is_left_alone(client: "SyncPrefectClient", tags: list[str]) -> None:
    """A deployment without our managed tag is somebody else's, even of our flow and with our other tag."""
    theirs = _foreign(client, "theirs", tags)
    assert _differences(client) == set()
    assert _apply(client) == []
    assert client.read_deployment(theirs.id).updated == theirs.updated
    client.delete_deployment(theirs.id)


def test_schedules(client: "SyncPrefectClient") -> None:
    """A declared schedule is deployed with its time zone; one that a person paused stays so; an undeclared one goes."""
    weekly = _with("review-medgrpo", schedules=(Schedule("0 3 * * 1", "Europe/Zurich"),))
    assert _differences(client, weekly) == {(f"deployment {REVIEW}", "schedules")}
    _apply(client, weekly)
    [schedule] = (found := client.read_deployment_by_name(REVIEW)).schedules
    assert schedule.schedule.model_dump() == {"cron": "0 3 * * 1", "timezone": "Europe/Zurich", "day_or": True}
    assert schedule.active
    client.update_deployment_schedule(found.id, schedule.id, active=False)
    assert _differences(client, weekly) == set()
    _apply(client, _with("review-medgrpo", schedules=(Schedule("0 3 * * 1", "Europe/Zurich"),), description="other"))
    assert [entry.active for entry in client.read_deployment_by_name(REVIEW).schedules] == [False]
    assert _differences(client) == {(f"deployment {REVIEW}", "schedules"), (f"deployment {REVIEW}", "description")}
    _apply(client)
    assert client.read_deployment_by_name(REVIEW).schedules == []


def test_a_limit_of_its_own_becomes_the_shared_one(client: "SyncPrefectClient") -> None:
    """A limit that Prefect made for one deployment alone is replaced by the named one, and not left behind."""
    from prefect.deployments.runner import RunnerDeployment

    _delete(client, CPU)
    flow = "flows/train_medgrpo.py:train_medgrpo"
    RunnerDeployment.from_entrypoint(flow, "train-medgrpo-cpu", concurrency_limit=1, work_pool_name="cpu").apply()
    before = client.read_deployment_by_name(CPU).global_concurrency_limit
    assert before is not None
    _apply(client)
    after = client.read_deployment_by_name(CPU).global_concurrency_limit
    assert after is not None
    assert after.name == "medgrpo-cpu"
    names = {limit.name for limit in client.read_global_concurrency_limits(limit=100, offset=0)}
    assert before.name not in names


def test_a_pool_of_another_type_is_said_so(client: "SyncPrefectClient") -> None:
    """A pool for Kubernetes will do for t4; one of another type, which Prefect cannot change, ends in a sentence."""
    from prefect.client.schemas.actions import WorkPoolCreate

    for kind in ("kubernetes", "docker"):
        client.delete_work_pool("t4")
        client.create_work_pool(WorkPoolCreate(name="t4", type=kind, description=DECLARED.pools[0].description))
        if kind == "kubernetes":
            assert not [thing for thing, _ in _differences(client) if thing == "work pool t4"]
    assert ("work pool t4", "type") in _differences(client)
    with pytest.raises(InputError, match=r"work pool t4 .* is of type docker, where process or kubernetes is expected"):
        _apply(client)
    client.delete_work_pool("t4")


def test_the_second_training_waits_for_a_slot(client: "SyncPrefectClient") -> None:
    """Of two runs of the training, one may start; the other waits, uncancelled, until the first has ended."""
    from prefect.states import Cancelled, Pending

    deployment = client.read_deployment_by_name(TRAIN)

    def start() -> tuple[Any, str]:
        run = client.create_flow_run_from_deployment(deployment.id)
        state = client.set_flow_run_state(run.id, Pending()).state
        return run.id, "" if state is None else str(state.name)

    first, second = start(), start()
    assert [first[1], second[1]] == ["Pending", "AwaitingConcurrencySlot"]
    client.set_flow_run_state(first[0], Cancelled())
    third = start()
    assert third[1] == "Pending"
    client.set_flow_run_state(third[0], Cancelled())


def test_the_server_checks_settings(client: "SyncPrefectClient") -> None:
    """A run takes a changed setting or a profile's name, and refuses a misspelt setting before a worker sees it."""
    from prefect.exceptions import PrefectHTTPStatusError

    deployment = client.read_deployment_by_name(CPU)
    config = deployment.parameters["config"]
    for sent in (config | {"seed": 12}, "demo"):
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"config": sent})
        assert run.parameters["config"] == sent
        # Else a worker of another test would find it, and train.
        client.delete_flow_run(run.id)
    with pytest.raises(PrefectHTTPStatusError, match=r"409|422"):
        client.create_flow_run_from_deployment(deployment.id, parameters={"config": config | {"sede": 12}})


def test_prefects_own_command_takes_the_name_alone(client: "SyncPrefectClient", tmp_path: Path) -> None:
    """In the project `prefect deployment run train-medgrpo` runs it; elsewhere the full name does, and is needed."""
    from prefect.settings import PREFECT_API_URL

    installed = {plugin.name for plugin in entry_points(group="prefect.plugins")}
    assert "medgrpo" in installed, "medgrpo was installed before it had this plugin: install it again"
    environment = os.environ | {"PREFECT_API_URL": str(PREFECT_API_URL.value())}
    prefect = [str(Path(sys.executable).with_name("prefect")), "deployment", "run"]
    tried = [(Path.cwd(), "train-medgrpo"), (tmp_path, TRAIN), (tmp_path, "train-medgrpo")]
    started = [
        subprocess.Popen([*prefect, name], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for place, name in tried
    ]
    said = [process.communicate(timeout=120)[0].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0, 1], "\n".join(said)
    assert all(f"Creating flow run for deployment '{TRAIN}'" in output for output in said[:2])


def test_an_unreachable_server_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no server answers, `check` ends with a sentence that says what to do, and not with a traceback."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 2
    assert "no Prefect server answered at http://127.0.0.1:9/api" in result.output
    assert "prefect server start" in result.output
