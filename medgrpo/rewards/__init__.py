"""What a completion earns, gated so that form never outranks truth.

With the grades c (correctness), g (grounding) and s (structure), each in [0, 1], and the weights C, G, S of
`RewardConfig`, a completion earns

    total = [strict form]·C·c + [strict form, right verdict]·G·g + S·s

where s is 0 outside the strict form, and s and g are 0 if the thought says in so many words that the answer is another.

Bounds, with the defaults C = 1, G = 0.5, S = 0.2, hedge h = 0.2: any right answer in strict form earns at least
C = 1; the best wrong one at most S + C·h = 0.4, a gap of 0.6; form alone at most S = 0.2; outside the strict form
nothing is earned. The maximum, S + C + G = 1.7, is what gold completions earn. `medgrpo.rewards.audit` attacks it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medgrpo.completions import parse_completion
from medgrpo.config import RewardConfig
from medgrpo.records import Record
from medgrpo.rewards.correctness import correctness
from medgrpo.rewards.grounding import grounding
from medgrpo.rewards.structure import structure

PILLARS = ("correctness", "grounding", "structure")


@dataclass(frozen=True)
class Scores:
    """What each pillar pays for one completion, and their sum."""

    correctness: float
    grounding: float
    structure: float

    @property
    def total(self) -> float:
        """Sum of the three pillars."""
        return self.correctness + self.grounding + self.structure


def score_completion(record: Record, text: str, config: RewardConfig | None = None) -> Scores:
    """Score one completion of a record.

    >>> record = Record(id="1", question="Does A lower pain?", contexts=("Pain fell by 3 points.",),
    ...     verdict="yes", long_answer="A lowers pain.")
    >>> round(score_completion(record, "<thought>Pain fell by 3 points with A.</thought><answer>yes</answer>").total, 2)
    1.51
    >>> score_completion(record, "yes").total
    0.0
    """
    config = config or RewardConfig()
    completion = parse_completion(text)
    if not completion.well_formed:
        return Scores(0.0, 0.0, 0.0)
    grounded = completion.verdict == record.verdict and not completion.contradicts_itself
    grade = grounding(completion.thought, record.contexts, record.question, config) if grounded else 0.0
    return Scores(
        correctness=config.correctness * correctness(completion.verdict, record.verdict, config),
        grounding=config.grounding * grade,
        structure=config.structure * structure(completion, config),
    )


def reward_functions(records: dict[str, Record], config: RewardConfig) -> list[Any]:
    """One TRL reward function per pillar, named after it; their sum is `score_completion(...).total`.

    Args:
        records: id -> Record; the trainer's dataset carries the ids in a column `record_id`.
        config: weights and bounds.
    """
    return [_pillar_function(pillar, records, config) for pillar in PILLARS]


def _pillar_function(pillar: str, records: dict[str, Record], config: RewardConfig) -> Callable[..., list[float]]:
    def reward(completions: Sequence[Any], record_id: Sequence[str], **_: Any) -> list[float]:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        scored = (score_completion(records[i], text, config) for i, text in zip(record_id, texts, strict=True))
        return [getattr(scores, pillar) for scores in scored]

    reward.__name__ = pillar
    return reward
