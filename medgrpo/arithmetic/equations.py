"""Equations in running text, found and computed again on exact fractions: 16 - 3 - 4 = 9 eggs, 20% of $50 = $10.

A side of an equation is numbers joined by + - * / ^ (also x, ×, ÷), parentheses and, after a percentage or a fraction,
"of", with units between them. A chain claims each of its steps: 2 + 3 = 5 * 2 = 10 claims 2 + 3 = 5 and 5 * 2 = 10. A
bare number on the left is a label (Day 2 = 5 * 3), not a claim, unless it ends an equation before it. A result may be
the true value rounded, or cut off, to its own decimals, of which it then has one at least.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from medgrpo.arithmetic.numbers import canonical
from medgrpo.arithmetic.tokens import Token, tokens

# Longest side of an equation in tokens, words that may stand between a number and the sign behind it, and how deep
# parentheses may nest: bounds, so that no text takes long.
MAX_SIDE, MAX_UNIT_WORDS, MAX_DEPTH = 60, 10, 10
MAX_LEADING_WORDS, MAX_POWER = 2, 6
# Longest numerator and denominator: some 120 digits. Nested powers would otherwise take longer than anybody waits.
MAX_BITS = 400


class Operand(NamedTuple):
    """A number in an expression: its value (a percentage as a share), the number of its token, and that token."""

    value: Fraction
    place: int
    token: Token


class Side(NamedTuple):
    """An expression: its value, its operands in order, the places [start, end) of its tokens, its operators."""

    value: Fraction
    operands: tuple[Operand, ...]
    start: int
    end: int
    operators: int


@dataclass(frozen=True)
class Equation:
    """One claim that two sides are equal.

    Attributes:
        left: what is computed.
        result: what is said to come out.
        true: whether it does.
        start, end: characters of the text.
        percent: whether the result is a percentage; 60% is the share 0.6 and the number 60.
        written: the equation in one spelling, as "16 - 3 = 13".
        results: places of the tokens that give the result.
    """

    left: Side
    result: Fraction
    percent: bool
    true: bool
    start: int
    end: int
    written: str
    results: frozenset[int]

    @property
    def made(self) -> set[Fraction]:
        """The numbers that its result may stand for."""
        return {self.result, self.result * 100} if self.percent else {self.result}


@lru_cache(maxsize=64)
def read(text: str) -> tuple[list[Token], list[Equation]]:
    """The tokens and the equations of a text, once for all who ask about a completion."""
    found = tokens(text)
    return found, _equations(found)


def equations(text: str) -> list[Equation]:
    """The equations of a text, in order.

    >>> [(one.written, one.true) for one in equations("She has 16 - 3 = 13 eggs, and 20% of $50 = $11.")]
    [('16 - 3 = 13', True), ('20% * 50 = 11', False)]
    """
    return read(text)[1]


def _equations(found: Sequence[Token]) -> list[Equation]:
    claims: list[Equation] = []
    linked = -1
    for place, token in enumerate(found):
        if token.kind != "equals":
            continue
        left, right = _left_side(found, place), _right_side(found, place)
        # A bare number before the sign is a claim only as the end of an equation before it.
        if left is None or right is None or (not left.operators and linked != left.start):
            linked = -1
            continue
        if _has_unknowns(found, left, right):
            continue
        claims.append(_claim(found, left, right))
        linked = right.start
    return claims


def _has_unknowns(found: Sequence[Token], left: Side, right: Side) -> bool:
    """Whether letters stand for numbers, as in 2x + 3 = 9; in 2m + 3m = 5m they are a unit."""
    letters = {
        token.text.lower()
        for before, token in pairwise(found[max(0, left.start - 1) : right.end + 1])
        if token.kind == "word" and len(token.text) == 1 and (before.end == token.start or before.kind == "operator")
    }
    behind = found[right.end].text.lower() if right.end < len(found) else ""
    return bool(letters) and (bool(right.operators) or letters != {behind})


def _claim(found: Sequence[Token], left: Side, right: Side) -> Equation:
    first = right.operands[0]
    whole = _equal(left.value, right, found)
    # A running chain: what comes out on the left is what the right goes on computing with.
    running = bool(right.operators) and not whole and left.value == first.value
    result = first.value if running else right.value
    end = first.place + 1 if running else right.end
    said = ("number", "operator", "open", "close", "equals")
    pieces = [_written(found, place) for place in range(left.start, end) if found[place].kind in said]
    written = " ".join(pieces).replace("( ", "(").replace(" )", ")")
    places = {operand.place for operand in right.operands[: 1 if running or not right.operators else 0]}
    percent = found[end - 1].kind == "percent"
    begins, ends = found[left.start].start, found[end - 1].end
    return Equation(left, result, percent, whole or running, begins, ends, written, frozenset(places))


def _written(found: Sequence[Token], place: int) -> str:
    token, behind = found[place], found[place + 1 : place + 2]
    if token.kind != "number":
        return token.text
    return canonical(token.value) + ("%" if behind and behind[0].kind == "percent" else "")


def _equal(value: Fraction, right: Side, found: Sequence[Token]) -> bool:
    """Whether a value is the right side's, as its only number is rounded; a percentage may be meant as a number."""
    if value == right.value:
        return True
    if right.operators:
        return False
    token = right.operands[0].token
    places = len(token.text.partition(".")[2])
    percent = right.operands[0].value != token.value
    sign = -1 if right.value < 0 else 1
    return any(
        _rounds_to(candidate, sign * token.value, places)
        for candidate in ((value, value * 100) if percent else (value,))
    )


def _rounds_to(value: Fraction, said: Fraction, places: int) -> bool:
    unit = Fraction(1, 10**places)
    if value == said:
        return True
    cut_off = int(abs(value) / unit) * unit == abs(said) and value * said >= 0
    return places > 0 and (abs(value - said) <= unit / 2 or cut_off)


_UNIT = ("word", "money")


def _left_side(found: Sequence[Token], equals: int) -> Side | None:
    """The expression that ends before an equals sign."""
    start = _begin(found, equals)
    side = _Parser(found, start, equals).side() if start is not None else None
    if side is None or any(token.kind not in _UNIT for token in found[side.end : equals]):
        return None
    return side


def _begin(found: Sequence[Token], equals: int) -> int | None:
    """Where the expression that ends before an equals sign begins: operands and operators in turn, to the left."""
    at, start = equals - 1, None
    while at >= 0 and equals - at < MAX_SIDE:
        at = _operand_before(found, at)
        if at < 0:
            break
        start = at
        at -= 1
        while at >= 0 and found[at].kind == "money":
            at -= 1
        if at < 0:
            break
        if found[start].kind == "open" and found[at].kind in ("number", "percent", "close"):
            continue
        if found[at].kind != "operator":
            return None if _goes_on(found, at) else start
        if _operand_before(found, at - 1) < 0:
            # A sign; else what it operates on is no number, and the expression cannot be computed.
            return at if found[at].text == "-" and (at == 0 or found[at - 1].kind in ("stop", "equals")) else None
        at -= 1
    return start


def _goes_on(found: Sequence[Token], at: int) -> bool:
    """Whether more of the expression stands before a place, in a form that is not read: "350 000", "5 + his 1"."""
    words = [token.kind for token in found[max(0, at - MAX_LEADING_WORDS) : at + 1]]
    while words and words[-1] == "word":
        words.pop()
    return bool(words) and (words[-1] == "operator" or (words[-1] == "number" and found[at].kind == "number"))


def _operand_before(found: Sequence[Token], at: int) -> int:
    """The place of the number or open parenthesis of the operand that ends at a place or before its unit; else -1."""
    words = 0
    while at >= 0 and found[at].kind in _UNIT and words < MAX_UNIT_WORDS:
        words += found[at].kind == "word"
        at -= 1
    while at >= 0 and found[at].kind == "percent":
        at -= 1
    if at >= 0 and found[at].kind in ("number", "spelled"):
        return at
    if at < 0 or found[at].kind != "close":
        return -1
    depth, last = 0, max(-1, at - MAX_SIDE)
    while at > last:
        depth += {"close": 1, "open": -1}.get(found[at].kind, 0)
        if not depth:
            return at
        at -= 1
    return -1


def _right_side(found: Sequence[Token], equals: int) -> Side | None:
    """The expression that begins after an equals sign."""
    at = equals + 1
    while at < len(found) and found[at].kind in _UNIT and at - equals <= 2:
        at += 1
    return _Parser(found, at, min(len(found), at + MAX_SIDE)).side()


class _Parser:
    """Reads an expression from `start`, not beyond `limit`, by recursive descent."""

    def __init__(self, found: Sequence[Token], start: int, limit: int) -> None:
        self._found, self._start, self._limit = found, start, limit
        self._at, self._end, self._operators, self._depth = start, start, 0, 0
        self._operands: list[Operand] = []

    def side(self) -> Side | None:
        """The expression; None where there is none that has a value."""
        try:
            value = self._sum()
        except (_Unreadable, ZeroDivisionError):
            return None
        return Side(value, tuple(self._operands), self._start, self._end, self._operators)

    def _kind(self, at: int) -> str:
        return self._found[at].kind if at < self._limit else ""

    def _operator(self, among: str) -> str | None:
        """The operator that comes next, behind units, if it is one of these and an operand follows it."""
        at = self._at
        while self._kind(at) in _UNIT and at - self._at <= MAX_UNIT_WORDS:
            at += 1
        if self._kind(at) == "open" and "*" in among and at == self._at:
            self._operators += 1
            return "*"
        if self._kind(at) != "operator" or self._found[at].text not in among:
            return None
        after = at + 1
        while self._kind(after) == "money" or (self._kind(after) == "operator" and self._found[after].text == "-"):
            after += 1
        if self._kind(after) not in ("number", "spelled", "open"):
            return None
        self._at = at + 1
        self._operators += 1
        return self._found[at].text

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._operator("+-"):
            term = self._product()
            value = _bounded(value + term if operator == "+" else value - term)
        return value

    def _product(self) -> Fraction:
        value = self._power()
        while operator := self._operator("*/"):
            factor = self._power()
            value = _bounded(value * factor if operator == "*" else value / factor)
        return value

    def _power(self) -> Fraction:
        value = self._atom()
        if not self._operator("^"):
            return value
        power = self._atom()
        if power.denominator != 1 or not 0 <= power <= MAX_POWER:
            raise _Unreadable
        return _bounded(Fraction(value**power.numerator))

    def _atom(self) -> Fraction:
        while self._kind(self._at) == "money":
            self._at += 1
        kind = self._kind(self._at)
        if kind == "operator" and self._found[self._at].text == "-":
            self._descend()
            value = -self._atom()
            self._depth -= 1
            return value
        if kind == "open":
            return self._group()
        if kind not in ("number", "spelled"):
            raise _Unreadable
        return self._number()

    def _descend(self) -> None:
        self._at += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Unreadable

    def _group(self) -> Fraction:
        self._descend()
        value = self._sum()
        while self._kind(self._at) in _UNIT:
            self._at += 1
        if self._kind(self._at) != "close":
            raise _Unreadable
        self._depth -= 1
        self._at += 1
        self._end = self._at
        return value

    def _number(self) -> Fraction:
        place = self._at
        token, value = self._found[place], self._found[place].value
        self._at += 1
        if self._kind(self._at) == "percent":
            value /= 100
            self._at += 1
        self._operands.append(Operand(value, place, token))
        self._end = self._at
        return value


class _Unreadable(Exception):
    """There is no expression here."""


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _Unreadable
    return value
