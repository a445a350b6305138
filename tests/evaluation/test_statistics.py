"""Tests of medgrpo.evaluation.statistics: each number against an independent implementation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import f1_score

from medgrpo.evaluation.statistics import (
    Interval,
    bootstrap,
    bootstrap_mean,
    bootstrap_ratio,
    calibration,
    detectable_difference,
    f1_scores,
    mcnemar,
    mcnemar_one_sided,
    paired_score_interval,
    resample_counts,
    resampled_f1,
    wider,
    wilson,
)

verdict_pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60)


@given(st.integers(1, 2000), st.data())
def test_wilson_is_scipys(n, data):
    """The interval equals that of scipy's binomial test for every share, 0 and 1 included."""
    successes = data.draw(st.integers(0, n))
    interval = wilson(successes, n)
    expected = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert interval.low == pytest.approx(expected.low, abs=1e-9)
    assert interval.high == pytest.approx(expected.high, abs=1e-9)
    assert (interval.value, interval.n) == (successes / n, n)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_wilson_of_nothing_is_null_in_json():
    """No case gives no number: null in JSON, never NaN."""
    assert json.loads(json.dumps(wilson(0, 0).as_dict(), allow_nan=False)) == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
    }


def test_a_wider_interval_holds_both():
    """Value and n stay those of the first; without numbers there is none."""
    assert wider(Interval(0.9, 0.8, 0.95, 40), Interval(0.9, 0.76, 0.93, 7)) == Interval(0.9, 0.76, 0.95, 40)
    assert wider(wilson(0, 0), wilson(0, 0)).as_dict()["low"] is None


def test_more_cases_make_a_narrower_interval():
    """70 % accuracy is known to about ±12 points from 50 cases and to ±4 from 500."""
    widths = {n: (wilson(round(0.7 * n), n).high - wilson(round(0.7 * n), n).low) / 2 for n in (50, 500)}
    assert widths[50] == pytest.approx(0.123, abs=0.005)
    assert widths[500] == pytest.approx(0.040, abs=0.001)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=80))
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(pairs):
    """Only cases that one model has right and the other wrong count, and the test on them is exact and two-sided."""
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    found = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    assert found[:2] == (only_first, only_second)
    if only_first + only_second:
        assert found[2] == pytest.approx(binomtest(only_first, only_first + only_second, 0.5).pvalue)
    else:
        assert found[2] == 1.0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemars_p_value_is_twice_the_smaller_tail(only_first, only_second):
    """The p-value is twice the binomial tail of the rarer kind of discordance, at most 1, by plain counting."""
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1)) / 2**discordant
    p_value = mcnemar([True] * only_first + [False] * only_second, [False] * only_first + [True] * only_second)[2]
    assert p_value == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [(0, 1, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (1, 9, 0.021484375), (5, 5, 1.0), (0, 0, 1.0)],
)
@pytest.mark.parametrize("agreeing", [0, 100])
def test_mcnemar_by_hand(only_first, only_second, expected, agreeing):
    """Small tables have the p-values of a fair coin, however many cases both models have right."""
    first = [True] * only_first + [False] * only_second + [True] * agreeing
    second = [False] * only_first + [True] * only_second + [True] * agreeing
    assert mcnemar(first, second) == (only_first, only_second, pytest.approx(expected))
    assert mcnemar(second, first)[2] == pytest.approx(expected)


def test_mcnemar_refuses_unequal_lengths():
    """Two models must have answered the same cases."""
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


@given(verdict_pairs)
def test_f1_is_sklearns(pairs):
    """The F1 of each label, 0 where it is absent, equals scikit-learn's, and so does their mean."""
    expected, predicted = (np.array(codes) for codes in zip(*pairs, strict=True))
    ours = f1_scores(expected, predicted, [0, 1, 2])
    theirs = f1_score(expected, predicted, labels=[0, 1, 2], average=None, zero_division=0)
    assert ours == pytest.approx(theirs)
    assert ours.mean() == pytest.approx(
        f1_score(expected, predicted, labels=[0, 1, 2], average="macro", zero_division=0)
    )


def test_an_unreadable_answer_costs_recall_only():
    """A code outside the labels is a miss for its case and no false positive for any label."""
    expected = np.array([0, 0, 1, 1])
    predicted = np.array([0, -1, 1, 1])
    assert f1_scores(expected, predicted, [0, 1]) == pytest.approx([2 / 3, 1.0])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(0, 2**32 - 1))
def test_the_bootstrap_interval_of_a_mean_lies_within_the_data(values, seed):
    """The value is the statistic of all cases, and its interval stays between the smallest and largest case."""
    data = np.array(values)
    interval = bootstrap(lambda rows: float(data[rows].mean()), len(data), 60, seed)
    assert interval.value == pytest.approx(data.mean())
    assert data.min() - 1e-9 <= interval.low <= interval.high <= data.max() + 1e-9
    assert interval.n == len(data)


@pytest.mark.parametrize("seed", range(5))
def test_the_bootstrap_interval_contains_the_value(seed):
    """For a mean of ordinary data the interval lies around the value, about as wide as theory says."""
    data = np.random.default_rng(seed).normal(size=200)
    interval = bootstrap(lambda rows: float(data[rows].mean()), 200, 1000, seed)
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * data.std() / 200**0.5, rel=0.15)


def test_the_bootstrap_is_determined_by_its_seed():
    """The same seed gives the same interval to the last digit, another seed another one."""
    data = np.random.default_rng(0).normal(size=50)

    def of(seed):
        return bootstrap(lambda rows: float(data[rows].mean()), 50, 200, seed)

    assert of(3) == of(3)
    assert of(3) != of(4)
    assert of(3).value == of(4).value


def test_the_bootstrap_resamples_cases_with_replacement():
    """Each resample has as many cases as there are, drawn anew."""
    drawn = []
    bootstrap(lambda rows: float(drawn.append(rows) or 0.0), 30, 20, 1)
    *resamples, whole = drawn
    assert all(rows.shape == (30,) and rows.min() >= 0 and rows.max() < 30 for rows in resamples)
    assert all(len(set(rows.tolist())) < 30 for rows in resamples)
    assert whole.tolist() == list(range(30))


def test_resamples_without_a_value_are_left_out():
    """A resample in which the statistic is undefined does not make the whole interval undefined."""
    interval = bootstrap(lambda rows: float("nan") if rows[0] == 0 else 1.0, 5, 200, 0)
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_the_number_of_cases_behind_a_value_can_be_smaller():
    """The F1 of one verdict reports how many cases carry that verdict."""
    assert bootstrap(lambda rows: 0.5, 10, 5, 0, count=3).n == 3


def test_an_interval_as_a_dict_is_strict_json():
    """Numbers stay, and what is not a number becomes null."""
    assert Interval(0.5, float("nan"), 0.7, 4).as_dict() == {"value": 0.5, "low": None, "high": 0.7, "n": 4}


# --- Resampling by matrix products -------------------------------------------------------------------------------


def test_resamples_are_counts_of_the_cases_drawn():
    """Each row counts how often each of n cases comes up in n draws; it is fixed by the seed, and read-only."""
    counts = resample_counts(30, 200, 1)
    assert counts.shape == (200, 30)
    assert set(counts.sum(axis=1)) == {30.0}
    assert counts.mean() == 1.0
    assert counts.var() == pytest.approx(1 - 1 / 30, rel=0.1)
    assert (resample_counts(30, 200, 2) != counts).any()
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 9


def test_the_fast_mean_is_the_plain_bootstrap():
    """Resampling by counts gives what calling the statistic on each resample gives."""
    data = np.random.default_rng(0).normal(size=80)
    fast, plain = bootstrap_mean(data, 300, 5), bootstrap(lambda rows: float(data[rows].mean()), 80, 300, 5)
    assert (fast.value, fast.low, fast.high, fast.n) == pytest.approx((plain.value, plain.low, plain.high, plain.n))


def test_the_fast_f1_is_the_plain_bootstrap():
    """So does F1, of each label and in every resample."""
    rng = np.random.default_rng(1)
    expected, predicted = rng.integers(0, 3, 60), rng.integers(-1, 3, 60)
    counts, fast = resample_counts(60, 20, 4), resampled_f1(expected, predicted, [0, 1, 2], 20, 4)
    for drawn, scores in zip(counts, fast, strict=True):
        rows = np.repeat(np.arange(60), drawn.astype(int))
        assert scores == pytest.approx(f1_scores(expected[rows], predicted[rows], [0, 1, 2]))


def test_parts_of_one_case_are_drawn_together():
    """Ten figures of one answer are no ten cases: the interval is as wide as that of the answers."""
    good = np.array([1.0] * 30 + [0.0] * 10)
    clustered = bootstrap_ratio(10 * good, np.full(40, 10.0), 2000, 0)
    assert clustered == bootstrap_ratio(good, np.ones(40), 2000, 0)
    assert clustered.high - clustered.low > 2.5 * (wilson(300, 400).high - wilson(300, 400).low)


def test_cases_without_parts_have_nothing_to_say():
    """They change neither value nor interval nor n; with none at all there is no number."""
    some = bootstrap_ratio([1, 2, 0, 0], [2, 2, 0, 0], 100, 0)
    assert some == bootstrap_ratio([1, 2], [2, 2], 100, 0)
    assert bootstrap_ratio([0, 0], [0, 0], 100, 0).as_dict() == {"value": None, "low": None, "high": None, "n": 0}


# --- Paired differences ------------------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_one_sided_p_value_is_scipys(only_first, only_second):
    """The exact one-sided test equals scipy's binomial test for "greater"; no discordant case gives 1."""
    n = only_first + only_second
    expected = binomtest(only_second, n, 0.5, alternative="greater").pvalue if n else 1.0
    assert mcnemar_one_sided(only_first, only_second) == pytest.approx(expected)


def score(only_first, only_second, n, difference):
    """Squared score statistic of a true difference, its nuisance share found by maximising the likelihood."""

    def share_of(loss):
        gain = loss + difference
        return gain, loss, 1 - gain - loss

    def unlikely(loss):
        shares = share_of(loss)
        counts = (only_second, only_first, n - only_first - only_second)
        return -sum(k * math.log(max(share, 1e-300)) for k, share in zip(counts, shares, strict=True) if k)

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    loss = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
    variance = n * (2 * loss + difference - difference**2)
    return (only_second - only_first - n * difference) ** 2 / variance


@pytest.mark.parametrize(("only_first", "only_second", "n"), [(5, 15, 50), (1, 4, 30), (12, 9, 60), (3, 1, 40)])
def test_the_score_interval_ends_where_the_score_test_begins_to_reject(only_first, only_second, n):
    """At both ends the score statistic, with its nuisance share by numeric maximum likelihood, is that of 95 %."""
    interval = paired_score_interval(only_first, only_second, n)
    for end in (interval.low, interval.high):
        assert score(only_first, only_second, n, end) == pytest.approx(norm.ppf(0.975) ** 2, rel=1e-3)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_the_score_interval_is_symmetric_and_holds_the_value(only_first, only_second, others):
    """Swapping the models turns the interval round; it holds the value and stays within [-1, 1]."""
    n = only_first + only_second + others
    there, back = paired_score_interval(only_first, only_second, n), paired_score_interval(only_second, only_first, n)
    if n == 0:
        assert there.as_dict()["value"] is None
        return
    assert (there.low, there.high) == (pytest.approx(-back.high, abs=1e-6), pytest.approx(-back.low, abs=1e-6))
    assert -1 <= there.low <= there.value + 1e-9
    assert there.value - 1e-9 <= there.high <= 1


def test_agreement_on_few_cases_is_no_proof_of_equality():
    """Without a discordant case among 50 the score interval still is ±7 points, where a bootstrap has no width."""
    interval = paired_score_interval(0, 0, 50)
    assert (interval.low, interval.high) == (pytest.approx(-0.071, abs=1e-3), pytest.approx(0.071, abs=1e-3))
    assert bootstrap_mean(np.zeros(50), 100, 0).high == 0


@pytest.mark.parametrize(("n", "gain", "loss"), [(30, 0.1, 0.1), (50, 0.15, 0.1), (50, 0.06, 0.02)])
def test_the_score_interval_keeps_its_level_at_small_n(n, gain, loss):
    """Over every outcome, weighted by its chance, it misses the true difference in about 5 %, at most 6.5 %."""
    missed = 0.0
    for lost in range(n + 1):
        weight = binom.pmf(lost, n, loss)
        if weight < 1e-7:
            continue
        for won in range(n - lost + 1):
            chance = weight * binom.pmf(won, n - lost, gain / (1 - loss))
            if chance > 1e-6:
                interval = paired_score_interval(lost, won, n)
                missed += chance * (not interval.low <= gain - loss <= interval.high)
    assert missed <= 0.065


@given(st.integers(10, 2000), st.floats(0.01, 0.6))
def test_the_detectable_difference_is_connors_sample_size_turned_round(n, discordance):
    """Connor's formula, given the difference, asks for the number of cases that it was computed from."""
    found = detectable_difference(n, discordance)
    share = max(found, discordance)
    needed = (norm.ppf(0.975) * share**0.5 + norm.ppf(0.8) * (share - found**2) ** 0.5) ** 2 / found**2
    assert needed == pytest.approx(n, rel=1e-4)


def test_more_cases_find_smaller_differences():
    """What can be found shrinks with n and grows with discordance; three cases find nothing."""
    assert detectable_difference(500, 0.2) < detectable_difference(200, 0.2) < detectable_difference(200, 0.4)
    assert math.isnan(detectable_difference(3, 0.5))


# --- Calibration -------------------------------------------------------------------------------------------------


def test_calibration_is_the_gap_between_confidence_and_accuracy():
    """Confidence 0.8 that is right in half of the cases is 0.3 off, in one bin of its own."""
    found = calibration(np.full(40, 0.8), np.arange(40) % 2 == 0, 300, 0)
    assert found["ece"]["value"] == pytest.approx(0.3)
    assert found["brier"]["value"] == pytest.approx((0.2**2 + 0.8**2) / 2)
    assert found["bins"] == [
        {"low": 0.7, "high": 0.8, "n": 40, "confidence": pytest.approx(0.8), "accuracy": pytest.approx(0.5)}
    ]
    for name in ("ece", "brier"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("samples", range(1, 11))
def test_every_agreement_has_a_bin_of_its_own(samples):
    """Up to ten samples, answers with different agreements are never averaged together."""
    agreements = np.array([k / samples for k in range(1, samples + 1)])
    found = calibration(agreements, np.ones(samples, dtype=bool), 10, 0)
    assert [one["confidence"] for one in found["bins"]] == pytest.approx(list(agreements))
    assert all(one["low"] < one["confidence"] <= one["high"] + 1e-9 for one in found["bins"])


def test_a_perfect_confidence_has_an_error_by_chance():
    """Where outcomes follow the confidence, the measured error is about what chance alone explains."""
    rng = np.random.default_rng(3)
    confidence = rng.integers(2, 6, 200) / 5
    found = calibration(confidence, rng.random(200) < confidence, 500, 0)
    assert found["ece_by_chance"] > 0.02
    assert found["ece"]["value"] < 2.5 * found["ece_by_chance"]
    wrong = calibration(confidence, rng.random(200) < 0.3, 500, 0)
    assert wrong["ece"]["low"] > 2.5 * wrong["ece_by_chance"]
