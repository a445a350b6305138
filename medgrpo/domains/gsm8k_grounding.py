"""What a worked solution is paid for beside its answer: it computes with the problem's numbers, and rightly.

Every figure of a thought must be traceable. Computed with may be what the problem gives (`quantities`), what an earlier
equation made of it, and numbers that everybody knows, those above 12 only to multiply and divide; outside equations may
stand what the problem gives and what any right equation made. A figure from nowhere and an equation that is false are
unsupported alike.

Data points are the problem's distinct quantities that true equations use, and those distinct true equations that use
one of them, or what came of one. Multiplying by 1 and adding 0 make no point. What this cannot see: true equations over
the problem's numbers that mean nothing. `agreement` asks at least that the last of them gives the answer.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache

from medgrpo.arithmetic.equations import Equation, Operand, equations, read
from medgrpo.arithmetic.numbers import canonical, stated_number
from medgrpo.arithmetic.quantities import CONSTANTS, Quantity, quantities
from medgrpo.arithmetic.tokens import Token
from medgrpo.config import RewardConfig
from medgrpo.records import Record
from medgrpo.rewards.grounding import MAX_CHARACTERS, Evidence, Span
from medgrpo.rewards.grounding import evidence as quoted

# Larger numbers that everybody knows convert units; up to this one, things may be counted that a problem only names.
MOST_COUNTED = 12

_CONCLUDES = frozenset(("so", "therefore", "thus", "hence"))
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass
class _Ledger:
    """What has been found in a thought so far.

    Attributes:
        given: value -> quantity of the problem.
        made: values that true equations made of traceable numbers.
        grounded: those in which a quantity of the problem has a part.
        used: keys of the quantities that true equations use.
        counted: the distinct true equations that make a point.
        supported, unsupported: distinct figures and equations, in order.
        spans: every figure and false equation, with where it stands.
    """

    given: Mapping[Fraction, Quantity]
    contexts: int
    made: set[Fraction] = field(default_factory=set)
    grounded: set[Fraction] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    counted: set[tuple[object, ...]] = field(default_factory=set)
    supported: dict[str, None] = field(default_factory=dict)
    unsupported: dict[str, None] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)

    def cite(self, token: Token, supported: bool) -> None:
        """Put down a figure."""
        (self.supported if supported else self.unsupported).setdefault(canonical(token.value))
        self.spans.append(Span("figure", supported, token.start, token.end, self.source(token.value)))

    def source(self, value: Fraction) -> tuple[int, int] | None:
        """Where the problem's contexts give a value."""
        quantity = self.given.get(value)
        return (quantity.start, quantity.end) if quantity and quantity.end <= self.contexts else None

    def take(self, equation: Equation, found: Sequence[Token]) -> None:
        """Put down an equation of these tokens: its operands, and what it makes or that it is false."""
        operands = equation.left.operands
        traced = [self._traced(operand, found) for operand in operands]
        for operand, known in zip(operands, traced, strict=True):
            self.cite(operand.token, known)
        if not equation.true:
            self.unsupported.setdefault(equation.written)
            self.spans.append(Span("figure", False, equation.start, equation.end, None))
        elif all(traced):
            self._count(equation, found)

    def _traced(self, operand: Operand, found: Sequence[Token]) -> bool:
        values = {operand.value, operand.token.value}
        if any(value in self.given or value in self.made for value in values):
            return True
        return not values.isdisjoint(CONSTANTS) and (operand.value <= MOST_COUNTED or _converts(found, operand.place))

    def _count(self, equation: Equation, found: Sequence[Token]) -> None:
        operands = equation.left.operands
        values = [operand.value for operand in operands]
        quantities_used = {self.given[value].key for value in values if value in self.given}
        grounded = bool(quantities_used) or any(value in self.grounded for value in values)
        made = {sign * value for value in equation.made for sign in (1, -1)}
        self.made |= made
        # Some problems name no number at all.
        if not grounded and self.given:
            return
        self.grounded |= made
        if not _is_idle(equation, found):
            self.used |= quantities_used
            self.counted.add((*sorted(values), equation.result))


def _beside(found: Sequence[Token], place: int) -> tuple[str, str]:
    """The signs before and behind a number, past its units."""
    before = place - 1
    while before >= 0 and found[before].kind in ("money", "open"):
        before -= 1
    behind = place + 1
    while behind < len(found) and found[behind].kind in ("percent", "word", "money", "close"):
        behind += 1
    return found[before].text if before >= 0 else "", found[behind].text if behind < len(found) else ""


def _converts(found: Sequence[Token], place: int) -> bool:
    """Whether a number multiplies or divides, or is multiplied or divided: 60 minutes are no 60 apples to add."""
    return any(sign in ("*", "/", "^") for sign in _beside(found, place))


def _is_idle(equation: Equation, found: Sequence[Token]) -> bool:
    """Whether it only repeats a number: 5 * 1 = 5, 5 ^ 1 = 5, 5 + 0 = 5, 5 = 5."""
    if not equation.left.operators:
        return True
    for operand in equation.left.operands:
        before, behind = _beside(found, operand.place)
        if operand.value == 0 or (operand.value == 1 and (before in ("*", "/", "^") or behind in ("*", "^"))):
            return True
    return False


def evidence(thought: str, contexts: Sequence[str], question: str = "") -> Evidence:
    """What a thought computes and cites of a problem; of a very long thought, what its first MAX_CHARACTERS do.

    A false equation stands among the unsupported figures as it is written. `phrase_points` are the equations that make
    a point, `figure_points` the quantities they use.

    >>> found = evidence("She sells 16 - 3 = 13 eggs at $2, so 13 * 2 = 27.", ["She has 16 eggs and eats 3."], "At $2?")
    >>> found.supported, found.unsupported, found.figure_points, found.phrase_points
    (('16', '3', '13', '2'), ('13 * 2 = 27',), 2, 1)
    """
    said = thought[:MAX_CHARACTERS]
    ledger = _read(said, tuple(contexts), question)
    copies = quoted(said, contexts, question)
    phrases = [span for span in copies.spans if span.kind == "phrase"]
    wrong = ledger.unsupported
    return replace(
        copies,
        supported=tuple(figure for figure in ledger.supported if figure not in wrong),
        unsupported=tuple(wrong),
        figure_points=len(ledger.used),
        phrase_points=len(ledger.counted),
        spans=tuple(sorted([*ledger.spans, *phrases], key=lambda span: (span.start, span.end))),
    )


@lru_cache(maxsize=64)
def _read(said: str, contexts: tuple[str, ...], question: str) -> _Ledger:
    """What a thought's equations and figures come to."""
    statement = "\n".join(contexts)
    found, claimed = read(said)
    ledger = _Ledger(quantities(f"{statement}\n{question}"), len(statement))
    inside: set[int] = set()
    for equation in claimed:
        ledger.take(equation, found)
        inside.update(operand.place for operand in equation.left.operands)
        inside |= equation.results
    known = ledger.given.keys() | ledger.made
    for place, token in enumerate(found):
        if token.kind in ("number", "spelled") and place not in inside:
            ledger.cite(token, token.value in known or token.value in (0, 1))
    return ledger


def grounding(thought: str, contexts: Sequence[str], question: str, config: RewardConfig) -> float:
    """Grounding grade in [0, 1]: share of the asked-for data points, less for figures from nowhere and false equations.

    A problem that gives few quantities asks for no more points than those and an equation.

    >>> eggs, ask = ["She has 16 eggs and eats 3."], "How many are left?"
    >>> [grounding(thought, eggs, ask, RewardConfig()) for thought in (
    ...     "16 - 3 = 13", "16 - 3 = 14", "She has 16 and eats 3.", "16 - 3 = 13, and 77 more")]
    [1.0, 0.0, 0.0, 0.6666666666666666]
    """
    found = evidence(thought, contexts, question)
    pasted = found.copied_share > config.max_copied_share and found.copied_words > config.max_copied_words // 2
    if pasted or found.longest_copy > config.max_copied_words or len(thought) > MAX_CHARACTERS:
        return 0.0
    given = quantities("\n".join([*contexts, question]))
    asked = min(config.evidence, 1 + len({quantity.key for quantity in given.values()}))
    cited = len(found.supported) + len(found.unsupported)
    honesty = len(found.supported) / cited if cited else 1.0
    return min(1.0, (found.figure_points + found.phrase_points) / asked) * honesty


def agreement(thought: str, record: Record, config: RewardConfig) -> float:
    """Agreement grade: 1.0 where what the thought computes last is the record's answer, or rounds to it; else 0.0.

    What it says the answer is, or concludes with "so" or "therefore", must not be another number. A thought without
    equations is judged by its last number.

    >>> record = Record(id="1", domain="gsm8k", question="How many are left?", contexts=("She has 16 eggs, eats 3.",),
    ...     verdict="13", long_answer="16 - 3 = 13")
    >>> [agreement(thought, record, RewardConfig()) for thought in ("16 - 3 = 13", "16 - 3 = 13. The answer is 12.",
    ...     "16 - 3 = 13. Therefore 12 are left.", "16 - 3 = 13. So 13 are left.")]
    [1.0, 0.0, 0.0, 1.0]
    """
    said = thought[:MAX_CHARACTERS]
    answer = Fraction(record.verdict)
    if stated_number(said) not in (None, record.verdict) or len(thought) > MAX_CHARACTERS:
        return 0.0
    if _concludes_another(said, answer):
        return 0.0
    return float(any(value == answer or _rounds(value, answer) for value in _last_numbers(said)))


def _concludes_another(thought: str, answer: Fraction) -> bool:
    """Whether the last sentence behind all equations that concludes a number concludes others than the answer."""
    for sentence in reversed(_SENTENCE_END.split(thought.strip())):
        found, claimed = read(sentence)
        if claimed:
            return False
        numbers = {abs(token.value) for token in found if token.kind in ("number", "spelled")}
        if numbers and found[0].text.lower() in _CONCLUDES:
            return abs(answer) not in numbers
    return False


def _rounds(value: Fraction, answer: Fraction) -> bool:
    """Whether an answer is a broken number rounded up or down, as buses are counted."""
    return answer.denominator == 1 and value.denominator != 1 and abs(value - answer) < 1


def _last_numbers(thought: str) -> set[Fraction]:
    """What comes out of a thought's last equation; without equations, its last number."""
    found, claimed = read(thought)
    if claimed:
        return claimed[-1].made
    return set([token.value for token in found if token.kind in ("number", "spelled")][-1:])


def disagrees(thought: str, answer: str | None, question: str) -> bool:
    """Whether a thought concludes another number than the answer gives; False where that is not plain.

    Plain is what it says the answer is, else an equation that its last sentence ends with.

    >>> [disagrees(thought, "13", "") for thought in (
    ...     "The answer is 12.", "16 - 3 = 12.", "16 - 3 = 13.", "16 - 3 = 12, or so she thought.")]
    [True, True, False, False]
    """
    if answer is None:
        return False
    stated = stated_number(thought[-MAX_CHARACTERS:])
    return (stated or _closing_result(thought[-MAX_CHARACTERS:]) or answer) != answer


def _closing_result(thought: str) -> str | None:
    """The result of an equation that ends a text, with a unit of a word or two at most behind it."""
    claimed = equations(thought)
    if not claimed or claimed[-1].percent:
        return None
    behind = thought[claimed[-1].end :].strip(" .%!\n")
    return canonical(claimed[-1].result) if (len(behind.split()) <= 2 and behind.isalpha()) or not behind else None
