"""A domain whose answers are open goes through the same door as the others, from preparation to registry."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from medgrpo import domains, serving
from medgrpo.completions import parse_completion, render_completion
from medgrpo.config import RewardConfig, RunConfig, load_config
from medgrpo.errors import InputError
from medgrpo.evaluation.compare import case_row, draw_cases, score
from medgrpo.evaluation.gate import judge
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.plots import save_plots, verdict_curves
from medgrpo.evaluation.predictions import verdict_metrics
from medgrpo.evaluation.probes import probe_cases
from medgrpo.evaluation.report import render_report
from medgrpo.evaluation.scoring import answer_row, count_votes
from medgrpo.preparation import load_records, prepare
from medgrpo.prompts import gold_completion, render_prompt
from medgrpo.records import Record, digest, verdict_counts
from medgrpo.registry import registered_name
from medgrpo.registry.candidate import Candidate, read_evidence
from medgrpo.registry.card import hub_card, model_card
from medgrpo.rewards import score_completion
from medgrpo.rewards.audit import audit
from medgrpo.runs import summary_markdown
from medgrpo.testing import tiny_config
from medgrpo.training.verdict_loss import verdict_tokens
from medgrpo.training.watch import Watch, completion_facts, smoothed

RIGHT, WRONG = "<thought>12 + 31 = 43.</thought><answer>43</answer>", "<thought>Many.</thought><answer>44</answer>"


@pytest.fixture
def record(counting: str) -> Record:
    """The first record of the domain."""
    return next(iter(domains.load_corpus(of_domain(counting).data).records.values()))


@pytest.fixture
def config(counting: str, tmp_path: Path) -> RunConfig:
    """A tiny run of the domain."""
    return tiny_config(tmp_path, data={"domain": counting})


def of_domain(name: str, *overrides: str) -> RunConfig:
    return load_config("demo", [f"data.domain={name}", "warmup.verdict_weight=1", *overrides])


def answered(record: Record, *texts: str) -> dict[str, Any]:
    return answer_row(record, [Generation(text, 9) for text in texts], RewardConfig())


def evaluated(config: RunConfig, records: Sequence[Record]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Metrics and answers of a base that is mostly wrong and a tuned model that is right, three samples each."""
    gold = {record.id: gold_completion(record) for record in records}
    answers = {
        "base": [answered(record, WRONG, WRONG, "?", gold[record.id]) for record in records],
        "tuned": [answered(record, *[gold[record.id]] * 4) for record in records],
    }
    data = {"domain": config.data.domain, "synthetic": True}
    return score(config, data, records, records, answers), answers


def test_its_file_is_all_that_it_takes(counting: str) -> None:
    """A file with a DOMAIN in the package's path is a domain: known by name, to settings and to the command alike."""
    assert counting in domains.names()
    assert domains.get(counting).name == counting
    assert of_domain(counting).data.domain == counting


def test_a_record_is_of_its_domain(record: Record) -> None:
    """It is asked as its domain asks, and only an answer that the domain can write is the expert's."""
    system, user = render_prompt(record)
    assert system["content"].startswith("Add the numbers.")
    assert user["content"].endswith("more pears. How many pears does Ann have then?")
    with pytest.raises(ValueError, match="'yes' is no number"):
        Record.model_validate({**record.model_dump(), "verdict": "yes"})


def test_it_is_prepared(config: RunConfig, tmp_path: Path) -> None:
    """Preparation counts open answers as one class, splits them, and keeps what the records are."""
    summary = prepare(config, tmp_path / "data")
    assert summary["domain"] == "counting"
    assert summary["counts"] == {"train": {"number": 54}, "dev": {"number": 6}, "test": {"number": 30}}
    train = load_records(tmp_path / "data", "train")
    assert {record.domain for record in train} == {"counting"}
    assert summary["digests"]["train"] == digest(train)


def test_its_rewards_are_its_own(record: Record) -> None:
    """The gold completion earns the maximum; a wrong number, an invented one, and another form do not."""
    rewards, gold = RewardConfig(), gold_completion(record)
    assert score_completion(record, gold).total == pytest.approx(1.7)
    wrong = gold.replace(f"<answer>{record.verdict}", f"<answer>{int(record.verdict) + 1}")
    assert score_completion(record, wrong).total == pytest.approx(rewards.structure)
    assert score_completion(record, gold.replace("pears", "99 pears")).grounding == 0
    assert score_completion(record, record.verdict).total == 0


def test_its_audit_holds(config: RunConfig) -> None:
    """The attacks on form and its own are tried, those on abstracts are not, and none gets through."""
    report = audit(domains.load_corpus(config.data).split("train")[:20], config.rewards)
    kinds = {kind.kind for kind in report.kinds}
    assert report.holds, report.holes()
    assert report.lowest_gold == pytest.approx(1.0)
    assert {"one number left out", "two answers", "unclosed thought"} <= kinds
    assert not {"hedged verdict", "negated conclusion", "pasted abstract"} & kinds


def test_it_is_watched(config: RunConfig, record: Record) -> None:
    """The watch follows unreadable answers and no shares of verdicts, whose alarm cannot ring."""
    facts = completion_facts([record] * 2, [gold_completion(record), "who knows"])
    said = {name: value for name, value in facts.items() if name.startswith("watch/verdict_")}
    assert said == {"watch/verdict_none": 0.5}
    assert facts["watch/unsupported_figures"] == 0
    assert facts.keys() <= set(smoothed(domains.get("counting").form))
    watch = Watch(config)
    rows = [{"phase": "grpo", "step": step, **facts} for step in range(1, 40)]
    assert not any("alarms" in watch.look(row) for row in rows)
    assert 'aria-label="Verdicts' in verdict_curves(rows, ())


def test_sampled_answers_are_counted_as_they_occur(record: Record) -> None:
    """A vote over open answers counts those that were given, and the greedy one decides a tie."""
    form = domains.get("counting").form
    assert count_votes(["7", "8", "7", "7", "8"], form) == {
        "verdict": "7",
        "agreement": 0.5,
        "confidence": 0.5,
        "counts": {"8": 2, "7": 2},
    }
    assert count_votes(["7", None], form)["verdict"] is None


def test_its_metrics_need_no_classes(config: RunConfig) -> None:
    """Accuracy, form, faithfulness, vote, comparison and references are there; what needs classes is left out."""
    records = domains.load_corpus(config.data).split("test")
    metrics, _ = evaluated(config, records)
    tuned = metrics["models"]["tuned"]
    assert tuned["accuracy"]["value"] == tuned["strict_form"]["value"] == tuned["vote"]["accuracy"]["value"] == 1
    assert tuned["faithfulness"]["unsupported_figures"]["value"] == 0
    assert not {"macro_f1", "f1", "recall", "confusion"} & tuned.keys()
    assert "macro_f1" not in tuned["vote"]
    [pair] = metrics["comparisons"]
    assert (pair["only_first"], pair["only_second"]) == (0, 30)
    assert "macro_f1_difference" not in pair
    [always] = metrics["references"]
    assert always["name"].startswith('always "')
    assert "macro_f1" not in always
    assert "verdict" not in {row["slice"] for row in metrics["slices"]}
    assert verdict_metrics(["7"], ["8"], config.evaluation, domains.get("counting").form).keys() == {"accuracy"}


def test_cases_are_drawn_and_probed(config: RunConfig) -> None:
    """Open answers are one class of cases, drawn by lot, and the probes change their contexts."""
    records = domains.load_corpus(config.data).split("test")
    drawn = draw_cases(records, config.evaluation)
    assert len(drawn) == config.evaluation.cases
    assert drawn != records[: len(drawn)]
    probed = probe_cases(drawn, seed=1)
    assert all(probed["other_abstract"][record.id].contexts != record.contexts for record in drawn)


def test_the_gate_judges_it(config: RunConfig) -> None:
    """Its check on collapse passes, for open answers have nothing to collapse to; all others judge as ever."""
    metrics, _ = evaluated(config, domains.load_corpus(config.data).split("test"))
    checks = {check.name: check for check in judge("tuned", metrics, config.gate, audit_holes="", alarms=[]).checks}
    assert checks["no collapse"].outcome == "pass"
    assert "Answers are open" in checks["no collapse"].reason
    assert checks["better than base"].outcome == "pass"
    assert len(checks) == 9


def test_its_report_shows_what_there_is(config: RunConfig, tmp_path: Path) -> None:
    """The page shows answers and metrics, and neither confusion matrices nor links to them; so do the plots."""
    records = domains.load_corpus(config.data).split("test")
    metrics, answers = evaluated(config, records)
    cases = [json.loads(json.dumps(case_row(record, answers, i))) for i, record in enumerate(records)]
    gate = judge("tuned", metrics, config.gate, audit_holes="", alarms=[]).as_dict()
    page = render_report({"name": "sums"}, metrics, cases, [], gate)
    assert f'<span class="verdict">{records[0].verdict}</span>' in page
    assert "no readable verdict" not in page
    assert "Confusion" not in page
    assert ">Macro-F1</th><td><b>" not in page
    assert page.count('id="confusion"') == page.count('href="#confusion"') == 1  # of the calibration alone
    names = {path.stem for path in save_plots(tmp_path / "plots", metrics, [])}
    assert names == {"calibration_base", "calibration_tuned"}


def test_it_is_spoken_of_in_its_own_words(config: RunConfig) -> None:
    """Probes, gate and report call its contexts what it calls them, and give no advice of another field."""
    records = domains.load_corpus(config.data).split("test")
    assert probe_cases(records, seed=1)["no_abstract"][records[0].id].contexts == ("No text is available.",)
    metrics, answers = evaluated(config, records)
    interval = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30}
    probed = {"accuracy": interval, "drop": interval, "flips": interval, "n": 30, "skipped": 0}
    metrics["probes"] = {"tuned": {"no_abstract": probed, "other_abstract": probed}}
    gate = judge("tuned", metrics, config.gate, audit_holes="", alarms=[]).as_dict()
    said = " ".join(check["reason"] for check in gate["checks"])
    assert "without the text" in said
    unprobed = judge("tuned", {**metrics, "probes": {}}, config.gate, audit_holes="", alarms=[]).as_dict()
    assert "not probed without the text or with another record's text, so it may not need the text" in str(unprobed)
    assert "with another record's text" in said
    assert "of the cited figures are in the text" in said
    cases = [json.loads(json.dumps(case_row(record, answers, i))) for i, record in enumerate(records)]
    page = render_report({"name": "sums"}, metrics, cases, [], gate)
    assert "<summary>Text</summary>" in page
    assert ">Another text<" in page
    assert not re.search("abstract|medic", said + page, re.I)


def test_its_summary_has_the_metrics_that_there_are(config: RunConfig) -> None:
    """The table of a finished run leaves out macro-F1."""
    metrics, _ = evaluated(config, domains.load_corpus(config.data).split("test"))
    rest = {
        "domain": "counting",
        "gate": {"outcome": "pass", "reasons": []},
        "synthetic": True,
        "comparison": metrics["comparisons"],
    }
    text = summary_markdown({"models": list(metrics["models"]), **metrics["models"], **rest})
    assert "| accuracy |" in text
    assert not re.search("macro-F1|abstract|medic", text, re.I)


@pytest.mark.slow
def test_its_models_carry_its_name(config: RunConfig, candidate: Candidate) -> None:
    """The registered model and both of its cards speak of this domain, not of abstracts and medicine."""
    assert registered_name(config, "counting") == "medgrpo-counting"
    path = candidate.data_dir / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "domain": "counting"}))
    measured = json.loads((candidate.evaluation_dir / "metrics.json").read_text())
    probed = {"drop": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 30}}
    (candidate.evaluation_dir / "metrics.json").write_text(
        json.dumps({**measured, "probes": {"tuned": {"no_abstract": probed}}})
    )
    evidence = read_evidence(candidate)
    assert evidence.name == "medgrpo-counting"
    card = model_card(evidence)
    assert "tuned, no text: accuracy falls by 50.0%" in card
    assert "say nothing about real texts" in card
    assert not re.search("abstract|medic", card, re.I)
    assert "It can only add." in card
    assert "- counting (train 6, dev 6, test 6): sums" in card
    front = hub_card(evidence).split("---")[1]
    assert "counting" in front
    assert not {"medical", "datasets"} & {line.strip("- :") for line in front.splitlines()}


def test_it_is_served(counting: str) -> None:
    """A served answer is read in the domain's form, and its confidence counts equal numbers."""
    reply = serving.reply("How many?", ["Ann has 12.", "31 come."], [RIGHT, "43", WRONG], counting)
    assert (reply["verdict"], reply["confidence"]) == ("43", 0.5)
    assert [cited["quote"] for cited in reply["evidence"] if cited["supported"]] == ["12", "31"]
    settings = serving.AnswerSettings(9, domain=counting)
    with pytest.raises(InputError, match=r"row 1: 'contexts' is None.*the sections of the text"):
        serving.answer(None, None, [{"question": "How many?"}], settings)


def test_a_number_cannot_weigh_more_in_the_warm_up(counting: str) -> None:
    """A weight on the verdict's token is refused when settings are read, and again where tokens are looked for."""
    with pytest.raises(InputError, match=r"warmup\.verdict_weight is 5, but the answers .* are open.* set it to 1"):
        of_domain(counting, "warmup.verdict_weight=5")
    assert of_domain(counting, "warmup.verdict_weight=5", "warmup.enabled=false").data.domain == counting
    with pytest.raises(InputError, match="answers are open"):
        verdict_tokens(None, ())


def test_open_answers_are_one_class(counting: str, record: Record) -> None:
    """What is balanced and counted by verdict elsewhere is one class here."""
    form = domains.get(counting).form
    assert (form.classes, form.class_of("43")) == (("number",), "number")
    assert verdict_counts([record] * 3, form) == {"number": 3}
    assert parse_completion(render_completion("So", "43"), form).well_formed
