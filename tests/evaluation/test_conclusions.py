"""Tests of medgrpo.evaluation.conclusions: what the rule finds, and how seldom it is wrong about experts."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.completions import VERDICTS, parse_completion
from medgrpo.domains import pubmedqa, synthetic
from medgrpo.evaluation.conclusions import concluded_verdict, disagrees
from medgrpo.prompts import gold_completion

PUBLISHED = os.environ.get("MEDGRPO_PUBMEDQA")
QUESTION = "Does early surgery reduce mortality in patients with hip fracture?"
OPPOSITE = {"yes": "no", "no": "yes"}


@pytest.mark.parametrize(
    ("thought", "concluded"),
    [
        ("Early surgery reduced mortality in patients with hip fracture.", "yes"),
        ("Mortality was 8 and 8 %. Early surgery did not reduce mortality of hip fracture.", "no"),
        ("There was no significant difference in mortality between early and late surgery for hip fracture.", "no"),
        ("Early surgery failed to reduce mortality in patients with hip fracture.", "no"),
        ("Early surgery reduced mortality, but only in patients with one kind of hip fracture.", None),
        ("Early surgery may reduce mortality in patients with hip fracture.", None),
        ("Not only did early surgery reduce mortality; patients with hip fracture went home.", None),
        ("Pain was not recorded.", None),
        ("Early surgery did not reduce mortality in hip fracture. Costs were recorded. Stays were recorded.", None),
        ("", None),
    ],
)
def test_a_plain_closing_sentence_about_the_question_concludes(thought, concluded):
    """Plain negation says no, plain affirmation yes; doubt, qualification and other subjects say nothing."""
    assert concluded_verdict(thought, QUESTION) == concluded


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("said", ["So the answer is {}.", "Verdict: {}", "The answer to the question should be {}."])
def test_a_stated_verdict_is_always_found(verdict, said):
    """A thought that names its answer disagrees with every other answer, and not with its own."""
    thought = f"Early surgery did not reduce mortality in hip fracture. {said.format(verdict)}"
    assert [disagrees(thought, answer, QUESTION) for answer in VERDICTS] == [answer != verdict for answer in VERDICTS]


def test_questions_that_negate_are_not_judged():
    """What "no" would mean there is not for this rule to say."""
    assert concluded_verdict("Surgery is not necessary in hip fracture.", "Is surgery not necessary?") is None


def test_an_unreadable_answer_disagrees_with_nothing():
    """Without a verdict there is nothing to disagree with."""
    assert not disagrees("The answer is no.", None, QUESTION)


@given(st.text(max_size=300), st.text(max_size=80))
def test_any_text_can_be_read(thought, question):
    """No text makes the rule fail, and it concludes a verdict or nothing."""
    assert concluded_verdict(thought, question) in {*VERDICTS, None}


def rates(records):
    """Shares of gold completions that are disputed, and of those with the answer turned round that are found."""
    thoughts = [(parse_completion(gold_completion(record)).thought, record) for record in records]
    false = [disagrees(thought, record.verdict, record.question) for thought, record in thoughts]
    decided = [(thought, record) for thought, record in thoughts if record.verdict in OPPOSITE]
    found = [disagrees(thought, OPPOSITE[record.verdict], record.question) for thought, record in decided]
    return sum(false) / len(false), sum(found) / len(found)


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED, reason="needs the published data, named by MEDGRPO_PUBMEDQA")
def test_experts_are_seldom_disputed():
    """Of PubMedQA's gold completions 2 % are disputed in the test split; one contradiction in five or six is found."""
    corpus = pubmedqa.load(Path(PUBLISHED) / "ori_pqal.json")
    for split, most in (("train", 0.01), ("test", 0.02)):
        false, found = rates(corpus.split(split))
        assert false <= most, split
        assert found >= 0.18, split


def test_synthetic_experts_are_seldom_disputed():
    """Nor are the gold completions of synthetic records."""
    false, _ = rates(synthetic.load(100, 1, 7)[0])
    assert false <= 0.05
