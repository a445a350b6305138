"""docs/operations.md as it is written: its commands are run, its units checked, its sentences found in the code.

Blocks marked `bash` are run verbatim; of those marked `sh`, for root, systemd or a GPU, the flags are checked.
"""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from services import Started, free_port, postgres, start, stop, wait_for

from medgrpo.config import load_config
from medgrpo.manifests import describe
from medgrpo.sweep.study import STORAGE_VARIABLE, open_study

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
UNITS = ROOT / "deployments/systemd"
INSTALL = "From an empty machine to a completed run"
CLONE = "git clone REPOSITORY medgrpo\n"
PULL = "git -C ~/medgrpo pull --ff-only\n"
NOT_COPIED = (".git", ".venv", "runs", "shared", "__pycache__", ".*_cache", "*.egg-info")


def _section(title: str) -> str:
    return re.split(r"^## ", PAGE.partition(f"\n## {title}\n")[2], flags=re.MULTILINE)[0]


def _blocks(text: str, language: str = "bash") -> list[str]:
    """The fenced blocks of a language, without the indentation of the list they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def _the(blocks: list[str], part: str) -> str:
    """The one block with a part."""
    [found] = [block for block in blocks if part in block]
    return found


# --- what can be checked without running it


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed: apt-get install systemd")
def test_units_are_valid(tmp_path: Path) -> None:
    """systemd knows every setting of every unit and drop-in, and each unit's program exists in the environment."""
    shutil.copytree(UNITS, tmp_path / "units")
    units = sorted((tmp_path / "units").glob("*.service"))
    for unit in units:
        unit.write_text(unit.read_text().replace("/srv/medgrpo/medgrpo/.venv", sys.prefix))
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    # The service manager itself need not run here, nor the units that ours wait for be installed.
    complaints = [line for line in done.stderr.splitlines() if "medgrpo-" in line]
    assert (complaints, done.returncode) == ([], 0)
    assert len(units) == 4


def test_units_start_what_the_page_starts() -> None:
    """A unit's program, settings file and flags are those that the page uses by hand; no unit holds a password."""
    by_hand = re.findall(r"^start \S+ (\S+) (?:env \S+ )?\.venv/bin/(.*)$", PAGE, flags=re.MULTILINE)
    assert len(by_hand) == 4
    started = set()
    for unit in UNITS.glob("*.service"):
        text = unit.read_text()
        [settings] = re.findall(r"^EnvironmentFile=/srv/medgrpo/settings/(.*)\.env$", text, flags=re.MULTILINE)
        [command] = re.findall(r"^ExecStart=/srv/medgrpo/medgrpo/\.venv/bin/(.*)$", text, flags=re.MULTILINE)
        started.add((settings, command.replace(" --name %H-gpu%i", "")))
        assert re.findall(r"^Environment=(.*)$", text, flags=re.MULTILINE) in ([], ["CUDA_VISIBLE_DEVICES=%i"])
    assert started == set(by_hand)


def test_units_named_on_the_page_exist() -> None:
    """Whatever the page tells systemd to start, stop or show has its file."""
    named = set(re.findall(r"medgrpo-(?:prefect|mlflow|worker)[\w-]*@?", PAGE))
    assert {name for name in named if not name.endswith("-")} == {unit.stem for unit in UNITS.glob("*.service")}


@cache
def _sentences() -> list[str]:
    """Every text of the code, with … for what is filled in."""
    texts = []
    for storey in ("medgrpo", "tasks", "flows", "deployments"):
        for path in (ROOT / storey).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    texts.append(re.sub("…+", "…", "".join(map(str, parts))))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value.replace("%s", "…"))
    return texts


def test_every_sentence_is_one_that_the_code_says() -> None:
    """Each sentence of the table of messages stands in the code, so that a reader who searches for it finds it."""
    table = _section("What to do when").partition("| sentence |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    quoted = [sentence for cell in cells for sentence in re.findall("`([^`]+)`", cell)]
    assert len(quoted) > 20
    unknown = [sentence for sentence in quoted if not any(sentence in text for text in _sentences())]
    assert unknown == []


def _commands() -> Iterator[list[str]]:
    """Each command of ours on the page, in blocks, in text and in the units, from its program's name on."""
    text = "\n".join([PAGE, *(unit.read_text() for unit in UNITS.glob("*.service"))])
    # Hands its arguments on to `prefect worker start`.
    text = text.replace("python -m deployments.worker", "prefect worker start")
    for program, rest in re.findall(r"(?:^|[\s`/=])(prefect|mlflow|medgrpo) ((?:[a-z]|-)[^\n`|]*)", text):
        words = shlex.split(re.sub(r"\$\(|\)", "", rest), comments=True)
        if re.fullmatch(r"[a-z-]+", words[0]) and not re.search(r"[.,:]$", words[0]):
            yield [program, *words]


def _parse_prefect(words: list[str]) -> None:
    application = getattr(importlib.import_module(f"prefect.cli.{words[0].replace('-', '_')}"), _APPLICATIONS[words[0]])
    application.parse_args(words[1:], exit_on_error=False, print_error=False)


_APPLICATIONS = {
    "deployment": "deployment_app",
    "flow-run": "flow_run_app",
    "global-concurrency-limit": "global_concurrency_limit_app",
    "server": "server_app",
    "work-pool": "work_pool_app",
    "worker": "worker_app",
}


def _parse_click(command: Any, words: list[str]) -> None:
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("command", list(words))


@pytest.mark.slow
def test_every_command_is_known() -> None:
    """Prefect, MLflow and medgrpo accept each of their commands on the page and in the units, flags included."""
    import typer
    from mlflow.cli import cli

    from medgrpo.cli import app

    checked = set()
    for program, *words in _commands():
        if program == "prefect" and words[0] in _APPLICATIONS:
            _parse_prefect(words)
        elif program == "mlflow" and words[0] in cli.commands:
            _parse_click(cli, words)
        elif program == "medgrpo" and words[0] in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
            _parse_click(typer.main.get_command(app), words)
        else:
            continue
        checked.add((program, words[0]))
    assert checked >= {("prefect", name) for name in _APPLICATIONS}
    assert checked >= {("mlflow", "server"), ("mlflow", "db"), ("medgrpo", "review"), ("medgrpo", "export")}


# --- the whole of it, run


class Shell:
    """One bash, into which blocks are pasted one after the other; a command that fails ends it.

    Args:
        home: its home directory, where it starts.
        environment: everything else that it finds set.
    """

    def __init__(self, home: Path, environment: dict[str, str]) -> None:
        self._home, self._scratch = home, home.parent
        self._log = self._scratch / "shell.log"
        with self._log.open("a") as log:
            self._bash = subprocess.Popen(
                ["bash"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                cwd=home,
                env={**environment, "HOME": str(home)},
                start_new_session=True,
            )
        self._type("set -e")

    def run(self, block: str, seconds: float = 60) -> str:
        """Run a block to its end; returns what it printed."""
        script, done = self._scratch / "block.sh", self._scratch / "done"
        script.write_text(block)
        done.unlink(missing_ok=True)
        before = self._log.stat().st_size
        # What is sourced cannot read the lines that are still to come.
        self._type(f". {script} < /dev/null\ntouch {done}")
        deadline = time.monotonic() + seconds
        while not done.exists():
            assert self._bash.poll() is None, f"failed:\n{block}\n{self._said()}"
            assert time.monotonic() < deadline, f"took too long:\n{block}\n{self._said()}"
            time.sleep(0.2)
        return self._log.read_bytes()[before:].decode()

    def end(self) -> None:
        """End it, and whatever was started in its home, in whichever session that is by now."""
        started = [process for process in psutil.process_iter() if _home(process) == str(self._home)]
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(started, timeout=20)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._bash.kill()
        # Closes its standard input, too.
        self._bash.communicate()

    def _type(self, text: str) -> None:
        assert self._bash.stdin
        self._bash.stdin.write(f"{text}\n")
        self._bash.stdin.flush()

    def _said(self) -> str:
        logs = [self._log, *(self._home / "log").glob("*.log")]
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


def _home(process: psutil.Process) -> str:
    try:
        return process.environ().get("HOME", "")
    except psutil.Error:
        return ""


@pytest.fixture
def machine() -> Iterator[dict[str, str]]:
    """The environment on a machine where PostgreSQL is installed and runs, and its administrator may connect."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MEDGRPO_CACHE"))}
    with postgres({}) as server:
        database = {"PGHOST": str(server.directory), "PGPORT": str(server.port), "PGUSER": "postgres"}
        ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
        yield {**kept, **database, **ports, "PATH": server.path, "USER": "medgrpo"}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home, which is large by the end and not kept."""
    directory = tmp_path / "home"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def _clone(home: Path) -> None:
    """Stands for `git clone`, and for the environment that `make install` then finds up to date."""
    checkout = home / "medgrpo"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*NOT_COPIED))
    environment = checkout / ".venv"
    environment.mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".installed":
            (environment / part.name).symlink_to(part)
    (environment / ".installed").touch()


def _without(block: str, line: str) -> str:
    assert block.count(line) == 1
    return block.replace(line, "")


def _settings(home: Path) -> dict[str, str]:
    lines = (home / "settings/worker.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def _prefect(home: Path) -> tuple[str, tuple[str, str]]:
    """Address of the Prefect server, and name and password."""
    settings = _settings(home)
    name, password = settings["PREFECT_API_AUTH_STRING"].split(":")
    return settings["PREFECT_API_URL"], (name, password)


def _known(home: Path) -> dict[str, Any]:
    """What the servers know: states of runs that began, by id, and digests of versions by name and number."""
    settings = _settings(home)
    url, login = _prefect(home)
    runs = httpx.post(f"{url}/flow_runs/filter", json={}, auth=login, timeout=30).json()
    found = httpx.get(
        f"{settings['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/model-versions/search",
        auth=(settings["MLFLOW_TRACKING_USERNAME"], settings["MLFLOW_TRACKING_PASSWORD"]),
        timeout=30,
    ).json()
    tags = {
        f"{version['name']}/{version['version']}": {tag["key"]: tag["value"] for tag in version["tags"]}
        for version in found.get("model_versions", [])
    }
    return {
        "runs": {run["id"]: run["state_type"] for run in runs if run["state_type"] != "SCHEDULED"},
        "versions": {name: tag["medgrpo.digest"] for name, tag in tags.items()},
    }


def _sweep(home: Path) -> str:
    """Identity of a sweep's study in the database that the workers are told of: a new one, or what is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(home / ".pgpass"))
        patch.setenv(STORAGE_VARIABLE, _settings(home)[STORAGE_VARIABLE])
        with open_study(load_config("demo", [f"runs_dir={home / 'sweeps'}"])) as study:
            return study.id


def _destroy(home: Path, machine: dict[str, str]) -> None:
    """What a lost host takes along: databases, roles, passwords, settings, artifacts and runs."""
    statements = [f"DROP DATABASE {name}" for name in ("prefect", "mlflow", "mlflow_auth", "sweeps")]
    statements += [f"DROP ROLE {name}" for name in ("prefect", "mlflow", "sweeps")]
    command = ["psql", "--quiet", "--dbname=postgres", *(f"--command={statement}" for statement in statements)]
    subprocess.run(command, env=machine, check=True, timeout=60)
    for name in ("secrets", "settings", "mlflow", ".prefect", "medgrpo/runs"):
        shutil.rmtree(home / name)
    (home / ".pgpass").unlink()


def _start_cached_run(home: Path) -> str:
    """Start the page's first run again, without waiting for it; returns its id."""
    url, login = _prefect(home)
    deployment = httpx.get(f"{url}/deployments/name/train-medgrpo/train-medgrpo-cpu", auth=login, timeout=30).json()
    given = {"parameters": {"config": "smoke"}, "state": {"type": "SCHEDULED"}}
    place = f"{url}/deployments/{deployment['id']}/create_flow_run"
    return str(httpx.post(place, json=given, auth=login, timeout=30).raise_for_status().json()["id"])


def _wait_for(condition: Callable[[], bool], home: Path, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        logs = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in (home / "log").glob("*.log"))
        assert time.monotonic() < deadline, logs
        time.sleep(1)


@contextmanager
def _units(home: Path, machine: dict[str, str]) -> Iterator[None]:
    """Every unit's command, in its directory, with what systemd gives it and nothing else."""
    started: dict[str, Started] = {}
    try:
        for path in sorted(UNITS.glob("*.service")):
            text = re.sub("%i", "0", path.read_text().replace("%H", "here").replace("/srv/medgrpo", str(home)))
            settings = dict(re.findall(r"^([A-Z]\w+)=(.*)$", text, flags=re.MULTILINE))
            lines = Path(settings["EnvironmentFile"]).read_text().splitlines()
            lines += re.findall(r"^Environment=(.*)$", text, flags=re.MULTILINE)
            user = {"HOME": str(home), "USER": "medgrpo", "PATH": "/usr/local/bin:/usr/bin:/bin"}
            # Stands for the installation into .venv.
            user["PYTHONPATH"] = machine["PYTHONPATH"]
            environment = user | dict(line.split("=", 1) for line in lines)
            log = home / f"log/{path.stem}.log"
            started[path.stem] = start(shlex.split(settings["ExecStart"]), log, environment, home / "medgrpo")
        for name, process in started.items():
            wait_for(lambda name=name: _is_up(home, name), process)
        yield
    finally:
        for process in started.values():
            stop(process)


def _is_up(home: Path, unit: str) -> bool:
    """Whether what a unit starts does its work: a server answers, a worker says so."""
    if "worker" in unit:
        return "started!" in (home / f"log/{unit}.log").read_text()
    settings = _settings(home)
    variable, path = ("PREFECT_API_URL", "/ready") if "prefect" in unit else ("MLFLOW_TRACKING_URI", "/health")
    try:
        # Prefect's server wants the password even for this.
        return httpx.get(settings[variable] + path, auth=_prefect(home)[1], timeout=10).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.e2e
@pytest.mark.slow
def test_from_an_empty_machine_to_a_run_and_back_from_a_backup(home: Path, machine: dict[str, str]) -> None:
    """The page's commands install, serve and run; what was backed up is there again after everything was lost.

    In their place: `git clone` and `git pull`, for which a copy of the checkout stands, and systemd, which would start
    the units after the upgrade. A run that was started after the pools were paused waits until they are resumed.
    """
    machine = {**machine, "PYTHONPATH": str(home / "medgrpo")}
    install, backup, upgrade = map(_blocks, map(_section, (INSTALL, "Back up and restore", "Upgrade")))
    assert len([*install, *backup, *upgrade]) == len(_blocks(PAGE)), "each block is one of these, and is run"
    _clone(home)
    shell = Shell(home, machine)
    try:
        printed = ""
        for block in install:
            printed = shell.run(_without(block, CLONE) if CLONE in block else block, seconds=400)
        known = _known(home)
        assert list(known["runs"].values()) == ["COMPLETED"]
        assert known["versions"].keys() == {"medgrpo-smoke-synthetic/1"}
        [digest] = known["versions"].values()
        assert digest[:12] in printed
        sweep = _sweep(home)
        shell.run(_the(upgrade, "work-pool pause"))
        waiting = _start_cached_run(home)
        shell.run(backup[0])
    finally:
        shell.end()
    artifacts = describe(home / "mlflow/artifacts").sha256
    _destroy(home, machine)
    shell = Shell(home, machine)
    try:
        shell.run(backup[1])
        assert describe(home / "mlflow/artifacts").sha256 == artifacts
        assert _sweep(home) == sweep
        shell.run(_without(_the(upgrade, "mlflow db upgrade"), PULL))
    finally:
        shell.end()
    with _units(home, machine):
        shell = Shell(home, machine)
        try:
            assert _known(home) == known, "a paused pool gives out no runs"
            assert f"sha256 of the model's files: {digest}" in shell.run(backup[2], seconds=120)
            assert "as declared." in shell.run(_the(upgrade, "work-pool resume"), seconds=120)
            _wait_for(lambda: _known(home)["runs"].get(waiting) == "COMPLETED", home)
            assert _known(home)["versions"] == known["versions"]
        finally:
            shell.end()
