"""A trial ends early where its policy is right less often than most completed ones were."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgrpo.config import RunConfig
from medgrpo.errors import TrainingAlarm, TrialPruned
from medgrpo.sweep.pruning import PAID, Pruner, bar, grades
from medgrpo.sweep.settings import TrialConfig


def _row(step: int, paid: float, phase: str = "grpo") -> dict[str, Any]:
    return {"phase": phase, "step": step, PAID: paid}


def _trial(config: RunConfig, levels: dict[int, float], correctness: float = 1.0) -> RunConfig:
    trial = TrialConfig(sweep="s", study="s", number=3, parent="p", bar=levels)
    rewards = config.rewards.model_copy(update={"correctness": correctness})
    return config.model_copy(update={"trial": trial, "rewards": rewards})


def test_a_grade_does_not_depend_on_the_pay() -> None:
    """Twice the pay for the same answers is the same grade."""
    assert grades({1: 0.2, 2: 0.4}, 1.0) == pytest.approx(grades({1: 0.4, 2: 0.8}, 2.0))


def test_the_bar_is_the_median_of_enough_trials() -> None:
    """A step is judged once enough trials were completed, and from the first judged step on."""
    curves = [{1: 0.0, 2: 0.1}, {1: 0.0, 2: 0.5}, {1: 0.0, 2: 0.3}]
    assert bar(curves, after=3, first=2) == {2: 0.3}
    assert bar(curves, after=4, first=2) == {}
    assert bar([], after=1, first=1) == {}


def test_a_trial_below_the_bar_is_pruned(sweep_config: Callable[..., RunConfig]) -> None:
    """The mean grade so far counts, not the newest batch; the reason says both numbers and the step."""
    pruner = Pruner(_trial(sweep_config(), {2: 0.3, 3: 0.3}, correctness=2.0))
    pruner.look(_row(1, 2.0))
    pruner.look(_row(2, 0.0))
    with pytest.raises(TrialPruned, match=r"up to step 3 completions earned 0\.267 .* median .* 0\.300"):
        pruner.look(_row(3, -0.4))
    assert issubclass(TrialPruned, TrainingAlarm), "a pruned trial would be retried"


def test_a_resumed_trial_is_judged_from_its_first_step(tmp_path: Path, sweep_config: Callable[..., RunConfig]) -> None:
    """Steps of an earlier attempt count: otherwise one bad batch after a kill would prune a good trial."""
    rows = [_row(1, 1.0, "warmup"), _row(1, 1.0), _row(2, 1.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pruner = Pruner(_trial(sweep_config(), {3: 0.5}))
    pruner.begin(tmp_path)
    pruner.look(_row(3, 0.0))
    with pytest.raises(TrialPruned, match=r"earned 0\.000"):
        Pruner(_trial(sweep_config(), {3: 0.5})).look(_row(3, 0.0))
    with pytest.raises(TrialPruned, match=r"earned 0\.000"):
        pruner.look(_row(3, -2.0))


def test_an_ordinary_run_is_never_pruned(tmp_path: Path, sweep_config: Callable[..., RunConfig]) -> None:
    """Without a trial, or a bar, every row passes."""
    for config in (sweep_config(), _trial(sweep_config(), {})):
        pruner = Pruner(config)
        pruner.begin(tmp_path)
        pruner.look(_row(1, 0.0))
    with pytest.raises(TrialPruned):
        Pruner(_trial(sweep_config(), {1: 0.5})).look(_row(1, 0.0))
