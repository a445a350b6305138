import re

import pytest

from medgrpo.domains.synthetic import generate, load
from medgrpo.errors import InputError
from medgrpo.evaluation.baselines import keyword_rule, majority_rule
from medgrpo.records import Record

SEEDS = (1, 2, 3, 7)


def record(text: str, verdict: str = "yes") -> Record:
    return Record(id="1", question="Does it help?", contexts=(text,), verdict=verdict, long_answer="It does.")


def accuracy(rule, records) -> float:
    return sum(rule(r) == r.verdict for r in records) / len(records)


def first_p_value_rule(record: Record) -> str:
    match = re.search(r"p[<=](0\.\d+)", " ".join(record.contexts))
    return "yes" if match is None or float(match[1]) < 0.05 else "no"


@pytest.mark.parametrize("seed", SEEDS)
def test_majority_rule_stays_under_70_percent(seed):
    """Always answering yes scores PubMedQA's 55.2 % on synthetic records."""
    pool, test = load(300, 500, seed)
    assert accuracy(majority_rule(pool), test) == pytest.approx(0.552)


@pytest.mark.parametrize("rule", [keyword_rule, first_p_value_rule])
@pytest.mark.parametrize("seed", SEEDS)
def test_surface_rules_stay_under_70_percent(rule, seed):
    """Neither words nor the first p-value solve the synthetic records."""
    assert accuracy(rule, generate(500, seed)) < 0.70


def test_keyword_rule_uses_every_verdict():
    """The rule is an attempt, not a constant: it finds records of each verdict on synthetic text."""
    assert {keyword_rule(r) for r in generate(500, 1)} == {"yes", "no", "maybe"}


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Mortality was significantly lower (P < 0.001).", "yes"),
        ("Pain scores improved in the treated group.", "yes"),
        ("There was no significant difference between groups (p=0.45).", "no"),
        ("The treatment did not reduce relapse; adherence was similar.", "no"),
        ("Differences were not significant.", "no"),
        ("The study was underpowered and the interval imprecise.", "maybe"),
        ("Nothing in this text says anything.", "yes"),
    ],
)
def test_keyword_rule_reads_plain_abstracts(text, verdict):
    """Plain statements are read as a person skimming for signal words would."""
    assert keyword_rule(record(text)) == verdict


def test_majority_rule_follows_its_training_records():
    """The most frequent verdict of the training records is the answer; a tie goes to the earlier of yes, no, maybe."""
    rule = majority_rule([record("a", "no"), record("b", "no"), record("c", "maybe")])
    assert rule(record("d", "yes")) == "no"
    assert majority_rule([record("a", "maybe"), record("b", "no")])(record("c")) == "no"


def test_majority_rule_needs_records():
    """Without training records there is a sentence instead of an arbitrary verdict."""
    with pytest.raises(InputError, match="no training records"):
        majority_rule([])
