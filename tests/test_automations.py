"""Runs that die come back by themselves, up to a bound, and people are told: on a real Prefect server with a worker."""

import json
import os
import signal
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from services import Started, free_port, kill, postgres, start, wait_for
from typer.testing import CliRunner

from deployments import DECLARED, MANAGED, Declaration
from deployments.__main__ import app
from deployments.automations import DEAD_AFTER, HEARTBEAT_SECONDS, LEAST_SILENCE, RESUMES, Message, Reactions
from medgrpo.errors import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.events.schemas.automations import Automation, AutomationCore

ROOT = Path(__file__).parents[1]
DEAD, RESUMED = "medgrpo: runs without a sign of life have crashed", "medgrpo: crashed runs go on"
GIVEN_UP, ALARMS = "medgrpo: runs that crash again and again are given up", "medgrpo: tell of alarms"

WAIT_SECONDS = 300


# --- what is declared


def test_several_heartbeats_may_be_missed() -> None:
    """Runs read from prefect.toml how often they give a sign of life, and one that is late is not taken for dead."""
    settings = tomllib.loads((ROOT / "prefect.toml").read_text())
    assert settings["flows"]["heartbeat_frequency"] == HEARTBEAT_SECONDS
    assert DEAD_AFTER >= 3 * HEARTBEAT_SECONDS
    assert LEAST_SILENCE > 30, "Prefect's own least time between heartbeats"


def test_live_runs_are_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence that runs keep between two signs of life is refused before a server is asked."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for arguments in (["apply", "--dead-after", str(HEARTBEAT_SECONDS)], ["check", "--dead-after", "50"]):
        refused = CliRunner().invoke(app, arguments)
        assert refused.exit_code == InputError.exit_code
        assert f"they give one every {HEARTBEAT_SECONDS} s" in refused.output


def test_nobody_is_told_unless_asked_for() -> None:
    """Without a block there are no messages; with one, there is one each for failures, alarms and candidates."""
    assert not [each for each in Reactions().automations() if isinstance(each.action, Message)]
    told = [each for each in Reactions(notify="slack-webhook/ops").automations() if isinstance(each.action, Message)]
    assert [each.name.rpartition(" ")[2] for each in told] == ["failures", "alarms", "candidates"]
    assert all("\nRun: {{" in each.action.body for each in told if isinstance(each.action, Message))


def test_crashed_runs_can_be_left_alone() -> None:
    """With no resumes nothing puts a crashed run back; dead ones are still marked."""
    names = [each.name for each in Reactions(resumes=0).automations()]
    assert RESUMED not in names
    assert DEAD in names


def test_heartbeats_do_not_keep_a_crashed_run_from_going_on() -> None:
    """A run taken for dead by mistake still sends them; only a state that it was given since ends the wait."""
    [resumed] = [each for each in Reactions().automations() if each.name == RESUMED]
    assert "prefect.flow-run.heartbeat" not in resumed.until
    assert {"prefect.flow-run.GivenUp", "prefect.flow-run.Running"} <= set(resumed.until)
    assert not any("*" in event for event in resumed.until)


def test_list_of_automations() -> None:
    """`list --automations` shows each with the events that it is about, how long it waits, and how often it acts."""
    rows = json.loads(CliRunner().invoke(app, ["list", "--automations", "--json"]).stdout)
    by_name = {row["automation"]: row for row in rows}
    assert len(by_name) == len(rows) == 8
    assert (by_name[DEAD]["on"], by_name[DEAD]["silence"]) == (["heartbeat", "Running"], DEAD_AFTER)
    assert (by_name[GIVEN_UP]["on"], by_name[GIVEN_UP]["count"]) == (["Crashed"], RESUMES + 1)
    assert DEAD in CliRunner().invoke(app, ["list", "--automations"]).stdout


# --- a server is brought in line


def _with(**reactions: Any) -> Declaration:
    return replace(DECLARED, reactions=Reactions(**reactions))


def _apply(client: "SyncPrefectClient", declaration: Declaration = DECLARED) -> list[str]:
    from deployments import server

    return list(server.apply(client, declaration))


def _differences(client: "SyncPrefectClient", declaration: Declaration = DECLARED) -> set[tuple[str, str]]:
    from deployments import server

    return {(difference.thing, difference.setting) for difference in server.differences(client, declaration)}


def _find(client: "SyncPrefectClient", name: str) -> "Automation":
    [found] = client.read_automations_by_name(name)
    return found


def _copy(automation: "Automation", **changes: Any) -> "AutomationCore":
    from prefect.events.schemas.automations import AutomationCore

    return AutomationCore.model_validate({**automation.model_dump(exclude={"owner_resource"}), **changes})


@pytest.fixture
def client(
    prefect_server: None, declared_once: Callable[[Any], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Iterator["SyncPrefectClient"]:
    """A client of a server where everything declared is deployed, without messages."""
    from prefect.client.orchestration import get_client

    monkeypatch.setattr("deployments.server._declared_deployment", declared_once)
    with get_client(sync_client=True) as client:
        _apply(client)
        yield client


@pytest.fixture
def block(prefect_server: None) -> str:
    """TYPE/NAME of a block that can pass on messages."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    CustomWebhookNotificationBlock(name="ops", url="http://127.0.0.1:9/").save("ops", overwrite=True)
    return "custom-webhook/ops"


@pytest.mark.slow
def test_a_second_time_changes_nothing(client: "SyncPrefectClient", block: str) -> None:
    """Automations are made once, with messages or without; then nothing differs and nothing changes."""
    assert _apply(client) == []
    assert _differences(client, _with(notify=block)) >= {(f"automation {ALARMS}", "exists")}
    assert len(_apply(client, _with(notify=block))) == 3
    assert _apply(client, _with(notify=block)) == []
    assert _differences(client, _with(notify=block)) == set()


@pytest.mark.slow
def test_without_a_block_the_messages_go(client: "SyncPrefectClient", block: str) -> None:
    """Deployed without a block again, the automations that told people are named and removed."""
    _apply(client, _with(notify=block))
    assert (f"automation {ALARMS}", "exists") in _differences(client)
    assert f"automation {ALARMS}: removed, as it is not declared any more" in _apply(client)
    assert client.read_automations_by_name(ALARMS) == []
    assert _differences(client) == set()


@pytest.mark.slow
def test_drift_is_named_and_repaired(client: "SyncPrefectClient") -> None:
    """What somebody changed by hand, and a setting that was given another value, are rows of the check and set back."""
    found = _find(client, RESUMED)
    client.update_automation(found.id, _copy(found, description="mine"))
    client.delete_automation(_find(client, DEAD).id)
    wanted = {(f"automation {RESUMED}", "description"), (f"automation {DEAD}", "exists")}
    assert _differences(client) == wanted
    assert set(_apply(client)) == {f"automation {RESUMED}: updated description", f"automation {DEAD}: created"}
    assert _differences(client) == set()
    assert _differences(client, _with(resumes=1)) == {(f"automation {GIVEN_UP}", "trigger")}


@pytest.mark.slow
def test_a_paused_automation_stays_paused(client: "SyncPrefectClient") -> None:
    """What a person switched off is no difference, and stays off when something else about it is updated."""
    client.pause_automation(_find(client, GIVEN_UP).id)
    assert _differences(client) == set()
    assert _apply(client, _with(resumes=1)) == [f"automation {GIVEN_UP}: updated trigger"]
    assert not _find(client, GIVEN_UP).enabled
    client.resume_automation(_find(client, GIVEN_UP).id)
    _apply(client)
    assert _find(client, GIVEN_UP).enabled


@pytest.mark.slow
def test_one_that_is_there_twice_is_there_once(client: "SyncPrefectClient") -> None:
    """Two deploys at the same time may both make an automation, and a crash would count twice: one of them goes."""
    found = _find(client, RESUMED)
    twin = client.create_automation(_copy(found))
    assert _differences(client) == {(f"automation {RESUMED}", "exists")}
    assert len(_apply(client)) == 1
    assert _find(client, RESUMED).id in (found.id, twin)


@pytest.mark.slow
def test_what_others_automated_is_left_alone(client: "SyncPrefectClient") -> None:
    """An automation without our tag is somebody else's, even with the name of one of ours."""
    found = _find(client, RESUMED)
    theirs = client.create_automation(_copy(found, tags=["mine"]))
    assert _differences(client) == set()
    assert _apply(client) == []
    assert client.read_automation(theirs) is not None
    client.delete_automation(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notify", "sentence"),
    [
        ("ops", r"--notify \(MEDGRPO_NOTIFY\) is 'ops'. Expected TYPE/NAME"),
        ("custom-webhook/nobody", r"no block custom-webhook/nobody"),
        ("no-such-type/ops", r"no block no-such-type/ops"),
        ("secret/ops", r"block secret/ops, .* cannot pass on messages"),
    ],
)
def test_a_block_that_cannot_pass_on_messages(client: "SyncPrefectClient", notify: str, sentence: str) -> None:
    """A block that is not there, or is of the wrong kind, ends in a sentence before anything is changed."""
    from prefect.blocks.system import Secret

    Secret(value="x").save("ops", overwrite=True)
    with pytest.raises(InputError, match=sentence):
        _apply(client, replace(_with(notify=notify), deployments=()))
    assert _differences(client) == set()


# --- runs that die, for real

FLOWS = f'''
"""Flows that die, wait or tell; each writes a letter for each attempt into a file of its own."""
import os, signal, sys, time
from pathlib import Path
from prefect import flow

HERE = Path(__file__).parent

def attempt(name):
    with (HERE / name).open("a") as file:
        file.write("x")
    return len((HERE / name).read_text())

@flow
def dies(name: str, times: int):
    if attempt(name) <= times:
        os.kill(os.getpid(), signal.SIGKILL)

@flow
def fails(name: str):
    attempt(name)
    raise ValueError("Something is wrong.")

@flow
def waits(name: str):
    attempt(name)
    (HERE / f"{{name}}.pid").write_text(str(os.getpid()))
    while not (HERE / f"{{name}}.go").exists():
        time.sleep(0.2)

@flow
def asks(name: str):
    sys.path.insert(0, {str(ROOT)!r})
    import tasks.review
    from prefect.context import FlowRunContext
    from prefect.events import emit_event

    run, suspend = FlowRunContext.get().flow_run, tasks.review.suspend_flow_run

    def with_a_late_heartbeat(**options):
        try:
            return suspend(**options)
        finally:
            emit_event("prefect.flow-run.heartbeat", {{"prefect.resource.id": f"prefect.flow-run.{{run.id}}"}})

    tasks.review.suspend_flow_run = with_a_late_heartbeat
    attempt(name)
    shown = tasks.review.Shown(name="m", version=2, digest="abc", replaces="1", as_candidate=True)
    answer = tasks.review.ask(shown)
    if not (HERE / f"{{name}}.answer").exists():
        (HERE / f"{{name}}.answer").write_text(answer.note)
        os.kill(os.getpid(), signal.SIGKILL)

@flow
def tells(name: str):
    sys.path.insert(0, {str(ROOT)!r})
    from medgrpo.config import RunConfig
    from tasks.events import Alarms, emit
    config = RunConfig(name="night", profile="demo")
    alarms = Alarms(config)
    for step in (7, 8):
        alarms.look({{"step": step, "alarms": {{"kl": 'It "wandered" off.'}}}})
    emit("medgrpo.candidate", config, {{"model": "medgrpo-synthetic", "version": 3, "digest": "abc"}})

@flow
def prunes(name: str):
    sys.path.insert(0, {str(ROOT)!r})
    from medgrpo.config import RunConfig
    from medgrpo.errors import TrialPruned
    from medgrpo.sweep.settings import TrialConfig
    from tasks.running import prunable

    @prunable
    def training(config: RunConfig):
        raise TrialPruned("behind the others")

    return training(RunConfig(trial=TrialConfig(sweep="s", study="s", number=0, parent="p")))
'''


class Inbox(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    received: list[dict[str, str]]

    def do_POST(self) -> None:
        """Keep a message."""
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def _prefect(log: Path, *command: str) -> Iterator[Started]:
    """A command of Prefect; at its end it, and what it runs in its group, is killed."""
    started = start([sys.executable, "-m", "prefect", *command], log, os.environ, log.parent)
    try:
        yield started
    finally:
        kill(started)


@dataclass
class Service:
    """A Prefect server, a client of it, an inbox that it posts to, and a directory for its workers and their flows."""

    client: "SyncPrefectClient"
    directory: Path
    inbox: list[dict[str, str]]

    @contextmanager
    def worker(self) -> Iterator[None]:
        """A process worker of the pool; at its end it, and what it runs, is killed."""
        with _prefect(self.directory / "worker.log", "worker", "start", "--pool", "here", "--type", "process"):
            yield

    def deploy(self) -> None:
        """Deploy the flows; a declaration that is applied knows nothing of them, and removes them."""
        from prefect.deployments.runner import RunnerDeployment

        settings: dict[str, Any] = {"job_variables": {"working_dir": str(self.directory)}, "work_pool_name": "here"}
        for flow in ("dies", "fails", "waits", "asks", "tells", "prunes"):
            RunnerDeployment.from_entrypoint(f"dying.py:{flow}", flow, tags=[MANAGED], **settings).apply()

    def start(self, name: str, flow: str, **parameters: Any) -> "FlowRun":
        """A flow run, scheduled at once."""
        deployment = self.client.read_deployment_by_name(f"{flow}/{flow}")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters={"name": name, **parameters})

    def late_heartbeat(self, run: "FlowRun") -> None:
        """Let a heartbeat of a run arrive that has nothing to come after it."""
        related = [
            {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{run.deployment_id}"},
            {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{MANAGED}"},
        ]
        resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
        event = {"event": "prefect.flow-run.heartbeat", "resource": resource, "related": related}
        sent = {**event, "id": str(uuid4()), "occurred": datetime.now(UTC).isoformat()}
        self.client.request("POST", "/events", json=[sent]).raise_for_status()

    def has_left(self, run: "FlowRun", times: int = 1) -> bool:
        """Whether the run was suspended so often, and the server knows that its process has nothing more to say."""
        these = {"event": {"name": ["prefect.flow-run.left"]}, "resource": {"id": [f"prefect.flow-run.{run.id}"]}}
        found = self.client.request("POST", "/events/filter", json={"filter": these})
        return self.ends_as(run, "Suspended") and len(found.raise_for_status().json()["events"]) == times

    def attempts(self, name: str) -> int:
        """How often a run was begun."""
        path = self.directory / name
        return len(path.read_text()) if path.is_file() else 0

    def states(self, run: "FlowRun") -> list[str]:
        """The names of a run's states so far."""
        states = self.client.read_flow_run_states(run.id)
        return [str(state.name) for state in sorted(states, key=lambda state: state.timestamp)]

    def wait(self, what: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not what():
            log = (self.directory / "worker.log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"{[self.states(run) for run in self.client.read_flow_runs()]}\n{log}"
            time.sleep(0.5)

    def ends_as(self, run: "FlowRun", name: str) -> bool:
        """Whether the run is in the state now."""
        return self.client.read_flow_run(run.id).state_name == name


@pytest.fixture(scope="module")
def inbox() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Address of an HTTP server, and what was posted to it."""
    Inbox.received = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inbox)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", Inbox.received
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def service(inbox: tuple[str, list[dict[str, str]]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server of its own with the automations, quick ones, and deployments of the flows above."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    directory, port = tmp_path_factory.mktemp("service"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    (directory / "dying.py").write_text(FLOWS)
    names = ("postgres_password", "prefect_database_password", "mlflow_database_password")
    with (
        # With SQLite, Prefect loses events when several arrive at once: "database is locked".
        postgres({name: name for name in names}) as database,
        pytest.MonkeyPatch.context() as patch,
        temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: directory}),
    ):
        connection = f"postgresql+asyncpg://prefect:prefect_database_password@{database.address}/prefect"
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", connection)
        patch.setenv("PREFECT_API_URL", url)
        patch.setenv("PREFECT_HOME", str(directory / "home"))
        patch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
        patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "1")
        patch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
        with (
            _prefect(directory / "server.log", "server", "start", "--host", "127.0.0.1", "--port", str(port)) as server,
            get_client(sync_client=True) as client,
        ):
            service = Service(client, directory, inbox[1])
            (directory / "worker.log").touch()
            wait_for(lambda: client.api_healthcheck() is None, server)
            Webhook(url=inbox[0]).save("ops")
            json_data = {"subject": "{{subject}}", "body": "{{body}}", "through": "custom"}
            CustomWebhookNotificationBlock(name="ops", url=inbox[0], json_data=json_data).save("ops")
            _apply(client, _quick("webhook/ops"))
            client.create_work_pool(WorkPoolCreate(name="here", type="process"))
            patch.chdir(directory)
            service.deploy()
            yield service


def _quick(notify: str) -> Declaration:
    """Nothing but the automations, with the least time that a run may be silent."""
    return Declaration((), (), (), Reactions(dead_after=LEAST_SILENCE, notify=notify))


@pytest.mark.e2e
@pytest.mark.slow
def test_runs_that_die(service: Service) -> None:
    """One story: runs killed, killed for good, failed, pruned, cancelled and orphaned, and who is told what.

    Meanwhile two reviews wait for a person: one in peace, one taken for dead by mistake and killed once it is answered.
    """
    from prefect.flow_runs import resume_flow_run
    from prefect.states import Cancelling

    with service.worker():
        asking, mistaken = service.start("asking", "asks"), service.start("mistaken", "asks")
        killed = service.start("killed", "dies", times=2)
        hopeless = service.start("hopeless", "dies", times=99)
        failed = service.start("failed", "fails")
        cancelled = service.start("cancelled", "waits")
        told = service.start("told", "tells")
        pruned = service.start("pruned", "prunes")
        service.wait(lambda: service.has_left(asking) and service.has_left(mistaken))
        service.late_heartbeat(mistaken)
        service.wait(lambda: (service.directory / "cancelled.pid").exists())
        service.client.set_flow_run_state(cancelled.id, Cancelling())
        # Killed twice, the run goes on each time, as the same run, and completes.
        service.wait(lambda: service.ends_as(killed, "Completed"))
        assert service.attempts("killed") == 3
        assert service.states(killed).count("Resuming") == 2, service.states(killed)
        # One that always dies ends after the bound, and stays where it is.
        service.wait(lambda: service.attempts("hopeless") == 1 + RESUMES and service.ends_as(hopeless, "GivenUp"))
        # A person's decision is final.
        service.wait(lambda: service.ends_as(cancelled, "Cancelled"))
        service.wait(lambda: service.ends_as(told, "Completed"))
        assert service.ends_as(failed, "Failed")
        service.wait(lambda: service.ends_as(pruned, "Pruned"))
        orphan, unstoppable = service.start("orphan", "waits"), service.start("unstoppable", "waits")
        pids = [service.directory / f"{name}.pid" for name in ("orphan", "unstoppable")]
        service.wait(lambda: all(pid.exists() for pid in pids))
        # Taken for dead and put back, the review asks again; were it still about to, it would die with the worker.
        service.wait(lambda: service.has_left(mistaken, times=2))
    # Worker and processes are gone now, and nobody is there to report it.
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)
    assert service.ends_as(orphan, "Running")
    service.client.set_flow_run_state(unstoppable.id, Cancelling())
    service.wait(lambda: service.ends_as(orphan, "Resuming"), seconds=4 * LEAST_SILENCE)
    service.wait(lambda: service.ends_as(unstoppable, "Cancelled"), seconds=4 * LEAST_SILENCE)
    (service.directory / "orphan.go").touch()
    with service.worker():
        service.wait(lambda: service.ends_as(orphan, "Completed"))
        # Once it is answered, a crash does not lose that.
        assert service.states(mistaken).count("Suspended") == 2
        resume_flow_run(mistaken.id, run_input={"note": "better"})
        service.wait(lambda: service.ends_as(mistaken, "Completed"))
        assert (service.directory / "mistaken.answer").read_text() == "better"
        assert service.states(mistaken).count("Crashed") == 2, " → ".join(service.states(mistaken))
    assert (service.attempts("orphan"), service.attempts("unstoppable")) == (2, 1)
    _check_messages(service, hopeless, failed)
    # A minute and more later nothing has moved what had ended.
    assert service.ends_as(asking, "Suspended"), service.states(asking)
    assert (service.attempts("hopeless"), service.attempts("failed"), service.attempts("cancelled")) == (4, 1, 1)
    assert [service.ends_as(run, name) for run, name in ((hopeless, "GivenUp"), (cancelled, "Cancelled"))] == [True] * 2


def _check_messages(service: Service, hopeless: "FlowRun", failed: "FlowRun") -> None:
    """The two failures, the alarm and the candidate were told of once each, and nothing else was."""
    service.wait(lambda: len(service.inbox) >= 4, seconds=120)
    by_subject = {message["subject"]: message["body"] for message in service.inbox}
    assert len(by_subject) == len(service.inbox) == 4, by_subject
    for run, state, why in ((hopeless, "GivenUp", "crashed too often"), (failed, "Failed", "Something is wrong.")):
        body = by_subject[f"medgrpo: {run.name} ended as {state}"]
        assert why in body
        assert f"/runs/flow-run/{run.id}" in body
    alarm = by_subject["medgrpo: alarm kl in night"]
    assert 'at step 7: It "wandered" off.' in alarm
    assert "/runs/flow-run/" in alarm
    candidate = by_subject["medgrpo: medgrpo-synthetic version 3 waits for review"]
    assert "medgrpo review show 3 --profile demo" in candidate
    assert "/runs/flow-run/" in candidate


@pytest.mark.e2e
@pytest.mark.slow
def test_messages_through_a_notification_block(service: Service) -> None:
    """Another block, of Prefect's notification kind, takes over from the next message on."""
    assert "updated actions" in "\n".join(_apply(service.client, _quick("custom-webhook/ops")))
    service.deploy()
    service.inbox.clear()
    with service.worker():
        service.start("again", "tells")
        service.wait(lambda: len(service.inbox) == 2, seconds=120)
    assert {message["through"] for message in service.inbox} == {"custom"}
    assert "medgrpo: alarm kl in night" in [message["subject"] for message in service.inbox]
