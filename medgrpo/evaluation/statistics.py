"""Intervals and paired tests for verdicts: every number carries its uncertainty.

Resamples are drawn once per number of cases and seed, as how often each case comes up, so that what is resampled is a
matrix product, and two statistics of the same cases are resampled together.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8
CALIBRATION_BINS = 10
"""Bins of equal width, each with its upper edge: up to ten samples, every agreement k/samples above 0 has its own."""
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


def wilson(successes: float, n: int) -> Interval:
    """Share of successes, whole or in part, with Wilson's score interval (Wilson 1927).

    >>> interval = wilson(35, 50)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.562, 0.809)
    """
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    share, z2 = successes / n, _NORMAL_QUANTILE**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL_QUANTILE / (1 + z2 / n) * (share * (1 - share) / n + z2 / (4 * n * n)) ** 0.5
    # At shares of 0 and 1 rounding would put the value just outside its own interval.
    return Interval(share, min(share, max(0.0, center - half)), max(share, min(1.0, center + half)), n)


def wider(interval: Interval, other: Interval) -> Interval:
    """The first of two intervals around one value, widened to hold the second too."""
    return replace(interval, low=min(interval.low, other.low), high=max(interval.high, other.high))


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
    values = np.array([statistic(generator.integers(0, n, n)) for _ in range(resamples)])
    return percentile_interval(float(statistic(np.arange(n))), values, n if count is None else count)


def percentile_interval(value: float, resampled: np.ndarray, n: int) -> Interval:
    """A value with the middle 95 % of its resamples, those without a value left out."""
    if np.isnan(resampled).all():
        return Interval(value, float("nan"), float("nan"), n)
    low, high = np.nanquantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high), n)


@lru_cache(maxsize=8)
def resample_counts(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each case comes up in each resample of n cases, shape [resamples, n]; read-only."""
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    flat = (drawn + n * np.arange(resamples)[:, None]).ravel()
    counts = np.bincount(flat, minlength=resamples * n).reshape(resamples, n).astype(float)
    counts.flags.writeable = False
    return counts


def bootstrap_ratio(
    parts: Sequence[float] | np.ndarray, wholes: Sequence[float] | np.ndarray, resamples: int, seed: int
) -> Interval:
    """Sum of the parts over sum of the wholes, with an interval from resampling cases, each with all that is in it.

    What stands in one case (the figures of one answer) is alike, so cases are drawn and not their parts: a cluster
    bootstrap (Davison and Hinkley 1997, section 3.8).

    Args:
        parts: of each case, shape [n].
        wholes: of each case, shape [n]; a case with 0 has nothing to say, and is not counted in the interval's n.
        resamples: number of resamples.
        seed: seed of the resampling.

    >>> bootstrap_ratio([1, 3], [2, 3], 500, 0)
    Interval(value=0.8, low=0.5, high=1.0, n=2)
    """
    both = np.stack([np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)], axis=1)
    both = both[both[:, 1] > 0]
    n = len(both)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    sums = resample_counts(n, resamples, seed) @ both
    value = both[:, 0].sum() / both[:, 1].sum()
    return percentile_interval(float(value), sums[:, 0] / sums[:, 1], n)


def bootstrap_mean(values: Sequence[float] | np.ndarray, resamples: int, seed: int) -> Interval:
    """Mean of a number that each case has, with its percentile bootstrap interval."""
    return bootstrap_ratio(values, np.ones(len(values)), resamples, seed)


def resampled_f1(
    expected: np.ndarray, predicted: np.ndarray, labels: Sequence[int], resamples: int, seed: int
) -> np.ndarray:
    """F1 of each label in each resample, shape [resamples, labels]; see `f1_scores`."""
    hits = np.stack([(expected == label) & (predicted == label) for label in labels], axis=1)
    sizes = np.stack([(expected == label) * 1.0 + (predicted == label) for label in labels], axis=1)
    sums = resample_counts(len(expected), resamples, seed) @ np.concatenate([hits, sizes], axis=1)
    hit, size = np.split(sums, 2, axis=1)
    return 2 * hit / np.maximum(size, 1)


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


def mcnemar_one_sided(only_first: int, only_second: int) -> float:
    """Exact p-value of "the second is no better": chance of so many of the discordant cases, or more, for the second.

    >>> mcnemar_one_sided(0, 5)
    0.03125
    """
    from scipy.stats import binom

    return float(binom.sf(only_second - 1, only_first + only_second, 0.5))


def paired_score_interval(only_first: int, only_second: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Difference of two shares of the same cases, second minus first, with Tango's score interval (Tango 1998).

    It keeps its level for few cases and few discordant ones, where resampling the cases at hand promises too much: two
    models that agree on all of 50 cases need not agree on the next.

    Args:
        only_first: cases that only the first has right.
        only_second: cases that only the second has right.
        n: all cases.
        confidence: of the two-sided interval.

    >>> interval = paired_score_interval(5, 15, 50)
    >>> round(interval.value, 3), round(interval.low, 3), round(interval.high, 3)
    (0.2, 0.026, 0.365)
    """
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    quantile, value = NormalDist().inv_cdf((1 + confidence) / 2), (only_second - only_first) / n

    def excluded(difference: float) -> bool:
        distance, variance = _tango(only_first, only_second, n, difference)
        return distance**2 > quantile**2 * variance

    return Interval(value, _boundary(value, -1.0, excluded), _boundary(value, 1.0, excluded), n)


def _tango(only_first: int, only_second: int, n: int, difference: float) -> tuple[float, float]:
    """How far the counts are from a true difference, and the variance of that, with the likeliest nuisance share."""
    a, c = 2 * n, -only_first * difference * (1 - difference)
    b = (2 * n - only_second + only_first) * difference - only_first - only_second
    share = (max(0.0, b * b - 4 * a * c) ** 0.5 - b) / (2 * a)
    return only_second - only_first - n * difference, max(0.0, n * (2 * share + difference * (1 - difference)))


def _boundary(inside: float, end: float, excluded: Callable[[float], bool]) -> float:
    """Where `excluded` begins between a number that is inside and an end of the range; the end if nowhere."""
    if not excluded(end):
        return end
    outside = end
    for _ in range(40):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
    return inside


def detectable_difference(n: int, discordance: float, level: float = 1 - CONFIDENCE, power: float = POWER) -> float:
    """Smallest true difference in accuracy that McNemar's test of n cases finds with this power (Connor 1987).

    Connor's sample size, n = (z_level·√ψ + z_power·√(ψ - d²))² / d² (after Miettinen 1968), solved for d. ψ is the
    share of discordant cases, at least d: a difference cannot be larger than what it is made of. The exact test needs
    slightly more.

    Args:
        n: number of cases.
        discordance: share of cases on which one model is right and the other wrong.
        level: two-sided level of the test; twice the level of a one-sided one.
        power: wanted chance of finding the difference.

    Returns:
        The difference, in (0, 1]; NaN where n cannot find any.

    >>> round(detectable_difference(500, 0.2), 3), round(detectable_difference(50, 0.2), 3)
    (0.056, 0.173)
    """
    at_level, at_power = NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(power)

    def found(difference: float) -> bool:
        share = max(discordance, difference)
        return difference * n**0.5 >= at_level * share**0.5 + at_power * (share - difference**2) ** 0.5

    return _boundary(0.0, 1.0, found) if found(1.0) else float("nan")


def calibration(confidence: np.ndarray, right: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """Whether a confidence is the share of right answers among those that have it.

    Args:
        confidence: of each answer, in [0, 1], shape [n].
        right: whether each is right, shape [n].
        resamples: number of resamples.
        seed: seed of the resampling.

    Returns:
        `brier`, the mean squared distance of confidence and outcome (Brier 1950), and `ece`, the expected calibration
        error (Naeini et al. 2015), as intervals; `ece_by_chance`, the mean error of a perfect confidence on as many
        cases, which is never 0; and the `bins` {low, high, n, confidence, accuracy} that hold any answer.
    """
    n, outcome = len(confidence), right.astype(float)
    places = np.maximum(np.ceil(np.round(confidence * CALIBRATION_BINS, 9)).astype(int) - 1, 0)
    member = (places[:, None] == np.arange(CALIBRATION_BINS)).astype(float)
    gaps = (outcome - confidence)[:, None] * member
    resampled = np.abs(resample_counts(n, resamples, seed) @ gaps).sum(axis=1) / n
    perfect = np.random.default_rng(seed).random((resamples, n)) < confidence
    by_chance = np.abs((perfect - confidence) @ member).sum(axis=1) / n
    return {
        "ece": percentile_interval(float(np.abs(gaps.sum(axis=0)).sum() / n), resampled, n).as_dict(),
        "ece_by_chance": float(by_chance.mean()),
        "brier": bootstrap_mean((outcome - confidence) ** 2, resamples, seed).as_dict(),
        "bins": [
            {
                "low": place / CALIBRATION_BINS,
                "high": (place + 1) / CALIBRATION_BINS,
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(outcome[inside].mean()),
            }
            for place in range(CALIBRATION_BINS)
            if (inside := places == place).any()
        ],
    }
