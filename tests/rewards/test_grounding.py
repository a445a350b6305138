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
    assert grade("by 2.4 points, yes by 2.4 points, really by 2.4 points") == pytest.approx(1 / 3)


def test_figures_without_context_earn_nothing() -> None:
    """A bare list of the abstract's figures is no citation; two words of the abstract beside a figure make it one."""
    assert grade("120 2.4 0.9 0.003") == 0.0
    assert grade("randomised 120 adults: by 2.4 points, rest (p=0.003)") == pytest.approx(2 / 3)
    assert grade("randomised 120 adults: pain fell by 2.4 points") == 1.0


@pytest.mark.parametrize(
    "thought",
    [
        "Mean pain fell by 0.9 points with walking and by 2.4 points with rest.",
        "Mean pain fell by 2.4 points with walking and by 2.4 points with rest.",
    ],
)
def test_misquoted_figures_are_unsupported(thought: str) -> None:
    """A figure of the abstract counts against the thought where the passage quoted has another."""
    assert evidence(thought, ABSTRACT).unsupported
    assert grade(thought) < 1


@pytest.mark.parametrize("thought", ["Pain fell by 0.9 with rest, but by 2.4 with walking.", "By 2.4 or 0.9 points."])
def test_figures_in_other_words_are_supported(thought: str) -> None:
    """Another order, and other words around the figures, are no misquotation."""
    assert evidence(thought, ABSTRACT).unsupported == ()


@pytest.mark.parametrize(
    ("thought", "unsupported"),
    [
        ("in 12% of them", ()),
        ("12 per cent", ()),
        ("12 of them", ()),
        ("in 40% of them", ("40",)),
        ("5%", ()),
        ("7%", ()),
    ],
)
def test_percentages_need_a_percentage(thought: str, unsupported: tuple[str, ...]) -> None:
    """A percentage is not supported by a plain number; of a range with one sign both ends are percentages."""
    assert evidence(thought, ["Seen in 12% (5 to 7%) of 40 people."]).unsupported == unsupported


def test_figures_in_words_count() -> None:
    """Numbers from eleven to ninety-nine, spelled or in digits, are the same figures."""
    assert evidence("Twenty-four adults", ["We saw 24 adults"]).supported == ("24",)
    assert evidence("seventy seven died", ["We saw 24 adults"]).unsupported == ("77",)


def test_spans_say_where_citations_stand() -> None:
    """Characters of the thought and of the abstract, of both as they were given, whatever their alphabet."""
    abstract, thought = ["β‑blockers: pain fell by 2·4 points."], "ﬁne: pain fell by 2.4 points, not 77"
    found = evidence(thought, abstract)
    shown = [
        (s.kind, s.supported, thought[s.start : s.end], s.source and abstract[0][slice(*s.source)]) for s in found.spans
    ]
    assert shown == [
        ("phrase", True, "pain fell by 2.4 points", "pain fell by 2·4 points"),
        ("figure", True, "2.4", "2·4"),
        ("figure", False, "77", None),
    ]


def test_a_phrase_counts_once_at_any_length() -> None:
    """The same passage quoted in growing pieces is one data point."""
    words = ABSTRACT[1].split()
    assert evidence(". ".join(" ".join(words[:length]) for length in (4, 5, 6, 7)), ABSTRACT).phrase_points == 1


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
    abstract = [" ".join(f"{a}{b}" for a in "abcdefgh" for b in "klmnopqrst")]
    copied = abstract[0].split()
    assert grounding(" ".join(copied[:60]), abstract, "", RewardConfig()) == 1.0
    assert grounding(" ".join(copied[:61]), abstract, "", RewardConfig()) == 0.0


@deterministic
@given(st.text(st.sampled_from("fıİiftyſsxé -नine1२²①%.,")))
def test_letters_that_only_look_like_others_are_read(text: str) -> None:
    """Dotless and dotted i, the long s and digits of other scripts never stop a reward."""
    assert 0 <= grounding(text, [f"Seen in fifty-nine ({text})."], text, RewardConfig()) <= 1
    assert 0 <= grounding(f"f{text}fty sıxty nİne {text}", [text], "", RewardConfig()) <= 1


@pytest.mark.parametrize("text", ["fİfty", "fıfty", "twenty nİne"])
def test_numbers_in_words_are_ascii(text: str) -> None:
    """A word with another alphabet's i is no number."""
    assert "50" not in figures(text)
    assert "29" not in figures(text)
