"""How the report says things: the names of models and probes, and numbers with the digits that they can carry."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

Row = Mapping[str, Any]

MODELS = ("base", "warmup", "tuned", "champion")
LABELS = {
    "base": "Base",
    "warmup": "Warm-up only",
    "tuned": "Tuned",
    "champion": "Champion",
    "against": "Other",
    "evaluated": "Evaluated",
}
NAMES = {
    "base": "the base model",
    "warmup": "the warm-up model",
    "tuned": "the tuned model",
    "champion": "the champion",
    "against": "the other model",
    "evaluated": "the evaluated model",
}
PROBES = {  # name, label, what the model was given; {source} is what the domain calls its contexts
    "no_abstract": ("No {source}", "the question alone"),
    "other_abstract": ("Another {source}", "the question with another record's {source}"),
    "no_conclusion": ("Conclusion removed", "the {source} without the sentences that bear the conclusion"),
    "altered_numbers": ("Numbers altered", "the {source} with the numbers that bear the verdict changed"),
}
DASH = "–"
PERCENT = "\N{NO-BREAK SPACE}%"


def ordered(models: Iterable[str]) -> list[str]:
    """Model names in the order of the pipeline; others last."""
    given = list(models)
    return [model for model in MODELS if model in given] + [model for model in given if model not in MODELS]


def subject_of(models: Iterable[str]) -> str:
    """The model in question: the tuned one, else the last; "" where there is none."""
    given = list(models)
    return "tuned" if "tuned" in given else (given or [""])[-1]


def references(models: Iterable[str]) -> list[str]:
    """The models that the one in question is held against: all others, but a warm-up on the way to it."""
    given = ordered(models)
    return [model for model in given if model not in ("warmup", subject_of(given))]


def label(model: str) -> str:
    """A model's name at the head of a column."""
    return LABELS.get(model, model)


def name(model: str) -> str:
    """A model's name in a sentence."""
    return NAMES.get(model, f"model {model}")


def probe_label(probe: str, source: str) -> str:
    """A probe's name in a table; `source` is what the domain calls its contexts."""
    return PROBES[probe][0].format(source=source) if probe in PROBES else probe.replace("_", " ")


def probe_meaning(probe: str, source: str) -> str:
    """What a probed model was given; "" for a probe that is not known."""
    return PROBES[probe][1].format(source=source) if probe in PROBES else ""


def number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def quantity(value: Any, n: int, unit: str = "%", sign: str = "") -> str:
    """A number to the digits that n cases can carry; a dash where there is none.

    Args:
        value: the number; a share where the unit is "%" or "points".
        n: number of cases behind it.
        unit: "%", "points" (of a hundred), "tokens", or "score" (a plain number around 1).
        sign: "+" to write the sign of a positive number, too.

    >>> quantity(0.62, 50), quantity(-0.038, 500, "points", "+"), quantity(0.1834, 50, "score"), quantity(None, 50)
    ('62\\xa0%', '−3.8', '0.18', '–')
    """
    found = number(value)
    if found is None:
        return DASH
    digits = (n >= 200) + 2 * (unit == "score")
    text = f"{found * (100 if unit in {'%', 'points'} else 1):{sign}.{digits}f}"
    return text.replace("-", "−") + (PERCENT if unit == "%" else "")


def interval(cell: Row, unit: str = "%") -> str:
    """`48–75 %`, `−3 to 12 %` where a dash would be taken for a sign, or a dash.

    >>> interval({"low": 0.48, "high": 0.75, "n": 50}), interval({"low": -0.03, "high": 0.12, "n": 50}, "points")
    ('48–75\\xa0%', '−3 to +12')
    """
    low, high, n = number(cell.get("low")), number(cell.get("high")), cell.get("n") or 0
    if low is None or high is None:
        return DASH
    sign = "+" if unit == "points" else ""
    first = quantity(low, n, unit, sign).removesuffix(PERCENT)
    between = " to " if sign or low < 0 else DASH
    return f"{first}{between}{quantity(high, n, unit, sign)}"


def with_interval(cell: Row) -> str:
    """`62 % (48–75 %)`."""
    return f"{quantity(cell.get('value'), cell.get('n') or 0)} ({interval(cell)})"


def p_value(value: Any) -> str:
    """`p < 0.001`, `p = 0.012`, `p = 0.34`, never broken at a line's end."""
    found = number(value)
    said = f"= {DASH}" if found is None else "< 0.001" if found < 0.001 else f"= {found:.{3 if found < 0.1 else 2}f}"
    return f"p {said}".replace(" ", "\N{NO-BREAK SPACE}")


def duration(value: Any) -> str:
    """`8.2 s`, `2 min 05 s`, `3 h 07 min`."""
    found = number(value)
    if found is None:
        return DASH
    if found < 60:
        return f"{found:.1f} s"
    if round(found) < 3600:
        return f"{round(found) // 60} min {round(found) % 60:02d} s"
    return f"{round(found / 60) // 60} h {round(found / 60) % 60:02d} min"


def cases(count: int) -> str:
    """`1 case`, `2 cases`."""
    return f"{count} case" if count == 1 else f"{count} cases"
