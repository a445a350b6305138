"""What completions earn."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medgrpo import rewards
from medgrpo.completions import VERDICTS, parse_completion, render_completion
from medgrpo.config import RewardConfig
from medgrpo.prompts import gold_completion
from medgrpo.records import Record
from medgrpo.rewards import PILLARS, Scores, reward_functions, score_completion
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
modes = st.sampled_from(["gated", "weighted"])


@pytest.mark.parametrize(("said", "most"), [("no", 0.2), ("maybe", 0.4)])
def test_best_wrong_answer(said: str, most: float) -> None:
    """The most beautiful thought with a wrong verdict earns 0.2, with a hedge 0.4, and a bare right one 0.8."""
    beautiful = gold_completion(RECORD).replace(">yes<", f">{said}<")
    assert score_completion(RECORD, beautiful).total == pytest.approx(most)
    assert score_completion(RECORD, render_completion("?", "yes")).total == 0.8


@deterministic
@given(completions)
def test_outside_the_form_nothing_is_earned(text: str) -> None:
    """A completion that is not in strict form earns nothing."""
    if not parse_completion(text).well_formed:
        assert score_completion(RECORD, text).total == 0


@deterministic
@given(st.lists(completions, max_size=4), st.lists(st.integers(0, 20), min_size=4, max_size=4), modes)
def test_reward_functions_sum_to_the_total(texts: list[str], lengths: list[int], mode: str) -> None:
    """The trainer's reward functions add up to what score_completion gives, the share of the cap included."""
    config = RewardConfig(mode=mode)
    functions = reward_functions({"1": RECORD}, config, cap=16)
    ids = [[0] * length for length in lengths[: len(texts)]]
    columns = [f(completions=texts, record_id=["1"] * len(texts), completion_ids=ids) for f in functions]
    sums = [sum(row) for row in zip(*columns, strict=True)]
    totals = [score_completion(RECORD, text, config, len(i) / 16).total for text, i in zip(texts, ids, strict=True)]
    assert sums == pytest.approx(totals)


def test_a_completion_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three pillars of a batch, in which one text stands twice, take as many scorings as it has texts."""
    scored: list[str] = []
    original = rewards.score_completion

    def counting(record: Record, text: str, *arguments: Any) -> Scores:
        scored.append(text)
        return original(record, text, *arguments)

    monkeypatch.setattr(rewards, "score_completion", counting)
    for function in reward_functions({"1": RECORD}, RewardConfig()):
        function(completions=["yes", "no", "yes"], record_id=["1"] * 3)
    assert scored == ["yes", "no"]


def test_running_towards_the_cap_costs_structure() -> None:
    """A completion that takes the last tenth of the cap loses structure, all of it at the cap, and nothing else."""
    text = gold_completion(RECORD)
    used = {share: score_completion(RECORD, text, used=share) for share in (0.5, 0.9, 0.95, 1.0)}
    assert [round(scores.structure, 6) for scores in used.values()] == [0.2, 0.2, 0.1, 0.0]
    assert {(scores.correctness, scores.grounding) for scores in used.values()} == {(1.0, 0.5)}
    assert score_completion(RECORD, text, RewardConfig(overlong_share=0), used=1.0).structure == 0.2


def test_the_weighted_sum_pays_what_gates_do_not() -> None:
    """In the mode for comparison a beautiful wrong answer earns grounding, and a verdict outside the form is paid."""
    weighted = RewardConfig(mode="weighted")
    beautiful = gold_completion(RECORD).replace(">yes<", ">maybe<")
    assert score_completion(RECORD, beautiful, weighted).total == pytest.approx(0.9)
    assert score_completion(RECORD, render_completion("?", "yes"), weighted).total == 0.8
    assert score_completion(RECORD, "Yes, it does.", weighted).total == 0.8
    assert score_completion(RECORD, gold_completion(RECORD), weighted).total == pytest.approx(1.7)


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
    [("maybe", "no", 0.2), ("yes", "maybe", 0.1), ("no", "yes", 0.0), ("maybe", "maybe", 0.8), (None, "no", 0.0)],
)
def test_correctness(said: str | None, expert: str, grade: float) -> None:
    """The opposite claim loses most, claiming where the expert does not no less than not claiming where he does."""
    assert correctness(said, expert, RewardConfig()) == pytest.approx(grade)


@pytest.mark.parametrize(
    ("cost", "said", "expert"),
    [
        ("cost_yes_for_no", "yes", "no"),
        ("cost_no_for_yes", "no", "yes"),
        ("cost_maybe_for_either", "maybe", "yes"),
        ("cost_maybe_for_either", "maybe", "no"),
        ("cost_either_for_maybe", "yes", "maybe"),
        ("cost_either_for_maybe", "no", "maybe"),
    ],
)
def test_each_confusion_has_its_cost(cost: str, said: str, expert: str) -> None:
    """A cost is taken from its own confusion and from no other."""
    config = RewardConfig.model_validate({cost: 0.65})
    assert correctness(said, expert, config) == pytest.approx(0.35)
    changed = [
        (a, b) for a in VERDICTS for b in VERDICTS if correctness(a, b, config) != correctness(a, b, RewardConfig())
    ]
    assert (said, expert) in changed
    assert len(changed) <= 2


def test_agreement_is_a_share_of_correctness() -> None:
    """A right verdict earns 0.8 with a thought that concludes nothing, and the rest with the expert's conclusion."""
    assert score_completion(RECORD, render_completion("Costs rose.", "yes")).correctness == pytest.approx(0.8)
    assert score_completion(RECORD, render_completion(RECORD.long_answer, "yes")).correctness == 1.0
    assert score_completion(RECORD, render_completion(RECORD.long_answer, "no")).correctness == 0.0


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
