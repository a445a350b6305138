"""Tests of benchmarks.orchestration: the stages by hand are those of the flow, and what is printed of them."""

from pathlib import Path

import pytest

from benchmarks import orchestration
from medgrpo.errors import InputError
from medgrpo.testing import tiny_config


def test_the_table_compares_with_the_goals() -> None:
    """Overhead is what the flow took beyond its stages; medians stand beside the goals."""
    pair = {"flow": 60.0, "stages": {"train": 40.0, "register": 8.0}, "overhead": 12.0, "share": 0.2, "cached": 9.0}
    text = orchestration.table({"pairs": [pair, pair | {"overhead": 14.0, "cached": 11.0}]})
    assert "| 60.0 | 48.0 | 12.0 | 20.0% | 9.0 |" in text
    assert "overhead 13.0 s, all cached 10.0 s (goals 20 s, 5% of the demo, 30 s cached)" in text


def test_bad_settings_end_before_anything_runs() -> None:
    """An unknown setting is a sentence."""
    with pytest.raises(InputError, match=r"unknown setting 'grpo.stepz'"):
        orchestration.measure("smoke", ["grpo.stepz=1"], 1)


@pytest.mark.slow
def test_every_stage_is_called(tmp_path: Path) -> None:
    """By hand the stages do what the flow's do: in the end a version is registered."""
    seconds = orchestration.by_hand(tiny_config(tmp_path))
    assert list(seconds) == ["prepare", "audit", "train", "fetch champion", "evaluate", "register"]
    assert all(value > 0 for value in seconds.values())
    assert list(tmp_path.rglob("registration.json"))
