"""A sweep's figures show what was measured, and are the same each time."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from medgrpo.config import GateConfig
from medgrpo.sweep.plots import save_plots
from medgrpo.sweep.trials import Trial

pytestmark = pytest.mark.slow

IMPORTANCES = {
    "macro_f1": {"grpo.beta": 0.7, "grpo.group_size": 0.3},
    "unsupported_figures": {},
    "strict_form": {"grpo.group_size": 0.6, "grpo.beta": 0.4},
}


@pytest.fixture
def trials(complete: Callable[..., Trial]) -> list[Trial]:
    """Two trials on the front and one behind it."""
    return [complete(0, 0.6, 0.1, 0.9), complete(1, 0.5, 0.05, 0.8), complete(2, 0.4, 0.3, 0.7)]


def test_both_figures_are_written(tmp_path: Path, trials: list[Trial]) -> None:
    """Each is a PNG and an SVG that stands by itself and names what it shows for those who cannot see it."""
    paths = save_plots(tmp_path, trials, 1, GateConfig(), IMPORTANCES)
    names = ["pareto.png", "pareto.svg", "importances.png", "importances.svg"]
    assert [path.name for path in paths] == names
    label = ElementTree.fromstring((tmp_path / "pareto.svg").read_text()).attrib["aria-label"]
    assert "trial 1 (chosen): macro-F1 50.0%, unsupported figures 5.0%, strict form 80.0%" in label
    assert "trial 2" not in label
    label = ElementTree.fromstring((tmp_path / "importances.svg").read_text()).attrib["aria-label"]
    assert "macro-F1: grpo.beta 70%, grpo.group_size 30%" in label


def test_the_same_sweep_gives_the_same_bytes(tmp_path: Path, trials: list[Trial]) -> None:
    """Nothing of the time or the machine is in a figure."""
    first = [path.read_bytes() for path in save_plots(tmp_path / "a", trials, 0, GateConfig(), IMPORTANCES)]
    again = [path.read_bytes() for path in save_plots(tmp_path / "b", trials, 0, GateConfig(), IMPORTANCES)]
    assert first == again


def test_without_importances_there_is_no_figure_of_them(tmp_path: Path, trials: list[Trial]) -> None:
    """Where no objective could be explained, only the trials are drawn, and the threshold with its name."""
    nothing: dict[str, dict[str, float]] = {key: {} for key in IMPORTANCES}
    paths = save_plots(tmp_path, trials[:1], 0, GateConfig(), nothing)
    assert [path.name for path in paths] == ["pareto.png", "pareto.svg"]
    assert re.search("the gate(&apos;|')s threshold", (tmp_path / "pareto.svg").read_text())
