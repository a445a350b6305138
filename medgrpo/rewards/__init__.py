"""What a completion earns, gated so that form never outranks truth.

With the grades c (correctness, and in it a for agreement), g (grounding) and s (structure), each in [0, 1], and the
weights C, G, S and the share A of `RewardConfig`, a completion earns

    total = [strict form]·C·c + [strict form, right verdict, consistent]·G·g + [strict form, consistent]·S·s

    c = 1 - A·(1 - [consistent]·a) for the right verdict, 1 - cost of the confusion for a wrong one

where a thought is consistent unless it says in so many words that the answer is another.

Bounds. Each pillar lies between 0 and its weight: the grades do, as do the costs. The total therefore lies between 0
and C + G + S. A right answer in strict form earns at least C·(1 - A), for all other terms are at least 0. A wrong one
earns at most S + C·(1 - k), k being the smallest cost: grounding is not paid, and s is at most 1. So the gap between
the worst right and the best wrong answer is at least C·(k - A) - S, and `RewardConfig` refuses settings where it is not
positive. Form alone earns at most S, and outside the strict form nothing is earned.

With the defaults C = 1, A = 0.2, G = 0.5, S = 0.2, k = 0.8: at least 0.8 for a right answer, at most 0.4 for a wrong
one, a gap of 0.4; 1.7 at most, which is what gold completions earn. `medgrpo.rewards.audit` attacks all this.

In mode `weighted`, for comparison, every bracket is 1: total = C·c + G·g + S·s, where c is of the verdict as leniently
read and s still is 0 outside the strict form. The ranges are the same; the gap is C·(k - A) - G - S, negative with the
defaults.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from medgrpo import domains
from medgrpo.completions import Completion, parse_completion
from medgrpo.config import RewardConfig
from medgrpo.records import Record
from medgrpo.rewards.structure import structure

PILLARS = ("correctness", "grounding", "structure")
# Scores kept until the last pillar has asked for them: more than the completions of a step on one process.
KEPT_SCORES = 4096


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


def score_completion(
    record: Record, text: str, config: RewardConfig | None = None, used: float | None = None
) -> Scores:
    """Score one completion of a record.

    Args:
        record: the record it answers, with the expert's verdict and long_answer.
        text: the completion.
        config: weights, costs and bounds; the defaults where None.
        used: share of the completion cap that it took, in tokens; None where that is not known.

    >>> record = Record(id="1", question="Does A lower pain?", contexts=("Pain fell by 3 points.",),
    ...     verdict="yes", long_answer="A relieves pain.")
    >>> text = "<thought>Pain fell by 3 points. A relieves pain.</thought><answer>yes</answer>"
    >>> score = score_completion(record, text)
    >>> round(score.correctness, 2), round(score.grounding, 2), round(score.structure, 2)
    (1.0, 0.33, 0.2)
    >>> score_completion(record, "yes").total
    0.0
    """
    config = config or RewardConfig()
    domain = domains.get(record.domain)
    completion = parse_completion(text, domain.form)
    verdict_pays, evidence_pays, form_pays = _gates(completion, record, config)
    thought, agreed, grounded = completion.thought, 0.0, 0.0
    if evidence_pays:
        agreed = domain.agreement(thought, record, config)
        grounded = domain.grounding(thought, record.contexts, record.question, config)
    correct = domain.correctness(completion.verdict, record.verdict, config, agreed) if verdict_pays else 0.0
    formed = structure(completion, config, used) if form_pays else 0.0
    return Scores(config.correctness * correct, config.grounding * grounded, config.structure * formed)


def _gates(completion: Completion, record: Record, config: RewardConfig) -> tuple[bool, bool, bool]:
    """Whether the verdict, the evidence (with the conclusion), and the form are paid for."""
    if config.mode == "weighted":
        return True, True, True
    consistent = completion.well_formed and not completion.contradicts_itself
    return completion.well_formed, consistent and completion.verdict == record.verdict, consistent


def reward_functions(records: dict[str, Record], config: RewardConfig, cap: int | None = None) -> list[Any]:
    """One TRL reward function per pillar, named after it; their sum is `score_completion(...).total`.

    A completion is scored once, whichever pillar asks first.

    Args:
        records: id -> Record; the trainer's dataset carries the ids in a column `record_id`.
        config: weights and bounds.
        cap: most tokens of a completion, for the penalty on running towards it; None where there is none.
    """

    @lru_cache(maxsize=KEPT_SCORES)
    def score(record_id: str, text: str, tokens: int | None) -> Scores:
        return score_completion(records[record_id], text, config, tokens / cap if cap and tokens is not None else None)

    return [_pillar_function(pillar, score) for pillar in PILLARS]


def _pillar_function(pillar: str, score: Callable[[str, str, int | None], Scores]) -> Callable[..., list[float]]:
    def reward(
        completions: Sequence[Any],
        record_id: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **_: Any,
    ) -> list[float]:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        lengths = [None] * len(texts) if completion_ids is None else [len(ids) for ids in completion_ids]
        return [getattr(score(*one), pillar) for one in zip(record_id, texts, lengths, strict=True)]

    reward.__name__ = pillar
    return reward
