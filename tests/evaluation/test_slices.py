"""Tests of medgrpo.evaluation.slices."""

import json

import pytest

from medgrpo.config import EvaluationConfig
from medgrpo.evaluation.slices import slices
from medgrpo.testing import tiny_record

CONFIG = EvaluationConfig(slice_cases=3)


def words(count, figure=""):
    return (f"{'word ' * (count - bool(figure))}{figure}".strip(),)


RECORDS = [
    tiny_record("1", "yes", contexts=words(50), year=1994),
    tiny_record("2", "yes", contexts=words(60, "2.4"), year=2004),
    tiny_record("3", "yes", contexts=words(100, "12%"), year=2005),
    tiny_record("4", "no", contexts=words(120, "7"), year=2010),
    tiny_record("5", "no", contexts=words(200, "7"), year=2016),
    tiny_record("6", "maybe", contexts=words(300, "7"), year=None),
]
ANSWERS = {
    "base": [{"verdict": "yes"}] * 6,
    "tuned": [{"verdict": verdict} for verdict in ("yes", "no", "yes", "no", None, "maybe")],
}


@pytest.fixture(scope="module")
def rows():
    return slices(RECORDS, ANSWERS, CONFIG)


def test_every_case_is_in_one_group_of_each_slice(rows):
    """The groups of a slice share out all cases, and empty groups are left out."""
    assert {row["slice"] for row in rows} == {"verdict", "abstract length", "figures", "year"}
    for name in {row["slice"] for row in rows}:
        sizes = [row["n"] for row in rows if row["slice"] == name]
        assert sum(sizes) == len(RECORDS)
        assert min(sizes) > 0
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_groups_are_what_they_are_called(rows):
    """Verdicts, thirds by words, figures in the abstract, and years in bands, unknown last."""
    assert [(row["slice"], row["group"], row["n"]) for row in rows] == [
        ("verdict", "yes", 3),
        ("verdict", "no", 2),
        ("verdict", "maybe", 1),
        ("abstract length", "up to 60 words", 2),
        ("abstract length", "61 to 120 words", 2),
        ("abstract length", "more than 120 words", 2),
        ("figures", "with figures", 5),
        ("figures", "without figures", 1),
        ("year", "up to 2004", 2),
        ("year", "2005 to 2009", 1),
        ("year", "2010 to 2013", 1),
        ("year", "2014 and later", 1),
        ("year", "unknown", 1),
    ]


def test_accuracy_is_each_models_on_the_group(rows):
    """Each model's share of right answers stands with its interval and n; an unreadable answer is wrong."""
    no = next(row for row in rows if row["group"] == "no")
    assert {name: (one["value"], one["n"]) for name, one in no["accuracy"].items()} == {
        "base": (0.0, 2),
        "tuned": (0.5, 2),
    }
    assert no["accuracy"]["tuned"]["low"] < 0.5 < no["accuracy"]["tuned"]["high"]


def test_small_groups_are_marked(rows):
    """A group with fewer cases than evaluation.slice_cases is not enough to say anything."""
    assert all(row["enough"] == (row["n"] >= 3) for row in rows)
    assert {row["enough"] for row in rows} == {True, False}


def test_abstracts_of_one_length_are_one_group():
    """Where all abstracts are equally long there is nothing to cut, and one group holds them all."""
    records = [tiny_record(str(i)) for i in range(4)]
    lengths = [row for row in slices(records, {"a": [{"verdict": "yes"}] * 4}, CONFIG) if "words" in row["group"]]
    assert [row["n"] for row in lengths] == [4]
