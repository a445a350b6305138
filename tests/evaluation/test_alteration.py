"""Tests of medgrpo.evaluation.alteration: which figures are altered, to what, and that nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.domains import synthetic
from medgrpo.evaluation.alteration import alter_numbers, sentences_as_written
from medgrpo.rewards.grounding import read

PIECES = (
    "p P = < > . , ( ) 0.03 .04 0.5 12% 30% 5 120 36/120 versus vs. and than compared with of Pain fell OR 1.4 95% CI "
    "0.9 to 2.1 difference -3.1 ± relative risk sd 2004 twelve 0·05 1,200 5e-2 A. [ ] − № ５"
)
pieces = st.lists(st.sampled_from(PIECES.split()), max_size=25)


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("It fell (p=0.01).", "It fell (p=0.61)."),
        ("It fell (P<.001).", "It fell (P=.61)."),
        ("It fell (P\xa0≤\xa00.05).", "It fell (P\xa0=\xa00.61)."),
        ("It fell (p value of 0·04).", "It fell (p value of 0.61)."),
        ("It did not fall (p>0.05).", "It did not fall (p=0.003)."),
        ("It did not fall (P = .43).", "It did not fall (P = .003)."),
        ("It did not fall (p=0.05).", "It did not fall (p=0.003)."),
    ],
)
def test_a_p_value_crosses_the_level(text, altered):
    """What was below 0.05 is well above it and the other way round, in the abstract's own spelling."""
    assert alter_numbers(text) == altered


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("Deaths: 12% vs. 30%.", "Deaths: 12% vs. 12%."),
        ("Deaths: 30% versus 29%.", "Deaths: 30% versus 15%."),
        ("Deaths: 12% and 14% (p=0.02).", "Deaths: 12% and 12% (p=0.61)."),
        ("Deaths: 12% and 30% (p=0.2).", "Deaths: 12% and 6% (p=0.003)."),
        ("It fell by 2.4 points with A versus 0.9 points.", "It fell by 2.4 points with A versus 2.4 points."),
        ("Scores: 8.6±2.1 versus 2.9±2.4.", "Scores: 8.6±2.1 versus 8.6±2.4."),
        ("Age 34.0 (8.4) versus 36.9 (10.7) years.", "Age 34.0 (8.4) versus 17.0 (10.7) years."),
    ],
)
def test_compared_figures_become_equal_or_differ(text, altered):
    """Where they differed the second is made equal, else halved; a p-value decides which, if there is one."""
    assert alter_numbers(text) == altered


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("It came in 24/200 (12%) versus 60/200 (30%).", "It came in 24/200 (12%) versus 24/200 (12%)."),
        ("It came in 12% (24/200) versus 30% (60 of 200).", "It came in 12% (24/200) versus 12% (24 of 200)."),
        ("It came in 24 of 200 (12%) versus 60 of 200 (30%).", "It came in 24 of 200 (12%) versus 24 of 200 (12%)."),
        ("It came in 24 (12%) versus 60 (30%).", "It came in 24 (12%) versus 24 (12%)."),
    ],
)
def test_counts_follow_their_percentages(text, altered):
    """The count behind an altered share is the one that gives this share."""
    assert alter_numbers(text) == altered


@pytest.mark.parametrize(
    ("text", "altered"),
    [
        ("odds ratio 3.5 (95% CI 1.6-7.9)", "odds ratio 1.0 (95% CI 0.8-1.2)"),
        ("OR 1.10, 95% confidence interval: 0.85 to 1.42", "OR 2.00, 95% confidence interval: 1.50 to 2.70"),
        ("difference -3.0, 95% CI -4.0 to -2.0", "difference 0.0, 95% CI -1.0 to 1.0"),
        ("difference 1.0, 95% CI -1.0 to 3.0", "difference 4.0, 95% CI 2.0 to 6.0"),
        ("relative risk 0.5 (p=0.01)", "relative risk 1.0 (p=0.61)"),
    ],
)
def test_estimates_move_with_their_intervals(text, altered):
    """Ratios go to 1 or to 2, differences to 0 or beyond their interval, and the interval goes along."""
    assert alter_numbers(text) == altered


def test_groups_agree_with_their_difference():
    """Two means differ by what the altered difference says."""
    text = "It was 105.0 versus 104.0 g/L; difference 1.0, 95% CI -1.0 to 3.0, p=0.33."
    assert alter_numbers(text) == "It was 105.0 versus 101.0 g/L; difference 4.0, 95% CI 2.0 to 6.0, p=0.003."


@pytest.mark.parametrize(
    "text",
    [
        "We asked 120 adults aged 40 to 65 years in 2004.",
        "A value of p<0.05 was considered significant.",
        "The level of significance was p = 0.05.",
        "Patients with grade 0 versus grade 1 were compared in 1998 versus 2004.",
        "The heart rate (HR) was 72.",
        "Sensitivity was 60% (95% CI 52 to 68).",
        "Fewer than 60% against less than 5 of them.",
        "We sent 1,200 letters versus 862.",
        "Nobody died.",
        "",
    ],
)
def test_other_figures_stay(text):
    """Sizes, ages, years, labels, levels of significance and single shares are no comparison."""
    assert alter_numbers(text) == text


def test_a_figure_that_is_spelled_stays():
    """Only digits are rewritten."""
    assert alter_numbers("Twelve percent versus 30%, p=0.2.") == "Twelve percent versus 30%, p=0.003."


def outside_figures(text):
    """The words of a text, and what stands between its figures, signs left out."""
    figures = [token for token in read(text) if token.is_figure]
    begins, ends = [0, *(token.end for token in figures)], [*(token.start for token in figures), len(text)]
    between = "".join(text[begin:end] for begin, end in zip(begins, ends, strict=True))
    words = [token.word for token in read(text) if not token.is_figure]
    return words, between.translate(dict.fromkeys(map(ord, "<>=≤≥-−–")))


@given(pieces, st.sampled_from(["", " "]))
def test_nothing_but_figures_changes(words, space):
    """Whatever the text, its words, brackets and spaces stay; only figures and the signs before them change."""
    text = space.join(words) if space else " ".join(words).replace(" (", "(")
    altered = alter_numbers(text)
    assert outside_figures(altered) == outside_figures(text)
    assert len(read(altered)) == len(read(text))


@pytest.mark.parametrize("record", synthetic.generate(25, seed=5), ids=lambda record: record.id)
def test_synthetic_comparisons_are_altered(record):
    """Each abstract's results change in figures and in nothing else, and its group sizes stay."""
    results = record.contexts[-1]
    assert alter_numbers(results) != results
    assert outside_figures(alter_numbers(results)) == outside_figures(results)
    assert alter_numbers(record.contexts[0]) == record.contexts[0]


@given(st.text())
def test_any_text_is_read(text):
    """No text is an error, and the sentences joined are the text."""
    assert isinstance(alter_numbers(text), str)
    assert "".join(sentences_as_written(text)) == text
