"""Tests of medgrpo.evaluation.report_words."""

import math

import pytest

from medgrpo.evaluation import report_words as words

NBSP = "\N{NO-BREAK SPACE}"


def test_models_stand_in_the_order_of_the_pipeline():
    """Base, warm-up, tuned, champion, whatever the order given; unknown models come last."""
    given = ["other", "champion", "tuned", "base", "warmup"]
    assert words.ordered(given) == ["base", "warmup", "tuned", "champion", "other"]


@pytest.mark.parametrize(
    ("models", "subject"),
    [(["base", "tuned", "champion"], "tuned"), (["base", "org/model"], "org/model"), (["base"], "base"), ([], "")],
)
def test_the_model_in_question_is_the_tuned_one_else_the_last(models, subject):
    """A run without a tuned model still has a model that its report is about."""
    assert words.subject_of(models) == subject


def test_a_model_is_held_against_all_others_but_its_warm_up():
    """Base and champion, or whatever stands beside it; the warm-up is a step on the way to the tuned model."""
    assert words.references(["base", "warmup", "champion", "tuned"]) == ["base", "champion"]
    assert words.references(["against", "evaluated"]) == ["against"]
    assert words.references(["base"]) == words.references([]) == []


def test_digits_follow_the_number_of_cases():
    """50 cases carry whole percents, 500 carry tenths."""
    assert words.quantity(0.6249, 50) == f"62{NBSP}%"
    assert words.quantity(0.6249, 500) == f"62.5{NBSP}%"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "62", {}])
def test_what_is_no_number_is_a_dash(value):
    """None, not a number, infinity and text are shown as missing."""
    assert words.quantity(value, 50) == "–"
    assert words.interval({"low": value, "high": 0.5, "n": 50}) == "–"


def test_an_interval_below_zero_is_written_with_a_word():
    """Between signs a dash would be read as one of them."""
    assert words.interval({"low": -0.03, "high": 0.12, "n": 50}) == f"−3 to 12{NBSP}%"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-9, "p < 0.001"), (0.0123, "p = 0.012"), (0.3456, "p = 0.35"), (1.0, "p = 1.00"), (None, "p = –")],
)
def test_p_values_read_like_in_a_paper(value, text):
    """Small ones are bounded, the others rounded to what they can mean; no line ends within one."""
    assert words.p_value(value) == text.replace(" ", NBSP)


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.24, "8.2 s"), (125.2, "2 min 05 s"), (3599.7, "1 h 00 min"), (11220, "3 h 07 min"), (None, "–")],
)
def test_durations_read_like_speech(value, text):
    """Seconds, minutes or hours, whichever a person would say."""
    assert words.duration(value) == text


def test_an_unknown_probe_keeps_its_name():
    """A probe that the report has no words for is still shown."""
    assert words.probe_label("no_abstract", "abstract") == "No abstract"
    assert words.probe_label("other_abstract", "problem") == "Another problem"
    assert words.probe_label("half_abstract", "abstract") == "half abstract"
