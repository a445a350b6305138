"""Read a completion: `<thought>…</thought><answer>yes|no|maybe</answer>`.

One parser serves the rewards, the evaluation, the report and the served model, so that no two of them can disagree
about what the model said.
"""

import re
from dataclasses import dataclass

VERDICTS = ("yes", "no", "maybe")

_STRICT = re.compile(
    r"\s*<thought>(?P<thought>.*)</thought>\s*<answer>\s*(?P<answer>yes|no|maybe)\s*</answer>\s*", re.S
)
_TAG = re.compile(r"</?(?:thought|answer)>", re.I)
_ANSWER = re.compile(r"<answer>(?P<body>.*?)(?=</answer>|<answer>|\Z)", re.S | re.I)
_THOUGHT = re.compile(r"<thought>(?P<body>.*?)(?=</thought>|<answer>|\Z)", re.S | re.I)
_WORD = re.compile(r"\W*(yes|no|maybe)\b", re.I)
_STATED = re.compile(
    r"\b(?:answer|verdict)\b(?:\s+to\b[^.?!]{0,80})?\s*(?:is|:|=|should be|must be|would be)\s*\W{0,3}(yes|no|maybe)\b",
    re.I,
)


@dataclass(frozen=True)
class Completion:
    """What a completion says.

    Attributes:
        thought: text of the first thought block, stripped; "" where there is none.
        verdict: "yes", "no" or "maybe" by the lenient reading; None where no answer, or contradicting answers, stand.
        well_formed: True only for the strict form: one non-empty thought, then one answer that is exactly a verdict
            in lower case, no other text or tags.
    """

    thought: str
    verdict: str | None
    well_formed: bool

    @property
    def contradicts_itself(self) -> bool:
        """Whether the thought says in so many words that the answer is another one.

        >>> parse_completion("<thought>So the answer is no.</thought><answer>yes</answer>").contradicts_itself
        True
        """
        return stated_verdict(self.thought) not in (None, self.verdict)


def stated_verdict(thought: str) -> str | None:
    """The verdict that a thought gives in so many words, the last of several; None where it gives none.

    >>> stated_verdict("At first the answer is yes. On reflection the verdict: no")
    'no'
    """
    stated = _STATED.findall(thought)
    return stated[-1].casefold() if stated else None


def parse_completion(text: str) -> Completion:
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
        return Completion(strict["thought"].strip(), strict["answer"], True)
    thought = _THOUGHT.search(text)
    return Completion(thought["body"].strip() if thought else "", _lenient_verdict(text), False)


def _lenient_verdict(text: str) -> str | None:
    """The word that opens each answer block (or the whole text, where it holds no tags); None if they disagree."""
    bodies = [match["body"] for match in _ANSWER.finditer(text)]
    if not bodies and not _TAG.search(text):
        bodies = [text]
    # casefold, not lower: case-insensitive matching also takes the long s of "yeſ".
    words = {match[1].casefold() for body in bodies if (match := _WORD.match(body))}
    return words.pop() if len(words) == 1 else None


def render_completion(thought: str, verdict: str) -> str:
    """The strict form of a thought and a verdict.

    >>> parse_completion(render_completion("Pain did not change (p=0.7).", "no")).well_formed
    True
    """
    return f"<thought>{thought}</thought><answer>{verdict}</answer>"
