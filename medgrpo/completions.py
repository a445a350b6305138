"""Read a completion: `<thought>…</thought><answer>…</answer>`, the answer in the form of its domain.

One parser serves the rewards, the evaluation, the report and the served model, so that no two of them can disagree
about what the model said.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

Verdict = Literal["yes", "no", "maybe"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

_STRICT = re.compile(r"\s*<thought>(?P<thought>.*)</thought>\s*<answer>(?P<answer>[^<]*)</answer>\s*", re.S)
_TAG = re.compile(r"</?(?:thought|answer)>", re.I)
_ANSWER = re.compile(r"<answer>(?P<body>.*?)(?=</answer>|<answer>|\Z)", re.S | re.I)
_THOUGHT = re.compile(r"<thought>(?P<body>.*?)(?=</thought>|<answer>|\Z)", re.S | re.I)
_WORD = re.compile(r"\W*(yes|no|maybe)\b", re.I)
_STATED = re.compile(
    r"\b(?:answer|verdict)\b(?:\s+to\b[^.?!]{0,80})?\s*(?:is|:|=|should be|must be|would be)\s*\W{0,3}(yes|no|maybe)\b",
    re.I,
)


@dataclass(frozen=True)
class AnswerForm:
    """How the answers of a domain are written and read.

    Attributes:
        strict: text between the answer tags -> the answer, where it is in strict form; else None.
        lenient: the same text, or a whole text without tags -> the answer that opens it; None where there is none.
        stated: thought -> the answer that it gives in so many words, the last of several; None where it gives none.
        labels: all answers that there are, in their order; () where answers are open, as numbers are.
        kind: what one answer is called.
    """

    strict: Callable[[str], str | None]
    lenient: Callable[[str], str | None]
    stated: Callable[[str], str | None]
    labels: tuple[str, ...]
    kind: str

    @property
    def classes(self) -> tuple[str, ...]:
        """What records are balanced and counted by: the labels, or where answers are open their kind alone."""
        return self.labels or (self.kind,)

    def class_of(self, answer: str) -> str:
        """The class of an answer."""
        return answer if self.labels else self.kind


@dataclass(frozen=True)
class Completion:
    """What a completion says.

    Attributes:
        thought: text of the first thought block, stripped; "" where there is none.
        verdict: the answer (as "yes") by the lenient reading; None where none, or contradicting ones, stand.
        well_formed: True only for the strict form: one non-empty thought, then one answer exactly as its form asks (a
            verdict in lower case), no other text or tags.
        form: how its answer was read.
    """

    thought: str
    verdict: str | None
    well_formed: bool
    form: AnswerForm = field(default_factory=lambda: VERDICT_FORM, repr=False, compare=False)

    @property
    def contradicts_itself(self) -> bool:
        """Whether the thought says in so many words that the answer is another one.

        >>> parse_completion("<thought>So the answer is no.</thought><answer>yes</answer>").contradicts_itself
        True
        """
        return self.form.stated(self.thought) not in (None, self.verdict)


def stated_verdict(thought: str) -> str | None:
    """The verdict that a thought gives in so many words, the last of several; None where it gives none.

    >>> stated_verdict("At first the answer is yes. On reflection the verdict: no")
    'no'
    """
    stated = _STATED.findall(thought)
    return stated[-1].casefold() if stated else None


def _opening_word(text: str) -> str | None:
    """The verdict that opens a text."""
    match = _WORD.match(text)
    # casefold, not lower: case-insensitive matching also takes the long s of "yeſ".
    return match[1].casefold() if match else None


VERDICT_FORM: AnswerForm = AnswerForm(
    strict=lambda text: text if text in VERDICTS else None,
    lenient=_opening_word,
    stated=stated_verdict,
    labels=VERDICTS,
    kind="verdict",
)


def parse_completion(text: str, form: AnswerForm = VERDICT_FORM) -> Completion:
    """Parse one completion; any string is accepted.

    >>> parse_completion("<thought>Mortality fell.</thought><answer>yes</answer>")
    Completion(thought='Mortality fell.', verdict='yes', well_formed=True)
    >>> parse_completion("<answer>No, because of the small sample</answer>")
    Completion(thought='', verdict='no', well_formed=False)
    >>> parse_completion("<answer>yes</answer> or <answer>no</answer>").verdict is None
    True
    """
    strict = _STRICT.fullmatch(text)
    if strict and strict["thought"].strip() and not _TAG.search(strict["thought"]):
        answer = form.strict(strict["answer"].strip())
        if answer is not None:
            return Completion(strict["thought"].strip(), answer, True, form)
    thought = _THOUGHT.search(text)
    return Completion(thought["body"].strip() if thought else "", _lenient_answer(text, form), False, form)


def _lenient_answer(text: str, form: AnswerForm) -> str | None:
    """The answer that opens each answer block (or the whole text, where it holds no tags); None if they disagree."""
    bodies = [match["body"] for match in _ANSWER.finditer(text)]
    if not bodies and not _TAG.search(text):
        bodies = [text]
    answers = {answer for body in bodies if (answer := form.lenient(body)) is not None}
    return answers.pop() if len(answers) == 1 else None


def render_completion(thought: str, verdict: str) -> str:
    """The strict form of a thought and a verdict.

    >>> parse_completion(render_completion("Pain did not change (p=0.7).", "no")).well_formed
    True
    """
    return f"<thought>{thought}</thought><answer>{verdict}</answer>"
