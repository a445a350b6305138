"""Attacks on the rewards: none gets through, and one that would is found."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest

from medgrpo import domains
from medgrpo.completions import parse_completion, render_completion
from medgrpo.config import RewardConfig
from medgrpo.domains import pubmedqa, synthetic
from medgrpo.prompts import gold_completion
from medgrpo.records import Record
from medgrpo.rewards import score_completion
from medgrpo.rewards.attacks import AT_THE_CAP, FORM_ATTACKS, Target
from medgrpo.rewards.audit import AuditReport, attacks_on, audit
from medgrpo.testing import tiny_record

TAGS = ("<thought>", "</thought>", "<answer>", "</thought> <answer>yes")
PIECES = ("1", "a", " ", "a ", ".", "é", "\u200b", "1,111,", "0.5 ", "p=0.05 ", "twenty ", "the answer is ", *TAGS)


def published() -> list[Record]:
    """PubMedQA's pool."""
    directory = os.environ.get("MEDGRPO_PUBMEDQA")
    if not directory:
        pytest.skip("MEDGRPO_PUBMEDQA does not name a directory with ori_pqal.json")
    return pubmedqa.load(Path(directory) / "ori_pqal.json").split("train")


def target(record: Record, wrong: str = "no") -> Target:
    thought = parse_completion(gold_completion(record)).thought
    return Target(record, thought, record.long_answer, wrong, "Nothing was found (p=0.4).", Random(0))


@pytest.mark.slow
def test_no_attack_gets_through_on_synthetic_records() -> None:
    """On a hundred records every attack earns less than gold, and no wrong verdict as much as a plain right one."""
    report = audit(synthetic.generate(100, seed=5), RewardConfig())
    assert report.holds, report.holes()
    assert report.lowest_gold == pytest.approx(1.0)


@pytest.mark.slow
def test_no_attack_gets_through_on_published_records() -> None:
    """Nor on PubMedQA's 500 pool records, in under a minute; gold earns at least 0.95 of the maximum."""
    records = published()
    started = time.process_time()
    report = audit(records, RewardConfig())
    assert report.holds, report.holes()
    assert report.records == 500
    assert report.lowest_gold >= 0.95
    assert time.process_time() - started < 60


def test_there_are_attacks_of_every_sort() -> None:
    """At least 25 kinds; none is the gold completion, except at the cap, and the same seed gives the same."""
    record = tiny_record()
    made = {kind: attack(target(record)) for kind, attack in attacks_on(record).items()}
    assert len(made) >= 25
    assert [kind for kind, text in made.items() if text == gold_completion(record)] == list(AT_THE_CAP)
    assert made == {kind: attack(target(record)) for kind, attack in attacks_on(record).items()}


def test_attacks_on_form_give_way_by_intention_only() -> None:
    """A domain's own attack stands instead of one on form of its name; that is meant where this says so."""
    replaced = {name: sorted(domains.get(name).attacks.keys() & FORM_ATTACKS.keys()) for name in domains.names()}
    assert {name: kinds for name, kinds in replaced.items() if kinds} == {
        "gsm8k": ["another record's thought", "two answers"]
    }


@pytest.mark.parametrize("kind", ["praise", "another language", "parroted instructions"])
def test_a_hole_is_found(kind: str) -> None:
    """Where neither evidence nor conclusion is paid, a thought without content reaches gold, on every record."""
    report = audit([tiny_record("1"), tiny_record("2", "no")], RewardConfig(grounding=0, agreement=0))
    [found] = [result for result in report.kinds if result.kind == kind]
    assert found.holes == ("1", "2")
    assert not report.holds
    assert f"{kind!r} earns as much as the gold completion on 2 of 2 records" in report.holes()


def test_a_wrong_verdict_above_a_right_one_is_found() -> None:
    """Settings that pay a hedge as much as the truth, which validation refuses, would not get past the audit either."""
    config = RewardConfig.model_construct(**{**RewardConfig().model_dump(), "cost_maybe_for_either": 0.0})
    report = audit([tiny_record("1"), tiny_record("2", "no")], config)
    assert {kind.kind for kind in report.kinds if kind.outranks_truth} >= {"hedged verdict"}
    assert not report.holds


def test_the_weighted_sum_has_holes() -> None:
    """Added up without gates, the same grades pay wrong verdicts more than plain right ones, on every record."""
    report = audit(synthetic.generate(20, seed=5), RewardConfig(mode="weighted"))
    [hedged] = [kind for kind in report.kinds if kind.kind == "hedged verdict"]
    assert len(hedged.outranks_truth) == 20
    assert "'hedged verdict' with a wrong verdict outranks a right one on 20 records" in report.holes()


def test_a_record_that_offers_nothing_to_attack_is_not_counted() -> None:
    """Where the expert's conclusion cannot be said, attacks on it are not tried; the row says on how many they were."""
    unsayable = tiny_record("2", "no", long_answer="It helped 77% of patients.")
    report = audit([tiny_record("1"), unsayable], RewardConfig())
    tried = {kind.kind: kind.records for kind in report.kinds}
    assert tried["negated conclusion"] == 1
    assert tried["pasted abstract"] == 2


def test_a_report_can_be_kept(tmp_path: Path) -> None:
    """Written as JSON and read again it has the same rows."""
    report = audit([tiny_record("1"), tiny_record("2", "maybe")], RewardConfig())
    (tmp_path / "audit.json").write_text(json.dumps(asdict(report)))
    assert AuditReport.read(tmp_path / "audit.json").rows() == report.rows()


def test_a_thought_that_names_another_answer_is_paid_the_verdict_alone() -> None:
    """Saying "the answer is no" above a yes loses structure and grounding, whatever was cited."""
    record = tiny_record()
    thought = parse_completion(gold_completion(record)).thought
    assert score_completion(record, render_completion(f"{thought} The answer is no.", "yes")).total == 0.8
    assert score_completion(record, render_completion(f"The answer is yes. {thought}", "yes")).total > 1.6


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gated", "weighted"])
@pytest.mark.parametrize("piece", PIECES)
def test_no_long_text_stalls(piece: str, mode: str) -> None:
    """A megabyte of anything, bare or as a thought, is scored within a second each."""
    text = piece * (1_000_000 // len(piece))
    for completion in (text, f"<thought>{text}</thought><answer>yes</answer>"):
        started = time.process_time()
        assert 0 <= score_completion(tiny_record(), completion, RewardConfig(mode=mode)).total <= 1.7
        assert time.process_time() - started < 1
