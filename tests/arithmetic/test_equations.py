"""Equations in running text are found and computed again."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.arithmetic.equations import equations
from medgrpo.arithmetic.numbers import canonical
from medgrpo.arithmetic.quantities import quantities

NUMBERS = st.integers(1, 999)


def claims(text: str) -> list[tuple[str, bool]]:
    return [(one.written, one.true) for one in equations(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 16 - 3 - 4 = 9 eggs.", [("16 - 3 - 4 = 9", True)]),
        ("$5 x 3 = $15", [("5 * 3 = 15", True)]),
        ("5 × 3 ÷ 2 = 7½", [("5 * 3 / 2 = 7.5", True)]),
        ("5*3 = <<5*3=99>>15 cookies", [("5 * 3 = 15", True)]),
        ("5 boxes * 3 cookies/box = 15 cookies", [("5 * 3 = 15", True)]),
        ("20% of 50 = 10", [("20% * 50 = 10", True)]),
        ("10 / 50 = 20%", [("10 / 50 = 20%", True)]),
        ("2(5 + 3) = 16", [("2 (5 + 3) = 16", True)]),
        ("2 + 3 = 5 * 2 = 10", [("2 + 3 = 5", True), ("5 * 2 = 10", True)]),
        ("2 + 3 = 6 * 2 = 12", [("2 + 3 = 6 * 2", False), ("6 * 2 = 12", True)]),
        ("16 - 3 = 13 = 14", [("16 - 3 = 13", True), ("13 = 14", False)]),
        ("10 / 3 = 3.33", [("10 / 3 = 3.33", True)]),
        ("20 / 3 = 6.66", [("20 / 3 = 6.66", True)]),
        ("20 / 3 = 6.65", [("20 / 3 = 6.65", False)]),
        ("20 / 3 = 7", [("20 / 3 = 7", False)]),
        ("3^2 = 9", [("3 ^ 2 = 9", True)]),
        ("5 plus 3 equals 9", [("5 + 3 = 9", False)]),
        ("- 5 + 3 = 8", [("5 + 3 = 8", True)]),
        ("-5 + 3 = -2", [("- 5 + 3 = - 2", True)]),
        ("Day 2 = 5 * 3 = 15", [("5 * 3 = 15", True)]),
        ("2x + 3 = 9, x = 3", []),
        ("x + 3 = 9 and 2 * y = 4", []),
        ("3m + 4m = 7m", [("3 + 4 = 7", True)]),
        ("5 boxes of 3 = 15", []),
        ("5 / 0 = 5", []),
        ("9 ^ 99 = 1", []),
        ("= = =", []),
    ],
)
def test_claims(text: str, expected: list[tuple[str, bool]]) -> None:
    """Each step of a chain is a claim; labels, unknowns and what has no value are none."""
    assert claims(text) == expected


@given(st.lists(NUMBERS, min_size=2, max_size=5), st.sampled_from("+-*"), st.integers(-3, 3))
def test_whole_numbers_are_computed(numbers: list[int], sign: str, off: int) -> None:
    """An equation of whole numbers is true exactly if its result is what they make."""
    value = numbers[0]
    for number in numbers[1:]:
        value = value + number if sign == "+" else value - number if sign == "-" else value * number
    [found] = equations(f"{f' {sign} '.join(map(str, numbers))} = {value + off}")
    assert found.true is (off == 0)
    assert found.result == value + off


@given(NUMBERS, NUMBERS)
def test_quotients_may_be_rounded(one: int, other: int) -> None:
    """A quotient rounded to two decimals is true, and one off by more than that is not."""
    rounded = Fraction(round(Fraction(one, other) * 100), 100)
    assert equations(f"{one} / {other} = {float(rounded):.2f}")[0].true
    assert not equations(f"{one} / {other} = {float(rounded) + 0.02:.2f}")[0].true


@given(st.text(alphabet="0123456789 +-*/=()%$.,xof\n", max_size=200))
def test_any_text_is_read(text: str) -> None:
    """No text raises, and every equation's characters lie in the text."""
    for found in equations(text):
        assert 0 <= found.start < found.end <= len(text)
        assert canonical(found.result)


@pytest.mark.parametrize("piece", ["1+", "(", "1=", "=1", "-", "((1)", "1 a ", "^9", "1/1=", "x=", "<<1"])
def test_long_texts_take_no_time(piece: str) -> None:
    """As much as is ever read of a thought takes well under a second, whatever it repeats."""
    started = time.process_time()
    equations((piece * 8000)[:8000])
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,200 trees", "1200"),
        ("two dozen eggs", "2 12"),
        ("three dozens and a half-price hat", "3 36 1/2"),
        ("two-thirds of them", "2/3 1/3 3 2"),
        ("3/4 of them", "3/4 1/4 4 3"),
        ("two and a half hours", "5/2"),
        ("30% more", "30 3/10 7/10 13/10 130"),
        ("75 cents", "75 3/4"),
        ("twice as many", "2"),
        ("ninety-nine", "99"),
        ("5 thousand", "5 5000"),
    ],
)
def test_quantities(text: str, values: str) -> None:
    """Digits, words, fractions and percentages give their numbers and what follows from them."""
    assert {Fraction(value) for value in values.split()} <= quantities(text).keys()


@pytest.mark.parametrize("depth", [5, 9])
def test_nested_powers_are_not_computed(depth: int) -> None:
    """Numbers that would have more digits than anybody waits for are no numbers, and the equation is none."""
    tower = "(" * depth + "99" + "^6)" * depth
    began = time.monotonic()
    assert [one.written for one in equations(f"9 * 2 = 18. 2 * 9 = {tower}.")] == ["9 * 2 = 18"]
    assert time.monotonic() - began < 1
