"""Tests of benchmarks.orchestration: the stages by hand are those of the flow, and what is printed of them."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import orchestration
from flows import train_medgrpo
from medgrpo import stages
from medgrpo.errors import InputError
from medgrpo.testing import tiny_config


def test_the_table_compares_with_the_goals() -> None:
    """Overhead is what the flow took beyond its stages; medians stand beside the goals."""
    one = {"flow": 60.0, "work": {"train": 40.0, "register": 8.0}, "overhead": 12.0, "share": 0.2, "cached": 9.0}
    other = one | {"overhead": 14.0, "cached": 11.0, "by_hand": {"train": 41.0, "register": 7.5}}
    text = orchestration.table({"rounds": [one, other]})
    assert "| 60.0 | 48.0 | 12.0 | 20.0% | 9.0 | - |" in text
    assert "| 11.0 | 48.5 |" in text
    assert "overhead 13.0 s, all cached 10.0 s (goals 20 s, 5% of the demo, 30 s cached)" in text


def test_bad_settings_end_before_anything_runs() -> None:
    """An unknown setting is a sentence."""
    with pytest.raises(InputError, match=r"unknown setting 'grpo.stepz'"):
        orchestration.measure("smoke", ["grpo.stepz=1"], 1)


def test_work_is_without_what_the_flow_is_told() -> None:
    """What a stage spends in the functions that it is given counts as orchestration, and a failed stage as work."""
    work: dict[str, float] = {}

    def stage(number: int, tell: Callable[[], None]) -> int:
        time.sleep(0.05)
        tell()
        if number == 2:
            raise ValueError("two")
        return number

    timed = orchestration._timed(work, "train", stage)
    assert timed(1, lambda: time.sleep(0.3)) == 1
    assert 0.05 <= work["train"] < 0.3
    with pytest.raises(ValueError, match="two"):
        timed(2, lambda: time.sleep(0.3))
    assert 0.1 <= work["train"] < 0.6


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_flows_own_stages_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage of a run has its seconds, and together they are less than the run took."""
    for name in orchestration.STAGES:
        # So that they are put back.
        monkeypatch.setattr(stages, name, getattr(stages, name))
    monkeypatch.setattr(train_medgrpo, "main", lambda *_: train_medgrpo.train_medgrpo(tiny_config(tmp_path)))
    started = time.perf_counter()
    orchestration.inside("tiny", [], tmp_path / "work.json")
    work = json.loads((tmp_path / "work.json").read_text())
    assert list(work) == list(orchestration.STAGES)
    assert all(value > 0 for value in work.values())
    assert sum(work.values()) < time.perf_counter() - started


@pytest.mark.slow
def test_every_stage_is_called(tmp_path: Path) -> None:
    """By hand the stages do what the flow's do: in the end a version is registered."""
    seconds = orchestration.by_hand(tiny_config(tmp_path))
    assert list(seconds) == ["prepare", "audit", "train", "fetch champion", "evaluate", "register"]
    assert all(value > 0 for value in seconds.values())
    assert list(tmp_path.rglob("registration.json"))
