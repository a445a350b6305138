"""What numbers a word problem gives: those it writes in digits or words, and what follows from each alone.

A discount of 20% also gives 0.2, 0.8, 1.2, 80 and 120; a third gives 1/3, 2/3, 3 and 4/3; 50 cents give 0.5. Numbers
that everybody knows (2, 7 days, 12 months, 60 minutes, ...) may be computed with anywhere, but are no quantities of a
problem that does not name them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from medgrpo.arithmetic.numbers import SCALES
from medgrpo.arithmetic.tokens import Token, tokens

CONSTANTS = frozenset(
    map(
        Fraction,
        (
            *(
                "0",
                "1",
                "2",
                "3",
                "4",
                "5",
                "6",
                "7",
                "8",
                "9",
                "10",
                "12",
                "14",
                "16",
                "24",
                "25",
                "26",
                "28",
                "29",
                "30",
            ),
            *("31", "36", "50", "52", "60", "100", "104", "144", "180", "360", "365", "366", "500", "1000", "2000"),
            *("3600", "5280", "1/2", "1/3", "2/3", "1/4", "3/4", "1/5", "1/10", "1/20", "1/100", "3/2"),
        ),
    )
)

_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PARTS = ("half", "third", "quarter", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_SIZES = (2, 3, 4, 4, 5, 6, 7, 8, 9, 10)
_WORDS = {
    **{word: Fraction(value) for value, word in enumerate(_NUMBERS, 2)},
    **dict.fromkeys(("twice", "double", "doubled", "doubles", "couple", "pair", "pairs", "both"), Fraction(2)),
    **dict.fromkeys(("thrice", "triple", "tripled", "triples", "triplets"), Fraction(3)),
    **dict.fromkeys(("quadruple", "quadrupled", "quarterly"), Fraction(4)),
    **dict.fromkeys(("dozen", "dozens"), Fraction(12)),
    **{word: Fraction(value) for word, value in SCALES.items()},
}
_FRACTIONS = {
    word: Fraction(1, size) for part, size in zip(_PARTS, _SIZES, strict=True) for word in (part, f"{part}s")
} | {"halves": Fraction(1, 2)}
_MULTIPLES = {"dozen": 12, "dozens": 12, **SCALES}
# Words between a number and the fraction that belongs to it: "two and a half".
_AND_A_HALF = ("and", "a", "half")


@dataclass(frozen=True)
class Quantity:
    """A number of a problem.

    Attributes:
        key: the number as the problem gives it; what follows from it has the same key.
        start, end: its characters there.
    """

    key: str
    start: int
    end: int


@lru_cache(maxsize=4096)
def quantities(text: str) -> dict[Fraction, Quantity]:
    """Value -> the quantity that gives it, the first of several; what is written goes before what follows from it.

    >>> sorted(str(value) for value in quantities("A $40 coat is sold at 20% off."))
    ['1/5', '120', '20', '4/5', '40', '6/5', '80']
    """
    found = tokens(text)
    direct: dict[Fraction, Quantity] = {}
    derived: dict[Fraction, Quantity] = {}
    for place, token in enumerate(found):
        for value, others in _given(found, place, token):
            quantity = Quantity(str(value), token.start, token.end)
            direct.setdefault(value, quantity)
            for other in others:
                derived.setdefault(other, quantity)
    return derived | direct


_Given = Iterator[tuple[Fraction, tuple[Fraction, ...]]]


def _given(found: Sequence[Token], place: int, token: Token) -> _Given:
    """The values of one token with what is behind it, each with the values that follow from it."""
    if token.kind in ("number", "spelled"):
        yield from _number(token.value, found, place)
    elif token.kind == "word":
        for part, value in _words(token.text):
            if part in _FRACTIONS:
                yield value, _of_share(value)
            else:
                yield from _number(value, found, place)


def _words(text: str) -> Iterator[tuple[str, Fraction]]:
    """The numbers in a word or in words joined by hyphens, as in two-thirds."""
    before = Fraction(1)
    for part in text.split("-"):
        if part in _FRACTIONS:
            yield part, before * _FRACTIONS[part]
        elif part in _WORDS:
            before = _WORDS[part]
            yield part, before


def _number(value: Fraction, found: Sequence[Token], place: int) -> _Given:
    ahead = [token.text.lower() for token in found[place + 1 : place + 4]] + [""] * 3
    before = found[place - 1].text if place else ""
    yield value, _of_share(value) if 0 < value < 1 else ()
    if ahead[0] in ("%", "percent"):
        yield value, (value / 100, 1 - value / 100, 1 + value / 100, abs(100 - value), 100 + value)
    if ahead[0] in _MULTIPLES:
        yield value * _MULTIPLES[ahead[0]], ()
    if ahead[0] in ("cents", "cent", "¢"):
        yield value, (value / 100,)
    if before == "$" and value < 1:
        yield value, (value * 100,)
    if tuple(ahead[:3]) == _AND_A_HALF:
        yield value + Fraction(1, 2), ()
    if ahead[0] in _FRACTIONS:
        share = value * _FRACTIONS[ahead[0]]
        yield share, _of_share(share)
    if ahead[0] == "/" and found[place + 2 : place + 3] and found[place + 2].value:
        share = value / found[place + 2].value
        yield share, _of_share(share)


def _of_share(share: Fraction) -> tuple[Fraction, ...]:
    """What a part of a whole gives: the rest, the whole with the part added, the numbers of parts, the percentage."""
    parts, whole = share.numerator, share.denominator
    numbers = (Fraction(whole), Fraction(parts), Fraction(abs(whole - parts)), Fraction(whole + parts))
    return abs(1 - share), 1 + share, *numbers, share * 100
