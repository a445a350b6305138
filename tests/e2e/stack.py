"""The whole service on this machine: PostgreSQL, a Prefect server, MLflow, workers; its runs, and what they left."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx
import psutil
from services import Postgres, Started, free_port, kill, start, stop, wait_for

from medgrpo.config import RunConfig
from medgrpo.testing import tiny_config
from medgrpo.training.metrics import parse_rows, read_metrics

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 300
DEAD_AFTER = 60
TRAIN = {"t4": "train-medgrpo/train-medgrpo", "cpu": "train-medgrpo/train-medgrpo-cpu"}
"""The deployment that trains in each pool."""
HOOK = """
import atexit, gc, os, signal, traceback

# Most of what these processes do is importing, and the collector would walk what is there over and over.
gc.set_threshold(100_000, 20, 100)

path = os.path.join({directory!r}, str(os.getpid()))

def tell(number, frame):
    with open(path, "a") as file:
        file.write("".join(reversed(traceback.format_stack(frame))) + "\\n")

signal.signal(signal.SIGUSR1, tell)
# While the interpreter ends, it takes its handlers away.
atexit.register(signal.signal, signal.SIGUSR1, signal.SIG_IGN)
open(path, "w").close()
"""
"""Read by every Python process of the service at its start: from when its file is there, SIGUSR1 adds to it what the
main thread is doing, innermost call first."""


@dataclass
class Stack:
    """The services, each under its name: "prefect", "mlflow", "worker-t4", "worker-cpu".

    Attributes:
        root: a directory for everything that they keep.
        postgres: the running database server.
    """

    root: Path
    postgres: Postgres
    started: dict[str, Started] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=lambda: {"prefect": free_port(), "mlflow": free_port()})

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow']}"

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['prefect']}/api"

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the service finds set; by PREFECT_HOME they are known."""
        password = self.postgres.passwords["prefect_database_password"]
        database = f"postgresql+asyncpg://prefect:{password}@{self.postgres.address}/prefect"
        return {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREFECT_HOME": str(self.root / "prefect"),
            "PREFECT_API_URL": self.prefect_url,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_UI_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            # As often as Prefect allows: a run that died is missed sooner.
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PGPASSWORD": self.postgres.passwords["mlflow_database_password"],
            "PYTHONPATH": f"{self.root / 'hook'}:{os.environ.get('PYTHONPATH', '')}",
        }

    def command(self, name: str) -> list[str]:
        """A service's command line."""
        if name == "prefect":
            return ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.ports["prefect"])]
        if name == "mlflow":
            store = f"--backend-store-uri=postgresql+psycopg://mlflow@{self.postgres.address}/mlflow"
            place = ["--host=127.0.0.1", f"--port={self.ports['mlflow']}", "--workers=1"]
            artifacts = f"--artifacts-destination={self.root / 'artifacts'}"
            return ["mlflow", "server", *place, store, "--serve-artifacts", artifacts]
        return ["python", "-m", "deployments.worker", "--pool", name.removeprefix("worker-"), "--type", "process"]

    # --- services

    def prepare(self) -> None:
        """Make what the processes and the runs expect."""
        tiny_config(self.root)
        (self.root / "stacks").mkdir()
        (self.root / "hook").mkdir()
        hook = HOOK.format(directory=str(self.root / "stacks"))
        (self.root / "hook" / "sitecustomize.py").write_text(hook)

    def start(self, *names: str) -> None:
        """Start services and wait until they answer."""
        for name in names:
            log = self.root / f"{name}.log"
            self.started[name] = start(self.command(name), log, self.environment, ROOT)
        for name in names:
            wait_for(lambda name=name: self._answers(name), self.started[name])

    def _answers(self, name: str) -> bool:
        """Whether a service is up; one that has ended never will be."""
        process, log = self.started[name]
        assert process.poll() is None, log.read_text()[-4000:]
        if name.startswith("worker"):
            return "started!" in log.read_text()
        url = f"{self.mlflow_url}/health" if name == "mlflow" else f"{self.prefect_url}/ready"
        try:
            return httpx.get(url, timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self, name: str) -> None:
        """SIGKILL of a service's processes; what a worker has started goes on."""
        started = self.started.pop(name)
        kill(started)
        self._put_away(started)

    def ended(self, name: str, seconds: float) -> None:
        """A service that was told to stop has stopped within so many seconds."""
        started = self.started.pop(name)
        try:
            started.process.wait(seconds)
        finally:
            kill(started)
            self._put_away(started)

    def _put_away(self, started: Started) -> None:
        """Keep the log of a process that has ended apart: the next one's start is told by its own lines."""
        started.log.replace(started.log.with_suffix(f".{started.process.pid}.log"))

    def stop_all(self) -> None:
        """End everything; whatever has not gone by itself is killed."""
        for name in reversed(list(self.started)):
            stop(self.started.pop(name))
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()

    def let_time_pass(self, seconds: int) -> None:
        """Let what the Prefect server, which must be down, last heard of its runs lie so much further in the past."""
        shift = {"automation_bucket": ("start", '"end"'), "flow_run_state": ("timestamp",)}
        statements = [
            f"UPDATE {table} SET " + ", ".join(f"{column} = {column} - interval '{seconds} s'" for column in columns)
            for table, columns in shift.items()
        ]
        place = {"PGHOST": str(self.postgres.directory), "PGPORT": str(self.postgres.port), "PGUSER": "postgres"}
        self.postgres.run("psql", "--dbname=prefect", *(f"--command={each}" for each in statements), **place)

    def run(self, *command: str) -> str:
        """Run a command as a person would, in the project's directory; returns what it printed."""
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def client(self) -> "SyncPrefectClient":
        """A client of the Prefect server."""
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(self.prefect_url)

    def processes(self, **environment: str) -> list[psutil.Process]:
        """Processes of the service, those with the given variables in their environment."""
        wanted = {"PREFECT_HOME": str(self.root / "prefect"), **environment}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if wanted.items() <= process.environ().items() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    # --- runs

    def config(self, name: str, **changes: Any) -> RunConfig:
        """Settings of a tiny run with a runs directory, an MLflow experiment and a registered model of its own."""
        tracking = {"uri": self.mlflow_url, "experiment": name, "model_name": name}
        return tiny_config(self.root, name=name, runs_dir=self.root / name, tracking=tracking, **changes)

    def launch(self, deployment: str, name: str, **parameters: Any) -> "Run":
        """Start a run of a deployment over the API."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            run = client.create_flow_run_from_deployment(found.id, parameters=parameters, name=name)
        return Run(self, run.id)

    def train(self, pool: str, config: RunConfig) -> "Run":
        """Start a training in a pool."""
        run = self.launch(TRAIN[pool], str(config.name), config=config.model_dump(mode="json"))
        run.config = config
        return run


@dataclass
class Run:
    """A flow run of the service."""

    stack: Stack
    id: UUID
    config: RunConfig | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def directory(self) -> Path:
        """The run's own directory."""
        assert self.config
        return self.config.runs_dir / str(self.config.name)

    @property
    def artifacts(self) -> Path:
        """Where its stages keep what they made."""
        assert self.config
        return self.config.runs_dir / ".artifacts"

    def state(self) -> Any:
        """Its state; None while the server does not answer."""
        from prefect.exceptions import PrefectHTTPStatusError

        try:
            with self.stack.client() as client:
                return client.read_flow_run(self.id).state
        except (httpx.TransportError, PrefectHTTPStatusError):
            return None

    def states(self) -> list[str]:
        """The names of all the states it was in."""
        with self.stack.client() as client:
            return [state.name for state in sorted(client.read_flow_run_states(self.id), key=lambda s: s.timestamp)]

    def wait(self, reached: Callable[[Any], bool], what: str, seconds: float = WAIT_SECONDS) -> Any:
        """Wait for a state; one that a run does not leave by itself ends the wait."""
        limit = time.monotonic() + seconds
        while True:
            state = self.state()
            if state and reached(state):
                return state
            failed = state and (state.is_failed() or state.is_cancelled())
            if failed or time.monotonic() > limit:
                raise AssertionError(f"{what}: {self.states()}, {state and state.message}\n{self.log()}")
            time.sleep(0.5)

    def completed(self, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """Wait until it is completed; returns its summary."""
        self.wait(lambda state: state.is_completed(), "was to complete", seconds)
        return json.loads((self.directory / "summary.json").read_text())

    def log(self) -> str:
        """The last lines that it logged to the server."""
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

        with self.stack.client() as client:
            lines = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[self.id])), limit=200)
        return "\n".join(f"{line.timestamp:%H:%M:%S} {line.message}" for line in lines)[-6000:]

    def processes(self) -> list[psutil.Process]:
        """Its processes: supervisor, flow and training."""
        return self.stack.processes(PREFECT__FLOW_RUN_ID=str(self.id))

    def process(self, kind: str) -> psutil.Process | None:
        """The process of a kind, "training" or "flow"; None while there is none."""
        module = {"training": "medgrpo.training", "flow": "prefect.engine"}[kind]
        for process in self.processes():
            with suppress(psutil.Error):
                if any(module in word for word in process.cmdline()):
                    return process
        return None

    def work(self) -> Path | None:
        """The directory in which it trains, or has trained."""
        return next(iter(self.artifacts.glob("train-*[!k]")), None)

    def rows(self) -> list[dict[str, Any]]:
        """What its training has written to metrics.jsonl; a step that was repeated is there again."""
        work = self.work()
        path = work / "metrics.jsonl" if work else None
        return list(parse_rows(path.read_text())) if path and path.is_file() else []

    def data_digest(self) -> str:
        """Digest of the data it trained on."""
        return str(json.loads((self.directory / "data" / "manifest.json").read_text())["sha256"])

    def versions(self) -> list[Any]:
        """All versions of its registered model."""
        assert self.config
        client, name = self._mlflow(), f"{self.config.tracking.model_name}-synthetic"
        # A search leaves out the aliases.
        return [
            client.get_model_version(name, found.version) for found in client.search_model_versions(f"name='{name}'")
        ]

    def mlflow_runs(self) -> list[str]:
        """All runs of its MLflow experiment."""
        assert self.config
        client = self._mlflow()
        experiment = client.get_experiment_by_name(self.config.tracking.experiment)
        return [run.info.run_id for run in client.search_runs([experiment.experiment_id])] if experiment else []

    def history(self, mlflow_run: str, metric: str) -> list[int]:
        """The steps of a metric that MLflow knows."""
        return sorted(point.step for point in self._mlflow().get_metric_history(mlflow_run, metric))

    def _mlflow(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.stack.mlflow_url, self.stack.mlflow_url)


def check_result(run: Run, summary: dict[str, Any], digest: str | None = None) -> None:
    """One version with one MLflow run and its report, every step, the same data, and no process left."""
    assert [str(version.version) for version in run.versions()] == ["1"]
    assert run.mlflow_runs() == [summary["mlflow_run_id"]] == [run.versions()[0].run_id]
    assert (run.directory / "report.html").is_file()
    assert summary["model"]["version"] == 1
    steps = [(row["phase"], row["step"]) for row in read_metrics(run.directory / "train" / "metrics.jsonl")]
    last = {row["phase"]: row["steps"] for row in run.rows()}
    assert steps == [(phase, step) for phase in ("warmup", "grpo") for step in range(1, last[phase] + 1)]
    if digest:
        assert run.data_digest() == digest
    leftover = [" ".join(process.cmdline()) for process in gone_within(run.processes, 30)]
    assert leftover == []


def gone_within(processes: Callable[[], list[psutil.Process]], seconds: float) -> Iterable[psutil.Process]:
    """What is still there of processes after so many seconds."""
    limit = time.monotonic() + seconds
    while (left := processes()) and time.monotonic() < limit:
        time.sleep(0.2)
    return left
