"""Tests of medgrpo.evaluation.scoring, and of the metric it loads, against PubMedQA's official scorer.

On the published data where MEDGRPO_PUBMEDQA names the directory that holds it, else on an invented ground truth.
"""

import json
import os
import random
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from medgrpo.completions import VERDICTS
from medgrpo.config import EvaluationConfig, RewardConfig
from medgrpo.errors import InputError
from medgrpo.evaluation import scoring
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.scoring import (
    answer_row,
    compare,
    confusion,
    count_votes,
    f1_metrics,
    faithfulness,
    model_metrics,
    official_score,
    verdict_metric,
    vote_metrics,
)
from medgrpo.evaluation.statistics import detectable_difference
from medgrpo.prompts import gold_completion
from medgrpo.testing import tiny_record

PUBLISHED = os.environ.get("MEDGRPO_PUBMEDQA")
published = pytest.mark.skipif(not PUBLISHED, reason="needs the published data, named by MEDGRPO_PUBMEDQA")
CONFIG = EvaluationConfig(resamples=40)


def published_file(name):
    return json.loads((Path(PUBLISHED) / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def truth():
    """{PMID: verdict} of the test split, published or invented with its shares."""
    if PUBLISHED:
        return published_file("test_ground_truth.json")
    generator = random.Random(1)
    return {str(10_000 + i): generator.choices(VERDICTS, [276, 169, 55])[0] for i in range(500)}


def official(predictions, truth):
    """What PubMedQA's evaluation.py computes."""
    pmids = list(truth)
    expected, predicted = [truth[i] for i in pmids], [predictions[i] for i in pmids]
    return accuracy_score(expected, predicted), f1_score(expected, predicted, average="macro")


def answers(verdicts, **changes):
    """Answers with these verdicts; None is unreadable."""
    figures = {"supported": ["2.4"], "unsupported": []}
    row = {"well_formed": True, "tokens": 20, "grounding": 0.5, "figures": figures, "disagrees": False}
    return [{**row, "verdict": verdict, "well_formed": verdict is not None, **changes} for verdict in verdicts]


# --- The official score ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_the_score_is_the_official_scorers(truth, seed):
    """Accuracy and macro-F1 equal the official ones to six digits, for random predictions of every skill and bias."""
    generator = random.Random(seed)
    skill, shares = seed / 24, [generator.random() for _ in VERDICTS]
    predictions = {
        pmid: verdict if generator.random() < skill else generator.choices(VERDICTS, shares)[0]
        for pmid, verdict in truth.items()
    }
    accuracy, macro_f1 = official(predictions, truth)
    found = official_score(dict(sorted(predictions.items(), key=lambda _: generator.random())), truth)
    assert found == {
        "accuracy": pytest.approx(accuracy, abs=5e-7),
        "macro_f1": pytest.approx(macro_f1, abs=5e-7),
    }


@pytest.mark.slow
def test_a_thousand_random_predictions_score_as_officially(truth):
    """Official score and metrics of 1,000 random prediction sets equal accuracy and macro-F1 of the official scorer."""
    generator, experts = random.Random(0), list(truth.values())
    for _ in range(1000):
        skill, shares = generator.random(), [generator.random() ** 3 for _ in VERDICTS]
        guessed = generator.choices(VERDICTS, shares, k=len(truth))
        predictions = {
            pmid: verdict if generator.random() < skill else guess
            for (pmid, verdict), guess in zip(truth.items(), guessed, strict=True)
        }
        accuracy, macro_f1 = official(predictions, truth)
        assert official_score(predictions, truth) == {
            "accuracy": pytest.approx(accuracy, abs=1e-12),
            "macro_f1": pytest.approx(macro_f1, abs=1e-12),
        }
        metrics = f1_metrics(experts, list(predictions.values()), EvaluationConfig(resamples=1))
        assert metrics["macro_f1"]["value"] == pytest.approx(macro_f1, abs=1e-12)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_one_verdict_for_all_scores_as_officially(truth, verdict):
    """A constant answer has the two other verdicts' F1 as 0, as in the official scorer."""
    constant = dict.fromkeys(truth, verdict)
    accuracy, macro_f1 = official(constant, truth)
    assert official_score(constant, truth) == {
        "accuracy": pytest.approx(accuracy),
        "macro_f1": pytest.approx(macro_f1),
    }


def test_the_truth_itself_scores_one(truth):
    """Perfect predictions have accuracy and macro-F1 1."""
    assert official_score(truth, truth) == {"accuracy": 1.0, "macro_f1": 1.0}


@published
def test_the_published_baselines_come_out():
    """Always "yes" scores 55.2 % / 23.7 %, and the human reader of the reasoning-required setting 78.0 % / 72.2 %."""
    truth, records = published_file("test_ground_truth.json"), published_file("ori_pqal.json")
    yes = official_score(dict.fromkeys(truth, "yes"), truth)
    human = official_score({pmid: records[pmid]["reasoning_required_pred"] for pmid in truth}, truth)
    assert {name: round(100 * value, 1) for name, value in yes.items()} == {"accuracy": 55.2, "macro_f1": 23.7}
    assert {name: round(100 * value, 1) for name, value in human.items()} == {"accuracy": 78.0, "macro_f1": 72.2}


def test_missing_and_unknown_pmids_are_refused(truth):
    """Predictions must cover the ground truth exactly; the sentence counts what is missing and unknown, with one."""
    first, *others = truth
    with pytest.raises(InputError, match=rf"exactly the {len(truth)} PMIDs .*: 1 missing, 0 unknown .*{first}"):
        official_score(dict.fromkeys(others, "yes"), truth)
    with pytest.raises(InputError, match=r"0 missing, 1 unknown \(for example nobody\)"):
        official_score({**truth, "nobody": "yes"}, truth)
    with pytest.raises(InputError, match=rf"{len(truth)} missing, 0 unknown"):
        official_score({}, truth)


@pytest.mark.parametrize("verdict", ["Yes", "", "unsure", 1])
def test_an_unknown_verdict_is_refused(truth, verdict):
    """What is not exactly yes, no or maybe is named with its record."""
    first = next(iter(truth))
    with pytest.raises(InputError, match=f"record {first}: prediction is {verdict!r}; expected yes, no or maybe"):
        official_score({**truth, first: verdict}, truth)


def test_an_unreadable_answer_counts_as_wrong(truth):
    """None, as our own predictions.json has it where an answer could not be read, is a miss and no label of its own."""
    first = next(iter(truth))
    scores = official_score({**truth, first: None}, truth)
    assert scores["accuracy"] == pytest.approx(1 - 1 / len(truth))
    assert scores["macro_f1"] > 0.9


# --- The metric --------------------------------------------------------------------------------------------------


def test_the_metric_is_loaded_without_a_network(monkeypatch):
    """The metric is a file of this package: loading it opens no connection."""
    scoring.verdict_metric.cache_clear()
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    metric = verdict_metric()
    assert metric.compute(predictions=["yes"], references=["yes"]) == {"accuracy": 1.0, "macro_f1": 1.0}


@given(st.lists(st.tuples(st.sampled_from([*VERDICTS, ""]), st.sampled_from(VERDICTS)), min_size=1, max_size=40))
def test_an_unreadable_answer_is_wrong_and_no_label(pairs):
    """The average runs over the verdicts that occur; an unreadable answer lowers recall and adds no fourth class."""
    predictions, references = map(list, zip(*pairs, strict=True))
    labels = sorted({*references, *predictions} - {""})
    found = verdict_metric().compute(predictions=predictions, references=references)
    assert found["accuracy"] == pytest.approx(sum(p == r for p, r in pairs) / len(pairs))
    assert found["macro_f1"] == pytest.approx(
        f1_score(references, predictions, labels=labels, average="macro", zero_division=0)
    )


# --- One model's answers -----------------------------------------------------------------------------------------


def test_an_answer_row_holds_what_the_report_needs():
    """Text, thought, verdict, form, length, grounding and the cited figures of a gold completion."""
    record = tiny_record()
    row = answer_row(record, [Generation(gold_completion(record), 42)], RewardConfig())
    assert (row["verdict"], row["well_formed"], row["tokens"], row["grounding"]) == ("yes", True, 42, 1.0)
    assert row["thought"] in row["text"]
    assert row["figures"]["unsupported"] == []
    json.dumps(row, allow_nan=False)


def test_an_answer_against_its_own_thought_is_marked():
    """A thought that concludes no before an answer of yes disagrees; the gold completion does not."""
    text = "<thought>The treatment did not lower pain after surgery.</thought><answer>yes</answer>"
    assert answer_row(tiny_record(), [Generation(text, 9)], RewardConfig())["disagrees"]
    assert not answer_row(tiny_record(), [Generation(gold_completion(tiny_record()), 9)], RewardConfig())["disagrees"]


def test_faithfulness_counts_answers_figures_and_contradictions():
    """Shares of answers with an unsupported figure, of figures that are there, of readable answers that disagree."""
    rows = answers(["yes", "no", None, "yes"])
    rows[0] |= {"figures": {"supported": ["1", "2", "3"], "unsupported": ["9"]}, "disagrees": True}
    rows[1] |= {"figures": {"supported": [], "unsupported": []}}
    found = faithfulness(rows, CONFIG)
    values = {name: (one["value"], one["n"]) for name, one in found.items()}
    assert values == {
        "unsupported_figures": (0.25, 4),
        "evidence_precision": (pytest.approx(5 / 6), 3),
        "disagreement": (pytest.approx(1 / 3), 3),
    }


def test_a_few_faultless_answers_are_no_proof():
    """Where every cited figure is right the interval is that of as many answers, and not of no width."""
    found = faithfulness(answers(["yes"] * 5), CONFIG)["evidence_precision"]
    assert (found["value"], found["high"], found["n"]) == (1.0, 1.0, 5)
    assert found["low"] == pytest.approx(0.566, abs=1e-3)


def test_one_wrong_figure_makes_nothing_surer():
    """Twenty answers with one figure in forty wrong are known no better than twenty without a fault."""
    rows = answers(["yes"] * 20, figures={"supported": ["1", "2"], "unsupported": []})
    faultless = faithfulness(rows, CONFIG)["evidence_precision"]
    rows[0] = {**rows[0], "figures": {"supported": ["1"], "unsupported": ["2"]}}
    spoilt = faithfulness(rows, CONFIG)["evidence_precision"]
    assert spoilt["value"] < faultless["value"] == 1
    assert spoilt["low"] < faultless["low"]


def test_a_verdict_never_found_is_not_known_to_be_unfindable():
    """F1 of 0 on five cases has an interval with room, as the recall behind it has, and so has one of 1."""
    never = f1_metrics(["yes"] * 20 + ["maybe"] * 5, ["yes"] * 25, CONFIG)["f1"]["maybe"]
    assert (never["value"], never["low"], never["n"]) == (0, 0, 5)
    assert never["high"] == pytest.approx(2 * 0.4345 / 1.4345, abs=1e-3)
    always = f1_metrics(["yes"] * 20, ["yes"] * 20, CONFIG)["f1"]["yes"]
    assert always["low"] == pytest.approx(2 * 0.8389 / 1.8389, abs=1e-3)


def test_an_invented_figure_is_listed():
    """A number that is not in the abstract stands among the unsupported figures."""
    text = "<thought>Mean pain fell by 2.4 points, and 77 died.</thought><answer>yes</answer>"
    figures = answer_row(tiny_record(), [Generation(text, 9)], RewardConfig())["figures"]
    assert any("77" in figure for figure in figures["unsupported"])
    assert any("2.4" in figure for figure in figures["supported"])


@pytest.mark.parametrize("text", ["", "I cannot say.", "<answer>yes</answer> <answer>no</answer>"])
def test_an_unreadable_completion_has_no_verdict(text):
    """Where no single answer stands the verdict is None, and the row is still valid JSON."""
    row = answer_row(tiny_record(), [Generation(text, 3)], RewardConfig())
    assert row["verdict"] is None
    assert not row["well_formed"]
    assert json.loads(json.dumps(row, allow_nan=False)) == row


EXPERTS = ["yes"] * 6 + ["no"] * 3 + ["maybe"]
GIVEN = ["yes"] * 4 + ["no", None] + ["no"] * 2 + [None] + ["maybe"]


def test_every_metric_has_a_value_an_interval_and_n():
    """Each number of a model comes as {value, low, high, n}, with the value inside its interval."""
    metrics = model_metrics(EXPERTS, answers(GIVEN), CONFIG)
    matrix = metrics.pop("confusion")
    intervals = {**metrics.pop("f1"), **metrics.pop("faithfulness"), **metrics}
    recall = intervals.pop("recall")
    assert {verdict: (one["value"], one["n"]) for verdict, one in recall.items()} == {
        "yes": (pytest.approx(4 / 6), 6),
        "no": (pytest.approx(2 / 3), 3),
        "maybe": (1.0, 1),
    }
    assert matrix["yes"] == {"yes": 4, "no": 1, "maybe": 0, "none": 1}
    assert intervals.keys() == {
        *VERDICTS,
        "accuracy",
        "macro_f1",
        "strict_form",
        "parsed",
        "grounding",
        "mean_length",
        "unsupported_figures",
        "evidence_precision",
        "disagreement",
    }
    for name, interval in intervals.items():
        assert interval.keys() == {"value", "low", "high", "n"}, name
        assert interval["low"] <= interval["value"] <= interval["high"], name
    assert {verdict: intervals[verdict]["n"] for verdict in VERDICTS} == {"yes": 6, "no": 3, "maybe": 1}


def test_the_metrics_are_those_of_sklearn():
    """Accuracy, macro-F1 and the F1 of each verdict equal scikit-learn's, unreadable answers counted as wrong."""
    metrics = model_metrics(EXPERTS, answers(GIVEN), CONFIG)
    readable = [verdict or "" for verdict in GIVEN]
    single = f1_score(EXPERTS, readable, labels=VERDICTS, average=None, zero_division=0)
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(EXPERTS, readable))
    assert metrics["macro_f1"]["value"] == pytest.approx(single.mean())
    assert [metrics["f1"][verdict]["value"] for verdict in VERDICTS] == pytest.approx(list(single))
    assert metrics["parsed"]["value"] == metrics["strict_form"]["value"] == 0.8


def test_means_are_over_all_cases():
    """Grounding and length average over every case, unreadable ones included."""
    rows = [{**row, "tokens": n, "grounding": n / 10} for n, row in enumerate(answers(GIVEN))]
    metrics = model_metrics(EXPERTS, rows, CONFIG)
    assert metrics["mean_length"]["value"] == pytest.approx(4.5)
    assert metrics["grounding"]["value"] == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("experts", "given_verdicts"),
    [
        (["yes"], ["yes"]),
        (["yes"], [None]),
        (["yes"] * 5, [None] * 5),
        (["no", "no", "maybe"], ["yes", "yes", "yes"]),
        (EXPERTS, [None] * 10),
        (EXPERTS, EXPERTS),
    ],
    ids=["one right", "one unreadable", "one class unreadable", "all wrong", "all unreadable", "all right"],
)
def test_no_answers_make_json_that_is_not_json(experts, given_verdicts):
    """Absent classes and unreadable answers give numbers or null, never NaN."""
    metrics = model_metrics(experts, answers(given_verdicts), CONFIG)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@given(st.lists(st.tuples(st.sampled_from(VERDICTS), st.sampled_from([*VERDICTS, ""])), max_size=50))
def test_the_confusion_matrix_counts_every_case_once(pairs):
    """The cells sum to the number of cases, each row to its verdict's, unreadable answers in a column of their own."""
    experts, verdicts = [a for a, _ in pairs], [b for _, b in pairs]
    matrix = confusion(experts, verdicts)
    assert list(matrix) == list(VERDICTS)
    assert all(list(row) == [*VERDICTS, "none"] for row in matrix.values())
    assert {verdict: sum(row.values()) for verdict, row in matrix.items()} == {v: experts.count(v) for v in VERDICTS}
    assert sum(row["none"] for row in matrix.values()) == verdicts.count("")


# --- Two models --------------------------------------------------------------------------------------------------


def test_a_comparison_pairs_the_cases():
    """Who has what right alone, the exact test on it, and the difference in accuracy, second minus first."""
    second = ["yes"] * 6 + ["no"] * 3 + ["yes"]
    found = compare("base", "tuned", EXPERTS, {"base": answers(GIVEN), "tuned": answers(second)}, CONFIG)
    assert (found["first"], found["second"]) == ("base", "tuned")
    assert (found["only_first"], found["only_second"]) == (1, 3)
    assert found["p_value"] == pytest.approx(0.625)
    difference = found["accuracy_difference"]
    assert difference["value"] == pytest.approx(0.2)
    assert difference["low"] <= 0.2 <= difference["high"]
    assert difference["n"] == 10


def test_a_model_compared_with_itself_differs_by_nothing():
    """The same answers twice: no discordant case, p = 1, a difference of exactly 0."""
    found = compare("a", "b", EXPERTS, {"a": answers(GIVEN), "b": answers(GIVEN)}, CONFIG)
    assert (found["only_first"], found["only_second"], found["p_value"]) == (0, 0, 1.0)
    assert found["accuracy_difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 10}


def test_the_difference_in_macro_f1_is_paired():
    """Second minus first, both resampled together: the same answers differ by exactly nothing in every resample."""
    second = ["yes"] * 6 + ["no"] * 3 + ["yes"]
    rows = {"base": answers(GIVEN), "tuned": answers(second)}
    found = compare("base", "tuned", EXPERTS, rows, CONFIG)["macro_f1_difference"]
    macro = {name: model_metrics(EXPERTS, given, CONFIG)["macro_f1"]["value"] for name, given in rows.items()}
    assert found["value"] == pytest.approx(macro["tuned"] - macro["base"])
    assert found["low"] <= found["value"] <= found["high"]
    same = compare("a", "b", EXPERTS, {"a": rows["base"], "b": rows["base"]}, CONFIG)["macro_f1_difference"]
    assert same == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 10}


def test_a_comparison_says_what_it_could_have_found():
    """The smallest difference that 10 cases, 4 of them discordant, find with 80 % power; of 3 cases there is none."""
    second = ["yes"] * 6 + ["no"] * 3 + ["yes"]
    found = compare("base", "tuned", EXPERTS, {"base": answers(GIVEN), "tuned": answers(second)}, CONFIG)
    assert found["detectable"] == pytest.approx(detectable_difference(10, 0.4))
    few = compare("a", "b", ["yes"] * 3, {"a": answers(["yes"] * 3), "b": answers(["no"] * 3)}, CONFIG)
    assert few["detectable"] is None


def test_unreadable_answers_of_both_are_no_agreement_on_being_right():
    """Two unreadable answers are both wrong."""
    found = compare("a", "b", ["yes"], {"a": answers([None]), "b": answers([None])}, CONFIG)
    assert (found["only_first"], found["only_second"]) == (0, 0)
    assert found["accuracy_difference"]["value"] == 0


def test_the_order_of_two_models_only_turns_the_sign():
    """Swapping the models swaps the counts and negates the difference; the p-value stays."""
    rows = {"a": answers(GIVEN), "b": answers(EXPERTS)}
    there, back = compare("a", "b", EXPERTS, rows, CONFIG), compare("b", "a", EXPERTS, rows, CONFIG)
    assert there["p_value"] == back["p_value"]
    assert (there["only_first"], there["only_second"]) == (back["only_second"], back["only_first"])
    assert np.isclose(there["accuracy_difference"]["value"], -back["accuracy_difference"]["value"])


def test_a_vote_breaks_ties_by_the_greedy_answer_and_counts_unreadable_ones_as_disagreeing():
    """The majority wins; in a tie the greedy verdict, if it is one of the leaders; nothing readable is no verdict."""
    assert count_votes(["no", "yes", "yes", "no"])["verdict"] == "yes"
    assert count_votes(["no", "yes", "no"]) == {
        "verdict": "no",
        "agreement": 0.5,
        "confidence": 0.5,
        "counts": {"yes": 1, "no": 1, "maybe": 0},
    }
    assert count_votes(["maybe", "yes", "no"])["verdict"] == "yes"
    assert count_votes(["yes", None, None]) == {
        "verdict": None,
        "agreement": 0.0,
        "confidence": 0.0,
        "counts": {"yes": 0, "no": 0, "maybe": 0},
    }


def test_the_served_confidence_is_calibrated_against_outcomes():
    """Confidence 1 that is right and 0.5 that is right half of the time have no error; n is that of cases."""
    sampled = [["yes", "yes"]] * 2 + [["yes", "no"]] * 2
    rows = [{"verdict": "yes", "vote": count_votes(["yes", *verdicts])} for verdicts in sampled]
    found = vote_metrics(["yes", "yes", "yes", "no"], rows, CONFIG)["calibration"]
    assert found["ece"]["value"] == 0
    assert found["brier"]["value"] == pytest.approx((0.25 + 0.25) / 4)
    assert [(one["confidence"], one["accuracy"], one["n"]) for one in found["bins"]] == [(0.5, 0.5, 2), (1.0, 1.0, 2)]


def test_confidence_is_that_of_the_answer_not_of_the_majority():
    """Where the samples outvote the answer, its confidence is the minority's share, which is what is served."""
    vote = count_votes(["no", "yes", "yes", "yes", "no"])
    assert (vote["verdict"], vote["agreement"], vote["confidence"]) == ("yes", 0.75, 0.25)


def test_vote_metrics_tell_certain_cases_from_doubtful_ones():
    """Agreement is a confidence: where all samples agree, accuracy is counted by itself."""
    experts = ["yes", "no", "yes", "maybe"]
    sampled = [["yes", "yes"], ["yes", "no"], ["no", "no"], ["maybe", "maybe"]]
    answers = [{"verdict": "maybe", "vote": count_votes(["maybe", *verdicts])} for verdicts in sampled]
    metrics = vote_metrics(experts, answers, EvaluationConfig(resamples=20))
    assert metrics["accuracy"]["value"] == 0.5
    assert metrics["agreement"]["value"] == pytest.approx(3.5 / 4)
    assert (metrics["unanimous_accuracy"]["value"], metrics["unanimous_accuracy"]["n"]) == (pytest.approx(2 / 3), 3)
    doubtful = [{"verdict": "yes", "vote": count_votes(["yes", "yes", "no"])}] * 4
    assert "unanimous_accuracy" not in vote_metrics(experts, doubtful, EvaluationConfig(resamples=20))
