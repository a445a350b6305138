"""The one parser of completions."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medgrpo.completions import VERDICTS, parse_completion, render_completion

deterministic = settings(derandomize=True, deadline=None, max_examples=300)
PIECES = [
    "<thought>",
    "</thought>",
    "<answer>",
    "</answer>",
    "<ANSWER>",
    "yes",
    "no",
    "maybe",
    "Yes",
    " ",
    "\n",
    "p<0.05",
]
tag_soup = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12).map("".join)
thoughts = st.text(min_size=1).filter(str.strip)


@deterministic
@given(st.one_of(st.text(), tag_soup))
@example("<answer>yeſ</answer>")
@example("<answer>" * 50)
@example("\ud800<thought>\0")
def test_accepts_any_string(text: str) -> None:
    """Any string is read without an error, and a verdict is one of the three words or None."""
    completion = parse_completion(text)
    assert completion.verdict in (*VERDICTS, None)
    assert completion.thought == completion.thought.strip()


@deterministic
@given(st.one_of(st.text(), tag_soup))
def test_strict_form_implies_verdict_and_thought(text: str) -> None:
    """A well-formed completion has a thought, a verdict, and exactly its four tags."""
    completion = parse_completion(text)
    if completion.well_formed:
        assert completion.thought
        assert completion.verdict in VERDICTS
        assert text.count("<") - completion.thought.count("<") == 4


@deterministic
@given(thoughts, st.sampled_from(VERDICTS))
def test_round_trip(thought: str, verdict: str) -> None:
    """What is rendered is parsed back as it was, in strict form."""
    completion = parse_completion(render_completion(thought, verdict))
    assert (completion.thought, completion.verdict, completion.well_formed) == (thought.strip(), verdict, True)


@pytest.mark.parametrize(
    "text",
    [
        "<thought>a</thought><answer>yes</answer>",
        "\n<thought>\na\nb</thought>\n\n<answer> maybe </answer>\n",
        "<thought>p < 0.05 and <b>bold</b></thought><answer>no</answer>",
    ],
)
def test_strict_form(text: str) -> None:
    """White space around blocks and other angle brackets inside the thought keep the strict form."""
    assert parse_completion(text).well_formed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yes",
        "<answer>yes</answer>",
        "<thought> </thought><answer>yes</answer>",
        "<thought>a</thought><answer>Yes</answer>",
        "<thought>a</thought><answer>yes.</answer>",
        "<thought>a</thought><answer>yes</answer> indeed",
        "Well: <thought>a</thought><answer>yes</answer>",
        "<thought>a</thought><answer>yes</answer><answer>yes</answer>",
        "<thought>a<thought>b</thought><answer>yes</answer>",
        "<thought>a</thought><thought>b</thought><answer>yes</answer>",
        "<thought>a <ANSWER>no</ANSWER></thought><answer>yes</answer>",
        "<thought>a</thought><answer>yes",
        "<answer>yes</answer><thought>a</thought>",
    ],
)
def test_not_strict_form(text: str) -> None:
    """A missing, empty, repeated, misplaced or unclosed block, or any text outside, is not the strict form."""
    assert not parse_completion(text).well_formed


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("yes", "yes"),
        ("  **No**, it does not.", "no"),
        ("Maybe", "maybe"),
        ("I think yes", None),
        ("nothing is known", None),
        ("<answer>YES", "yes"),
        ("<answer>yes</answer><answer>Yes, really</answer>", "yes"),
        ("<answer>yes</answer><answer>no</answer>", None),
        ("<answer>unclear</answer><answer>no</answer>", "no"),
        ("<thought>yes</thought>", None),
        ("yes <thought>a</thought>", None),
        ("<answer></answer>", None),
    ],
)
def test_lenient_reading(text: str, verdict: str | None) -> None:
    """The word that opens the answer counts, also without tags; contradicting answers count as none."""
    assert parse_completion(text).verdict == verdict


def test_thought_ends_at_the_answer() -> None:
    """The thought of an unclosed block ends where the answer begins."""
    completion = parse_completion("<thought>Pain fell. <answer>yes</answer>")
    assert (completion.thought, completion.verdict) == ("Pain fell.", "yes")
