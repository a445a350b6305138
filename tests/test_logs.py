"""Log lines as JSON: one object a line, whatever is logged, printed or raised, with the run it belongs to."""

import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from medgrpo.logs import FIELDS, FLOW_RUN, json_lines, module_options, remember

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "deployments" / "logging.yml"
MODULE = """
import logging, sys, warnings
logging.basicConfig(level=logging.INFO, format="plain %(message)s")
logging.getLogger("a.b").warning("two\\nlines of %d", 2)
print("printed")
sys.stderr.write("\\rstep 1\\rstep 2")
warnings.warn("odd")
if sys.argv[1] == "fail":
    raise ValueError("bad")
sys.exit(int(sys.argv[1]))
"""
FLOW = """
from medgrpo.logs import module_options
from prefect import flow, get_run_logger, task
from tasks.running import name_lines
import logging
@task
def step():
    get_run_logger().info("in the task")
@flow
def inner():
    name_lines("nightly-2")
    logging.getLogger("medgrpo.any").warning("from a library, within")
@flow
def night():
    name_lines("nightly")
    logging.getLogger("medgrpo.any").warning("from a library")
    step()
    inner()
    assert module_options("x")[:2] == ["-m", "medgrpo.logs"]
night()
"""


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged while the root logger writes JSON."""
    monkeypatch.setenv(FIELDS, "{}")
    monkeypatch.setenv("MLFLOW_CONFIGURE_LOGGING", "true")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(json_lines())
    logging.getLogger().addHandler(handler)
    yield stream
    logging.getLogger().removeHandler(handler)


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_says_what_where_and_when(lines: io.StringIO) -> None:
    """A line holds time in UTC, level, logger and message, and what was given with it, under names of our own."""
    logging.getLogger("medgrpo.x").warning("%d é", 3, extra={"deployment_name": "d", "task_run_id": "t"})
    [line] = read(lines.getvalue())
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "WARNING",
        "logger": "medgrpo.x",
        "message": "3 é",
        "deployment": "d",
        "task_run_id": "t",
    }


def test_what_is_remembered_is_on_every_line(lines: io.StringIO) -> None:
    """Fields of a run are on each later line, what a line says itself wins, and what is started inherits them."""
    remember(run="night", flow_run_id="f1", flow_run_name="", deployment_name=None)
    logging.getLogger("any").error("one")
    logging.getLogger("any").error("two", extra={"flow_run_id": "f2"})
    first, second = read(lines.getvalue())
    assert (first["run"], first["flow_run_id"], second["flow_run_id"]) == ("night", "f1", "f2")
    assert "flow_run_name" not in first
    assert "deployment" not in first
    assert json.loads(os.environ[FIELDS]) == {"run": "night", "flow_run_id": "f1"}


def test_plain_logs_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lines are not JSON nothing is handed on, and a module runs as it always does."""
    monkeypatch.setenv(FIELDS, "{}")
    remember(run="night")
    assert os.environ[FIELDS] == "{}"
    assert module_options("medgrpo.training") == ["-m", "medgrpo.training"]


def test_a_worker_names_the_flow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that a worker started, the lines before the flow begins have its run's id too."""
    monkeypatch.setenv(FLOW_RUN, "f1")
    line = json_lines().format(logging.LogRecord("a", logging.INFO, "", 1, "hello", None, None))
    assert json.loads(line)["flow_run_id"] == "f1"


@pytest.mark.parametrize(("argument", "code"), [("0", 0), ("3", 3), ("fail", 1)])
def test_everything_that_a_module_says_is_json(tmp_path: Path, argument: str, code: int) -> None:
    """Logged, printed and drawn lines, warnings and the last error are objects with the run's fields; codes pass on."""
    (tmp_path / "job.py").write_text(MODULE)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", FIELDS: '{"flow_run_id": "f1"}'}
    command = [sys.executable, "-m", "medgrpo.logs", "job", argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    found = read(done.stderr)
    assert {line["flow_run_id"] for line in found} == {"f1"}
    said = [(line["logger"], line["message"].partition("\n")[0]) for line in found]
    assert {("a.b", "two"), ("stdout", "printed"), ("stderr", "step 1"), ("stderr", "step 2")} <= set(said)
    assert "py.warnings" in dict(said)
    errors = [line for line in found if line["level"] == "CRITICAL"]
    assert [("ValueError: bad" in line["exc_info"]) for line in errors] == ([True] if argument == "fail" else [])


def test_prefects_loggers_are_all_there() -> None:
    """Our configuration has the loggers, levels and ways to the server of Prefect's own, and JSON on the console."""
    package = importlib.util.find_spec("prefect")
    assert package
    assert package.origin
    theirs = yaml.safe_load((Path(package.origin).parent / "logging" / "logging.yml").read_text())
    ours = yaml.safe_load(CONFIGURATION.read_text())
    theirs["loggers"]["prefect._internal"]["handlers"] = ["console"]
    assert ours["loggers"] == theirs["loggers"]
    assert ours["root"] == theirs["root"]
    for name in ("api", "worker_api"):
        assert ours["handlers"][name]["class"] == theirs["handlers"][name]["class"]


@pytest.mark.slow
def test_a_flow_writes_json_only() -> None:
    """With the configuration, each line that a flow, its tasks and a library write is JSON, and names the flow run.

    A flow within it has a run of its own, and the flow run that a person started.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PREFECT_LOGGING_CONFIG_PATH": str(CONFIGURATION),
        "PREFECT_LOGGING_LEVEL": "INFO",
    }
    done = subprocess.run(
        [sys.executable, "-c", FLOW],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {line["message"]: line for line in read(done.stderr)}
    library, task = found["from a library"], found["in the task"]
    assert library["run"] == "nightly"
    assert library["flow_run_id"] == task["flow_run_id"]
    assert library["flow_run_name"] == task["flow_run_name"]
    assert task["task_run_id"]
    within = found["from a library, within"]
    assert (within["run"], within["flow_run_id"]) == ("nightly-2", library["flow_run_id"])
