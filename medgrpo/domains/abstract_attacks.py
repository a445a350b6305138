"""Attacks on the rewards of the domains of abstracts: on figures, copies, conclusions and the wording of verdicts."""

import re
from collections.abc import Callable, Mapping

from medgrpo.completions import VERDICTS, render_completion
from medgrpo.rewards.agreement import split_sentences
from medgrpo.rewards.attacks import Attack, Target
from medgrpo.rewards.grounding import figures, tokenize

FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


def abstract_attacks(system: str) -> Mapping[str, Attack]:
    """Kinds of attack by name.

    Args:
        system: the instructions that a thought may parrot.
    """
    told = system.replace("<", "").replace(">", "")
    return {**_FIGURES, **_COPIES, "parroted instructions": lambda t: t.answer(told), **_CONCLUSIONS}


def _other_figure(figure: str, target: Target) -> str:
    """A figure of like size that is nowhere in abstract and question, not even in a name."""
    known = {*target.known, figure}
    while True:
        digits = "".join(character if character in ".," else str(target.rng.randint(1, 9)) for character in figure)
        if not known & set(figures(digits)):
            return digits


def _invented_numbers(target: Target) -> str:
    changed = FIGURE.sub(lambda match: _other_figure(match[0], target), target.thought)
    return target.answer(changed if FIGURE.search(target.thought) else f"{target.thought} It was seen in 8317 of them.")


def _altered_number(target: Target) -> str:
    found = FIGURE.search(target.thought)
    if not found:
        return target.answer(f"{target.thought} The difference was 83.17%.")
    return target.answer(target.thought.replace(found[0], _other_figure(found[0], target), 1))


def _exchange(sentence: str, one: str, other: str) -> str:
    swap = {one: other, other: one}
    return FIGURE.sub(lambda match: swap.get(match[0], match[0]), sentence)


def _exchanged_numbers(target: Target) -> str:
    """The first two figures of a quoted sentence change places; where there are none, one is altered."""
    for sentence in split_sentences(target.thought):
        found = list(dict.fromkeys(FIGURE.findall(sentence)))
        if sentence in target.abstract and len(found) > 1 and figures(found[0]) != figures(found[1]):
            return target.answer(target.thought.replace(sentence, _exchange(sentence, *found[:2])))
    return _altered_number(target)


def _stuffed_numbers(target: Target) -> str:
    return target.answer(f"{target.thought} {' '.join(_other_figure('111.1', target) for _ in range(12))}")


def _bare_numbers(target: Target) -> str:
    return target.answer(" ".join(figures(target.abstract) or ("1", "2", "3")))


def _shuffled(target: Target) -> str:
    words = tokenize(target.thought)
    target.rng.shuffle(words)
    return target.answer(" ".join(words))


def _one_citation(target: Target) -> str:
    return target.answer(" ".join([" ".join(target.abstract.split()[-5:])] * 6))


def _growing_citation(target: Target) -> str:
    words = target.abstract.split()
    return target.answer(". ".join(" ".join(words[-length:]) for length in (4, 5, 6, 7)))


def _wide_letters(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _spelled_number(target: Target) -> str:
    """A percentage in words that is nowhere in abstract and question."""
    words = {"97": "ninety-seven", "83": "eighty-three", "71": "seventy-one", "37": "thirty-seven", "18": "eighteen"}
    word = next((word for figure, word in words.items() if figure not in target.known), "sixty-seven")
    return target.answer(f"{target.thought} Some {word} percent improved.")


def _reversed_conclusion(target: Target) -> str:
    """The conclusion with its first negation left out, or one put in."""
    without = re.sub(r"\b(?:no|not|neither|nor|without|cannot)\b ?", "", target.conclusion, count=1, flags=re.I)
    return without if without != target.conclusion else re.sub(r"\s", " not ", target.conclusion, count=1)


def _concluding(change: Callable[[Target], str]) -> Attack:
    """The gold thought with another conclusion, where the expert's can be told from another."""

    def attack(target: Target) -> str | None:
        changed = change(target)
        said = tokenize(target.conclusion)
        if not said or said == tokenize(changed) or not target.thought.endswith(target.conclusion):
            return None
        return target.answer(f"{target.thought.removesuffix(target.conclusion)}{changed}")

    return attack


def _all_verdicts(target: Target) -> str:
    return f"<thought>{target.thought}</thought><answer>{' '.join(VERDICTS)}</answer>"


_FIGURES: Mapping[str, Attack] = {
    "invented numbers": _invented_numbers,
    "one altered number": _altered_number,
    "exchanged numbers": _exchanged_numbers,
    "stuffed numbers": _stuffed_numbers,
    "bare list of numbers": _bare_numbers,
    "invented number in words": _spelled_number,
    "invented number in full-width digits": lambda t: t.answer(f"{t.thought} {_wide_letters('8317')} improved."),
}
_COPIES: Mapping[str, Attack] = {
    "pasted abstract": lambda t: t.answer(t.abstract),
    "abstract pasted twice": lambda t: t.answer(f"{t.abstract} {t.abstract}"),
    "parroted question": lambda t: t.answer(" ".join([t.record.question] * 3)),
    "one citation repeated": _one_citation,
    "one citation growing": _growing_citation,
    "shuffled words": _shuffled,
}
_CONCLUSIONS: Mapping[str, Attack] = {
    "no conclusion": _concluding(lambda t: ""),
    "negated conclusion": _concluding(lambda t: f"It is not true that {t.conclusion}"),
    "reversed conclusion": _concluding(_reversed_conclusion),
    "conclusion of another record": _concluding(lambda t: split_sentences(t.stranger)[-1]),
    "question as conclusion": _concluding(lambda t: t.record.question),
    "all conclusions at once": _concluding(lambda t: "It helps. It does not help. It may or may not help."),
    "all conclusions after it": _concluding(lambda t: f"{t.conclusion} It helps. It does not help. It may help."),
    "invented claim at the end": _concluding(lambda t: f"{t.conclusion} Quality of life was better as well."),
    "hedged verdict": lambda t: render_completion(t.thought, "maybe" if t.right != "maybe" else "no"),
    "all verdicts at once": _all_verdicts,
}
