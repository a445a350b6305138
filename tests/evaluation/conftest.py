"""What the tests of the report share: a run, its metrics, a case, a gate's verdict."""

import math
from collections.abc import Callable
from typing import Any

import pytest


def interval(value, low, high, n=50):
    return {"value": value, "low": low, "high": high, "n": n}


def model(accuracy):
    row = {"yes": 1, "no": 0, "maybe": 0, "none": 0}
    shares = ("macro_f1", "strict_form", "parsed", "grounding")
    return {
        "accuracy": accuracy,
        **{name: interval(0.5, 0.4, 0.6) for name in shares},
        "mean_length": interval(58.4, 52.1, 64.9),
        "f1": {"yes": interval(0.6, 0.5, 0.7), "no": interval(0.3, 0.2, 0.4), "maybe": interval(math.nan, None, None)},
        "confusion": {"yes": row, "no": row, "maybe": dict.fromkeys(row)},
    }


def made_answer(verdict, thought="Pain fell (p=0.01).", **more):
    text = f"<thought>{thought}</thought><answer>{verdict}</answer>"
    given = {"text": text, "thought": thought, "verdict": verdict, "well_formed": True, "tokens": 41, "grounding": 0.66}
    return given | more


@pytest.fixture
def answer() -> Callable[..., dict[str, Any]]:
    """Makes a model's answer."""
    return made_answer


@pytest.fixture
def metrics():
    base, tuned = model(interval(0.08, 0.02, 0.19)), model(interval(0.62, 0.48, 0.75))
    comparison = {"first": "base", "second": "tuned", "only_first": 2, "only_second": 29, "p_value": 1e-6}
    return {
        "n": 50,
        "split": "test",
        "domain": "synthetic",
        "synthetic": True,
        "models": {"tuned": tuned, "base": base},
        "comparisons": [comparison | {"accuracy_difference": interval(0.54, -0.38, 0.68)}],
        "references": [{"name": "always yes", "accuracy": 0.56, "macro_f1": 0.24, "note": "without reading"}],
    }


@pytest.fixture
def case():
    return {
        "id": "s-1",
        "question": "Does it help?",
        "contexts": ["RESULTS: Pain fell (p=0.01)."],
        "expert": "yes",
        "long_answer": "It helps.",
        "synthetic": True,
        "answers": {"base": made_answer("no"), "tuned": made_answer("yes")},
    }


@pytest.fixture
def run():
    return {
        "name": "demo-1",
        "config": {"seed": 11, "name": None, "tracking": {"uri": "https://ann:secret@host/x"}},
        "environment": {"torch": "2.13.0", "index": "https://ann:secret@host"},
        "seconds": {"train": 125.2, "evaluate": 8.24},
        "data": {
            "train": 270,
            "test": 200,
            "dropped": [{"id": "s-77", "split": "train", "reason": "too long"}],
            "digests": {"train": "a3" * 32},
        },
    }


@pytest.fixture
def gate():
    checks = [
        {
            "name": "better than base",
            "outcome": "pass",
            "reason": "It is.",
            "measured": interval(0.54, 0.38, 0.68),
            "threshold": 0.0,
        },
        {
            "name": "no collapse",
            "outcome": "not enough evidence",
            "reason": "Few maybe.",
            "measured": None,
            "threshold": None,
        },
        {"name": "no leaks", "outcome": "fail", "reason": "One pair.", "measured": 1, "threshold": 0},
    ]
    return {"outcome": "fail", "summary": "One check fails.", "checks": checks}


@pytest.fixture
def probed(metrics):
    """The metrics with everything that an evaluation may add."""
    tuned = metrics["models"]["tuned"]
    tuned["recall"] = {"yes": interval(0.7, 0.6, 0.8, 30), "no": interval(0.5, 0.4, 0.6, 15)}
    tuned["faithfulness"] = {
        "unsupported_figures": interval(0.1, 0.05, 0.2),
        "evidence_precision": interval(0.9, 0.8, 0.95),
    }
    bins = [
        {"low": 0.0, "high": 0.5, "n": 9, "confidence": 0.4, "accuracy": 0.3},
        {"low": 0.5, "high": 1.0, "n": 0, "confidence": None, "accuracy": None},
    ]
    tuned["vote"] = {
        "calibration": {"ece": interval(0.08, 0.03, 0.15), "brier": interval(0.183, 0.151, 0.222), "bins": bins}
    }
    metrics["comparisons"][0] |= {"macro_f1_difference": interval(0.3, 0.1, 0.5), "detectable": 0.171}
    effect = {"accuracy": interval(0.4, 0.3, 0.5), "drop": interval(0.2, -0.02, 0.4), "flips": interval(0.45, 0.3, 0.6)}
    metrics["probes"] = {
        "tuned": {"no_abstract": effect | {"n": 50, "skipped": 0}, "altered_numbers": effect | {"n": 44, "skipped": 6}}
    }
    accuracy = {"base": interval(0.1, 0.0, 0.3, 8), "tuned": interval(0.6, 0.3, 0.8, 8)}
    metrics["slices"] = [
        {"slice": "verdict", "group": "yes", "n": 42, "enough": True, "accuracy": accuracy},
        {"slice": "verdict", "group": "maybe", "n": 8, "enough": False, "accuracy": accuracy},
        {"slice": "year", "group": "to 2005", "n": 50, "enough": True, "accuracy": accuracy},
    ]
    pairs = [{"case": "s-1", "train": "t-9", "question": 0.97, "abstract": 0.42}]
    metrics["contamination"] = {"compared": {"train": 270, "cases": 50}, "threshold": 0.9, "pairs": pairs}
    return metrics
