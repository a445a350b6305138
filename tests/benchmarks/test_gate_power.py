"""Tests of benchmarks.gate_power: the gate's error rates are as stated, on simulated model pairs."""

import json
import sys

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks import gate_power
from benchmarks.gate_power import Pair, cases_needed, discordant_counts, draw, exact_power, promotion_rates
from medgrpo.config import GateConfig
from medgrpo.evaluation.gate import JUDGED_PROBES, judge
from medgrpo.evaluation.statistics import mcnemar_one_sided, paired_score_interval

# Chance that a correct gate misses a bound of these tests, had it been another seed.
UNLUCKY = 1e-5


def most(rate, replicates):
    """The number of passes that a gate of this rate exceeds only with bad luck."""
    return binom.isf(UNLUCKY, replicates, rate)


@pytest.mark.parametrize("n", [50, 200, 500])
@pytest.mark.parametrize("correlation", [0.0, 0.7, 0.95])
def test_a_model_that_is_no_better_passes_in_five_of_a_hundred_at_most(n, correlation):
    """At no true difference the check against the base passes in at most 5 %, by computation and by simulation."""
    pair, level = Pair(0.0, correlation), GateConfig().level
    assert exact_power(n, pair, level) <= level
    counts = discordant_counts(n, pair, 4000)
    p_values = {pair: mcnemar_one_sided(pair[1], pair[0]) for pair in set(counts)}
    assert sum(p_values[pair] < level for pair in counts) <= most(level, 4000)


def test_the_whole_gate_keeps_its_level_and_finds_what_is_there():
    """200 simulated evaluations: the whole gate promotes equals in at most 5 %, and +8 points at n = 500 in most."""
    config = GateConfig()
    equal = promotion_rates(500, Pair(0.0, 0.7), 200, config)
    better = promotion_rates(500, Pair(0.08, 0.7), 200, config)
    assert equal["whole gate"] * 200 <= most(config.level, 200)
    assert better["better than base"] >= better["whole gate"] > 0.7
    assert better["gate fails"] == 0


def test_the_computed_power_is_the_simulated_one():
    """Power by summing over all outcomes agrees with that of 4,000 simulated evaluations, to four standard errors."""
    pair, level = Pair(0.05, 0.7), 0.05
    found = np.mean([mcnemar_one_sided(lost, won) < level for won, lost in discordant_counts(200, pair, 4000)])
    power = exact_power(200, pair, level)
    assert found == pytest.approx(power, abs=4 * (power * (1 - power) / 4000) ** 0.5)


def test_the_drawn_answers_are_those_of_the_pair():
    """Simulated models have the stated accuracies, and differ on the stated share of cases."""
    pair = Pair(0.05, 0.7)
    drawn = {name: counts.sum(axis=0) / 200_000 for name, counts in draw(500, pair, 400).items()}
    gain, loss = pair.discordant
    assert drawn["right"] == pytest.approx(gate_power.SHARES @ gate_power.RECALLS, abs=0.006)
    assert drawn["right"] - drawn["base_right"] == pytest.approx(0.05, abs=0.006)
    assert (drawn["only_tuned"], drawn["only_base"]) == (pytest.approx(gain, abs=0.005), pytest.approx(loss, abs=0.005))


@pytest.mark.parametrize("probe", JUDGED_PROBES)
def test_a_simulated_model_that_does_not_read_never_passes(probe):
    """Where a probe costs no accuracy, no simulated evaluation passes, however much better than the base it is."""
    drawn = draw(500, Pair(0.08, 0.7), 50)
    drawn[f"{probe}_lost"] = drawn[f"{probe}_won"] = np.full(50, 20)
    for i in range(50):
        found = gate_power.metrics(500, {name: counts[i] for name, counts in drawn.items()})
        assert judge("tuned", found, GateConfig(), audit_holes="", alarms=[]).outcome == "fail"


def test_a_worse_model_is_seldom_taken_for_as_good_as_the_champion():
    """A model that loses just the margin is found to lose less in 2.5 % of the evaluations, at small n too."""
    margin = GateConfig().margin
    for n in (50, 200):
        counts = discordant_counts(n, Pair(-margin, 0.7), 2000)
        lows = {pair: paired_score_interval(pair[1], pair[0], n).low for pair in set(counts)}
        assert sum(lows[pair] >= -margin for pair in counts) <= most(0.03, 2000)


def test_the_cases_needed_are_the_fewest():
    """With the stated number of cases the power is 80 %, with a tenth fewer it is not."""
    pair = Pair(0.08, 0.7)
    n = cases_needed(pair, 0.05)
    assert exact_power(n, pair, 0.05) >= 0.8 > exact_power(round(0.9 * n), pair, 0.05)


def test_the_command_prints_and_writes_its_tables(monkeypatch, tmp_path, capsys):
    """A small run prints all tables and writes them as JSON."""
    monkeypatch.setattr(gate_power, "SIZES", (50,))
    monkeypatch.setattr(sys, "argv", ["gate_power", "--replicates", "5", "--json", str(tmp_path / "power.json")])
    gate_power.main()
    tables = json.loads((tmp_path / "power.json").read_text())
    assert list(tables) == ["promotion", "champion", "needed", "coverage"]
    assert "whole gate" in capsys.readouterr().out
    assert [row["n"] for row in tables["coverage"]] == [50]
