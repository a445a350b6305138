"""Tests of medgrpo.training.sampling: which record comes next."""

import json
import random
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.training.sampling import LatePlaces, SpreadOrder, balanced_order

pools = st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=1, max_size=40)
balances = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
seeds = st.integers(0, 1000)
counts = st.integers(0, 90)


def shares(pool, balance):
    natural = {verdict: n / len(pool) for verdict, n in Counter(pool).items()}
    return {verdict: (1 - balance) * share + balance / len(natural) for verdict, share in natural.items()}


@given(pools, counts, balances, seeds)
def test_every_prefix_holds_the_shares_asked_for(pool, count, balance, seed):
    """Training stopped after any row has seen each verdict within one row of its share of the rows so far."""
    wanted, seen = shares(pool, balance), Counter()
    for position, index in enumerate(balanced_order(pool, count, balance, seed), start=1):
        seen[pool[index]] += 1
        assert all(abs(seen[verdict] - share * position) < 1 for verdict, share in wanted.items())
    assert seen.total() == count


@given(pools, counts, balances, seeds)
def test_every_row_is_used_before_any_is_used_again(pool, count, balance, seed):
    """Within a verdict the rows' uses differ by one at most, at every point of the order."""
    uses = dict.fromkeys(range(len(pool)), 0)
    for index in balanced_order(pool, count, balance, seed):
        rows = [i for i, verdict in enumerate(pool) if verdict == pool[index]]
        assert uses[index] == min(uses[i] for i in rows)
        uses[index] += 1


@given(pools, counts, balances, seeds)
def test_the_order_is_determined_by_its_seed(pool, count, balance, seed):
    """The same arguments give the same order, so that a resumed training goes on with the rows it would have had."""
    assert balanced_order(pool, count, balance, seed) == balanced_order(pool, count, balance, seed)


@given(pools, counts, balances, seeds, st.integers(0, 30))
def test_a_longer_order_begins_with_the_shorter_one(pool, count, balance, seed, more):
    """Asking for more steps changes none of the earlier ones."""
    assert balanced_order(pool, count + more, balance, seed)[:count] == balanced_order(pool, count, balance, seed)


def test_seeds_give_different_orders_with_the_same_shares():
    """Another seed draws other rows, never other shares."""
    pool = ["yes"] * 30 + ["no"] * 20 + ["maybe"] * 10
    first, second = (balanced_order(pool, 30, 0.5, seed) for seed in (1, 2))
    assert first != second
    assert Counter(pool[i] for i in first) == Counter(pool[i] for i in second)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, {"yes": 60, "no": 30, "maybe": 10}),
        (1.0, {"yes": 34, "no": 33, "maybe": 33}),
        (0.5, {"yes": 47, "no": 32, "maybe": 21}),
    ],
)
def test_balance_goes_from_the_natural_shares_to_equal_ones(balance, expected):
    """0 keeps 60/30/10, 1 makes thirds of it, one half lies half-way."""
    pool = ["yes"] * 60 + ["no"] * 30 + ["maybe"] * 10
    counts = Counter(pool[i] for i in balanced_order(pool, 100, balance, 0))
    assert all(abs(counts[verdict] - n) <= 1 for verdict, n in expected.items())


# --- By what a record taught -------------------------------------------------------------------------------------


def play(order, teaches, batches, size):
    """Draw batches as a data loader does that looks one ahead, each rewarded before the one after the next is drawn."""
    places = iter(range(len(order)))
    drawn = [[order[next(places)] for _ in range(size)]]
    for number in range(batches):
        if number + 1 < batches:
            drawn.append([order[next(places)] for _ in range(size)])
        order.learn([teaches(row, number) for row in drawn[number]])
    return drawn


def by_lot(row, number):
    return random.Random(f"{row} {number}").random() < 0.5


@given(pools, st.integers(1, 20), st.integers(1, 4), balances, seeds)
def test_spread_keeps_the_verdicts_shares(pool, batches, size, balance, seed):
    """Whatever was learnt, the sequence of verdicts is that of the balanced order."""
    drawn = play(SpreadOrder(pool, batches, size, balance, seed), by_lot, batches, size)
    plain = balanced_order(pool, batches * size, balance, seed)
    assert [pool[row] for batch in drawn for row in batch] == [pool[row] for row in plain]


@given(pools, st.integers(1, 20), st.integers(1, 4), seeds)
def test_spread_visits_each_row_once_before_any_again(pool, batches, size, seed):
    """Whatever was learnt, a row's second visit comes after the first one of every other row of its verdict."""
    uses = dict.fromkeys(range(len(pool)), 0)
    for row in chain(*play(SpreadOrder(pool, batches, size, 0.5, seed), by_lot, batches, size)):
        assert not uses[row] or all(uses[other] for other in uses if pool[other] == pool[row])
        uses[row] += 1


def test_rows_that_teach_are_visited_more_and_none_is_given_up():
    """Of 20 rows, half of which never have spread, these get about the square root of the others' visits, not none."""
    drawn = play(SpreadOrder(["yes"] * 20, 200, 2, 0.0, 3), lambda row, _: row % 2 == 0, 200, 2)
    visits = Counter(row for batch in drawn for row in batch)
    teaching, idle = ([visits[row] for row in range(20) if row % 2 == odd] for odd in (0, 1))
    assert max(teaching) - min(teaching) <= 1
    assert max(idle) - min(idle) <= 1
    assert sum(teaching) / 10 == pytest.approx(34, abs=2)
    assert sum(idle) / 10 == pytest.approx(34**0.5, abs=1)


def test_a_row_that_begins_to_teach_comes_more_often():
    """A row whose groups get spread after its first visits catches up with those that always had it."""
    drawn = play(SpreadOrder(["yes"] * 4, 300, 1, 0.0, 3), lambda row, number: row != 0 or number > 20, 300, 1)
    late = Counter(row for [row] in drawn[-60:])
    assert late[0] == pytest.approx(15, abs=3)


def test_without_anything_learnt_all_rows_are_visited_alike():
    """Where no group ever has spread, or every one has, visits differ by one at most."""
    for answer in (True, False):
        drawn = play(SpreadOrder(["yes"] * 7, 50, 2, 0.0, 1), lambda *_, a=answer: a, 50, 2)
        visits = Counter(row for batch in drawn for row in batch).values()
        assert max(visits) - min(visits) <= 1


@given(pools, st.integers(2, 16), st.integers(1, 4), st.data(), seeds)
def test_a_restored_order_goes_on_like_the_uninterrupted_one(pool, batches, size, data, seed):
    """Stopped after any batch, kept as JSON, and asked again from the first place on, the same rows come."""
    whole = play(SpreadOrder(pool, batches, size, 0.5, seed), by_lot, batches, size)
    stop = data.draw(st.integers(1, batches - 1))
    first = SpreadOrder(pool, batches, size, 0.5, seed)
    play(first, by_lot, stop, size)
    second = SpreadOrder(pool, batches, size, 0.5, seed)
    second.restore(json.loads(json.dumps(first.state())))
    again = [second[place] for place in range(stop * size)]
    for number in range(stop, batches):
        again += [second[place] for place in range(number * size, (number + 1) * size)]
        second.learn([by_lot(row, number) for row in whole[number]])
    assert again == list(chain(*whole))


def test_the_same_row_comes_twice_in_a_batch_only_where_there_is_no_other():
    """A batch holds different rows as long as the verdict has enough of them."""
    for batch in play(SpreadOrder(["yes"] * 4 + ["no"], 60, 4, 0.5, 0), lambda row, _: row == 0, 60, 4):
        assert batch.count(0) <= 1


def test_a_batch_whose_reasons_are_not_known_yet_is_refused():
    """A data loader that looks further ahead than one batch would get other rows after a resume: it gets none."""
    order = SpreadOrder(["yes"] * 9, 5, 2, 0.0, 0)
    assert len(order[:4]) == 4
    with pytest.raises(RuntimeError, match="batch 2 of the prompts was asked for before batch 0 was rewarded"):
        order[4]


def test_there_is_nothing_behind_the_end():
    """The order is as long as the training, and a place behind it is an error."""
    order = SpreadOrder(["yes"], 3, 2, 0.0, 0)
    assert len(order) == 6
    with pytest.raises(IndexError):
        order[6]


def test_places_are_looked_up_when_they_are_due():
    """A change of the order reaches the places that were not asked for yet."""
    order = [5, 6, 7]
    rows = iter(LatePlaces([0, 0, 2], order))
    assert [next(rows), next(rows)] == [5, 5]
    order[2] = 9
    assert list(rows) == [9]
    assert len(LatePlaces([0, 0, 2], order)) == 3
