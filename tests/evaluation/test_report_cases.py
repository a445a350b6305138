"""Tests of medgrpo.evaluation.report_cases, and of the citations that it marks."""

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from medgrpo.completions import VERDICT_FORM
from medgrpo.config import RewardConfig
from medgrpo.domains import synthetic
from medgrpo.evaluation.compare import case_row
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.report_cases import case_view, paint
from medgrpo.evaluation.scoring import answer_row
from medgrpo.prompts import gold_completion
from medgrpo.rewards.grounding import evidence, figures, normalize, tokenize
from medgrpo.testing import tiny_record


def marked(pieces, kind):
    """The marked pieces of an answer or an abstract's section."""
    return [text for text, mark in pieces if mark == kind]


@pytest.mark.parametrize(
    ("base", "tuned", "right", "change"),
    [
        ("no", "yes", True, ["fixed"]),
        ("yes", None, False, ["broken"]),
        ("yes", "yes", True, []),
        ("no", "maybe", False, []),
    ],
)
def test_filters_look_at_the_tuned_model(base, tuned, right, change, case, answer):
    """Right and wrong are the tuned model's; changed means that exactly one of base and tuned is right."""
    case["answers"] = {"base": answer(base), "warmup": answer("no"), "tuned": answer(tuned)}
    seen = case_view(case, VERDICT_FORM, "abstract")
    assert (seen["right"], [one["kind"] for one in seen["changes"]]) == (right, change)
    assert [shown["model"] for shown in seen["answers"]] == ["Base", "Warm-up only", "Tuned"]


def test_a_change_from_the_champion_is_one_of_its_own(case, answer):
    """A case that the tuned model loses against the champion is told from one that it wins over the base model."""
    case["answers"] = {"base": answer("yes"), "tuned": answer("no"), "champion": answer("yes")}
    changes = case_view(case, VERDICT_FORM, "abstract")["changes"]
    assert [(one["reference"], one["kind"]) for one in changes] == [("base", "broken"), ("champion", "broken")]
    assert changes[1]["text"] == "Champion right → Tuned wrong"


def test_a_single_model_is_held_against_nothing(case, answer):
    """The base model alone is the model in question and changes from nobody."""
    case["answers"] = {"base": answer("yes")}
    seen = case_view(case, VERDICT_FORM, "abstract")
    assert (seen["right"], seen["changes"], seen["probes"]) == (True, [], [])


def test_an_answer_without_a_thought_is_shown_whole(case, answer):
    """What the model wrote is never hidden: no thought shows all the text, a broken form also the raw text."""
    bare = {"text": "I think so", "thought": "", "verdict": None, "well_formed": False, "spans": [[0, 3, True]]}
    case["answers"] = {"base": bare, "tuned": answer("yes", well_formed=False)}
    first, second = case_view(case, VERDICT_FORM, "abstract")["answers"]
    assert (first["said"], first["raw"], first["verdict"]) == ([("I think so", "")], "", None)
    assert second["said"] == [("Pain fell (p=0.01).", "")]
    assert second["raw"].startswith("<thought>")


def test_marks_tell_supported_from_unsupported(case, answer):
    """An invented figure inside a quoted passage keeps its own mark; the passage goes on around it."""
    thought = "Pain fell by 99 points."
    spans = [[0, 22, True], [13, 15, False]]
    case["answers"]["tuned"] = answer("yes", thought, spans=spans)
    said = case_view(case, VERDICT_FORM, "abstract")["answers"][1]["said"]
    assert said == [("Pain fell by ", "supported"), ("99", "unsupported"), (" points", "supported"), (".", "")]


def test_the_abstract_shows_who_cites_what(case, answer):
    """A place that the model in question cites is told from one that only others cite; all are named."""
    case["answers"] = {
        "base": answer("no", cited=[[0, 0, 7], [0, 9, 13]]),
        "tuned": answer("yes", cited=[[0, 9, 18]]),
    }
    (section,) = case_view(case, VERDICT_FORM, "abstract")["contexts"]
    shown = [(piece["text"], piece["by"], piece["kind"]) for piece in section if piece["by"]]
    assert shown == [
        ("RESULTS", "Base", "cited other"),
        ("Pain", "Base, Tuned", "cited"),
        (" fell", "Tuned", "cited"),
    ]
    assert "".join(piece["text"] for piece in section) == case["contexts"][0]


def test_probes_say_whether_the_verdict_changed(case):
    """Beside the probed model's verdict stands whether it is another one than with the abstract."""
    case["probes"] = {
        "no_abstract": {"verdict": "no", "text": "Perhaps."},
        "altered_numbers": {"verdict": "yes", "text": "<thought>Still.</thought><answer>yes</answer>"},
    }
    shown = case_view(case, VERDICT_FORM, "abstract")["probes"]
    assert [(one["label"], one["flipped"], one["text"]) for one in shown] == [
        ("No abstract", True, "Perhaps."),
        ("Numbers altered", False, "Still."),
    ]


@pytest.mark.parametrize("ranges", [[(-3, 2, 1)], [(2, 2, 1)], [(3, 1, 1)], [(0, 10**12, 1)], [(90, 99, 1)]])
def test_a_mark_outside_the_text_is_ignored(ranges):
    """Offsets of a file that anyone may have written neither fail nor take memory nor lose text."""
    assert paint("short", ranges) == [("short", 0)]


def test_painting_keeps_every_character():
    """Whatever overlaps, the pieces joined are the text, and neighbours differ in their marks."""
    generator = random.Random(4)
    for _ in range(200):
        text = "".join(generator.choices("ab \n😀é\u202e", k=generator.randrange(0, 30)))
        ranges = [
            (generator.randrange(-2, 32), generator.randrange(-2, 32), generator.randrange(1, 4)) for _ in range(6)
        ]
        pieces = paint(text, ranges)
        assert "".join(piece for piece, _ in pieces) == text
        assert all(one[1] != other[1] for one, other in pairwise(pieces))


# --- Citations are what they claim ----------------------------------------------------------------------------------


def answer_with(record, thought):
    """The row of an answer in strict form with this thought."""
    return answer_row(record, [Generation(f"<thought>{thought}</thought><answer>yes</answer>", 9)], RewardConfig())


def check_citations(record, thought, row=None):
    """Every span of a thought and every cited place of the abstract holds what it is marked for."""
    row = row or answer_with(record, thought)
    thought, found = row["thought"], row["figures"]
    cited = [record.contexts[section][start:end] for section, start, end in row["cited"]]
    assert all(cited)
    quoted = [word for piece in cited for word in tokenize(piece)]
    for start, end, supported in row["spans"]:
        piece = thought[start:end]
        assert piece.strip()
        words = tokenize(piece)
        if supported:
            assert set(words) <= {*quoted, *tokenize(record.question)}, piece
        else:
            assert set(words) & set(found["unsupported"]), piece
    invented = [thought[start:end] for start, end, supported in row["spans"] if not supported]
    assert {word for piece in invented for word in tokenize(piece)} >= set(found["unsupported"])
    return row


def test_marks_of_synthetic_answers_hold_what_they_claim():
    """On generated abstracts the expert's own evidence is marked, and an added figure is marked as unsupported."""
    for record in synthetic.generate(40, seed=3):
        gold = answer_row(record, [Generation(gold_completion(record), 9)], RewardConfig())
        row = check_citations(record, "", gold)
        assert row["cited"]
        assert all(supported for *_, supported in row["spans"])
        spoilt = check_citations(record, f"{gold['thought']} It held in 97.31% of 8642 adults.")
        assert [spoilt["thought"][start:end] for start, end, held in spoilt["spans"] if not held] == ["97.31%", "8642"]


def test_marks_of_published_answers_hold_what_they_claim():
    """On PubMedQA's abstracts, with their own typography and section breaks, marks stand where they say."""
    directory = os.environ.get("MEDGRPO_PUBMEDQA")
    if not directory:
        pytest.skip("MEDGRPO_PUBMEDQA does not name a directory with ori_pqal.json")
    from medgrpo.domains import pubmedqa

    records = list(pubmedqa.load(Path(directory) / "ori_pqal.json").records.values())
    for record in records[::10]:
        check_citations(record, f"{' '.join(record.contexts)[-700:]} And 8642 more.")


HOSTILE = [
    "Ｍｅａｎ pain fell by ２.４ points with treatment",
    "Mean pa\u00adin fell by 2\u200b.4 points with tre\u200datment",
    "𝟐.𝟒 points 😀 and ﬁve more; Mean pain fell by 2·4 points",
    "\u202eMean pain fell by 2.4 points\u202c (p=0.003)",
    "We randomised 120 adults to treatment 1 or placebo. Mean pain fell by 2.4 points",
    "2.4 " * 900,
    "Mean pain fell by 0.9 points with treatment and by 2.4 points with placebo",
    "10⁶ and T4 and IL-6 and 12 %",
    "</thought><script>2.4</script>",
    "Mean pain fell by 2.4 points. " * 400,
]


@pytest.mark.parametrize("thought", HOSTILE)
def test_marks_of_hostile_answers_hold_what_they_claim(thought):
    """Full-width digits, invisible characters, ligatures, loops and misquotes: every mark stands on what it names."""
    row = check_citations(tiny_record(), thought)
    for start, end, _ in row["spans"]:
        assert 0 <= start < end <= len(row["thought"])


def test_a_figure_is_marked_in_the_writers_own_spelling():
    """The mark covers the characters as written, invisible ones included, not their normalised form."""
    thought = "Mean pain fell by 2\u200b.４ points, and 𝟗𝟗 died."
    row = answer_with(tiny_record(), thought)
    unsupported = [thought[start:end] for start, end, held in row["spans"] if not held]
    assert unsupported == ["𝟗𝟗"]
    assert "2\u200b.４" in [thought[start:end] for start, end, held in row["spans"] if held]
    assert figures("2\u200b.４") == ("2.4",)
    assert normalize("𝟗𝟗") == "99"


def test_a_phrase_across_sections_is_cut_where_the_section_ends():
    """A thought that quotes over a section's end marks the end of the one and the beginning of the next."""
    record = tiny_record()
    thought = "adults to treatment 1 or placebo. Mean pain fell by 2.4 points"
    row = check_citations(record, thought)
    pieces = [record.contexts[section][start:end] for section, start, end in row["cited"]]
    assert "adults to treatment 1 or placebo." in pieces
    assert "Mean pain fell by 2.4 points" in pieces
    assert evidence(thought, record.contexts).longest_copy == 12


def test_a_sections_own_line_breaks_do_not_shift_the_marks():
    """A section may hold line breaks of its own; the marks of the next one stay in place."""
    record = tiny_record(contexts=("First\nline.\n\nThird line.", "Mean pain fell by 2.4 points.\nAnd 7 more."))
    row = check_citations(record, "Mean pain fell by 2.4 points")
    assert row["cited"] == [[1, 0, 28], [1, 18, 21]]
    view = case_view(case_row(record, {"tuned": [row]}, 0), VERDICT_FORM, "abstract")
    assert marked([(piece["text"], piece["by"]) for piece in view["contexts"][1]], "Tuned") == [
        "Mean pain fell by 2.4 points"
    ]


def test_a_character_that_is_half_supported_is_marked_as_unsupported():
    """One sign can hold two figures: of ½ the abstract holds the 1 and not the 2, and the mark says the worse."""
    record = tiny_record()
    row = answer_with(record, "Pain fell by ½.")
    assert row["spans"] == [[13, 14, False], [13, 14, True]]
    said = case_view(case_row(record, {"tuned": [row]}, 0), VERDICT_FORM, "abstract")["answers"][0]["said"]
    assert said == [("Pain fell by ", ""), ("½", "unsupported"), (".", "")]
