"""Accuracy by kind of case: verdict, abstract length, with and without figures, year.

A slice is for looking, not for deciding: among a dozen groups one is bound to stand out by chance.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medgrpo import domains
from medgrpo.config import EvaluationConfig
from medgrpo.evaluation.statistics import wilson
from medgrpo.records import Record
from medgrpo.rewards.grounding import figures

# Publication years of PubMedQA's records in four groups of about a quarter each.
YEAR_BANDS = ("up to 2004", "2005 to 2009", "2010 to 2013", "2014 and later")
_LAST_YEARS = (2004, 2009, 2013)


def slices(
    records: Sequence[Record], answers: Mapping[str, Sequence[Mapping[str, Any]]], config: EvaluationConfig
) -> list[dict[str, Any]]:
    """Accuracy of each model on each group of cases.

    Args:
        records: the cases, shape [n].
        answers: model name -> its answers, each of shape [n].
        config: `slice_cases`, the number of cases below which a group is marked as too small.

    Returns:
        A row {slice, group, n, enough, accuracy: {model: interval}} per group that has any case, groups in order.
    """
    rows = []
    for name, groups, group_of in _slices(records):
        for group in groups:
            inside = [place for place, record in enumerate(records) if group_of(record) == group]
            if inside:
                rows.append(
                    {
                        "slice": name,
                        "group": group,
                        "n": len(inside),
                        "enough": len(inside) >= config.slice_cases,
                        "accuracy": {model: _accuracy(records, given, inside) for model, given in answers.items()},
                    }
                )
    return rows


def _accuracy(records: Sequence[Record], answers: Sequence[Mapping[str, Any]], places: Sequence[int]) -> dict[str, Any]:
    right = sum(answers[place]["verdict"] == records[place].verdict for place in places)
    return wilson(right, len(places)).as_dict()


_Slice = tuple[str, tuple[str, ...], Callable[[Record], str]]


def _slices(records: Sequence[Record]) -> list[_Slice]:
    """Name, groups in order, and group of a record, of each slice; open answers make no groups."""
    short, long = _terciles([_words(record) for record in records])
    lengths = (f"up to {short} words", f"{short + 1} to {long} words", f"more than {long} words")
    domain = domains.get(records[0].domain)
    return [
        ("verdict", domain.form.labels, lambda record: record.verdict),
        (
            f"{domain.source} length",
            lengths,
            lambda record: lengths[int(np.searchsorted((short, long), _words(record)))],
        ),
        ("figures", ("with figures", "without figures"), _figures_group),
        ("year", (*YEAR_BANDS, "unknown"), _year_group),
    ]


def _terciles(lengths: Sequence[int]) -> tuple[int, int]:
    """The two lengths that cut the cases into three groups of about the same size."""
    short, long = np.quantile(lengths, [1 / 3, 2 / 3], method="lower")
    return int(short), int(long)


def _words(record: Record) -> int:
    return len(" ".join(record.contexts).split())


def _figures_group(record: Record) -> str:
    return "with figures" if figures("\n".join(record.contexts)) else "without figures"


def _year_group(record: Record) -> str:
    if record.year is None:
        return "unknown"
    return YEAR_BANDS[int(np.searchsorted(_LAST_YEARS, record.year))]
