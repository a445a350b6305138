"""What a sweep says to people."""

from collections.abc import Callable
from typing import Any

import pytest

from medgrpo.config import DataConfig, RunConfig
from medgrpo.sweep.report import markdown, progress_rows
from medgrpo.sweep.trials import Result, Trial, labels


@pytest.fixture
def summary(complete: Callable[..., Trial]) -> dict[str, Any]:
    """A sweep of a complete and a pruned trial."""
    trials = [complete(0, 0.5, 0.1, 0.9), Trial(1, {"grpo.group_size": 2}, Result("pruned", reason="a | b\nc"))]
    return {
        "trials": [trial.as_row() for trial in trials],
        "space": {"grpo.group_size": [2, 4]},
        "labels": labels(RunConfig()),
        "chosen": {"sentence": "Trial 0 is chosen."},
        "result": {"name": "s-chosen", "gate": {"outcome": "fail", "reasons": ["strict form: missed."]}},
    }


def test_the_table_has_every_trial(summary: dict[str, Any]) -> None:
    """One line a trial with what it tried and found, or why not; a reason cannot break the table."""
    lines = markdown(summary).splitlines()
    assert lines[0] == "| trial | state | grpo.group_size | macro-F1 | unsupported figures | strict form | reason |"
    assert lines[2] == "| 0 | complete | 4 | 50.0% | 10.0% | 90.0% |  |"
    assert lines[3] == "| 1 | pruned | 2 |  |  |  | a \\| b c |"
    assert "2 trials: 1 complete, 1 pruned." in lines


def test_the_gate_has_the_last_word(summary: dict[str, Any]) -> None:
    """What came of the chosen one follows the choice; where a worker's summary is out of reach, it is left out."""
    assert "**gate fail.**\n\n- strict form: missed." in markdown(summary)
    assert markdown(summary | {"result": {"name": "s-chosen"}}).endswith("Trial 0 is chosen.\n")


def test_progress_lists_the_newest_first(complete: Callable[..., Trial]) -> None:
    """The table artifact begins with what has just happened."""
    rows = progress_rows([complete(0, 0.5, 0.1, 0.9), Trial(1, {}, Result("running"))])
    assert [(row["trial"], row["state"]) for row in rows] == [(1, "running"), (0, "complete")]


def test_open_answers_have_an_accuracy(summary: dict[str, Any]) -> None:
    """What stands for macro-F1 where answers are numbers is called by its own name."""
    numbers = RunConfig(data=DataConfig(domain="gsm8k"))
    assert "| accuracy |" in markdown(summary | {"labels": labels(numbers)}).splitlines()[0]
