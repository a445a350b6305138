"""The prompt of a question with its abstract, and the gold completion of a labelled record."""

import re
from collections.abc import Sequence

from medgrpo.completions import render_completion
from medgrpo.config import RewardConfig
from medgrpo.records import Record
from medgrpo.rewards.grounding import grounding, tokenize, unsupported_figures

SYSTEM = (
    "You read one abstract and answer the question from it alone. First write the findings that decide it between "
    "<thought> and </thought>, citing the abstract. Then conclude with exactly one word, yes, no or maybe, between "
    "<answer> and </answer>."
)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\[])")
_STEM = 6
_SHORT_WORD = 3


def render_question(question: str, contexts: Sequence[str]) -> list[dict[str, str]]:
    """Chat messages for a question about an abstract given as sections."""
    abstract = "\n".join(contexts)
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Abstract: {abstract}\n\nQuestion: {question}"},
    ]


def render_prompt(record: Record) -> list[dict[str, str]]:
    """Chat messages of a record; never holds its long_answer."""
    return render_question(record.question, record.contexts)


def gold_completion(record: Record, config: RewardConfig | None = None) -> str:
    """A completion that earns the maximum, built without a teacher model.

    The thought quotes the sentences of the abstract nearest to the expert's long_answer, as many as the grounding
    reward asks for, then gives the long_answer without sentences whose figures are not in the abstract.
    """
    config = config or RewardConfig()
    abstract = "\n".join(record.contexts)
    said = [s for s in split_sentences(record.long_answer) if not unsupported_figures(s, abstract)]
    conclusion = _whole_sentences(said, config.max_thought_words // 2)
    # Beside a quotation a conclusion's figures may read like misquoted ones.
    thoughts = [_quoting_thought(record, said, config) for said in (conclusion, "")]
    return render_completion(next((t for t in thoughts if _earns_all(record, t, config)), thoughts[0]), record.verdict)


def _quoting_thought(record: Record, conclusion: str, config: RewardConfig) -> str:
    """The conclusion after as few of the nearest sentences as earn all that grounding pays."""
    quoted: list[str] = []
    for sentence in _nearest_sentences(record):
        if quoted and _earns_all(record, " ".join([*quoted, conclusion]), config):
            break
        quoted.append(_first_words(sentence, config.max_copied_words // 2))
    return " ".join([*quoted, conclusion]).strip()


def split_sentences(text: str) -> list[str]:
    """Sentences of a passage.

    >>> split_sentences("Pain fell (p=0.01). No harm was seen.")
    ['Pain fell (p=0.01).', 'No harm was seen.']
    """
    return _SENTENCE_END.split(" ".join(text.split()))


def _earns_all(record: Record, thought: str, config: RewardConfig) -> bool:
    return grounding(thought, record.contexts, record.question, config) == 1.0


def _nearest_sentences(record: Record) -> list[str]:
    """The abstract's sentences, nearest to the long_answer first.

    Nearness is the Dice overlap of content words, doubled towards the abstract's end: findings stand in its later
    sections, while its first ones often repeat the question that the long_answer answers.
    """
    wanted = _stems(record.long_answer)
    last_section = max(1, len(record.contexts) - 1)
    nearness: dict[str, float] = {}
    for position, section in enumerate(record.contexts):
        for sentence in split_sentences(section):
            stems = _stems(sentence)
            overlap = len(stems & wanted) / (len(stems) + len(wanted) or 1)
            nearness[sentence] = overlap * (1 + position / last_section)
    return sorted(nearness, key=lambda sentence: -nearness[sentence])


def _stems(text: str) -> set[str]:
    return {word[:_STEM] for word in tokenize(text) if len(word) > _SHORT_WORD}


def _whole_sentences(sentences: Sequence[str], limit: int) -> str:
    """The leading sentences that fit into a number of words; of a longer first one, its first words."""
    kept: list[str] = []
    for sentence in sentences:
        if kept and len(" ".join([*kept, sentence]).split()) > limit:
            break
        kept.append(_first_words(sentence, limit))
    return " ".join(kept)


def _first_words(text: str, limit: int) -> str:
    words = text.split()
    return text if len(words) <= limit else " ".join(words[:limit])
