"""Tests of medgrpo.evaluation.report_tables."""

import math

import pytest

from medgrpo.completions import VERDICTS
from medgrpo.evaluation import report_tables as tables
from medgrpo.evaluation.report_words import DASH

NBSP = "\N{NO-BREAK SPACE}"


def rows_by_label(metrics, models=("base", "tuned")):
    """Label -> cells of every metric, whatever its heading."""
    groups = tables.metric_groups(metrics, models, VERDICTS, "abstract")
    return {row["label"]: row["cells"] for group in groups for row in group["rows"]}


def test_the_gate_says_first_what_stands_in_the_way(gate):
    """Failed checks come first, then those without evidence, then the passed; without a gate there is no verdict."""
    verdict = tables.gate_verdict(gate)
    assert [check["kind"] for check in verdict["checks"]] == ["fail", "unsure", "pass"]
    assert (verdict["kind"], tables.gate_verdict(None)) == ("fail", None)


def test_an_unknown_outcome_is_no_pass(gate):
    """What the report does not know is shown as not certain, never as passed."""
    gate["outcome"] = gate["checks"][0]["outcome"] = "passed with honours"
    verdict = tables.gate_verdict(gate)
    assert verdict["kind"] == "unsure"
    assert "pass" not in {check["kind"] for check in verdict["checks"]}


def test_every_metric_carries_interval_and_n(metrics):
    """Each cell of the metric table shows value, interval and n; lengths are tokens, not percent."""
    rows = rows_by_label(metrics)
    tuned = rows["Accuracy"][1]
    assert (tuned["value"], tuned["interval"], tuned["n"]) == (f"62{NBSP}%", f"48–75{NBSP}%", 50)
    assert (rows["Mean length"][1]["value"], rows["Mean length"][1]["interval"]) == ("58", "52–65")


def test_what_an_evaluation_adds_has_its_rows(probed):
    """Recall, faithfulness and calibration stand under their headings, and only where they were measured."""
    rows = rows_by_label(probed)
    assert [cell["value"] for cell in rows["Recall, yes"]] == [DASH, f"70{NBSP}%"]
    assert rows["Recall, yes"][1]["n"] == 30
    assert rows["Evidence precision"][1]["value"] == f"90{NBSP}%"
    assert (rows["Brier score"][1]["value"], rows["Brier score"][1]["interval"]) == ("0.18", "0.15–0.22")
    assert rows["Brier score"][1]["bar"] is None
    assert "Recall, maybe" not in rows
    assert "Thought against answer" not in rows


def test_what_was_not_measured_is_a_dash(metrics):
    """A value that is None or NaN shows a dash; a metric that no model has is left out."""
    metrics["models"]["tuned"]["f1"]["maybe"] = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 50}
    assert math.isnan(metrics["models"]["base"]["f1"]["maybe"]["value"])
    assert rows_by_label(metrics)["F1, maybe"][0] == {"value": "–", "interval": "–", "n": 50, "bar": None}
    del metrics["models"]["tuned"]["f1"]["maybe"], metrics["models"]["base"]["f1"]["maybe"]
    assert "F1, maybe" not in rows_by_label(metrics)


def test_differences_are_signed_points(probed):
    """A difference is in points with its sign, and its interval is never written with a dash between signs."""
    row = tables.comparison(probed["comparisons"][0])
    assert (row["accuracy"]["value"], row["accuracy"]["interval"], row["reading"]) == (
        "+54",
        "−38 to +68",
        "not chance",
    )
    assert (row["macro_f1"]["value"], row["detectable"]) == ("+30", "17")


def test_a_comparison_without_the_new_numbers_still_stands(metrics):
    """Results of an earlier version have neither a difference in macro-F1 nor a detectable one."""
    row = tables.comparison(metrics["comparisons"][0])
    assert (row["macro_f1"]["value"], row["detectable"]) == (DASH, DASH)


@pytest.mark.parametrize(("accuracy", "place"), [(0.40, "above"), (0.56, "includes it"), (0.80, "below"), (None, DASH)])
def test_references_are_placed_by_the_whole_interval(accuracy, place, metrics):
    """A reference counts as beaten only when the whole interval of the model in question lies above it."""
    metrics["references"][0]["accuracy"] = accuracy
    assert tables.reference(metrics["references"][0], metrics["models"])["place"] == place


@pytest.mark.parametrize(
    ("low", "high", "place"), [(0.01, 0.2, "above"), (-0.02, 0.2, "includes it"), (-0.2, -0.1, "below")]
)
def test_a_reference_on_the_same_cases_is_placed_by_the_paired_difference(low, high, place, metrics):
    """A rule that answered the same cases is beaten where the difference is surely above 0, whatever its accuracy."""
    metrics["references"][0] |= {"accuracy": 0.4, "difference": {"value": 0.1, "low": low, "high": high, "n": 50}}
    assert tables.reference(metrics["references"][0], metrics["models"])["place"] == place


def test_probes_show_what_was_lost_and_what_changed(probed):
    """Each probe has its accuracy, the points lost, the share of verdicts that changed, and the cases left out."""
    (table,) = tables.probe_tables(probed, "abstract")
    first, last = table["rows"]
    assert (table["model"], first["label"], first["drop"]["value"], first["drop"]["interval"]) == (
        "Tuned",
        "No abstract",
        "+20",
        "−2 to +40",
    )
    assert (first["flips"]["value"], last["n"], last["skipped"]) == (f"45{NBSP}%", 44, 6)
    assert (
        tables.probe_tables({"probes": {}}, "abstract")
        == tables.probe_tables({}, "abstract")
        == tables.probe_tables({"probes": {"a": {}}}, "abstract")
        == []
    )


def test_slices_keep_their_order_and_their_warning(probed):
    """Groups stand under their slice; one that is too small stays marked; a model that it lacks is a dash."""
    verdict, year = tables.slice_tables(probed, ["base", "tuned", "champion"])
    assert [(row["group"], row["n"], row["enough"]) for row in verdict["rows"]] == [
        ("yes", 42, True),
        ("maybe", 8, False),
    ]
    assert [cell["value"] for cell in year["rows"][0]["cells"]] == [f"10{NBSP}%", f"60{NBSP}%", DASH]


def test_look_alikes_lead_to_their_case(probed, case):
    """A listed pair names both records and links to the case where the page shows it."""
    found = tables.look_alikes(probed["contamination"], [case | {"id": "s-0"}, case])
    assert found["pairs"] == [
        {"case": "s-1", "train": "t-9", "place": 2, "question": f"97{NBSP}%", "abstract": f"42{NBSP}%", "leak": False}
    ]
    assert tables.look_alikes(probed["contamination"], [])["pairs"][0]["place"] is None
    assert tables.look_alikes(None, []) is None


def test_a_like_abstract_is_a_leak_and_a_like_question_is_none(probed):
    """Cases are counted once, as leaking where any of their pairs has a like abstract."""
    probed["contamination"]["pairs"] += [
        {"case": "s-2", "train": "t-1", "question": 0.95, "abstract": 0.9},
        {"case": "s-2", "train": "t-2", "question": 0.95, "abstract": 0.3},
    ]
    found = tables.look_alikes(probed["contamination"], [])
    assert (found["leaking"], found["asked"], found["threshold"]) == (1, 1, f"90{NBSP}%")
    assert [pair["leak"] for pair in found["pairs"]] == [False, True, False]
