"""The report's tables: the gate's verdict, metrics, comparisons, probes, slices and look-alikes as words and rows."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from medgrpo.evaluation import report_words as words
from medgrpo.evaluation.report_words import DASH, Row

Entry = tuple[tuple[str, ...], str, str, str]
# Path in a model's metrics, label, what it is, unit; under a heading each. {source} is what the domain calls contexts.
METRICS: dict[str, tuple[Entry, ...]] = {
    "Form": (
        (("parsed",), "Readable verdict", "a verdict could be read, in whatever form", "%"),
        (("strict_form",), "Strict form", "exactly one thought, then one answer", "%"),
        (("mean_length",), "Mean length", "tokens per answer", "tokens"),
    ),
    "Faithfulness": (
        (("grounding",), "Grounding", "how far the thought cites the {source}", "%"),
        (
            ("faithfulness", "unsupported_figures"),
            "Answers with an unsupported figure",
            "a figure that the {source} does not hold; less is better",
            "%",
        ),
        (
            ("faithfulness", "evidence_precision"),
            "Evidence precision",
            "share of the cited figures that the {source} holds",
            "%",
        ),
        (
            ("faithfulness", "disagreement"),
            "Thought against answer",
            "the thought concludes another verdict than the answer; less is better",
            "%",
        ),
    ),
    "Sampled vote": (
        (("vote", "accuracy"), "Accuracy of the vote", "the majority of the sampled answers was right", "%"),
        (("vote", "macro_f1"), "Macro-F1 of the vote", "", "%"),
        (("vote", "agreement"), "Agreement", "share of the sampled answers behind the majority", "%"),
        (
            ("vote", "unanimous_accuracy"),
            "Accuracy where unanimous",
            "on the cases where all sampled answers agree",
            "%",
        ),
        (
            ("vote", "calibration", "ece"),
            "Calibration error",
            "mean distance of confidence from accuracy; less is better",
            "%",
        ),
        (
            ("vote", "calibration", "brier"),
            "Brier score",
            "squared error of confidence as a probability; less is better",
            "score",
        ),
    ),
}
SIGNIFICANCE = 0.05
# Outcome of a check, and what stands for it in class names, beside a sign and the word itself.
OUTCOMES = {"fail": "fail", "not enough evidence": "unsure", "pass": "pass"}


def gate_verdict(gate: Row | None) -> dict[str, Any] | None:
    """The gate's outcome and its checks, what stands in the way of a promotion first; None without a gate."""
    if gate is None:
        return None
    checks = [
        {
            **{key: check.get(key) for key in ("name", "outcome")},
            "reason": str(check.get("reason") or "").replace(" %", words.PERCENT),
            "kind": _kind(check["outcome"]),
        }
        for check in gate.get("checks", [])
    ]
    return {
        "outcome": gate["outcome"],
        "kind": _kind(gate["outcome"]),
        "summary": gate.get("summary") or "",
        "checks": sorted(checks, key=lambda check: list(OUTCOMES.values()).index(check["kind"])),
    }


def _kind(outcome: str) -> str:
    return OUTCOMES.get(outcome, "unsure")


def verdict_entries(labels: Sequence[str]) -> tuple[Entry, ...]:
    """What is measured of the verdicts: of each label too, where there are labels."""
    return (
        (("accuracy",), "Accuracy", "the expert's verdict was given; an unreadable answer counts as wrong", "%"),
        (("macro_f1",), "Macro-F1", "mean of the three F1 scores: every verdict counts the same", "%"),
        *((("f1", verdict), f"F1, {verdict}", "", "%") for verdict in labels),
        *(
            (("recall", verdict), f"Recall, {verdict}", f"share of the expert's {verdict} that the model found", "%")
            for verdict in labels
        ),
    )


def metric_groups(metrics: Row, models: Sequence[str], labels: Sequence[str], source: str) -> list[dict[str, Any]]:
    """The metrics under their headings: one row per metric that was measured, one cell per model."""
    groups = []
    for heading, entries in {"Verdict": verdict_entries(labels), **METRICS}.items():
        rows = []
        for path, label, meaning, unit in entries:
            cells = [metric_cell(metrics["models"][model], path, unit) for model in models]
            if any(cell["value"] != DASH for cell in cells):
                rows.append({"label": label, "meaning": meaning.format(source=source), "cells": cells})
        if rows:
            groups.append({"heading": heading, "rows": rows})
    return groups


def metric_cell(model: Any, path: Sequence[str] = (), unit: str = "%") -> dict[str, Any]:
    """Value, interval, n, and for shares the three numbers (0 to 100) that draw the interval's bar."""
    for key in path:
        model = (model or {}).get(key)
    cell: Row = model or {}
    low, value, high = (words.number(cell.get(key)) for key in ("low", "value", "high"))
    bar = None
    if unit == "%" and low is not None and value is not None and high is not None:
        bar = {"low": round(100 * low, 1), "value": round(100 * value, 1), "width": round(100 * (high - low), 1)}
    sign = "+" if unit == "points" else ""
    shown = words.quantity(value, cell.get("n") or 0, unit, sign)
    return {"value": shown, "interval": words.interval(cell, unit), "n": cell.get("n"), "bar": bar}


def comparison(row: Row) -> dict[str, Any]:
    """One paired comparison in words; differences are second minus first, in percentage points."""
    accuracy, macro_f1 = row.get("accuracy_difference") or {}, row.get("macro_f1_difference") or {}
    tested = words.number(row.get("p_value"))
    return {
        "first": words.label(row["first"]),
        "second": words.label(row["second"]),
        "only_first": row["only_first"],
        "only_second": row["only_second"],
        "accuracy": metric_cell(accuracy, unit="points"),
        "macro_f1": metric_cell(macro_f1, unit="points"),
        "detectable": words.quantity(row.get("detectable"), accuracy.get("n") or 0, "points"),
        "p_value": words.p_value(tested),
        "reading": "no test" if tested is None else "not chance" if tested < SIGNIFICANCE else "could be chance",
    }


def reference(row: Row, models: Row) -> dict[str, Any]:
    """What an accuracy is measured against, and where the model in question lies."""
    n = (_subject_accuracy(models)).get("n") or 0
    return {
        "name": row["name"],
        "accuracy": words.quantity(row.get("accuracy"), n),
        "macro_f1": words.quantity(row.get("macro_f1"), n),
        "place": place(row, models),
        "note": row.get("note") or "",
    }


def place(reference: Row, models: Row) -> str:
    """Where the whole accuracy interval of the model in question lies: above or below the reference, or around it.

    Of a reference that answered the same cases it is the interval of the paired difference.
    """
    difference = reference.get("difference")
    cell, against = (difference, 0.0) if difference else (_subject_accuracy(models), reference.get("accuracy"))
    low, high, value = (words.number(one) for one in (cell.get("low"), cell.get("high"), against))
    if low is None or high is None or value is None:
        return DASH
    if low > value:
        return "above"
    return "below" if high < value else "includes it"


def _subject_accuracy(models: Row) -> Row:
    return (models.get(words.subject_of(models)) or {}).get("accuracy") or {}


def probe_tables(metrics: Row, source: str) -> list[dict[str, Any]]:
    """For each model that was probed: what it was given, and how its accuracy and its verdicts changed."""
    return [
        {"model": words.label(model), "rows": [_probe(name, values, source) for name, values in probes.items()]}
        for model, probes in (metrics.get("probes") or {}).items()
        if probes
    ]


def _probe(name: str, values: Row, source: str) -> dict[str, Any]:
    return {
        "label": words.probe_label(name, source),
        "meaning": words.probe_meaning(name, source),
        "accuracy": metric_cell(values.get("accuracy")),
        "drop": metric_cell(values.get("drop"), unit="points"),
        "flips": metric_cell(values.get("flips")),
        "n": values.get("n"),
        "skipped": values.get("skipped"),
    }


def slice_tables(metrics: Row, models: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy by kind of case: one block per slice, one row per group of cases, one cell per model."""
    return [
        {
            "slice": name,
            "rows": [
                {**row, "cells": [metric_cell((row.get("accuracy") or {}).get(model)) for model in models]}
                for row in rows
            ],
        }
        for name, rows in groupby(metrics.get("slices") or [], key=lambda row: row["slice"])
    ]


def look_alikes(contamination: Row | None, cases: Sequence[Row]) -> dict[str, Any] | None:
    """Records of the training that resemble an evaluated case; None where that was not looked for.

    A like context is a leak; a like question over another context is none, for the context decides.
    """
    if not contamination:
        return None
    where = {case.get("id"): index for index, case in enumerate(cases, start=1)}
    threshold = words.number(contamination.get("threshold")) or 1.0
    pairs = [
        {
            **{key: pair.get(key) for key in ("case", "train")},
            "place": where.get(pair.get("case")),
            **{key: words.quantity(pair.get(key), 0) for key in ("question", "abstract")},
            "leak": (words.number(pair.get("abstract")) or 0.0) >= threshold,
        }
        for pair in contamination.get("pairs", [])
    ]
    leaking = {pair["case"] for pair in pairs if pair["leak"]}
    compared = contamination.get("compared") or {}
    return {
        "train": compared.get("train"),
        "cases": compared.get("cases"),
        "threshold": words.quantity(threshold, 0),
        "leaking": len(leaking),
        "asked": len({pair["case"] for pair in pairs} - leaking),
        "pairs": pairs,
    }
