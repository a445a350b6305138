"""Numbers as people write them, read exactly: 1,234.50, 3/4, 1 1/2, 50%, $18, in any script's digits.

A number's canonical form is a plain decimal without trailing zeros, or where no decimal ends, a fraction in lowest
terms. A percent sign is a unit like any other: 50% is the number 50. Words (eighteen, half) are not read.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache

# Longer rows of digits are no numbers of anyone's problem.
MAX_DIGITS = 30
# A number that does not stand in the first characters of an answer does not open it.
OPENING = 200

_SIGNS = dict.fromkeys("‐‑‒–—−", "-") | {"×": "*", "·": "*", "∙": "*", "⋅": "*", "✕": "*", "÷": "/", "⁄": "/", "≈": "="}
VULGAR = {
    character: Fraction(unicodedata.numeric(character)).limit_denominator(10) for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒"
}
SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}

DECIMAL = (
    rf"(?<![0-9])(?:[0-9]{{1,3}}(?:,[0-9]{{3}}){{1,9}}(?!,?[0-9])|[0-9]{{1,{MAX_DIGITS}}})"
    rf"(?:\.[0-9]{{1,{MAX_DIGITS}}})?(?![0-9])|(?<![0-9.])\.[0-9]{{1,{MAX_DIGITS}}}(?![0-9])"
)
_STRICT = re.compile(r"-?(?:0|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,9}|[1-9][0-9]{0,29})(?:\.[0-9]{1,30})?")
_OPENING = re.compile(
    r"(?:(?!-)[\W_])*?(?:(?P<sign>-)\s{0,2})?(?:[$€£¥]\s?(?P<behind>-)?)?(?:"
    r"(?:(?P<whole>[0-9]{1,9})\s{1,2})?(?P<over>[0-9]{1,9})\s?/\s?(?P<under>[0-9]{1,9})(?![0-9.,]*[0-9])"
    rf"|(?P<units>[0-9]{{1,9}})?(?P<vulgar>[{''.join(VULGAR)}])"
    rf"|(?P<decimal>{DECIMAL})(?:\s?(?P<scale>{'|'.join(SCALES)})\b)?)"
    # What follows must not make it part of another number, of a range or of an expression.
    r"(?!\s?[.,:]?[0-9]|[A-Za-z]{1,3}[0-9]|\s*(?:%|[A-Za-z]+\s)?\s*(?:[-+*/^=~xX]|to|or|and)\s*[$€£¥]?\s?-?[0-9.(])"
)
_STATED = re.compile(
    r"(?:\banswer\b(?:\s+to\b[^.?!]{0,80})?\s{0,9}(?:is|:|=|should be|must be|would be)"
    r"(?:\s(?:therefore|thus|then|simply|exactly))?|####)(?=(?P<number>.{1,80}))",
    re.I | re.S,
)


def plain(text: str) -> str:
    """The text with one spelling for digits, signs and blanks, character for character.

    >>> plain("−３ × ４")
    '-3 * 4'
    """
    return text if text.isascii() else "".join(map(_plain_character, text))


@lru_cache(maxsize=4096)
def _plain_character(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    found = _SIGNS.get(character) or unicodedata.normalize("NFKC", character)
    return found if len(found) == 1 else character


def canonical(number: Fraction) -> str:
    """A number's one spelling.

    >>> [canonical(Fraction(text)) for text in ("1234.50", "-0", "1/3", "3/4", "1000")]
    ['1234.5', '0', '1/3', '0.75', '1000']
    """
    rest, twos, fives = number.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return str(number)
    places = max(twos, fives)
    if not places:
        return str(number.numerator)
    digits = str(abs(number.numerator) * 10**places // number.denominator).zfill(places + 1)
    return f"{'-' if number < 0 else ''}{digits[:-places]}.{digits[-places:]}"


@lru_cache(maxsize=4096)
def decimal(text: str) -> Fraction:
    """The value of a text that `DECIMAL` matches."""
    return Fraction(text.replace(",", ""))


def strict_number(text: str) -> str | None:
    """The canonical form of a number and nothing else: no currency, percent sign or unit, for which of them is right
    the expert's number does not say.

    >>> [strict_number(text) for text in ("1,234.50", "-3", "18 dollars", "$18", "50%", "6*3", "007", "1,23")]
    ['1234.5', '-3', None, None, None, None, None, None]
    """
    return canonical(decimal(text)) if _STRICT.fullmatch(text) else None


def opening_number(text: str) -> str | None:
    """The canonical form of the number that opens a text; None where there is none, or a range or an expression.

    >>> [opening_number(text) for text in ("18 dollars", "$1,234.50", "3/4", "1 1/2 cups", "50%", "−２.0", "½")]
    ['18', '1234.5', '0.75', '1.5', '50', '-2', '0.5']
    >>> [opening_number(text) for text in ("about 18", "18-20", "18 or 20", "6*3", "eighteen", "1/0", "")]
    [None, None, None, None, None, None, None]
    >>> [opening_number(text) for text in ("- 18", "- $18", "--18")]
    ['-18', '-18', None]
    """
    found = _OPENING.match(plain(text[:OPENING]))
    number = _value(found) if found else None
    if found is None or number is None:
        return None
    return canonical(-number if found["sign"] or found["behind"] else number)


def _value(found: re.Match[str]) -> Fraction | None:
    if found["under"]:
        under = int(found["under"])
        return int(found["whole"] or 0) + Fraction(int(found["over"]), under) if under else None
    if found["vulgar"]:
        return int(found["units"] or 0) + VULGAR[found["vulgar"]]
    return decimal(found["decimal"]) * SCALES.get(found["scale"] or "", 1)


def stated_number(text: str) -> str | None:
    """The number that a text gives as the answer in so many words, the last of several; None where it gives none.

    >>> stated_number("At first the answer is 17. No, the answer is $18.")
    '18'
    """
    stated = [number for match in _STATED.finditer(text) if (number := opening_number(match["number"])) is not None]
    return stated[-1] if stated else None
