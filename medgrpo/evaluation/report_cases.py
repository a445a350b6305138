"""The report's cases: every model's answer beside the expert's, with what it cites marked in thought and contexts.

Texts are given as pieces with the name of their mark, never as markup: the template escapes each.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from medgrpo.completions import AnswerForm, parse_completion
from medgrpo.evaluation import report_words as words
from medgrpo.evaluation.report_words import Row

SUPPORTED, UNSUPPORTED = 1, 2
Piece = tuple[str, int]


def case_view(case: Row, form: AnswerForm, source: str) -> dict[str, Any]:
    """One case as the page shows it, with what the filters ask about.

    Args:
        case: as `render_report` describes it.
        form: that of its answers.
        source: what the domain calls its contexts.
    """
    answers = case.get("answers") or {}
    subject = words.subject_of(answers)
    right = {model: answers[model].get("verdict") == case["expert"] for model in answers}
    return {
        **{key: case.get(key) for key in ("id", "question", "expert", "long_answer", "synthetic")},
        "right": right.get(subject, False),
        "changes": _changes(right, subject),
        "answers": [_answer(model, answers[model], right[model], form, source) for model in words.ordered(answers)],
        "contexts": _contexts(case.get("contexts") or [], answers, subject),
        "probes": _probes(case.get("probes") or {}, (answers.get(subject) or {}).get("verdict"), form, source),
        "invents": bool(((answers.get(subject) or {}).get("figures") or {}).get("unsupported")),
    }


def _changes(right: Mapping[str, bool], subject: str) -> list[dict[str, str]]:
    """Where exactly one of a reference and the model in question is right."""
    return [
        {
            "reference": model,
            "kind": "fixed" if right[subject] else "broken",
            "text": f"{words.label(model)} {_word(right[model])} → {words.label(subject)} {_word(right[subject])}",
        }
        for model in words.references(right)
        if right[model] != right[subject]
    ]


def _word(right: bool) -> str:
    return "right" if right else "wrong"


def _answer(model: str, answer: Row, right: bool, form: AnswerForm, source: str) -> dict[str, Any]:
    """One model's answer: the thought, with its citations, where there is one, else all it wrote."""
    text, thought = answer.get("text") or "", answer.get("thought") or ""
    verdict = answer.get("verdict")
    well_formed = bool(answer.get("well_formed"))
    spans = answer.get("spans") or [] if thought else []
    pieces = paint(thought or text, [(start, end, SUPPORTED if held else UNSUPPORTED) for start, end, held in spans])
    kinds = ("", "supported", "unsupported", "unsupported")
    return {
        "model": words.label(model),
        "verdict": verdict if _is_answer(verdict, form) else None,
        "mark": _word(right),
        "said": [(piece, kinds[flags]) for piece, flags in pieces],
        "is_thought": bool(thought),
        "raw": text if thought and not well_formed else "",
        "notes": _notes(answer, well_formed, source),
        "unsupported": (answer.get("figures") or {}).get("unsupported") or [],
    }


def _is_answer(verdict: Any, form: AnswerForm) -> bool:
    """Whether a file's verdict is an answer of this form: a label, or where answers are open any text."""
    return verdict in form.labels if form.labels else bool(verdict) and isinstance(verdict, str)


def _notes(answer: Row, well_formed: bool, source: str) -> list[str]:
    notes = ["strict form" if well_formed else "not in strict form"]
    if words.number(answer.get("tokens")) is not None:
        notes.append(f"{answer['tokens']} tokens")
    if words.number(answer.get("grounding")) is not None:
        notes.append(f"grounding {words.quantity(answer['grounding'], 0)}")
    figures = answer.get("figures")
    if figures is not None:
        found, missing = len(figures.get("supported") or []), len(figures.get("unsupported") or [])
        notes.append(f"{found} of {found + missing} figures in the {source}" if found + missing else "no figures cited")
    return notes


def _contexts(contexts: Sequence[str], answers: Row, subject: str) -> list[list[dict[str, str]]]:
    """The contexts in pieces, each with the models that cite it."""
    models = words.ordered(answers)
    return [
        [
            {
                "text": piece,
                "by": ", ".join(words.label(model) for bit, model in enumerate(models) if flags >> bit & 1),
                "kind": "cited" if subject in models and flags >> models.index(subject) & 1 else "cited other",
            }
            for piece, flags in paint(text, _cited(section, models, answers))
        ]
        for section, text in enumerate(contexts)
    ]


def _cited(section: int, models: Sequence[str], answers: Row) -> list[tuple[int, int, int]]:
    """Where models cite a section: (start, end, the model's bit)."""
    return [
        (start, end, 1 << bit)
        for bit, model in enumerate(models)
        for where, start, end in answers[model].get("cited") or []
        if where == section
    ]


def _probes(probes: Row, own: str | None, form: AnswerForm, source: str) -> list[dict[str, Any]]:
    """What the probed model answered without its evidence, and whether that is another verdict than its own."""
    return [
        {
            "label": words.probe_label(name, source),
            "verdict": answer.get("verdict"),
            "flipped": answer.get("verdict") != own,
            "text": parse_completion(answer.get("text") or "", form).thought or answer.get("text") or "",
        }
        for name, answer in probes.items()
    ]


def paint(text: str, ranges: Iterable[tuple[int, int, int]]) -> list[Piece]:
    """Cut a text where its marks begin and end.

    Args:
        text: any text.
        ranges: (start, end, flag); flags of ranges that overlap add up. A range that is not inside the text is
            ignored: a file of answers may come from anyone.

    >>> paint("fell by 2.4 points", [(0, 11, 1), (8, 11, 2)])
    [('fell by ', 1), ('2.4', 3), (' points', 0)]
    """
    inside = [one for one in ranges if 0 <= one[0] < one[1] <= len(text)]
    flags = [0] * max((end for _, end, _ in inside), default=0)
    for start, end, flag in inside:
        for place in range(start, end):
            flags[place] |= flag
    pieces, begin = [], 0
    for flag, run in groupby(flags):
        end = begin + len(list(run))
        pieces.append((text[begin:end], flag))
        begin = end
    return [*pieces, (text[begin:], 0)] if begin < len(text) else pieces
