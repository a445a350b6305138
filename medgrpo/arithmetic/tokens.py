"""The numbers, operators and words of a text, in which every spelling of a sign is one: x, × and times are *."""

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from medgrpo.arithmetic.numbers import DECIMAL, VULGAR, decimal, plain

_SMALL = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SPELLED = {word: Fraction(place) for place, word in enumerate(_SMALL + _TEENS, 1)} | {
    word: Fraction(20 + 10 * place) for place, word in enumerate(_TENS)
}

ZERO = Fraction(0)
_SPOKEN = {
    "plus": "+",
    "minus": "-",
    "times": "*",
    "multiplied by": "*",
    "divided by": "/",
    "equals": "=",
    "is equal to": "=",
}
_TOKEN = re.compile(
    rf"(?P<number>(?<![0-9.,])(?:[0-9]{{1,4}} [0-9]{{1,2}}/[0-9]{{1,2}}(?![0-9.,]*[0-9])"
    rf"|[0-9]{{0,4}}[{''.join(VULGAR)}])|(?<=[$€£])[0-9]{{1,3}}(?: [0-9]{{3}}){{1,3}}(?![0-9.,])|{DECIMAL})"
    r"|(?P<percent>%|percent\b)"
    r"|(?P<equals>=+)"
    rf"|(?P<spoken>\b(?:{'|'.join(_SPOKEN)})\b)"
    # A unit behind a slash or in parentheses is a word like others.
    r"|(?P<word>/\s?[A-Za-z]+|\([A-Za-z][A-Za-z' -]{0,40}\)|[^\W\d_]+(?:['’-][^\W\d_]+)*)"
    r"|(?P<stop>\n\s{0,9}(?:[-*•](?=\s))?|\A\s{0,9}[-*•](?=\s)|[^\s\w%=+*/^()\[\]$€£¥¢-])"
    r"|(?P<operator>[-+*/^])"
    r"|(?P<open>[(\[])|(?P<close>[)\]])"
    r"|(?P<money>[$€£¥¢])",
    re.I,
)
_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")


class Token(NamedTuple):
    """A piece of a text: its kind (a group of the pattern above), its characters, and of a number its value."""

    kind: str
    text: str
    start: int
    end: int
    value: Fraction


def tokens(text: str) -> list[Token]:
    """The tokens of a text, without calculator annotations (<<5*3=15>>).

    >>> [token.text for token in tokens("5 x 3 = <<5*3=15>>15 cookies")]
    ['5', '*', '3', '=', '15', 'cookies']
    """
    blanked = _ANNOTATION.sub(lambda match: " " * len(match[0]), plain(text))
    found: list[Token] = []
    for match in _TOKEN.finditer(blanked):
        kind, said, value = str(match.lastgroup), match[0], ZERO
        if kind == "number":
            value = _number(said)
        elif kind == "spoken":
            kind, said = _spoken(said.lower(), blanked[match.end() : match.end() + AHEAD])
        elif kind == "word":
            kind, said, value = _word(said.lower(), blanked[match.end() : match.end() + AHEAD], found)
        found.append(Token(kind, said, match.start(), match.end(), value))
    return found


def _number(said: str) -> Fraction:
    if said[-1] in VULGAR:
        return int(said[:-1] or 0) + VULGAR[said[-1]]
    if "/" not in said:
        return decimal(said.replace(" ", ""))
    whole, _, part = said.partition(" ")
    over, _, under = part.partition("/")
    return Fraction(int(whole)) + (Fraction(int(over), int(under)) if int(under) else 0)


AHEAD = 8
_BEFORE_A_NUMBER = re.compile(r"\s*[$€£¥(]*\s*\.?[0-9]")


def _spoken(said: str, ahead: str) -> tuple[str, str]:
    """Kind and spelling of an operator in words; "three times as many" has none."""
    sign = _SPOKEN[said]
    if sign == "=":
        return "equals", sign
    return ("operator", sign) if _BEFORE_A_NUMBER.match(ahead) else ("word", said)


def _word(said: str, ahead: str, before: Sequence[Token]) -> tuple[str, str, Fraction]:
    """A word's kind, spelling and value: it may be an operator, or a number from eleven on."""
    if said == "x":
        follows = bool(before) and before[-1].kind in ("number", "percent", "word", "close", "money")
        return ("operator", "*", ZERO) if follows and _BEFORE_A_NUMBER.match(ahead) else ("word", said, ZERO)
    if said == "of":
        return ("operator", "*", ZERO) if _is_share(before) and _BEFORE_A_NUMBER.match(ahead) else ("word", said, ZERO)
    value = _spelled(said)
    return ("word", said, ZERO) if value is None else ("spelled", said, value)


def _is_share(before: Sequence[Token]) -> bool:
    """Whether a percentage or a fraction ends here."""
    if not before:
        return False
    return before[-1].kind == "percent" or before[-1].text[-1] in VULGAR or before[-2:][0].text == "/"


@lru_cache(maxsize=4096)
def _spelled(word: str) -> Fraction | None:
    """The value of a number in words from eleven to ninety-nine."""
    tens, hyphen, ones = word.partition("-")
    if tens not in SPELLED or (hyphen and (SPELLED[tens] < 20 or not 0 < SPELLED.get(ones, ZERO) < 10)):
        return None
    value = SPELLED[tens] + SPELLED.get(ones, ZERO)
    return value if value > 10 else None
