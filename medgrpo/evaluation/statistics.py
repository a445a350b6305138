"""Intervals and paired tests for verdicts: every number carries its uncertainty."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
_NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and the number of cases behind it."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON; what is not a number becomes null."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def wilson(successes: int, n: int) -> Interval:
    """Share of successes with Wilson's score interval (Wilson 1927).

    >>> interval = wilson(35, 50)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.562, 0.809)
    """
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    share, z2 = successes / n, _NORMAL_QUANTILE**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL_QUANTILE / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    return Interval(share, max(0.0, center - half), min(1.0, center + half), n)


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, resamples: int, seed: int, count: int | None = None
) -> Interval:
    """A statistic of the cases with its percentile bootstrap interval (Efron 1979).

    Args:
        statistic: maps case indices, shape [n], to a number.
        n: number of cases.
        resamples: number of resamples.
        seed: seed of the resampling.
        count: what to report as the number of cases behind the value; n by default.
    """
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(np.arange(n))), float(low), float(high), n if count is None else count)


def f1_scores(expected: np.ndarray, predicted: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """F1 of each label, 0 where it has neither cases nor predictions.

    Args:
        expected: label codes, shape [n].
        predicted: label codes, shape [n]; a code outside `labels` is an unreadable answer.
        labels: the codes to score.
    """
    scores = []
    for label in labels:
        hits = np.sum((expected == label) & (predicted == label))
        size = np.sum(expected == label) + np.sum(predicted == label)
        scores.append(2 * hits / size if size else 0.0)
    return np.array(scores)


def mcnemar(first_right: Sequence[bool], second_right: Sequence[bool]) -> tuple[int, int, float]:
    """Exact McNemar test of two models on the same cases (McNemar 1947).

    Returns:
        Cases only the first has right, cases only the second has right, two-sided p-value.

    >>> mcnemar([True] * 5 + [False] * 15, [True] * 15 + [False] * 5)
    (0, 10, 0.001953125)
    """
    from scipy.stats import binomtest

    pairs = list(zip(first_right, second_right, strict=True))
    only_first = sum(first and not second for first, second in pairs)
    only_second = sum(second and not first for first, second in pairs)
    discordant = only_first + only_second
    p_value = binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    return only_first, only_second, float(p_value)
