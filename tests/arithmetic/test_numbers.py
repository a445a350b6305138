"""Numbers are read exactly, and a text that holds none is read as none."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.arithmetic.numbers import canonical, opening_number, plain, stated_number, strict_number

DECIMALS = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=4)


@given(DECIMALS)
def test_decimals_come_back(number: Decimal) -> None:
    """A decimal in canonical form is read as itself, strictly and leniently, with and without commas."""
    text = canonical(Fraction(number))
    assert Fraction(text) == Fraction(number)
    assert strict_number(text) == opening_number(text) == text
    assert strict_number(f"{Fraction(number).numerator:,}") == str(Fraction(number).numerator)


@given(st.fractions(min_value=0, max_value=10**6, max_denominator=10**6))
def test_fractions_come_back(number: Fraction) -> None:
    """A fraction's canonical form has its value and is read as itself."""
    text = canonical(number)
    assert Fraction(text) == number
    if number.numerator < 10**9:
        assert opening_number(f"{number.numerator}/{number.denominator}") == text


@given(st.text())
def test_any_text_is_read_or_not(text: str) -> None:
    """No text raises, what is read is canonical, and normalising keeps every character's place."""
    for number in (strict_number(text), opening_number(text), stated_number(text)):
        assert number is None or canonical(Fraction(number)) == number
    assert len(plain(text)) == len(text)


@given(DECIMALS, st.sampled_from(["{} dollars", "${}", "  {}.", "({})", "{}%", "{} (rounded)", "**{}**"]))
def test_what_stands_around_a_number_does_not_change_it(number: Decimal, form: str) -> None:
    """Units, currency and marks around a number leave it as it is, but are no strict form."""
    text = form.format(canonical(abs(Fraction(number))))
    assert opening_number(text) == canonical(abs(Fraction(number)))
    assert strict_number(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "eighteen",
        "about 5",
        "5-6",
        "5 to 6",
        "5 or 6",
        "6*3",
        "6 x 3",
        "1,23",
        "1.2.3",
        "5:30",
        "1/0",
        "1e5",
        "9" * 31,
        "1 000 000",
        "5 and 6",
        "x = ",
    ],
)
def test_no_number_opens(text: str) -> None:
    """Words, ranges, expressions, times and broken numbers give none."""
    assert opening_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("−5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("- 5", "-5"),
        ("１５", "15"),
        ("2½", "2.5"),
        ("-0", "0"),
        ("1.5 million", "1500000"),
        ("5\xa0km", "5"),
        ("007", "7"),
        (".5", "0.5"),
        ("2/6", "1/3"),
        ("5. That is it", "5"),
    ],
)
def test_a_number_opens(text: str, number: str) -> None:
    """Signs, scripts, blanks, scales and fractions are read."""
    assert opening_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 5", "5"),
        ("answer: $1,200.", "1200"),
        ("The answer is 5. The answer is therefore 6.", "6"),
        ("The answer to how many is 7 eggs", "7"),
        ("#### 8", "8"),
        ("The answer is clear", None),
        ("It is 5", None),
    ],
)
def test_stated(text: str, number: str | None) -> None:
    """What a text says the answer is, the last of several."""
    assert stated_number(text) == number


@pytest.mark.parametrize("piece", [" ", "1", "-", "1,", "answer is ", "answer to ", "½", "$", "．", "the answer is 1 "])
def test_a_megabyte_takes_no_time(piece: str) -> None:
    """A text of a megabyte is read in about a second, whatever it repeats."""
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    strict_number(text), opening_number(text), stated_number(text)
    assert time.process_time() - started < 3
