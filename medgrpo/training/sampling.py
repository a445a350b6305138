"""Which training record comes next: verdicts in balance, and within a verdict each in turn, or by what it taught.

`SpreadOrder` visits records more often whose groups had spread. A group whose completions all earned the same has no
advantage and no gradient, and how much a record can teach grows with the variance of its rewards (Bae et al., arXiv
2504.03380; Sun et al., arXiv 2506.05316, choose records by predicted difficulty for the same reason).
"""

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import overload


def balanced_order(verdicts: Sequence[str], count: int, balance: float, seed: int) -> list[int]:
    """Indices of `count` rows whose verdicts lie between their natural shares and equal ones.

    Args:
        verdicts: verdict of each row.
        count: number of indices wanted.
        balance: 0 keeps the natural shares, 1 makes them equal, between them they are interpolated.
        seed: seed of the draw.

    Returns:
        Indices in random order; within a verdict every row is used before any is used again.

    >>> order = balanced_order(["yes"] * 8 + ["no"] * 2, 10, 1.0, 0)
    >>> sum(i < 8 for i in order)
    5
    """
    generator = random.Random(seed)
    rows_of = _rows_by_verdict(verdicts)
    queues: dict[str, list[int]] = {verdict: [] for verdict in rows_of}
    order: list[int] = []
    for verdict in itertools.islice(_turns(verdicts, balance), count):
        if not queues[verdict]:
            queues[verdict] = generator.sample(rows_of[verdict], len(rows_of[verdict]))
        order.append(queues[verdict].pop())
    return order


class SpreadOrder(Sequence[int]):
    """Rows in balanced verdicts; within a verdict, the more often a row's groups had spread, the sooner it comes again.

    A row whose groups had spread in m of n visits weighs (m + 1) / (n + 2), the expected rate under a uniform prior.
    The row with the fewest visits for its weight, (n + 1) / weight, comes next, ties by lot: each row comes once before
    any comes again; from then on rows that always have spread come in turn, and one that never had any about the square
    root of as many times. No row is given up: the policy that it was too hard for changes. A visit whose outcome is not
    known yet counts as one, but not in the weight.

    A batch is drawn from the seed, its number, and the outcomes of the batches up to two before it. Later ones are not
    known when a data loader that looks one batch ahead asks; leaving them out always, as after a resume, when they are
    known, makes a resumed training draw what the uninterrupted one draws.

    Args:
        verdicts: verdict of each row.
        batches: number of batches.
        size: prompts in a batch.
        balance: as for `balanced_order`.
        seed: seed of the draw.
    """

    def __init__(self, verdicts: Sequence[str], batches: int, size: int, balance: float, seed: int) -> None:
        self._size, self._seed = size, seed
        self._rows_of = _rows_by_verdict(verdicts)
        self._turns = list(itertools.islice(_turns(verdicts, balance), batches * size))
        self._drawn: list[list[int]] = []
        self._spread: list[list[bool]] = []

    def __len__(self) -> int:
        return len(self._turns)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        """The row at a place; batches are drawn in order, each when a place in it is first asked for.

        Raises:
            IndexError: the place is behind the end.
            RuntimeError: the batch depends on one whose outcome is not known yet.
        """
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = place // self._size
        while len(self._drawn) <= number:
            self._drawn.append(self._draw(len(self._drawn)))
        return self._drawn[number][place % self._size]

    def learn(self, spread: Sequence[bool]) -> None:
        """Take in whether each group of the oldest batch without an outcome had spread."""
        self._spread.append(list(spread))

    def state(self) -> dict[str, list[list[int]]]:
        """The batches with an outcome, and the outcomes, for `restore`."""
        known = len(self._spread)
        return {"drawn": self._drawn[:known], "spread": [list(map(int, groups)) for groups in self._spread]}

    def restore(self, state: dict[str, list[list[int]]]) -> None:
        """Go on where a state was taken."""
        self._drawn = list(state["drawn"])
        self._spread = [list(map(bool, groups)) for groups in state["spread"]]

    def _draw(self, number: int) -> list[int]:
        known = max(0, number - 1)
        if len(self._spread) < known:
            raise RuntimeError(
                f"batch {number} of the prompts was asked for before batch {known - 1} was rewarded; the data loader "
                "may look one batch ahead and no further (dataloader_num_workers = 0)."
            )
        outcomes = list(zip(itertools.chain(*self._drawn[:known]), itertools.chain(*self._spread[:known]), strict=True))
        visits = Counter(itertools.chain(*self._drawn))
        judged, spread = Counter(row for row, _ in outcomes), Counter(row for row, had in outcomes if had)
        generator = random.Random(f"{self._seed}/{number}")
        batch: list[int] = []
        for verdict in self._turns[number * self._size : (number + 1) * self._size]:
            rows = generator.sample(self._rows_of[verdict], len(self._rows_of[verdict]))
            batch.append(
                min(rows, key=lambda row: (row in batch, (visits[row] + 1) * (judged[row] + 2) / (spread[row] + 1)))
            )
        return batch


class LatePlaces:
    """A sampler of places in an order that looks each row up only when it is due.

    Args:
        places: a sampler that yields places.
        order: the row at each place.
    """

    def __init__(self, places: Sequence[int], order: Sequence[int]) -> None:
        self._places, self._order = places, order

    def __iter__(self) -> Iterator[int]:
        return (self._order[place] for place in self._places)

    def __len__(self) -> int:
        return len(self._places)


def _rows_by_verdict(verdicts: Sequence[str]) -> dict[str, list[int]]:
    return {verdict: [i for i, v in enumerate(verdicts) if v == verdict] for verdict in sorted(set(verdicts))}


def _turns(verdicts: Sequence[str], balance: float) -> Iterator[str]:
    """Whose turn it is, for ever: the verdict furthest behind its share, so that every stretch is balanced."""
    counts = Counter(verdicts)
    shares = {v: (1 - balance) * counts[v] / len(verdicts) + balance / len(counts) for v in counts}
    taken = dict.fromkeys(shares, 0)
    for position in itertools.count(1):
        verdict = max(shares, key=lambda v: (shares[v] * position - taken[v], v))
        taken[verdict] += 1
        yield verdict
