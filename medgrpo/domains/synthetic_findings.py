"""Comparisons of two groups as an abstract reports them: drawn at random, rounded as printed, and judged."""

import math
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

from medgrpo.completions import Verdict

Interval = tuple[float, float]
Sizes = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """One comparison as rounded in the abstract: `groups` and `statistics` are its printed figures."""

    scale: "Scale"
    estimate: float
    low: float
    high: float
    p: float | None
    groups: str
    statistics: str
    sizes: Sizes

    @property
    def differs(self) -> bool:
        """Whether the interval excludes the null value."""
        return not self.low <= self.scale.null <= self.high

    @property
    def effect(self) -> Verdict | None:
        """Whether the important effect is shown; see `judge`."""
        return judge(self.low, self.estimate, self.high, self.scale.null, self.scale.important)


@dataclass(frozen=True)
class Mean:
    """A continuous outcome, reported as a difference of means; `important` carries the direction asked about."""

    unit: str
    control: Interval
    important: float
    words: tuple[str, str] = ("lower", "higher")
    null: float = 0.0
    neutral: str = "was"
    threshold: str = "A difference of {important:g} {unit} was considered important."

    def draw(self, rng: Random, x: float, s: float, sizes: Sizes | None) -> Finding:
        """A finding with effect x and standard error s (units of `important`); given sizes override s."""
        n, m = sizes or draw_sizes(rng, 2 * (3.3 / s) ** 2)
        error = 3.3 * abs(self.important) * math.sqrt(1 / n + 1 / m)
        control, estimate = round(rng.uniform(*self.control), 1), round(x * self.important, 1)
        p = p_value(estimate / error)
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        low, estimate, high = (round(estimate + z * error, 1) + 0.0 for z in (-1.96, 0, 1.96))
        statistics = f"difference {estimate:.1f}, 95% CI {low:.1f} to {high:.1f}, {p_text(p)}"
        groups = f"{control + estimate:.1f} versus {control:.1f} {self.unit}"
        return Finding(self, estimate, low, high, p, groups, statistics, (n, m))


@dataclass(frozen=True)
class Risk:
    """An event, reported as a relative risk; `important` below 1 asks about less of it, above 1 about more."""

    control: Interval
    important: float
    words: tuple[str, str] = ("less frequent", "more frequent")
    null: float = 1.0
    neutral: str = "occurred in"
    threshold: str = "A relative risk of {important} was considered important."

    def draw(self, rng: Random, x: float, s: float, sizes: Sizes | None) -> Finding:
        """A finding with effect x and standard error s, on the log scale in units of `important`."""
        step = math.log(self.important)
        control = rng.uniform(*self.control)
        treated = min(0.9, control * math.exp(x * step))
        n, m = sizes or draw_sizes(rng, (1 / treated + 1 / control - 2) / (s * step) ** 2)
        a, b = max(1, round(treated * n)), max(1, round(control * m))
        log_ratio, error = log_risk_ratio(a, n, b, m)
        estimate, low, high = (round(math.exp(log_ratio + z * error), 2) for z in (0, -1.96, 1.96))
        p = p_value(log_ratio / error)
        statistics = f"relative risk {estimate:.2f}, 95% CI {low:.2f} to {high:.2f}, {p_text(p)}"
        groups = f"{a}/{n} ({100 * a / n:.1f}%) versus {b}/{m} ({100 * b / m:.1f}%)"
        return Finding(self, estimate, low, high, p, groups, statistics, (n, m))


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of a test in per cent with its Wilson interval; the required minimum is null and important value."""

    important: float
    null: float
    words: tuple[str, str] = ("below the required minimum", "above the required minimum")
    neutral: str = "was"
    threshold: str = "A minimum sensitivity of {important}% was required in advance."

    def draw(self, rng: Random, x: float, s: float, sizes: Sizes | None) -> Finding:
        """A finding x steps of 4 points above the minimum; given sizes override s."""
        truth = min(0.985, (self.important + 4 * x) / 100)
        n, _ = sizes or draw_sizes(rng, truth * (1 - truth) / (0.04 * s) ** 2)
        k = round(truth * n)
        centre, half = (k + 1.92) / (n + 3.84), 1.96 / (n + 3.84) * math.sqrt(k * (n - k) / n + 0.96)
        estimate, low, high = (round(100 * share, 1) for share in (k / n, centre - half, centre + half))
        return Finding(self, estimate, low, high, None, f"{k}/{n}", f"{estimate}%, 95% CI {low} to {high}", (n, n))


Scale = Mean | Risk | Sensitivity
"""How an outcome is measured."""


def judge(low: float, estimate: float, high: float, null: float, important: float) -> Verdict | None:
    """Whether an interval shows an important effect; None where it shows an unimportant one (never generated).

    >>> judge(-2.4, -1.7, -1.0, null=0, important=-1.5), judge(0.93, 1.01, 1.1, null=1, important=0.75)
    ('yes', 'no')
    >>> judge(0.6, 0.9, 1.3, null=1, important=0.75)
    'maybe'
    """
    if important < null:
        low, estimate, high, null, important = -high, -estimate, -low, -null, -important
    if low > null:
        return "yes" if estimate >= important else None
    return "no" if high < important else "maybe"


def draw_sizes(rng: Random, size: float) -> Sizes:
    """Two groups of about `size` people, never fewer than 12."""
    n = max(12, math.ceil(size))
    return n + rng.randint(0, n // 12), n + rng.randint(0, n // 12)


def log_risk_ratio(a: int, n: int, b: int, m: int) -> tuple[float, float]:
    """Logarithm of (a/n) / (b/m) and its standard error (Katz)."""
    return math.log(a / n) - math.log(b / m), math.sqrt(1 / a - 1 / n + 1 / b - 1 / m)


def p_value(z: float) -> float:
    """Two-sided p-value of a normal statistic."""
    return 2 * NormalDist().cdf(-abs(z))


def p_text(p: float) -> str:
    """A p-value as journals print it.

    >>> p_text(0.00002), p_text(0.0123), p_text(0.414), p_text(0.999)
    ('p<0.001', 'p=0.012', 'p=0.41', 'p=0.99')
    """
    return "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={min(p, 0.99):.2f}"
