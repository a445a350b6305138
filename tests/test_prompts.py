"""Prompts and gold completions."""

import pytest

from medgrpo.completions import parse_completion
from medgrpo.config import RewardConfig
from medgrpo.domains.synthetic import generate
from medgrpo.prompts import gold_completion, render_prompt, render_question
from medgrpo.rewards import score_completion
from medgrpo.rewards.agreement import split_sentences
from medgrpo.rewards.grounding import unsupported_figures
from medgrpo.testing import tiny_record


def prompt_text(**changes: object) -> str:
    return "\n".join(message["content"] for message in render_prompt(tiny_record(**changes)))


def test_prompt_holds_question_and_abstract() -> None:
    """A prompt is a system turn and a user turn with every section of the abstract and the question."""
    record = tiny_record()
    messages = render_prompt(record)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert all(part in messages[1]["content"] for part in [record.question, *record.contexts])


@pytest.mark.parametrize("changes", [{"long_answer": "Other words."}, {"verdict": "no"}, {"year": 1999}])
def test_prompt_never_depends_on_the_answer(changes: dict[str, object]) -> None:
    """Neither long_answer, nor verdict, nor year makes a difference to the prompt."""
    assert prompt_text(**changes) == prompt_text()


def test_served_and_trained_prompts_agree() -> None:
    """A question asked by hand is rendered exactly as a record is."""
    record = tiny_record()
    assert render_question(record.question, list(record.contexts)) == render_prompt(record)


def test_gold_completions_earn_the_maximum() -> None:
    """Gold completions of 150 synthetic records are in strict form, right, and earn all that can be earned."""
    for record in generate(150, seed=5):
        text = gold_completion(record)
        assert parse_completion(text).verdict == record.verdict
        assert score_completion(record, text).total == pytest.approx(1.7), record.id


def test_gold_completion_leaves_out_unsupported_figures() -> None:
    """A sentence of the long_answer whose figure the abstract does not hold is not taught."""
    record = tiny_record(long_answer="It relieves pain. It helped 77% of patients.")
    thought = parse_completion(gold_completion(record)).thought
    assert "It relieves pain." in thought
    assert unsupported_figures(thought, "\n".join(record.contexts)) == ()


def test_gold_completion_without_usable_long_answer() -> None:
    """Where no sentence of the long_answer can be used, the thought quotes the abstract alone."""
    record = tiny_record(long_answer="It helped 77% of patients.")
    thought = parse_completion(gold_completion(record)).thought
    assert thought
    assert "77" not in thought


def test_gold_completion_follows_the_bounds() -> None:
    """A gold thought stays within the longest thought that earns full structure, however long the long_answer is."""
    record = tiny_record(long_answer=" ".join(f"word{i}" for i in range(500)))
    assert score_completion(record, gold_completion(record)).total == pytest.approx(1.7)
    assert len(parse_completion(gold_completion(record)).thought.split()) <= RewardConfig().max_thought_words


def test_sentences_keep_decimals_and_abbreviated_figures_together() -> None:
    """A decimal point does not end a sentence; a line break alone does not either."""
    assert split_sentences("It fell\nby 2.4 points. Then p=.03 was seen! (We stopped.)") == [
        "It fell by 2.4 points.",
        "Then p=.03 was seen!",
        "(We stopped.)",
    ]
