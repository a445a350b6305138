"""Citations: figures and verbatim phrases of the abstract."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.config import RewardConfig
from medgrpo.rewards.grounding import evidence, figures, grounding, normalize, tokenize, unsupported_figures

deterministic = settings(derandomize=True, deadline=None, max_examples=200)
ABSTRACT = [
    "We randomised 120 adults to early walking or bed rest.",
    "Mean pain fell by 2.4 points with walking and by 0.9 points with rest (p=0.003).",
]
QUESTION = "Does early walking or bed rest lower pain?"


def grade(thought: str, question: str = QUESTION) -> float:
    return grounding(thought, ABSTRACT, question, RewardConfig())


@deterministic
@given(st.text(st.sampled_from("0123456789.,eE-–·٣² a%(p<=")))
def test_figures_are_plain_distinct_and_stable(text: str) -> None:
    """Figures are distinct plain decimals, and reading them again gives the same ones."""
    found = figures(text)
    assert len(set(found)) == len(found)
    assert figures(" ".join(found)) == found


@deterministic
@given(st.decimals(0, 10**9, places=3))
def test_spellings_of_one_figure(value: Decimal) -> None:
    """Thousands separators, trailing zeros and a raised decimal point do not make another figure."""
    plain = figures(f"{value:f}")
    assert len(plain) == 1
    assert figures(f"{value:,.3f}") == plain
    assert figures(f"{value:.5f}") == plain
    assert figures(f"{value:.3f}".replace(".", "·")) == plain


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("95% CI 1.2–3.4", ("95", "1.2", "3.4")),
        ("p<.001, p = 1e-3", ("0.001",)),
        ("TNF1, IL-6, B12", ()),
        ("from 3-5 to −2", ("3", "5", "2")),
        ("1,234,567 of 1,5", ("1234567", "1", "5")),
        ("Table 2.", ("2",)),
        ("", ()),
    ],
)
def test_figures(text: str, found: tuple[str, ...]) -> None:
    """Ranges give both ends, names with digits give none."""
    assert figures(text) == found


@deterministic
@given(st.text())
def test_any_text_is_read(text: str) -> None:
    """Any text can be a thought and an abstract; the grade stays within 0 and 1."""
    assert 0 <= grounding(text, [text], text, RewardConfig()) <= 1
    assert unsupported_figures(text, text) == ()
    assert normalize(normalize(text)) == normalize(text)
    assert all(token == token.strip() and token for token in tokenize(text))


def test_full_grade() -> None:
    """Three data points of the abstract earn the full grade."""
    assert grade("Pain fell by 2.4 against 0.9 (p=0.003).") == 1.0


def test_invented_figures_cost() -> None:
    """A figure that is nowhere in the abstract lowers the grade in proportion."""
    assert grade("Pain fell by 2.4 against 0.9 (p=0.003), in 77 people.") == pytest.approx(0.75)
    assert grade("Pain fell by 77 points.") == 0.0


def test_nothing_cited() -> None:
    """A thought without any data point earns nothing."""
    assert grade("It clearly works well.") == 0.0


def test_repeated_figures_count_once() -> None:
    """Saying a figure three times is one data point."""
    assert grade("2.4, yes 2.4, really 2.4") == pytest.approx(1 / 3)


def test_phrases_of_the_question_earn_nothing() -> None:
    """Words copied from the question are no citation, though they stand in the abstract too."""
    assert evidence("early walking or bed rest", ABSTRACT).phrase_points == 1
    assert evidence("early walking or bed rest", ABSTRACT, QUESTION).phrase_points == 0


def test_phrases_ignore_case_and_punctuation() -> None:
    """A phrase of four words counts whatever its case and punctuation; three words do not."""
    assert evidence("we RANDOMISED, 120 adults", ABSTRACT).phrase_points == 1
    assert evidence("we randomised adults", ABSTRACT).phrase_points == 0


def test_long_copy_earns_nothing() -> None:
    """Copying more words in a row than allowed earns nothing."""
    abstract = [" ".join(f"word{i}" for i in range(80))]
    copied = abstract[0].split()
    assert grounding(" ".join(copied[:60]), abstract, "", RewardConfig()) == 1.0
    assert grounding(" ".join(copied[:61]), abstract, "", RewardConfig()) == 0.0
