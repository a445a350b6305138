"""Tests of medgrpo.evaluation.probes: what each probe takes away, and what is made of the answers."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.domains import pubmedqa, synthetic
from medgrpo.evaluation.probes import (
    PROBES,
    derange,
    probe_cases,
    probe_metrics,
    with_altered_numbers,
    without_conclusion,
)
from medgrpo.records import Record
from medgrpo.testing import tiny_record

RECORDS = synthetic.generate(40, seed=9)
SENTENCES = st.lists(
    st.sampled_from(
        [
            "Pain fell (p=0.01).",
            "We asked 120 adults.",
            "A relieves pain in 12% vs. 30%.",
            "Nobody died",
            "Groups differed.",
        ]
    ),
    min_size=1,
    max_size=4,
).map(" ".join)


def records_of(verdicts):
    return [tiny_record(f"r{i}", verdict) for i, verdict in enumerate(verdicts)]


# --- The altered records -----------------------------------------------------------------------------------------


def test_only_the_abstract_is_altered():
    """Question, verdict, conclusion and id stay, and what is altered is a valid record that differs."""
    by_id = {record.id: record for record in RECORDS}
    cases = probe_cases(RECORDS, seed=3)
    assert tuple(cases) == PROBES
    for altered in cases.values():
        assert list(altered) == [record.id for record in RECORDS if record.id in altered]
        for record_id, record in altered.items():
            assert Record.model_validate(record.model_dump()) == record
            assert record.contexts != by_id[record_id].contexts
            assert record.model_copy(update={"contexts": by_id[record_id].contexts}) == by_id[record_id]


def test_without_abstract_nothing_of_it_is_left():
    """All cases get the same sentence, which says so."""
    assert {record.contexts for record in probe_cases(RECORDS, 3)["no_abstract"].values()} == {
        ("No abstract is available.",)
    }


@given(st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=2, max_size=40), st.integers(0, 5))
def test_nobody_keeps_the_own_abstract(verdicts, seed):
    """Each record is given once, to another one, and as rarely as possible to one of its verdict."""
    records = records_of(verdicts)
    donors = derange(records, seed)
    assert sorted(donor.id for donor in donors.values()) == sorted(record.id for record in records)
    assert all(donor.id != record_id for record_id, donor in donors.items())
    same = sum(donors[record.id].verdict == record.verdict for record in records)
    most = max(verdicts.count(verdict) for verdict in verdicts)
    assert same == max(0, 2 * most - len(records))


def test_the_seed_decides_who_gets_whose():
    """The same seed gives the same abstracts, another one others."""
    assert derange(RECORDS, 1) == derange(RECORDS, 1)
    assert derange(RECORDS, 1) != derange(RECORDS, 2)


def test_one_record_alone_has_no_other():
    """A single case, or one whose partner has the same abstract, is left out rather than shown its own."""
    one = tiny_record("1")
    twins = [one, tiny_record("2", contexts=one.contexts)]
    assert probe_cases([one], 3)["other_abstract"] == {}
    assert probe_cases(twins, 3)["other_abstract"] == {}


def test_the_conclusion_goes_and_the_methods_stay():
    """The sentences that say what the expert concluded, and results with numbers, are left out."""
    record = tiny_record(
        contexts=(
            "Pain after surgery is common. We wanted to know more.",
            "We randomised 120 adults. Nurses asked them daily.",
            "The treatment relieved pain better than placebo did. Nausea: 12% vs. 30% (p=0.01). All went home.",
        )
    )
    assert without_conclusion(record) == (
        "Pain after surgery is common. We wanted to know more.",
        "We randomised 120 adults. Nurses asked them daily.",
        "All went home.",
    )


@given(st.lists(SENTENCES, min_size=1, max_size=4), SENTENCES)
def test_something_is_always_left(contexts, long_answer):
    """No section is empty, at least one sentence stays, and every sentence that stays stood there before."""
    record = tiny_record(contexts=tuple(contexts), long_answer=long_answer)
    left = without_conclusion(record)
    assert left
    assert all(text and text == text.strip() for text in left)
    assert set(" ".join(left).split()) <= set(" ".join(contexts).split())
    assert len(" ".join(left)) <= len(" ".join(contexts))


def test_a_conclusion_unlike_the_abstract_takes_nothing_but_findings():
    """Where no sentence has a word of the long_answer, none is near it."""
    record = tiny_record(contexts=("We asked adults. They told us stories.",), long_answer="Unclear!")
    assert without_conclusion(record) == record.contexts


def test_numbers_the_verdict_does_not_rest_on_are_not_altered():
    """A comparison far from the conclusion makes no case of this probe; beside one near it, it is altered too."""
    aside, near = "Groups were of age 40.1 versus 40.2 years (p=0.9).", "The treatment relieved pain in 30% vs 12%."
    assert with_altered_numbers(tiny_record(contexts=(aside, "The treatment relieved pain."))) == (
        aside,
        "The treatment relieved pain.",
    )
    assert with_altered_numbers(tiny_record(contexts=(aside, near))) == (
        "Groups were of age 40.1 versus 20.1 years (p=0.003).",
        "The treatment relieved pain in 30% vs 30%.",
    )


@pytest.mark.slow
@pytest.mark.skipif("MEDGRPO_PUBMEDQA" not in os.environ, reason="MEDGRPO_PUBMEDQA is not set")
def test_real_abstracts_are_altered():
    """Of PubMedQA's test split every case loses its conclusion, 52 meet one of their verdict, and 206 have numbers."""
    records = pubmedqa.load(Path(os.environ["MEDGRPO_PUBMEDQA"]) / "ori_pqal.json").split("test")
    cases = probe_cases(records, seed=3)
    assert {probe: len(altered) for probe, altered in cases.items()} == {
        "no_abstract": 500,
        "other_abstract": 500,
        "no_conclusion": 500,
        "altered_numbers": 206,
    }
    donors = derange(records, 3)
    assert sum(donors[record.id].verdict == record.verdict for record in records) == 2 * 276 - 500


# --- What the answers say ----------------------------------------------------------------------------------------


def measured(verdicts, own, probed):
    records = records_of(verdicts)
    ids = [record.id for record in records]
    under = {i: v for i, v in zip(ids, probed, strict=True) if v != "skipped"}
    return probe_metrics(records, dict(zip(ids, own, strict=True)), {"no_abstract": under})["no_abstract"]


def test_a_model_that_does_not_read_keeps_its_accuracy():
    """The same verdicts under the probe: no drop, no flip, and an interval that few cases do not make narrow."""
    verdicts = ["yes", "no"] * 10
    found = measured(verdicts, ["yes"] * 20, ["yes"] * 20)
    assert (found["accuracy"]["value"], found["drop"]["value"], found["flips"]["value"]) == (0.5, 0.0, 0.0)
    assert found["drop"]["low"] == pytest.approx(-found["drop"]["high"])
    assert 0.1 < found["drop"]["high"] < 0.2
    verdicts *= 25
    assert 0 < measured(verdicts, ["yes"] * 500, ["yes"] * 500)["drop"]["high"] < 0.01
    assert (found["n"], found["skipped"]) == (20, 0)


def test_a_model_that_reads_loses_it():
    """Right with the abstract and undecided without: all is lost and every verdict changed."""
    verdicts = ["yes", "no"] * 10
    found = measured(verdicts, verdicts, ["maybe"] * 20)
    assert (found["accuracy"]["value"], found["drop"]["value"], found["flips"]["value"]) == (0.0, 1.0, 1.0)


def test_the_drop_is_of_the_altered_cases_only():
    """A case that the probe could not alter counts neither before nor after."""
    found = measured(["yes", "yes", "no", "no"], ["yes", "no", "no", "no"], ["no", "skipped", "no", "skipped"])
    assert (found["n"], found["skipped"]) == (2, 2)
    assert (found["accuracy"]["value"], found["drop"]["value"], found["flips"]["value"]) == (0.5, 0.5, 0.5)
    assert found["drop"]["n"] == found["flips"]["n"] == 2


def test_an_answer_that_becomes_unreadable_is_a_flip():
    """No verdict is another verdict than yes, and the same as none."""
    assert measured(["yes", "no"], ["yes", None], [None, None])["flips"]["value"] == 0.5


def test_a_probe_without_cases_has_no_numbers():
    """Where nothing could be altered there is null, not a number made up."""
    found = measured(["yes", "no"], ["yes", "no"], ["skipped", "skipped"])
    assert (found["n"], found["skipped"]) == (0, 2)
    assert [found[key]["value"] for key in ("accuracy", "drop", "flips")] == [None, None, None]


@given(st.lists(st.tuples(*[st.sampled_from(["yes", "no", "maybe", None])] * 2), min_size=1, max_size=30), st.data())
def test_the_drop_is_the_difference_of_two_accuracies(answers, data):
    """On all cases the drop is accuracy with the abstract minus accuracy without, and flips bound it."""
    verdicts = data.draw(
        st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=len(answers), max_size=len(answers))
    )
    own, probed = [list(column) for column in zip(*answers, strict=True)]
    records = records_of(verdicts)
    ids = [record.id for record in records]
    under = {"p": dict(zip(ids, probed, strict=True))}
    found = probe_metrics(records, dict(zip(ids, own, strict=True)), under)["p"]
    right = sum(a == b for a, b in zip(own, verdicts, strict=True)) / len(verdicts)
    assert found["drop"]["value"] == pytest.approx(right - found["accuracy"]["value"])
    assert abs(found["drop"]["value"]) <= found["flips"]["value"] + 1e-12
