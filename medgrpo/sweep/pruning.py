"""When a trial is ended early: its policy is right less often than most completed ones were at the same step.

Optuna's pruners judge one objective. What is compared here is the correctness grade, the mean share of
`rewards.correctness` that completions earn, which means the same whatever else the rewards pay; averaged over all
steps so far, as a batch of a few prompts is mostly chance. What a wrong verdict costs, what a conclusion is worth and
whether form is asked for is part of the grade, so that only trials that agree on these are compared.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from medgrpo.config import RewardConfig, RunConfig
from medgrpo.errors import TrialPruned
from medgrpo.training.metrics import METRICS_FILE, read_metrics

PAID = "rewards/correctness/mean"
"""What completions were paid for correctness, in a GRPO row of metrics.jsonl."""

SCALE = ("mode", "agreement", *(name for name in RewardConfig.model_fields if name.startswith("cost_")))
"""Settings of the rewards that the share of `rewards.correctness` depends on."""

Curve = Mapping[int, float]


def grades(paid: Mapping[int, float], correctness: float) -> dict[int, float]:
    """GRPO step -> mean correctness grade over all steps so far.

    Args:
        paid: step -> mean pay for correctness at that step.
        correctness: the setting `rewards.correctness`.

    >>> grades({2: 1.0, 1: 0.0}, 2.0)
    {1: 0.0, 2: 0.25}
    """
    total, found = 0.0, {}
    for count, step in enumerate(sorted(paid), start=1):
        total += paid[step] / correctness
        found[step] = total / count
    return found


def same_scale(one: RewardConfig, other: RewardConfig) -> bool:
    """Whether a grade under some rewards means the same under others.

    >>> [same_scale(RewardConfig(), other) for other in (RewardConfig(correctness=2.0), RewardConfig(agreement=0.1))]
    [True, False]
    """
    return all(getattr(one, name) == getattr(other, name) for name in SCALE)


def bar(curves: Iterable[Curve], after: int, first: int) -> dict[int, float]:
    """Step -> median of the completed trials' grades there, from a step on.

    Args:
        curves: grades of completed trials, as `grades` gives them.
        after: how many of them it takes to judge anything at a step.
        first: first step that is judged.
    """
    known = list(curves)
    steps = {step for curve in known for step in curve if step >= first}
    at = {step: [curve[step] for curve in known if step in curve] for step in sorted(steps)}
    return {step: median(found) for step, found in at.items() if len(found) >= after}


class Pruner:
    """Follows the training of a trial; of an ordinary run, nothing.

    Args:
        config: the run's settings.
    """

    def __init__(self, config: RunConfig) -> None:
        self._bar = config.trial.bar if config.trial else {}
        self._correctness = config.rewards.correctness
        self._paid: dict[int, float] = {}

    def begin(self, directory: Path) -> None:
        """Take in what an earlier attempt wrote into the training's directory."""
        self._take(read_metrics(directory / METRICS_FILE) if self._bar else [])

    def look(self, row: Mapping[str, Any]) -> None:
        """Take in a row of metrics.jsonl.

        Raises:
            TrialPruned: the trial is below the bar.
        """
        if not self._bar:
            return
        self._take([row])
        step = row["step"]
        if row["phase"] != "grpo" or step not in self._bar or step not in self._paid:
            return
        earlier = {each: paid for each, paid in self._paid.items() if each <= step}
        grade = grades(earlier, self._correctness)[step]
        if grade < self._bar[step]:
            raise TrialPruned(
                f"up to step {step} completions earned {grade:.3f} of what a right verdict pays, the median of the "
                f"completed trials {self._bar[step]:.3f}."
            )

    def _take(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._paid |= {row["step"]: row[PAID] for row in rows if row["phase"] == "grpo" and PAID in row}
