"""What completions earn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo.completions import VERDICTS, parse_completion, render_completion
from medgrpo.config import RewardConfig
from medgrpo.prompts import gold_completion
from medgrpo.rewards import PILLARS, reward_functions, score_completion
from medgrpo.rewards.correctness import correctness
from medgrpo.rewards.structure import structure
from medgrpo.testing import tiny_record

deterministic = settings(derandomize=True, deadline=None, max_examples=200)
RECORD = tiny_record()
# Free text, and text made of the abstract's own sentences and figures, so that grounding is reached.
PIECES = [*RECORD.contexts, RECORD.question, "2.4", "99", "(p=0.003)", "Pain fell.", "<answer>", "\n"]
thoughts = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), min_size=1).map(" ".join))
formed = st.builds(render_completion, thoughts, st.sampled_from(VERDICTS))
completions = st.one_of(st.text(), thoughts, formed)


@deterministic
@given(completions, st.sampled_from(VERDICTS))
def test_total_is_bounded(text: str, verdict: str) -> None:
    """Every completion earns between 0 and 1.7, every pillar between 0 and its weight."""
    scores, config = score_completion(tiny_record(verdict=verdict), text), RewardConfig()
    assert 0 <= scores.total <= 1.7 + 1e-9
    for pillar in PILLARS:
        assert 0 <= getattr(scores, pillar) <= getattr(config, pillar)


@deterministic
@given(formed, completions, st.sampled_from(VERDICTS))
def test_right_in_form_outranks_wrong(right: str, wrong: str, verdict: str) -> None:
    """A right answer in strict form, however bad its thought, earns more than any other completion's answer."""
    record = tiny_record(verdict=verdict)
    first, second = parse_completion(right), parse_completion(wrong)
    if first.well_formed and first.verdict == verdict and (not second.well_formed or second.verdict != verdict):
        assert score_completion(record, right).total > score_completion(record, wrong).total


@pytest.mark.parametrize(("said", "most"), [("no", 0.2), ("maybe", 0.4)])
def test_best_wrong_answer(said: str, most: float) -> None:
    """The most beautiful thought with a wrong verdict earns 0.2, with a hedge 0.4, and a bare right one 1."""
    beautiful = gold_completion(RECORD).replace(">yes<", f">{said}<")
    assert score_completion(RECORD, beautiful).total == pytest.approx(most)
    assert score_completion(RECORD, render_completion("?", "yes")).total == 1.0


@deterministic
@given(completions)
def test_outside_the_form_nothing_is_earned(text: str) -> None:
    """A completion that is not in strict form earns nothing."""
    if not parse_completion(text).well_formed:
        assert score_completion(RECORD, text).total == 0


@deterministic
@given(st.lists(completions, max_size=4))
def test_reward_functions_sum_to_the_total(texts: list[str]) -> None:
    """The trainer's reward functions add up to what score_completion gives."""
    functions = reward_functions({"1": RECORD}, RewardConfig())
    columns = [function(completions=texts, record_id=["1"] * len(texts)) for function in functions]
    sums = [sum(row) for row in zip(*columns, strict=True)]
    assert sums == pytest.approx([score_completion(RECORD, text).total for text in texts])


def test_reward_functions_read_chats_and_ignore_other_columns() -> None:
    """Completions may be strings or chat messages; other columns of the dataset do no harm."""
    functions = reward_functions({"1": RECORD}, RewardConfig())
    text = gold_completion(RECORD)
    chat = [[{"role": "assistant", "content": text}]]
    for function in functions:
        assert function(completions=chat, record_id=["1"], verdict=["yes"]) == function([text], ["1"])
    assert [function.__name__ for function in functions] == list(PILLARS)


def test_weights_scale_the_pillars() -> None:
    """A gold completion earns the sum of whatever weights are set."""
    config = RewardConfig(correctness=2, grounding=1, structure=0.1)
    assert score_completion(RECORD, gold_completion(RECORD, config), config).total == pytest.approx(3.1)


@pytest.mark.parametrize(
    ("said", "expert", "grade"),
    [("maybe", "no", 0.2), ("yes", "maybe", 0.2), ("no", "yes", 0.0), ("maybe", "maybe", 1.0), (None, "no", 0.0)],
)
def test_correctness(said: str | None, expert: str, grade: float) -> None:
    """Hedging is less wrong than the opposite claim, in both directions."""
    assert correctness(said, expert, RewardConfig()) == grade


def form_grade(thought: str) -> float:
    return structure(parse_completion(render_completion(thought, "yes")), RewardConfig())


def test_structure_of_long_thoughts() -> None:
    """Structure falls beyond 120 words and is gone at 240."""
    words = [f"word{i}" for i in range(240)]
    assert form_grade(" ".join(words[:120])) == 1.0
    assert form_grade(" ".join(words[:180])) == pytest.approx(0.5)
    assert form_grade(" ".join(words)) == 0.0


def test_structure_of_repetition() -> None:
    """A thought that goes round in circles loses structure."""
    assert form_grade("pain fell a lot " * 10) < 0.2
