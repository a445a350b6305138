"""Tests of medgrpo.evaluation.compare: which cases, which answers, kept how, and what is written."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.completions import render_completion
from medgrpo.config import EvaluationConfig
from medgrpo.errors import InputError
from medgrpo.evaluation import asking, compare
from medgrpo.evaluation.asking import Contestant
from medgrpo.evaluation.compare import (
    Training,
    case_row,
    contestants,
    draw_cases,
    evaluate,
    evaluate_models,
    evaluate_training,
    read_cases,
    score,
)
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.probes import PROBES
from medgrpo.evaluation.report_words import probe_label
from medgrpo.evaluation.scoring import answer_row, official_score
from medgrpo.evaluation.statistics import paired_score_interval
from medgrpo.manifests import write_json, write_text
from medgrpo.preparation import load_records, prepare
from medgrpo.prompts import gold_completion, render_prompt
from medgrpo.records import verdict_counts
from medgrpo.rewards.audit import AuditReport
from medgrpo.testing import tiny_config, tiny_record

verdict_lists = st.lists(st.sampled_from(["yes", "no", "maybe"]), min_size=1, max_size=60)


def records_of(verdicts):
    return [tiny_record(f"r{i}", verdict) for i, verdict in enumerate(verdicts)]


# --- The cases ---------------------------------------------------------------------------------------------------


@given(verdict_lists, st.integers(0, 20), st.data())
def test_a_draw_keeps_the_shares_of_the_verdicts(verdicts, seed, data):
    """However many cases are drawn, each verdict has its share of them to within one case."""
    cases = data.draw(st.integers(1, len(verdicts)))
    records = records_of(verdicts)
    drawn = draw_cases(records, EvaluationConfig(cases=cases, seed=seed))
    assert len(drawn) == cases
    for verdict, count in verdict_counts(records).items():
        assert abs(verdict_counts(drawn)[verdict] - cases * count / len(records)) <= 1


@given(verdict_lists, st.integers(0, 20), st.data())
def test_a_draw_is_a_part_of_the_split_in_its_order(verdicts, seed, data):
    """No case is drawn twice, none is invented, and the split's order stays; the seed decides alone."""
    records = records_of(verdicts)
    config = EvaluationConfig(cases=data.draw(st.integers(1, len(verdicts))), seed=seed)
    drawn = draw_cases(records, config)
    chosen = {record.id for record in drawn}
    assert drawn == [record for record in records if record.id in chosen]
    shuffled = random.Random(0).sample(records, len(records))
    assert {record.id for record in draw_cases(shuffled, config)} == chosen


def test_another_seed_draws_other_cases():
    """The draw is seeded."""
    records = records_of(["yes"] * 30 + ["no"] * 20)
    first, second = (draw_cases(records, EvaluationConfig(cases=10, seed=seed)) for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("cases", ["all", 5])
def test_all_cases_are_all(cases):
    """Every record is a case, by name or by number."""
    records = records_of(["yes", "no", "maybe", "yes", "yes"])
    assert draw_cases(records, EvaluationConfig(cases=cases)) == records


def test_more_cases_than_there_are_is_refused():
    """The sentence says how many were asked for, how many there are, and what to set."""
    with pytest.raises(InputError, match=r'evaluation\.cases is 4, but the dev split holds 3; .*cases="all"'):
        draw_cases(records_of(["yes"] * 3), EvaluationConfig(cases=4, split="dev"))


# --- Models that are not asked for real --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared synthetic data with its settings."""
    directory = tmp_path_factory.mktemp("compare")
    config = tiny_config(
        directory,
        data={"synthetic_pool": 24, "synthetic_test": 12},
        evaluation={"probes": False},
    )
    prepare(config, directory / "data")
    return SimpleNamespace(config=config, data=directory / "data")


def weights(directory, content):
    """A directory that looks like a model's, as far as its identity goes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.safetensors").write_text(content)
    return str(directory)


class Asked:
    """Stands in for loading and generating; keeps the questions.

    "good" weights give gold answers over the own abstract and else do not know; others write rubbish.
    """

    def __init__(self, records):
        self.records = {json.dumps(render_prompt(record)): record for record in records}
        self.loaded, self.questions, self.copies, self.stop_after = [], [], [], None

    def load(self, source, adapter, revision):
        self.loaded.append(source)
        return (Path(source) / "model.safetensors").read_text(), None

    def sample(self, model, tokenizer, prompts, copies, sampling, batch_tokens, on_answers):
        for i, prompt in enumerate(prompts):
            if self.stop_after is not None and len(self.questions) == self.stop_after:
                raise KeyboardInterrupt
            record = self.records.get(json.dumps(prompt))
            self.questions.append(record.id if record else json.dumps(prompt))
            self.copies.append(copies)
            gold = gold_completion(record) if record else render_completion("Nothing here tells.", "maybe")
            text = gold if model == "good" else f"{model} rubbish"
            on_answers(i, [Generation(text, len(text.split()))] * copies)


@pytest.fixture
def asked(monkeypatch, prepared):
    fake = Asked(load_records(prepared.data, "test"))
    monkeypatch.setattr(asking, "load_model", fake.load)
    monkeypatch.setattr(asking, "sample", fake.sample)
    return fake


@pytest.fixture
def run(prepared, asked, tmp_path):
    """Evaluate models by name and content of their weights; results go to `results`."""

    def evaluate_models(config=prepared.config, on_progress=lambda *_: None, **models):
        found = [Contestant(name, weights(tmp_path / name, content)) for name, content in models.items()]
        asked.loaded, asked.questions, asked.copies = [], [], []
        return evaluate(config, prepared.data, found, tmp_path / "results", tmp_path / "answers", on_progress)

    return evaluate_models


def changed(config, **sections):
    """The settings with some sections' values replaced."""
    parts = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    return config.model_copy(update=parts)


def test_the_better_model_wins(run, tmp_path):
    """Gold answers score 1, rubbish 0, and the paired comparison says who has what right."""
    metrics = run(base="bad", tuned="good")
    assert metrics["models"]["tuned"]["accuracy"]["value"] == 1.0
    assert metrics["models"]["base"]["accuracy"]["value"] == 0.0
    (comparison,) = metrics["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("base", "tuned")
    assert (comparison["only_first"], comparison["only_second"]) == (0, 6)
    assert comparison["p_value"] == pytest.approx(2 / 2**6)
    assert comparison["accuracy_difference"]["value"] == 1.0


@pytest.mark.slow
def test_every_pair_is_compared_in_order(run):
    """Three models give three comparisons, the reference always first."""
    metrics = run(base="bad", warmup="worse", tuned="good")
    pairs = [(comparison["first"], comparison["second"]) for comparison in metrics["comparisons"]]
    assert pairs == [("base", "warmup"), ("base", "tuned"), ("warmup", "tuned")]


def test_the_metrics_file_is_strict_json(run, tmp_path):
    """metrics.json is what was returned, with null where there is no number, also when every answer is unreadable."""
    metrics = run(base="bad", tuned="worse")

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "results" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=refuse) == json.loads(json.dumps(metrics, allow_nan=False))
    assert metrics["n"] == 6
    assert metrics["synthetic"] is True
    assert metrics["split"] == "test"


def test_the_official_predictions_are_the_last_models_verdicts(run, prepared, tmp_path):
    """predictions.json maps each case's id to the verdict of the model in question, as the official scorer wants."""
    config = changed(prepared.config, evaluation={"cases": "all"})
    run(config, base="bad", tuned="good")
    predictions = json.loads((tmp_path / "results" / "predictions.json").read_text())
    truth = {record.id: record.verdict for record in load_records(prepared.data, "test")}
    assert predictions == truth
    assert official_score(predictions, truth) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_an_unreadable_answer_is_null_in_the_predictions(run, tmp_path):
    """Every case stands in predictions.json, also one without a verdict, which is no verdict made up."""
    run(base="good", tuned="bad")
    predictions = json.loads((tmp_path / "results" / "predictions.json").read_text())
    assert len(predictions) == 6
    assert set(predictions.values()) == {None}


def test_the_rows_hold_every_models_answer(run, prepared, tmp_path):
    """predictions.jsonl has a row per case with the question, the expert's verdict and each model's answer."""
    run(base="bad", tuned="good")
    cases = read_cases(tmp_path / "results")
    records = draw_cases(load_records(prepared.data, "test"), prepared.config.evaluation)
    assert [case["id"] for case in cases] == [record.id for record in records]
    for case, record in zip(cases, records, strict=True):
        assert (case["expert"], case["question"], case["synthetic"]) == (record.verdict, record.question, True)
        assert case["contexts"] == list(record.contexts)
        assert list(case["answers"]) == ["base", "tuned"]
        assert case["answers"]["tuned"]["verdict"] == record.verdict
        assert case["answers"]["base"]["text"] == "bad rubbish"


def test_rows_survive_every_kind_of_line_break_in_a_text(prepared, tmp_path):
    """A line separator inside a text does not end a row: what was written is read back."""
    strange = "one\u2028two\u2029three\x85four\x0bfive\x1csix\nseven"
    record = tiny_record("1", question=strange)
    answers = {"tuned": [answer_row(record, [Generation(strange, 3)], prepared.config.rewards)]}
    row = case_row(record, answers, 0)
    write_text(tmp_path / "predictions.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert read_cases(tmp_path) == [row]


def test_the_evaluation_writes_rows_that_can_be_read_back(run, asked, prepared, tmp_path):
    """Also where a model writes a line separator, the number of rows is the number of cases."""
    run(base="a\u2028b", tuned="c\x85d")
    assert [case["answers"]["base"]["text"] for case in read_cases(tmp_path / "results")] == ["a\u2028b rubbish"] * 6


def test_the_progress_counts_every_answer(run, prepared):
    """The callback hears each model's answers from one to all, the model in question first."""
    heard = []
    run(on_progress=lambda *news: heard.append(news), base="bad", tuned="good")
    assert heard == [(name, done, 6) for name in ("tuned", "base") for done in range(1, 7)]


# --- Answers kept ------------------------------------------------------------------------------------------------


def test_a_model_asked_before_is_not_asked_again(run, asked):
    """The second evaluation loads no model, asks nothing and comes to the same metrics."""
    first = run(base="bad", tuned="good")
    assert len(asked.questions) == 12
    assert run(base="bad", tuned="good") == first
    assert (asked.loaded, asked.questions) == ([], [])


def test_the_same_weights_under_another_name_are_not_asked_again(run, asked, prepared, tmp_path):
    """The tuned model of one run is the champion of the next: its answers are there already."""
    run(tuned="good")
    before = len(asked.questions)
    copied = [Contestant("champion", weights(tmp_path / "copy", "good"))]
    metrics = evaluate(prepared.config, prepared.data, copied, tmp_path / "next", tmp_path / "answers")
    assert len(asked.questions) == before
    assert metrics["models"]["champion"]["accuracy"]["value"] == 1


@pytest.mark.slow
def test_a_changed_model_is_asked_again_and_the_other_is_not(run, asked, tmp_path):
    """New weights under the same name and path are another model."""
    run(base="bad", tuned="worse")
    metrics = run(base="bad", tuned="good")
    assert asked.loaded == [str(tmp_path / "tuned")]
    assert len(asked.questions) == 6
    assert metrics["models"]["tuned"]["accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("section", "values"),
    [("grpo", {"max_completion_length": 25}), ("evaluation", {"samples": 3})],
)
def test_other_answers_are_asked_for_again(run, asked, prepared, section, values):
    """A longer cap on completions, or sampled answers beside the greedy one, are other answers."""
    run(tuned="good")
    run(changed(prepared.config, **{section: values}), tuned="good")
    assert len(asked.questions) == 6


@pytest.mark.parametrize("values", [{"cases": 9}, {"cases": 4}, {"seed": 99}, {"cases": "all"}])
def test_only_new_cases_are_asked(run, asked, prepared, values):
    """Other cases cost only the answers that are not there yet."""
    run(tuned="good")
    first = set(asked.questions)
    run(changed(prepared.config, evaluation=values), tuned="good")
    wanted = draw_cases(load_records(prepared.data, "test"), prepared.config.evaluation.model_copy(update=values))
    assert sorted(asked.questions) == sorted({record.id for record in wanted} - first)


@pytest.mark.slow
def test_the_vote_of_the_sampled_answers_is_reported(run, prepared):
    """With samples, each row has its vote and each model its accuracy by vote; without, neither is there."""
    metrics = run(changed(prepared.config, evaluation={"samples": 3}), tuned="good", base="bad")
    assert metrics["models"]["tuned"]["vote"]["accuracy"]["value"] == 1.0
    assert metrics["models"]["tuned"]["vote"]["unanimous_accuracy"]["n"] == 6
    assert metrics["models"]["base"]["vote"]["accuracy"]["value"] == 0.0
    assert "vote" not in run(tuned="good")["models"]["tuned"]


def test_scoring_anew_needs_no_model(run, asked, prepared):
    """Another reward or number of resamples scores the kept answers again."""
    run(tuned="good")
    run(changed(prepared.config, evaluation={"resamples": 10}, rewards={"evidence": 5}), tuned="good")
    assert asked.questions == []


@pytest.mark.parametrize("torn", ["", '{"id": "', '{"id": "x", "text": "half', '{"id": "x", "text": "t", "tokens": 1}'])
def test_an_evaluation_that_was_killed_goes_on(run, asked, tmp_path, torn):
    """Whole rows are kept, a last line without its end is asked again, and the result is as if nothing had happened."""
    expected = run(tuned="good")
    shutil.rmtree(tmp_path / "answers")
    asked.stop_after = 4
    with pytest.raises(KeyboardInterrupt):
        run(tuned="good")
    answered = list(asked.questions)
    (kept,) = (tmp_path / "answers").iterdir()
    assert len(kept.read_text().splitlines()) == 4
    # The last of the four rows is cut short too.
    whole = kept.read_text().splitlines(keepends=True)[:3]
    kept.write_text("".join(whole) + torn)
    asked.stop_after = None
    heard = []
    assert run(on_progress=lambda name, done, total: heard.append(done), tuned="good") == expected
    assert not set(asked.questions) & set(answered[:3])
    assert len(asked.questions) == 3
    assert heard == [4, 5, 6]
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 6


def test_the_identity_follows_the_weights_not_the_place(tmp_path):
    """The same weights elsewhere are the same model; other weights, another adapter or another revision are not."""
    here, there = weights(tmp_path / "a", "w"), weights(tmp_path / "b", "w")
    adapter = tmp_path / "adapter"
    weights(adapter, "lora")
    same = Contestant("x", here).identity()
    assert Contestant("y", there).identity() == same
    others = [
        Contestant("x", weights(tmp_path / "c", "v")),
        Contestant("x", here, adapter),
        Contestant("x", "organisation/model", revision="abc"),
        Contestant("x", "organisation/model"),
        Contestant("x", "organisation/other"),
    ]
    assert len({same, *(other.identity() for other in others)}) == 6


# --- Probes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def probing(prepared):
    """Settings with probes."""
    return changed(prepared.config, evaluation={"probes": True})


def test_only_the_model_in_question_is_probed(run, asked, prepared, probing, tmp_path):
    """Four probes, each with its numbers; the model is loaded once for its answers and its probes."""
    metrics = run(probing, base="bad", tuned="good")
    assert list(metrics["probes"]) == ["tuned"]
    assert tuple(metrics["probes"]["tuned"]) == PROBES
    assert asked.loaded == [str(tmp_path / "tuned"), str(tmp_path / "base")]
    for probe, found in metrics["probes"]["tuned"].items():
        assert found["n"] + found["skipped"] == 6, probe
        assert found["drop"]["value"] == pytest.approx(1 - found["accuracy"]["value"])
    cases = draw_cases(load_records(prepared.data, "test"), probing.evaluation)
    maybes = sum(record.verdict == "maybe" for record in cases)
    assert metrics["probes"]["tuned"]["no_abstract"]["accuracy"]["value"] == pytest.approx(maybes / 6)
    assert json.loads((tmp_path / "results" / "metrics.json").read_text()) == metrics


def test_a_model_that_cannot_answer_anyway_loses_nothing(run, probing):
    """Rubbish with and without the abstract: no drop, and an unreadable answer that stays one is no flip."""
    found = run(probing, tuned="bad")["probes"]["tuned"]["no_abstract"]
    assert (found["drop"]["value"], found["flips"]["value"], found["accuracy"]["value"]) == (0.0, 0.0, 0.0)


def test_the_rows_hold_the_answers_under_the_probes(run, probing, tmp_path):
    """Each row has verdict and text under every probe that could alter its case."""
    metrics = run(probing, base="bad", tuned="good")
    cases = read_cases(tmp_path / "results")
    for probe, found in metrics["probes"]["tuned"].items():
        rows = [case["probes"][probe] for case in cases if probe in case["probes"]]
        assert len(rows) == found["n"]
        assert all(row == {"verdict": "maybe", "text": rows[0]["text"]} for row in rows)


def test_without_probes_nothing_is_asked_or_written(run, asked, tmp_path):
    """evaluation.probes=false leaves an empty entry and plain rows."""
    assert run(tuned="good")["probes"] == {}
    assert len(asked.questions) == 6
    assert all("probes" not in case for case in read_cases(tmp_path / "results"))


def test_the_progress_names_the_probe(run, probing):
    """Who follows sees model and probe, and how many of its cases are done."""
    heard = []
    metrics = run(probing, on_progress=lambda *news: heard.append(news), base="bad", tuned="good")
    names = list(dict.fromkeys(name for name, *_ in heard))
    labels = {probe: f"tuned, {probe_label(probe, 'abstract').lower()}" for probe in PROBES}
    assert names == ["tuned", *labels.values(), "base"]
    for probe, found in metrics["probes"]["tuned"].items():
        assert [(done, total) for name, done, total in heard if name == labels[probe]] == [
            (done, found["n"]) for done in range(1, found["n"] + 1)
        ]


def test_probes_are_answered_once_each(run, asked, prepared):
    """Sampled answers are drawn for the cases themselves only."""
    run(changed(prepared.config, evaluation={"probes": True, "samples": 3}), tuned="good")
    assert asked.copies[:6] == [4] * 6
    assert set(asked.copies[6:]) == {1}


def test_probes_asked_before_are_not_asked_again(run, asked, prepared, probing):
    """The second evaluation asks nothing; one that is probed later asks only the probes."""
    run(tuned="good")
    first = run(probing, tuned="good")
    assert not set(asked.questions) & {record.id for record in load_records(prepared.data, "test")}
    assert run(probing, tuned="good") == first
    assert (asked.loaded, asked.questions) == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [3, 6, 9, 25])
def test_a_probed_evaluation_that_was_killed_goes_on(run, asked, probing, tmp_path, stop):
    """Killed before, between or within the probes, it asks what is missing and comes to the same numbers."""
    expected = run(probing, base="bad", tuned="good")
    total = len(asked.questions)
    shutil.rmtree(tmp_path / "answers")
    asked.stop_after = stop
    with pytest.raises(KeyboardInterrupt):
        run(probing, base="bad", tuned="good")
    asked.stop_after = None
    assert run(probing, base="bad", tuned="good") == expected
    assert len(asked.questions) == total - stop


def test_copies_of_training_records_are_reported(run, prepared):
    """The metrics say how many records were compared, from which likeness on, and which pairs are that alike."""
    train = load_records(prepared.data, "train")
    found = run(tuned="good")["contamination"]
    assert (found["compared"], found["threshold"]) == ({"train": len(train), "cases": 6}, 0.8)
    assert found["cases"]["abstract"] == 0
    answers = {"tuned": [answer_row(train[0], [Generation(gold_completion(train[0]), 9)], prepared.config.rewards)]}
    copied = score(prepared.config, {"domain": "synthetic", "synthetic": True}, train, train[:1], answers)
    assert copied["contamination"]["cases"]["abstract"] == 1
    assert copied["contamination"]["pairs"][0]["case"] == copied["contamination"]["pairs"][0]["train"] == train[0].id


# --- Whom and what -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmed", [True, False])
def test_the_contestants_of_a_training(prepared, tmp_path, warmed):
    """Base first, the warm-up where there was one, the tuned model last."""
    if warmed:
        (tmp_path / "warmup" / "adapter").mkdir(parents=True)
    found = contestants(prepared.config, tmp_path)
    assert [model.name for model in found] == (["base", "warmup", "tuned"] if warmed else ["base", "tuned"])
    assert found[0].source == str(prepared.config.policy.base)
    assert found[0].adapter is None
    assert (found[-1].source, found[-1].adapter) == (str(tmp_path / "model"), None)
    if warmed:
        assert (found[1].source, found[1].adapter) == (found[0].source, tmp_path / "warmup" / "adapter")


@pytest.mark.parametrize("domain", ["synthetic", "pubmedqa"])
def test_the_references_are_labelled(prepared, domain):
    """The majority of the training records stands beside the models, the human reader only for PubMedQA."""
    train = records_of(["no"] * 3 + ["yes"] * 2)
    records = records_of(["yes", "no", "no", "maybe"])
    answers = {"tuned": [answer_row(r, [Generation(gold_completion(r), 9)], prepared.config.rewards) for r in records]}
    metrics = score(prepared.config, {"domain": domain, "synthetic": False}, train, records, answers)
    always, *human = metrics["references"]
    assert always["name"] == 'always "no"'
    assert always["accuracy"] == 0.5
    assert always["difference"] == paired_score_interval(0, 2, 4).as_dict()
    assert [(reference["accuracy"], reference["macro_f1"]) for reference in human] == (
        [(0.78, 0.722)] if domain == "pubmedqa" else []
    )


@pytest.mark.slow
def test_the_evaluation_of_a_training_ends_in_a_report(prepared, asked, monkeypatch, tmp_path):
    """Beside the metrics there are plots and a report that says the data is synthetic."""
    train = tmp_path / "train"
    weights(train / "model", "good")
    base = tmp_path / "base"
    weights(base, "bad")
    monkeypatch.setattr(compare, "resolve_base", lambda policy: str(base))
    write_json(train / "training.json", {"seconds": 12.5, "adapter_change": 0.1, "flags": []})
    row = {"phase": "grpo", "step": 1, "steps": 1, "time": 0.0, "seconds_left": 0.0, "loss": 0.0, "reward": 1.0}
    write_text(train / "metrics.jsonl", json.dumps(row) + "\n")
    champion = Contestant("champion", weights(tmp_path / "champion", "bad"))
    training = Training(train, AuditReport((), 1.0, 20), champion)
    metrics = evaluate_training(prepared.config, prepared.data, training, tmp_path / "results", tmp_path / "answers")
    assert list(metrics["models"]) == ["base", "champion", "tuned"]
    checks = gate_checks(tmp_path / "results")
    assert {checks[name] for name in ("better than base", "not worse than champion", "training alarms")} == {"pass"}
    assert checks["context reliance"] == "not enough evidence"
    assert "synthetic" in (tmp_path / "results" / "report.html").read_text().lower()
    assert list((tmp_path / "results" / "plots").iterdir())


def gate_checks(results):
    """The outcome of each of the gate's checks."""
    return {check["name"]: check["outcome"] for check in json.loads((results / "gate.json").read_text())["checks"]}


@pytest.mark.slow
def test_of_any_models_only_what_was_measured_is_judged(prepared, asked, tmp_path):
    """Nothing is known of their training or of a champion, and the gate takes neither for granted."""
    models = [
        Contestant("base", weights(tmp_path / "b", "bad")),
        Contestant("evaluated", weights(tmp_path / "g", "good")),
    ]
    evaluate_models(prepared.config, prepared.data, models, tmp_path / "results", tmp_path / "answers")
    checks = gate_checks(tmp_path / "results")
    assert checks["better than base"] == "pass"
    unknown = ("not worse than champion", "reward audit", "training alarms", "no leaks")
    assert {checks[name] for name in unknown} == {"not enough evidence"}
    assert models[-1].weights in (tmp_path / "results" / "report.html").read_text()


@pytest.mark.slow
def test_the_tiny_policy_is_evaluated_for_real(prepared, tmp_path):
    """Loaded, asked and scored, one model under two names gives the same answers and no difference."""
    base = str(prepared.config.policy.base)
    models = [Contestant("base", base), Contestant("tuned", base)]
    metrics = evaluate(
        changed(prepared.config, evaluation={"probes": True}),
        prepared.data,
        models,
        tmp_path / "results",
        tmp_path / "answers",
    )
    assert metrics["models"]["base"] == metrics["models"]["tuned"]
    assert metrics["comparisons"][0]["p_value"] == 1.0
    cases = read_cases(tmp_path / "results")
    assert len(cases) == 6
    assert all(case["answers"]["base"] == case["answers"]["tuned"] for case in cases)
    assert all(case["probes"]["no_abstract"]["text"] for case in cases)
    assert all(0 < case["answers"]["base"]["tokens"] <= 24 for case in cases)
