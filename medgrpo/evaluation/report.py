"""The report of a run: one self-contained HTML page that a person can read, mail, print and search.

The page loads nothing from outside. What a model wrote is hostile input: Jinja2 escapes every value, only matplotlib's
SVG is inserted as it is, and the page's content security policy runs no script but its own.

This module turns results into words and rows; `report.html.j2` lays them out; `plots.py` draws.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.completions import VERDICTS
from medgrpo.evaluation import plots
from medgrpo.manifests import write_text
from medgrpo.training.metrics import raised_alarms

if TYPE_CHECKING:
    from jinja2 import Template

Row = Mapping[str, Any]

MODELS = ("base", "warmup", "tuned")
LABELS = {"base": "Base", "warmup": "Warm-up only", "tuned": "Tuned"}
NAMES = {"base": "the base model", "warmup": "the warm-up model", "tuned": "the tuned model"}
METRICS = (  # path in a model's metrics, label, what it is
    (("accuracy",), "Accuracy", "the expert's verdict was given; an unreadable answer counts as wrong"),
    (("macro_f1",), "Macro-F1", "mean of the three F1 scores below: every verdict counts the same"),
    (("f1", "yes"), "F1, yes", ""),
    (("f1", "no"), "F1, no", ""),
    (("f1", "maybe"), "F1, maybe", ""),
    (("parsed",), "Readable verdict", "a verdict could be read, in whatever form"),
    (("strict_form",), "Strict form", "exactly one thought, then one answer"),
    (("grounding",), "Grounding", "how far the thought cites the abstract"),
    (("mean_length",), "Mean length", "tokens per answer"),
    (("vote", "accuracy"), "Accuracy of the vote", "the majority of the sampled answers gave the expert's verdict"),
    (("vote", "macro_f1"), "Macro-F1 of the vote", ""),
    (("vote", "agreement"), "Agreement", "share of the sampled answers behind the majority"),
    (("vote", "unanimous_accuracy"), "Accuracy where unanimous", "on the cases where all sampled answers agree"),
)
SIGNIFICANCE = 0.05
DASH = "–"
PERCENT = "\N{NO-BREAK SPACE}%"
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def render_report(run: Row, metrics: Row, cases: Sequence[Row], training: Sequence[Row]) -> str:
    """The report as one HTML page.

    Args:
        run: what was run: name, profile, base, config, data, environment, seconds; all but the name may be missing.
        metrics: per model the metrics with their intervals, the paired comparisons, and the references; the first
            reference is the one that the summary names.
        cases: one per evaluated case: question, contexts, the expert's verdict, each model's answer.
        training: the rows of `metrics.jsonl`; may be empty.
    """
    models = _models(metrics["models"])
    return _template().render(
        name=run["name"],
        facts=_facts({"domain": metrics.get("domain"), **run}),
        synthetic=_is_synthetic(run, metrics, cases),
        summary=[*_summary(metrics), *_alarm_note(training)],
        alarms=[str(alarm) for alarm in raised_alarms(training)],
        labels={model: _label(model) for model in models},
        metric_rows=_metric_rows(metrics, models),
        comparisons=[_comparison(row) for row in metrics.get("comparisons", [])],
        references=[_reference(row, metrics["models"]) for row in metrics.get("references", [])],
        figures=_figures(metrics["models"], models, training),
        cases=[_case(case) for case in cases],
        data=_data(run.get("data") or {}),
        settings=_settings(run.get("config") or {}),
        environment=[(key, _setting(value)) for key, value in (run.get("environment") or {}).items()],
        seconds=_stages(run.get("seconds") or {}),
    )


def write_report(path: Path, run: Row, metrics: Row, cases: Sequence[Row], training: Sequence[Row]) -> Path:
    """Write the report to `path`, whole or not at all; returns the path. Arguments as for `render_report`."""
    write_text(path, render_report(run, metrics, cases, training))
    return path


@cache
def _template() -> "Template":
    """The page's template: everything escaped, and a name it does not get is an error rather than a gap."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _source_hash
    return environment.get_template("report.html.j2")


def _source_hash(script: str) -> str:
    """The base64 hash by which a content security policy names an inline script."""
    from base64 import b64encode

    return b64encode(sha256(script.encode()).digest()).decode()


def _printable(value: Any) -> Any:
    """Values as they may stand in a page: no None, no NUL, no lone surrogate (it cannot be written as UTF-8)."""
    if value is None:
        return DASH
    if isinstance(value, str) and _UNPRINTABLE.search(value):
        return type(value)(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value))
    return value


def _models(models: Row) -> list[str]:
    """Model names in the order of the pipeline; others last."""
    return [model for model in MODELS if model in models] + [model for model in models if model not in MODELS]


def _label(model: str) -> str:
    return LABELS.get(model, model)


def _name(model: str) -> str:
    return NAMES.get(model, f"model {model}")


def _is_synthetic(run: Row, metrics: Row, cases: Sequence[Row]) -> bool:
    return bool(run.get("synthetic") or metrics.get("synthetic") or any(case.get("synthetic") for case in cases))


def _facts(run: Row) -> list[tuple[str, str]]:
    """What the line under the title says, as far as it is known."""
    commit = str(run.get("git_commit") or "")[:12]
    facts = [("profile", run.get("profile")), ("domain", run.get("domain")), ("base model", run.get("base"))]
    return [(label, value) for label, value in [*facts, ("created", run.get("created")), ("commit", commit)] if value]


# Numbers and words


def _number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _format(value: Any, n: int, unit: str = "%", sign: str = "") -> str:
    """A number to the digits that n cases can carry; a dash where there is none."""
    number = _number(value)
    if number is None:
        return DASH
    text = f"{number * (1 if unit == 'tokens' else 100):{sign}.{0 if n < 200 else 1}f}"
    return text.replace("-", "−") + (PERCENT if unit == "%" else "")


def _interval(cell: Row, unit: str = "%") -> str:
    """`48–75 %`, or a dash."""
    low, high, n = cell.get("low"), cell.get("high"), cell.get("n") or 0
    if _number(low) is None or _number(high) is None:
        return DASH
    return f"{_format(low, n, unit).removesuffix(PERCENT)}–{_format(high, n, unit)}"


def _with_interval(cell: Row) -> str:
    return f"{_format(cell.get('value'), cell.get('n') or 0)} ({_interval(cell)})"


def _p_value(value: Any) -> str:
    """`p < 0.001`, `p = 0.012`, `p = 0.34`."""
    number = _number(value)
    if number is None:
        return f"p = {DASH}"
    if number < 0.001:
        return "p < 0.001"
    return f"p = {number:.3f}" if number < 0.1 else f"p = {number:.2f}"


def _duration(value: Any) -> str:
    """`8.2 s`, `2 min 05 s`, `3 h 07 min`."""
    number = _number(value)
    if number is None:
        return DASH
    if number < 60:
        return f"{number:.1f} s"
    if round(number) < 3600:
        return f"{round(number) // 60} min {round(number) % 60:02d} s"
    return f"{round(number / 60) // 60} h {round(number / 60) % 60:02d} min"


def _cases_word(count: int) -> str:
    return f"{count} case" if count == 1 else f"{count} cases"


# Summary


def _summary(metrics: Row) -> list[str]:
    """What was compared and what came out, in sentences made from the numbers."""
    models = metrics["models"]
    n = metrics.get("n", 0)
    kind = "synthetic " if metrics.get("synthetic") else ""
    first, *others = [model for model in ("tuned", "base", "warmup") if model in models] or list(models)
    shares = [f", {_name(model)} in {_with_interval(models[model]['accuracy'])}" for model in others]
    where = f"On {n} held-out {kind}case{'' if n == 1 else 's'} ({metrics.get('split', 'test')} split)"
    lead = f"{_name(first)} is right in {_with_interval(models[first]['accuracy'])}"
    return [
        f"{where}, {lead}{''.join(shares)}; 95\N{NO-BREAK SPACE}% intervals in brackets.",
        *_verdict_of_the_test(metrics.get("comparisons", [])),
        *_against_reference(metrics.get("references", []), models),
    ]


def _verdict_of_the_test(comparisons: Sequence[Row]) -> list[str]:
    """Two sentences on the paired test of base and tuned; none where it was not made."""
    row = next((row for row in comparisons if {row["first"], row["second"]} == {"base", "tuned"}), None)
    if row is None:
        return []
    only = {row["first"]: row["only_first"], row["second"]: row["only_second"]}
    counts = f"Only the tuned model is right in {_cases_word(only['tuned'])}, only the base model in {only['base']}"
    return [f"{counts} (exact McNemar test, {_p_value(row['p_value'])}).", _outcome(only, _number(row["p_value"]))]


def _outcome(only: Mapping[str, int], p_value: float | None) -> str:
    if p_value is None:
        return "No test of the difference was possible."
    if p_value >= SIGNIFICANCE:
        return "The difference is not distinguishable from chance at this size: do not read it as a change."
    better = "better" if only["tuned"] > only["base"] else "worse"
    return f"The difference is distinguishable from chance at this size: the tuned model is {better} on such cases."


def _against_reference(references: Sequence[Row], models: Row) -> list[str]:
    if not references or "tuned" not in models:
        return []
    row = references[0]
    n = models["tuned"]["accuracy"].get("n") or 0
    where = {"above": "which the tuned model exceeds", "below": "which the tuned model does not reach"}
    place = where.get(_place(row, models), "which the tuned model's interval does not exclude")
    return [f"For comparison, “{row['name']}” is right in {_format(row['accuracy'], n)}, {place}."]


def _alarm_note(training: Sequence[Row]) -> list[str]:
    names = [alarm.name for alarm in raised_alarms(training)]
    return [f"Alarms rang during the training ({', '.join(names)}); what they said is under Training."] if names else []


def _place(reference: Row, models: Row) -> str:
    """Where the tuned model's whole accuracy interval lies: above or below the reference, or around it."""
    tuned = (models.get("tuned") or {}).get("accuracy") or {}
    low, high, value = _number(tuned.get("low")), _number(tuned.get("high")), _number(reference.get("accuracy"))
    if low is None or high is None or value is None:
        return DASH
    if low > value:
        return "above"
    return "below" if high < value else "includes it"


# Tables


def _metric_rows(metrics: Row, models: Sequence[str]) -> list[dict[str, Any]]:
    """One row per metric, one cell per model."""
    rows = []
    for path, label, meaning in METRICS:
        cells = [_metric_cell(metrics["models"][model], path) for model in models]
        if any(cell["value"] != DASH for cell in cells):
            rows.append({"label": label, "meaning": meaning, "cells": cells})
    return rows


def _metric_cell(model: Any, path: Sequence[str]) -> dict[str, Any]:
    """Value, interval, n, and for shares the three numbers (0 to 100) that draw the interval's bar."""
    for key in path:
        model = (model or {}).get(key)
    cell: Row = model or {}
    unit = "tokens" if path == ("mean_length",) else "%"
    low, value, high = (_number(cell.get(key)) for key in ("low", "value", "high"))
    bar = None
    if unit == "%" and low is not None and value is not None and high is not None:
        bar = {"low": round(100 * low, 1), "value": round(100 * value, 1), "width": round(100 * (high - low), 1)}
    shown = _format(value, cell.get("n") or 0, unit)
    return {"value": shown, "interval": _interval(cell, unit), "n": cell.get("n"), "bar": bar}


def _comparison(row: Row) -> dict[str, Any]:
    """One paired comparison in words; the difference is second minus first, in percentage points."""
    difference = row.get("accuracy_difference") or {}
    n = difference.get("n") or 0
    low, high = (_format(difference.get(key), n, "points", "+") for key in ("low", "high"))
    p_value = _number(row.get("p_value"))
    return {
        "first": _label(row["first"]),
        "second": _label(row["second"]),
        "only_first": row["only_first"],
        "only_second": row["only_second"],
        "difference": _format(difference.get("value"), n, "points", "+"),
        "interval": f"{low} to {high}",
        "n": difference.get("n"),
        "p_value": _p_value(p_value),
        "reading": "no test" if p_value is None else "not chance" if p_value < SIGNIFICANCE else "could be chance",
    }


def _reference(row: Row, models: Row) -> dict[str, Any]:
    n = ((models.get("tuned") or {}).get("accuracy") or {}).get("n") or 0
    return {
        "name": row["name"],
        "accuracy": _format(row.get("accuracy"), n),
        "macro_f1": _format(row.get("macro_f1"), n),
        "place": _place(row, models),
        "note": row.get("note") or "",
    }


def _figures(values: Row, models: Sequence[str], training: Sequence[Row]) -> dict[str, Any]:
    """The plots as markup: the only text of the page that is not escaped, and none of it comes from a model."""
    from markupsafe import Markup

    return {
        "rewards": Markup(plots.reward_curves(training)),
        "watched": Markup(plots.watched_curves(training)),
        "verdicts": Markup(plots.verdict_curves(training)),
        "loss": Markup(plots.warmup_loss(training)),
        "confusion": [Markup(plots.confusion(values[model].get("confusion") or {}, _label(model))) for model in models],
    }


# Cases


def _case(case: Row) -> dict[str, Any]:
    """One case as the page shows it, with what the filters ask about."""
    answers = case.get("answers") or {}
    right = {model: answers[model].get("verdict") == case["expert"] for model in answers}
    subject = "tuned" if "tuned" in right else next(reversed(right), "")
    change = ""
    if {"base", "tuned"} <= right.keys() and right["base"] != right["tuned"]:
        change = "fixed" if right["tuned"] else "broken"
    return {
        **{key: case.get(key) for key in ("id", "question", "contexts", "expert", "long_answer", "synthetic")},
        "right": right.get(subject, False),
        "change": change,
        "answers": [_answer(model, answers[model], right[model]) for model in _models(answers)],
    }


def _answer(model: str, answer: Row, right: bool) -> dict[str, Any]:
    """One model's answer: the thought where there is one, else all it wrote."""
    text, thought = answer.get("text") or "", answer.get("thought") or ""
    verdict = answer.get("verdict")
    well_formed = bool(answer.get("well_formed"))
    return {
        "model": _label(model),
        "verdict": verdict if verdict in VERDICTS else None,
        "mark": "right" if right else "wrong",
        "said": thought or text,
        "is_thought": bool(thought),
        "raw": text if thought and not well_formed else "",
        "notes": _notes(answer, well_formed),
        "unsupported": (answer.get("figures") or {}).get("unsupported") or [],
    }


def _notes(answer: Row, well_formed: bool) -> list[str]:
    notes = ["strict form" if well_formed else "not in strict form"]
    if _number(answer.get("tokens")) is not None:
        notes.append(f"{answer['tokens']} tokens")
    if _number(answer.get("grounding")) is not None:
        notes.append(f"grounding {_format(answer['grounding'], 0)}")
    figures = answer.get("figures")
    if figures is not None:
        found, missing = len(figures.get("supported") or []), len(figures.get("unsupported") or [])
        notes.append(f"{found} of {found + missing} figures in the abstract" if found + missing else "no figures cited")
    return notes


# Data, settings, time


def _data(data: Row) -> dict[str, Any]:
    """Counts and digests by split, and the dropped records, summed by reason and listed."""
    dropped = data.get("dropped") or []
    digests = data.get("digests") or {}
    lost = Counter(row.get("split") for row in dropped)
    splits = [split for split in ("train", "dev", "test") if split in data or split in digests]
    return {
        "splits": [(split, data.get(split), lost[split], digests.get(split)) for split in splits],
        "dropped": [tuple(row.get(key) for key in ("id", "split", "reason")) for row in dropped],
        "reasons": Counter(str(row.get("reason")) for row in dropped).most_common(),
    }


def _settings(config: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration as sections of (setting, value), top-level settings first."""
    top = [(key, _setting(value)) for key, value in config.items() if not isinstance(value, Mapping)]
    sections = [(key, value) for key, value in config.items() if isinstance(value, Mapping)]
    parts = [(name, [(key, _setting(value)) for key, value in part.items()]) for name, part in sections]
    return ([("run", top)] if top else []) + parts


def _setting(value: Any) -> str:
    """A value as text, without the user name and password that a tracking address may carry."""
    text = "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return _CREDENTIALS.sub("…", text)


def _stages(seconds: Row) -> list[tuple[str, str]]:
    stages = [(name, _duration(value)) for name, value in seconds.items()]
    total = sum(_number(value) or 0.0 for value in seconds.values())
    return [*stages, ("total", _duration(total))] if len(stages) > 1 else stages
