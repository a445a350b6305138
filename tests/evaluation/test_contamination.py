"""Tests of medgrpo.evaluation.contamination: what counts as a copy, and what is listed."""

import os
import random
import time
from pathlib import Path

import pytest

from medgrpo.config import EvaluationConfig, load_config
from medgrpo.domains import pubmedqa, synthetic
from medgrpo.evaluation.contamination import contamination, likeness
from medgrpo.testing import tiny_record

THRESHOLD = EvaluationConfig().near_duplicate
TEXTS = (
    "Warfarin doses were read from charts of two clinics, and bleeding was counted by month.",
    "Children with asthma kept a diary of their cough while parents stopped smoking at home.",
    "Hip replacements were followed for ten years; loosening was judged on plain films.",
    "Nurses phoned diabetic adults weekly, and glucose was measured before breakfast.",
)


def records_with(prefix, texts, questions=None):
    questions = questions or [f"What about {prefix} number {i}: {text.split()[0]}?" for i, text in enumerate(texts)]
    return [
        tiny_record(f"{prefix}{i}", contexts=(text,), question=question)
        for i, (text, question) in enumerate(zip(texts, questions, strict=True))
    ]


def test_different_texts_are_no_copies():
    """Other studies with other questions are not listed."""
    found = contamination(records_with("train", TEXTS[:2]), records_with("case", TEXTS[2:]), 0.9)
    assert found == {
        "compared": {"train": 2, "cases": 2},
        "threshold": 0.9,
        "pairs": [],
        "cases": {"abstract": 0, "question": 0},
    }


def test_a_copied_abstract_is_listed():
    """Also with another question, in other sections and with a word changed; the pair names both ids."""
    case = tiny_record("copy", contexts=tuple(TEXTS[1].replace("weekly", "daily").split(" of ")), question="Why?")
    found = contamination(records_with("train", TEXTS), [case, *records_with("case", ["Bread was baked."])], THRESHOLD)
    (pair,) = found["pairs"]
    assert (pair["case"], pair["train"]) == ("copy", "train1")
    assert pair["abstract"] > 0.8 > pair["question"]
    assert found["cases"] == {"abstract": 1, "question": 0}


def test_a_repeated_question_is_listed_once_and_counted_apart():
    """Over another abstract it is no leak: it stands behind the copies, with the nearest training record."""
    train = records_with("train", TEXTS, ["Does tea help?", "Does tea help?", "Is it safe?", "Is it?"])
    cases = records_with("case", ["Nurses phoned adults and made tea.", TEXTS[2]], ["Does tea help?", "Is it safe?"])
    found = contamination(train, cases, THRESHOLD)
    assert [(pair["case"], pair["train"]) for pair in found["pairs"]] == [("case1", "train2"), ("case0", "train0")]
    assert found["cases"] == {"abstract": 1, "question": 1}
    assert found["pairs"][0]["abstract"] == found["pairs"][1]["question"] == 1.0


def test_every_copy_of_a_case_is_listed_most_alike_first():
    """A case that was trained on twice is listed twice, the closer copy before the other."""
    near = TEXTS[0].replace("two clinics", "three hospitals")
    found = contamination(
        records_with("train", [near, TEXTS[0], TEXTS[3]]), records_with("case", [TEXTS[0]]), THRESHOLD
    )
    assert [pair["train"] for pair in found["pairs"]] == ["train1", "train0"]
    assert found["cases"]["abstract"] == 1


def test_likeness_is_symmetric_and_bounded():
    """Each text is wholly like itself, and no likeness leaves [0, 1]."""
    found = likeness(TEXTS, TEXTS)
    assert found.diagonal() == pytest.approx(1.0)
    assert (found == found.T).all() or abs(found - found.T).max() < 1e-12
    assert ((found >= 0) & (found <= 1)).all()


def test_the_demo_repeats_questions_but_copies_no_abstract():
    """Templates make synthetic texts alike; the demo's threshold sets them apart from copies."""
    config = load_config("demo")
    train, cases = synthetic.load(config.data.synthetic_pool, config.data.synthetic_test, config.data.synthetic_seed)
    found = contamination(train, cases, config.evaluation.near_duplicate)
    assert found["cases"]["abstract"] == 0
    assert found["cases"]["question"] == len(found["pairs"]) > len(cases) // 2


@pytest.fixture(scope="module")
def real():
    if "MEDGRPO_PUBMEDQA" not in os.environ:
        pytest.skip("MEDGRPO_PUBMEDQA is not set")
    corpus = pubmedqa.load(Path(os.environ["MEDGRPO_PUBMEDQA"]) / "ori_pqal.json")
    return corpus.split("train"), corpus.split("test")


@pytest.mark.slow
def test_the_official_split_has_no_copies(real):
    """In seconds: nothing in PubMedQA's pool comes near the threshold, which is three times the most alike pair's."""
    train, test = real
    started = time.perf_counter()
    assert contamination(train, test, THRESHOLD)["pairs"] == []
    assert time.perf_counter() - started < 20
    assert contamination(train, test, THRESHOLD / 3)["cases"]["abstract"] <= 5


@pytest.mark.parametrize(("share", "found_at_least"), [(0.1, 1.0), (0.2, 0.99), (0.3, 0.9)])
def test_edited_copies_are_found(real, share, found_at_least):
    """Copies of 100 real abstracts are found with a tenth, a fifth and a third of their words replaced."""
    train, test = real
    rng = random.Random(0)
    other = " ".join(record.contexts[0] for record in test).split()
    copies = [
        record.model_copy(
            update={
                "question": f"Number {i}?",
                "contexts": (
                    " ".join(
                        rng.choice(other) if rng.random() < share else word
                        for word in " ".join(record.contexts).split()
                    ),
                ),
            }
        )
        for i, record in enumerate(train[:100])
    ]
    found = contamination(train, copies, THRESHOLD)
    assert found["cases"]["abstract"] >= 100 * found_at_least
    assert all(pair["case"] == pair["train"] for pair in found["pairs"])
