"""Whether a thought concludes what the expert concluded."""

import pytest

from medgrpo.completions import parse_completion
from medgrpo.config import RewardConfig
from medgrpo.domains.synthetic import generate
from medgrpo.prompts import gold_completion, render_prompt
from medgrpo.rewards.agreement import agreement, conclusion, split_sentences
from medgrpo.testing import tiny_record

RECORD = tiny_record()
EXPERT = "The treatment relieves pain better than placebo."


def grade(thought: str, **changes: str) -> float:
    return agreement(thought, tiny_record(**changes), RewardConfig())


def test_the_experts_conclusion_earns_all_wherever_the_evidence_ends() -> None:
    """Whatever is cited before it, the expert's own conclusion at the end has the full grade."""
    assert grade(EXPERT) == 1.0
    assert grade(f"Mean pain fell by 2.4 points with treatment. {EXPERT}") == 1.0


def test_like_words_earn_a_part() -> None:
    """Another wording of the conclusion agrees in part, more than an unrelated sentence."""
    assert 0.3 < grade("Pain was relieved with the treatment.") < 0.7
    assert grade("Costs were not recorded by any of the centres.") == 0.0


@pytest.mark.parametrize(
    "ending",
    [
        "It is not true that the treatment relieves pain better than placebo.",
        "The treatment never relieves pain better than placebo.",
        f"{EXPERT} Quality of life was better as well.",
        f"{EXPERT} It helps. It does not help. It may help.",
    ],
)
def test_a_denied_or_buried_conclusion_earns_less(ending: str) -> None:
    """Negating the conclusion, adding to it, and offering several lose most of the grade."""
    assert grade(f"Mean pain fell by 2.4 points. {ending}") < 0.5


def test_a_negation_left_out_costs() -> None:
    """Where the expert says no, the same sentence without its negation agrees in no part."""
    negative = "The treatment does not relieve pain any better."
    assert grade(negative, long_answer=negative) == 1.0
    assert grade("The treatment does relieve pain any better.", long_answer=negative) == 0.0


@pytest.mark.parametrize("times", [1, 3])
def test_the_question_agrees_with_nothing(times: int) -> None:
    """The question's own words count neither for nor against."""
    assert grade(" ".join([RECORD.question] * times)) == 0.0


def test_copied_and_foreign_thoughts_gain_little() -> None:
    """On synthetic records a pasted abstract, and another record's thought, earn a small part on average."""
    records = generate(60, seed=5)
    thoughts = [parse_completion(gold_completion(record)).thought for record in records]
    pasted = [agreement(" ".join(record.contexts), record, RewardConfig()) for record in records]
    foreign = [agreement(thoughts[place - 1], record, RewardConfig()) for place, record in enumerate(records)]
    assert sum(pasted) / 60 < 0.15
    assert sum(foreign) / 60 < 0.3


def test_several_sentences_are_compared_with_as_many() -> None:
    """Of a conclusion of two sentences the thought may give both, or one for a part of the grade."""
    long_answer = "The treatment relieves pain better than placebo. Further trials should compare doses."
    assert grade(f"Pain fell. {long_answer}", long_answer=long_answer) == 1.0
    assert 0.5 < grade(f"Pain fell a lot in both arms of this. {EXPERT}", long_answer=long_answer) < 1


def test_what_cannot_be_said_is_not_asked_for() -> None:
    """Sentences with figures that the abstract lacks are no part of the comparison; where none is left, all earn it."""
    long_answer = f"{EXPERT} It helped 77% of patients."
    assert conclusion(long_answer, RECORD.contexts, 60) == EXPERT
    assert grade(EXPERT, long_answer=long_answer) == 1.0
    assert grade("Anything.", long_answer="It helped 77% of patients.") == 1.0


def test_a_thought_too_long_to_be_read_agrees_with_nothing() -> None:
    """Beyond the length that rewards read, nothing is earned."""
    assert grade(f"{'Pain fell. ' * 1000}{EXPERT}") == 0.0


def test_the_long_answer_is_compared_and_never_shown() -> None:
    """The grade depends on the long_answer, the prompt does not."""
    other = tiny_record(long_answer="Nausea was as frequent in both groups.")
    assert agreement(EXPERT, RECORD, RewardConfig()) > agreement(EXPERT, other, RewardConfig())
    assert render_prompt(RECORD) == render_prompt(other)


def test_sentences_may_begin_with_any_sign_but_a_small_letter() -> None:
    """A bullet, a quotation mark and a Greek capital begin a sentence; an abbreviation's small letter does not."""
    assert split_sentences("Pain fell. • Nausea rose. Ωmega helped, e.g. in women.") == [
        "Pain fell.",
        "• Nausea rose.",
        "Ωmega helped, e.g. in women.",
    ]
