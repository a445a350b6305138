"""Real services for tests: free ports, processes that are ended with all they started, and Debian's PostgreSQL."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

DATABASES = Path(__file__).parents[1] / "docker" / "databases.sh"


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Started(NamedTuple):
    """A process, and the file that it writes its output to."""

    process: subprocess.Popen[bytes]
    log: Path


def start(command: Sequence[object], log: Path, environment: Mapping[str, str], directory: Path) -> Started:
    """Start a process as the leader of a session of its own; its output is added to the log."""
    with log.open("a") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            start_new_session=True,
        )
    return Started(process, log)


def stop(started: Started, seconds: float = 20) -> None:
    """Ask a process and its group to end, and see to it after so many seconds."""
    with suppress(ProcessLookupError):
        os.killpg(started.process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        started.process.wait(seconds)
    kill(started)


def kill(started: Started) -> None:
    """SIGKILL of a process and its group."""
    with suppress(ProcessLookupError):
        os.killpg(started.process.pid, signal.SIGKILL)
    started.process.wait()


def wait_for(condition: Callable[[], Any], started: Started, seconds: float = 150) -> None:
    """Wait until something is so; the process's last words are the reason where it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, started.log.read_text()[-4000:]
        time.sleep(0.5)


@dataclass
class MlflowServer:
    """An MLflow server, which can be stopped and started again.

    Attributes:
        directory: holds its database, `server.db`, and gets `served/`, its artifacts, and `server.log`.
    """

    directory: Path
    port: int = field(default_factory=free_port)
    running: Started | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        store = f"--backend-store-uri=sqlite:///{self.directory}/server.db"
        place = ["--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        artifacts = f"--artifacts-destination={self.directory}/served"
        command = [sys.executable, "-m", "mlflow", "server", store, artifacts, *place]
        # Its own jobs, which nothing here uses, would take processes of their own.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.running = start(command, self.directory / "server.log", environment, self.directory)
        wait_for(self._answers, self.running)

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self.running:
            stop(self.running)
            self.running = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health", timeout=10).status_code == 200
        except httpx.TransportError:
            return False


@dataclass
class Postgres:
    """A PostgreSQL server in a directory of its own.

    Attributes:
        address: HOST:PORT.
        passwords: of the roles that databases.sh makes, with their databases, by the names of the compose file's
            secrets; without any the server is empty, and its administrator has no password.
    """

    passwords: Mapping[str, str]
    port: int = field(default_factory=free_port)
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="medgrpo-postgres-", dir="/tmp")))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def path(self) -> str:
        """PATH with PostgreSQL's programs."""
        return f"{sorted(Path('/usr/lib/postgresql').glob('*/bin'))[-1]}:{os.environ['PATH']}"

    def run(self, *command: object, **environment: str) -> None:
        """Run one of PostgreSQL's programs as a user that it accepts: it refuses root."""
        subprocess.run(
            [str(word) for word in command],
            env={"PATH": self.path, **environment},
            cwd=self.directory,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=120,
            **_owner(),
        )

    def create(self) -> None:
        """Make the cluster, start it, and make roles and databases, if any."""
        secrets = self.directory / "secrets"
        secrets.mkdir()
        for name, password in self.passwords.items():
            (secrets / name).write_text(password + "\n")
        if _owner():
            # Another user could not enter pytest's own directories.
            shutil.chown(self.directory, "postgres")
        auth = ["--auth-local=trust", "--auth-host=scram-sha-256"]
        if self.passwords:
            auth.append(f"--pwfile={secrets / 'postgres_password'}")
        self.run("initdb", "--username=postgres", *auth, "-D", self.directory / "data")
        self.start()
        if not self.passwords:
            return
        place = {"PGHOST": str(self.directory), "PGPORT": str(self.port), "SECRETS_DIRECTORY": str(secrets)}
        self.run("sh", "-c", DATABASES.read_text(), **place)

    def start(self) -> None:
        options = f"-p {self.port} -c unix_socket_directories={self.directory} -c listen_addresses=127.0.0.1"
        data = self.directory / "data"
        self.run("pg_ctl", "start", "--wait", "-D", data, "-l", self.directory / "log", "-o", options)

    def stop(self) -> None:
        """Stop at once, as a crash would: connections are cut, and the next start recovers."""
        self.run("pg_ctl", "stop", "--wait", "--mode=immediate", "-D", self.directory / "data")


@contextmanager
def postgres(passwords: Mapping[str, str]) -> Iterator[Postgres]:
    """A running PostgreSQL server; the test is skipped where Debian's is not installed."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin")):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = Postgres(passwords)
    try:
        server.create()
        yield server
    finally:
        with suppress(subprocess.CalledProcessError):
            server.stop()
        shutil.rmtree(server.directory)


def _owner() -> dict[str, Any]:
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
