"""What a reviewer reads before deciding: a version beside what it would replace, as rows, sentences and markdown."""

import html
import re
from collections.abc import Mapping
from typing import Any

from medgrpo.registry.champions import NONE, Version
from medgrpo.registry.review import Review
from medgrpo.runs import MAIN_METRICS, pair_sentence

_MARKDOWN = re.compile(r"([\\`*_\[\]#|~])")


def comparison_rows(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per metric, one column per evaluated model; empty without an evaluation.

    >>> comparison_rows({"models": {"tuned": {"accuracy": {"value": 0.62, "low": 0.55, "high": 0.69, "n": 200}}}})
    [{'metric': 'accuracy', 'tuned': '62.0% (55.0% to 69.0%)'}]
    """
    models = metrics.get("models", {})
    return [
        {"metric": label, **{name: _interval(results.get(key)) for name, results in models.items()}}
        for label, key in MAIN_METRICS.items()
        if any(key in results for results in models.values())
    ]


def comparison_notes(metrics: Mapping[str, Any]) -> list[str]:
    """A sentence on the cases, and one per pair of models."""
    models = metrics.get("models", {})
    if not models:
        return ["The version's run holds no evaluation (metrics.json), so there is nothing to compare."]
    counts = {str(results.get("accuracy", {}).get("n", "?")) for results in models.values()}
    kind = "synthetic" if metrics.get("synthetic") else metrics.get("domain", "held-out")
    notes = [f"{' and '.join(sorted(counts))} {kind} cases; 95 % intervals in brackets."]
    return notes + [pair_sentence(pair) for pair in metrics.get("comparisons", [])]


def champion_number(review: Review) -> str:
    """Number of the champion that the version would replace, or "none"."""
    return str(review.champion.number) if review.champion else NONE


def markdown(review: Review) -> str:
    """The comparison for a page. Whatever others wrote (tags, names) is text there, never markup."""
    version = review.version
    rows = comparison_rows(review.metrics)
    lines = [
        f"# Review of {escaped(version.name)} version {version.number}",
        "",
        f"- digest: `{_code(version.digest)}`",
        f"- gate: **{escaped(version.gate)}**",
        *(f"  - {escaped(reason)}" for reason in version.gate_reasons),
        f"- would replace: {_described(review.champion)}",
        *(f"- **against it:** {escaped(objection)}" for objection in review.objections),
        *(f"- [{escaped(name)}]({address})" for name, address in review.links.items() if address.startswith("http")),
        *(f"- {name}: `{_code(at)}`" for name, at in review.links.items() if not at.startswith("http")),
        "",
    ]
    if rows:
        lines += [f"| {' | '.join(escaped(name) for name in rows[0])} |", f"|{'---|' * len(rows[0])}"]
        lines += [f"| {' | '.join(escaped(cell) for cell in row.values())} |" for row in rows]
        lines.append("")
    return "\n".join([*lines, *(f"{escaped(note)}\n" for note in comparison_notes(review.metrics))])


def escaped(text: str) -> str:
    """Text as markdown shows it literally, on one line.

    >>> escaped("<img src=x> [a](javascript:b) | *c*")
    '&lt;img src=x&gt; \\\\[a\\\\](javascript:b) \\\\| \\\\*c\\\\*'
    """
    return _MARKDOWN.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: str) -> str:
    """Text that may stand between back-ticks."""
    return " ".join(text.replace("`", "'").split())


def _described(champion: Version | None) -> str:
    return (
        f"version {champion.number} (digest `{_code(champion.digest)}`)"
        if champion
        else "nothing, there is no champion"
    )


def _interval(result: Mapping[str, Any] | None) -> str:
    if not result or result.get("value") is None:
        return "–"
    low, high = result.get("low"), result.get("high")
    value = f"{result['value']:.1%}"
    return value if low is None or high is None else f"{value} ({low:.1%} to {high:.1%})"
