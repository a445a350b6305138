"""Events: an alarm once in a training's life, a version once when it waits for review, and no harm without a server."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from medgrpo.config import RunConfig
from medgrpo.manifests import Manifest, write_json
from medgrpo.sweep.settings import TrialConfig
from medgrpo.training.metrics import METRICS_FILE
from tasks import events

ROOT = Path(__file__).parents[2]
CONFIG = RunConfig(name="night", profile="demo")
LOST = {"kl": "Far away."}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Mapping[str, Any]]]:
    """What is sent, by event."""
    sent: list[tuple[str, Mapping[str, Any]]] = []
    monkeypatch.setattr(events, "emit", lambda event, config, payload: sent.append((event, payload)))
    return sent


def test_an_alarm_is_sent_when_it_first_rings(sent: list[Any]) -> None:
    """However many steps it rings for, it is sent once; another one is another event."""
    alarms = events.Alarms(CONFIG)
    for row in ({"step": 1}, {"step": 2, "alarms": LOST}, {"step": 3, "alarms": {**LOST, "length": "Too long."}}):
        alarms.look(row)
    assert sent == [
        ("medgrpo.alarm", {"alarm": "kl", "step": 2, "sentence": "Far away."}),
        ("medgrpo.alarm", {"alarm": "length", "step": 3, "sentence": "Too long."}),
    ]


def test_of_a_trial_no_alarm_is_sent(sent: list[Any]) -> None:
    """A sweep of twenty trials is not twenty messages: its table says what came of each."""
    trial = TrialConfig(sweep="s", study="s", number=0, parent="p")
    events.Alarms(CONFIG.model_copy(update={"trial": trial})).look({"step": 2, "alarms": LOST})
    assert sent == []


def test_an_alarm_is_not_sent_again_after_a_resume(sent: list[Any], tmp_path: Path) -> None:
    """What rang in an attempt that was killed was sent then: the training's own record says so."""
    (tmp_path / METRICS_FILE).write_text('{"phase": "grpo", "step": 2, "alarms": {"kl": "Far away."}}\n')
    alarms = events.Alarms(CONFIG)
    alarms.begin(tmp_path)
    alarms.look({"step": 3, "alarms": LOST})
    assert sent == []


@pytest.mark.parametrize(("aliases", "count"), [(["candidate"], 1), ([], 0), (["champion"], 0)])
def test_only_a_version_under_review_is_announced(
    sent: list[Any], tmp_path: Path, aliases: list[str], count: int
) -> None:
    """A version that the gate turned away, or that somebody has decided about, waits for nobody."""
    registration = {"name": "medgrpo", "version": 3, "digest": "abc", "aliases": aliases}
    write_json(tmp_path / "registration.json", registration)
    events.announce_candidate(CONFIG, Manifest(uri=str(tmp_path), sha256="a" * 64, bytes=1, files=1))
    assert sent == [("medgrpo.candidate", {"model": "medgrpo", "version": 3, "digest": "abc"})] * count


@pytest.mark.slow
@pytest.mark.parametrize("flow_run", ["00000000-0000-0000-0000-000000000001", ""])
def test_a_server_that_is_away_costs_nothing(flow_run: str, tmp_path: Path) -> None:
    """Sending returns at once and raises nothing, in a flow run whose server is gone and outside of any."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    code = """
import time
from medgrpo.config import RunConfig
from tasks.events import emit
started = time.monotonic()
emit("medgrpo.alarm", RunConfig(name="night"), {"alarm": "kl"})
print(time.monotonic() - started)
"""
    environment = {**os.environ, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(tmp_path)}
    if flow_run:
        environment["PREFECT__FLOW_RUN_ID"] = flow_run
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) < 2
