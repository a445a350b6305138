"""Tests of medgrpo.evaluation.statistics: each number against an independent implementation."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from medgrpo.evaluation.statistics import Interval, bootstrap, f1_scores, mcnemar, wilson

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
    assert 0 <= interval.low <= interval.high <= 1


def test_wilson_of_nothing_is_null_in_json():
    """No case gives no number: null in JSON, never NaN."""
    assert json.loads(json.dumps(wilson(0, 0).as_dict(), allow_nan=False)) == {
        "value": None,
        "low": None,
        "high": None,
        "n": 0,
    }


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
