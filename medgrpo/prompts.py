"""The prompt of a question with what answers it, and the gold completion of a labelled record, as its domain asks."""

from collections.abc import Sequence

from medgrpo import domains
from medgrpo.completions import render_completion
from medgrpo.config import RewardConfig
from medgrpo.records import DEFAULT_DOMAIN, Record
from medgrpo.rewards.agreement import stems
from medgrpo.rewards.grounding import tokenize


def render_question(question: str, contexts: Sequence[str], domain: str = DEFAULT_DOMAIN) -> list[dict[str, str]]:
    """Chat messages for a question of a domain over its contexts."""
    asked = domains.get(domain)
    return [
        {"role": "system", "content": asked.system},
        {"role": "user", "content": asked.render(question, contexts)},
    ]


def render_prompt(record: Record) -> list[dict[str, str]]:
    """Chat messages of a record; never holds its long_answer."""
    return render_question(record.question, record.contexts, record.domain)


def gold_completion(record: Record, config: RewardConfig | None = None) -> str:
    """A completion that earns the maximum, built without a teacher model."""
    return render_completion(domains.get(record.domain).gold_thought(record, config or RewardConfig()), record.verdict)


def nearness(sentence: str, record: Record, section: int) -> float:
    """How near a sentence of a record's abstract is to the long_answer, from 0 to 2.

    It is the Dice overlap of content words, doubled towards the abstract's end: findings stand in its later sections,
    while its first ones often repeat the question that the long_answer answers.

    Args:
        sentence: the sentence.
        record: the record.
        section: which of the abstract's sections it stands in, from 0.
    """
    wanted, said = (set(stems(tokenize(text))) for text in (record.long_answer, sentence))
    overlap = len(said & wanted) / (len(said) + len(wanted) or 1)
    return overlap * (1 + section / max(1, len(record.contexts) - 1))
