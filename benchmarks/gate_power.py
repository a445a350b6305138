"""How often the gate promotes a model that is no better, and how often one that is, by simulated answers.

    python -m benchmarks.gate_power
    python -m benchmarks.gate_power --replicates 10000 --correlation 0.5

A case has a difficulty that both models feel: a model is right where `√r·difficulty + √(1-r)·its own luck`, standard
normal, stays below what its accuracy on that verdict allows. r is the correlation (of the Gaussian copula); the more
two models are alike, the fewer cases they differ on, and the easier a difference is to see. The better model has 60 %
accuracy (PubMedQA's shares of verdicts; recalls of 72, 52 and 25 % on yes, no and maybe), the other one less by the
difference, on every verdict alike. The rest of what the gate looks at is drawn for a sound model, see `SOUND`.
"""

import argparse
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from benchmarks import positive, run
from medgrpo.completions import VERDICTS
from medgrpo.config import GateConfig
from medgrpo.evaluation.gate import JUDGED_PROBES, judge
from medgrpo.evaluation.statistics import POWER, Interval, bootstrap_mean, paired_score_interval, wilson
from medgrpo.manifests import write_json

SHARES = np.array([0.552, 0.338, 0.110])
RECALLS = np.array([0.72, 0.52, 0.25])
SIZES, DIFFERENCES = (50, 200, 500), (0.0, 0.03, 0.05, 0.08)
CORRELATION, CORRELATIONS = 0.7, (0.0, 0.5, 0.7, 0.9)
SOUND = {"strict_form": 0.98, "unsupported": 0.08, "precision": 0.97, "disagreement": 0.03, "flips": 0.4, "blind": 0.42}
"""What a sound model is like: shares of answers, and `blind`, its accuracy under each of the judged probes."""
FIGURES = 3
"""Figures that an answer cites."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Two models with a true difference in accuracy, and how far they find the same cases hard.

    Attributes:
        difference: accuracy of the better one (see `RECALLS`) minus that of the other.
        correlation: of what makes them right, 0 to 1.
    """

    difference: float
    correlation: float

    @cached_property
    def discordant(self) -> tuple[float, float]:
        """Shares of cases that only the better, and only the other model has right."""
        from scipy.stats import multivariate_normal

        joint = multivariate_normal([0, 0], [[1, self.correlation], [self.correlation, 1]])
        better, other = RECALLS, RECALLS - self.difference
        both = np.array([joint.cdf(point) for point in zip(_quantiles(better), _quantiles(other), strict=True)])
        return float(SHARES @ (better - both)), float(SHARES @ (other - both))

    def described(self) -> Row:
        """Difference, correlation, and share of discordant cases."""
        shares = {"difference": self.difference, "correlation": self.correlation}
        return shares | {"discordant": sum(self.discordant)}


def main() -> None:
    """Simulate, print."""
    options = _options()
    results = simulate(options.replicates, options.correlation)
    for title, rows in results.items():
        print(f"\n{title}")
        for row in rows:
            print("  ", ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if options.json:
        write_json(options.json, results)


def simulate(replicates: int, correlation: float, config: GateConfig | None = None) -> dict[str, list[Row]]:
    """All tables: promotions, champions, cases needed, and how well intervals keep their level."""
    config = config or GateConfig()
    pairs = {difference: Pair(difference, correlation) for difference in (-config.margin, *DIFFERENCES)}
    others = [Pair(difference, other) for other in CORRELATIONS for difference in DIFFERENCES[1:]]
    beside = (-config.margin, 0.0, 0.03)
    return {
        "promotion": [promotion_rates(n, pairs[d], replicates, config) for d in DIFFERENCES for n in SIZES],
        "champion": [champion_rates(n, pairs[d], replicates, config) for d in beside for n in SIZES],
        "needed": [pair.described() | {"cases": cases_needed(pair, config.level)} for pair in others],
        "coverage": [coverage(n, pairs[0.03], replicates) for n in SIZES],
    }


def promotion_rates(n: int, pair: Pair, replicates: int, config: GateConfig) -> Row:
    """Share of evaluations of n cases in which the check against the base passes, and in which the whole gate does.

    `exact` is the first by computation, for comparison.
    """
    drawn = draw(n, pair, replicates)
    cases = [metrics(n, {name: counts[i] for name, counts in drawn.items()}) for i in range(replicates)]
    gates = [judge("tuned", one, config, audit_holes="", alarms=[]) for one in cases]
    return {
        "n": n,
        "difference": pair.difference,
        "better than base": float(np.mean([gate.checks[0].outcome == "pass" for gate in gates])),
        "exact": exact_power(n, pair, config.level),
        "whole gate": float(np.mean([gate.outcome == "pass" for gate in gates])),
        "gate fails": float(np.mean([gate.outcome == "fail" for gate in gates])),
    }


def draw(n: int, pair: Pair, replicates: int) -> dict[str, np.ndarray]:
    """Counts of simulated evaluations of n cases: arrays with a number, or one for each verdict, per replicate."""
    rng = np.random.default_rng([n, round(1000 * pair.difference)])
    size = (replicates, n)
    verdict = rng.choice(3, size, p=SHARES)
    difficulty = rng.standard_normal(size) * pair.correlation**0.5

    def right(recalls: np.ndarray) -> np.ndarray:
        luck = rng.standard_normal(size) * (1 - pair.correlation) ** 0.5
        return difficulty + luck < _quantiles(recalls)[verdict]

    tuned, base = right(RECALLS), right(RECALLS - pair.difference)
    counts = {
        "right": tuned.sum(axis=1),
        "base_right": base.sum(axis=1),
        "only_tuned": (tuned & ~base).sum(axis=1),
        "only_base": (base & ~tuned).sum(axis=1),
        "cases": np.stack([(verdict == code).sum(axis=1) for code in range(3)], axis=1),
        "found": np.stack([(tuned & (verdict == code)).sum(axis=1) for code in range(3)], axis=1),
        **{name: rng.binomial(n, SOUND[name], replicates) for name in ("strict_form", "unsupported", "disagreement")},
        "precision": rng.binomial(FIGURES * n, SOUND["precision"], replicates),
    }
    for probe in JUDGED_PROBES:
        blind = rng.random(size) < SOUND["blind"]
        counts[f"{probe}_lost"] = (tuned & ~blind).sum(axis=1)
        counts[f"{probe}_won"] = (blind & ~tuned).sum(axis=1)
        counts[f"{probe}_flips"] = rng.binomial(n, SOUND["flips"], replicates)
    return counts


def metrics(n: int, counts: dict[str, Any]) -> dict[str, Any]:
    """One simulated evaluation as metrics.json holds it, as far as the gate reads it."""
    share = {name: wilson(int(counts[name]), n).as_dict() for name in ("right", "base_right", "strict_form")}
    cases = zip(VERDICTS, counts["found"], counts["cases"], strict=True)
    tuned = {
        "accuracy": share["right"],
        "strict_form": share["strict_form"],
        "recall": {verdict: wilson(int(found), int(total)).as_dict() for verdict, found, total in cases if total},
        "faithfulness": {
            "unsupported_figures": wilson(int(counts["unsupported"]), n).as_dict(),
            # The figures are drawn one by one, so Wilson's interval of the answers is the wider one.
            "evidence_precision": wilson(int(counts["precision"]) / FIGURES, n).as_dict(),
            "disagreement": wilson(int(counts["disagreement"]), n).as_dict(),
        },
    }
    only = {"only_first": int(counts["only_base"]), "only_second": int(counts["only_tuned"])}
    probes = {
        probe: {
            "drop": _difference(int(counts[f"{probe}_won"]), int(counts[f"{probe}_lost"]), n).as_dict(),
            "flips": wilson(int(counts[f"{probe}_flips"]), n).as_dict(),
        }
        for probe in JUDGED_PROBES
    }
    return {
        "n": n,
        "models": {"base": {"accuracy": share["base_right"]}, "tuned": tuned},
        "comparisons": [{"first": "base", "second": "tuned", **only}],
        "probes": {"tuned": probes},
        "contamination": {"compared": {"train": 450, "cases": n}, "pairs": []},
    }


def champion_rates(n: int, pair: Pair, replicates: int, config: GateConfig) -> Row:
    """How often a model that is better than the champion by a difference is found to lose less than the margin."""
    found = [_difference(lost, won, n).low >= -config.margin for won, lost in discordant_counts(n, pair, replicates)]
    return {"n": n, "difference": pair.difference, "passes": float(np.mean(found))}


def coverage(n: int, pair: Pair, replicates: int) -> Row:
    """How often 95 % intervals hold the true difference: Tango's, and the percentile bootstrap's."""
    held = {"score": 0, "bootstrap": 0}
    for won, lost in discordant_counts(n, pair, replicates):
        for name, interval in (("score", _difference(lost, won, n)), ("bootstrap", _resampled(lost, won, n))):
            held[name] += interval.low <= pair.difference <= interval.high
    return {"n": n, "difference": pair.difference, **{name: count / replicates for name, count in held.items()}}


def exact_power(n: int, pair: Pair, level: float) -> float:
    """Chance that the one-sided exact McNemar test finds the better model, by summing over what may come out."""
    from scipy.stats import binom

    discordant, (gain, loss) = np.arange(n + 1), pair.discordant
    needed = binom.isf(level, discordant, 0.5) + 1
    found = binom.sf(needed - 1, discordant, gain / (gain + loss))
    return float(binom.pmf(discordant, n, gain + loss) @ found)


def cases_needed(pair: Pair, level: float) -> int:
    """Cases, to the next ten, with which that test has a power of 80 %."""
    low, high = 1, 2
    while exact_power(10 * high, pair, level) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exact_power(10 * middle, pair, level) >= POWER else (middle, high)
    return 10 * high


def _quantiles(shares: np.ndarray) -> np.ndarray:
    return np.array([NormalDist().inv_cdf(float(share)) for share in shares])


def discordant_counts(n: int, pair: Pair, replicates: int) -> list[tuple[int, int]]:
    """Cases that only the better, and only the other model has right, in simulated evaluations."""
    gain, loss = pair.discordant
    drawn = np.random.default_rng(n).multinomial(n, [gain, loss, 1 - gain - loss], replicates)
    return [(won, lost) for won, lost, _ in drawn.tolist()]


_difference = cache(paired_score_interval)


@cache
def _resampled(only_first: int, only_second: int, n: int) -> Interval:
    gains = np.array([1.0] * only_second + [-1.0] * only_first + [0.0] * (n - only_first - only_second))
    return bootstrap_mean(gains, 2000, 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate_power", description=__doc__.split("\n")[0])
    parser.add_argument("--replicates", type=positive, default=2000, help="simulated evaluations per cell")
    parser.add_argument("--correlation", type=float, default=CORRELATION, help="of the two models' answers, 0 to 1")
    parser.add_argument("--json", type=Path, help="write the results here too")
    options = parser.parse_args()
    if not 0 <= options.correlation < 1:
        parser.error(f"--correlation is {options.correlation:g}; expected a number from 0 to below 1.")
    return options


if __name__ == "__main__":
    run(main)
