"""Agreement: does the thought conclude what the expert concluded?

The thought's conclusion is its last sentences, at most as many as the expert's has; of these endings the one that
agrees best counts. What stands before is evidence and is not looked at here, so neither length nor a choice of
conclusions helps. Compared are the stems of longer words, in order, by the F1 of their longest common subsequence
(ROUGE-L, Lin 2004), without the question's own words, so that repeating the question agrees with nothing. An ending
that negates more or less often than the expert agrees less: "not" is one word in twenty and turns the claim around.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.distance import Indel

from medgrpo.config import RewardConfig
from medgrpo.records import Record
from medgrpo.rewards.grounding import MAX_CHARACTERS, read, tokenize, unsupported_figures

NEGATIONS = frozenset(("no", "not", "nor", "neither", "never", "none", "without", "cannot"))
# Words are compared by their first letters: lower, lowers and lowered agree. Shorter ones carry little.
STEM, SHORT_WORD = 6, 3

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])")


@dataclass(frozen=True)
class _Conclusion:
    """The expert's conclusion: its sentences, its stems beyond the question's, and how often it negates."""

    sentences: int
    stems: tuple[str, ...]
    negations: int
    asked: frozenset[str]


def agreement(thought: str, record: Record, config: RewardConfig) -> float:
    """Agreement grade in [0, 1]: 1 for the expert's own conclusion, or where there is none to compare with.

    >>> record = Record(id="1", question="Does A help?", contexts=("Pain fell.",), verdict="yes",
    ...     long_answer="A relieves pain better than placebo.")
    >>> [agreement(thought, record, RewardConfig()) for thought in (
    ...     "Pain fell. A relieves pain better than placebo.", "Pain was relieved by A.", "Does A help?")]
    [1.0, 0.2857142857142857, 0.0]
    """
    expert = read_conclusion(record.long_answer, record.contexts, record.question, config.max_thought_words // 2)
    if not expert.stems:
        return 1.0
    if len(thought) > MAX_CHARACTERS:
        return 0.0
    begins = sentence_begins(thought)[-expert.sentences :]
    tokens = read(thought)
    return max(_likeness([token.word for token in tokens if token.start >= begin], expert) for begin in begins)


def _likeness(words: Sequence[str], expert: _Conclusion) -> float:
    said = [stem for stem in stems(words) if stem not in expert.asked]
    few, many = sorted((expert.negations, _negations(words)))
    return Indel.normalized_similarity(said, expert.stems) * (few / many if many else 1.0)


def conclusion(long_answer: str, contexts: Sequence[str], limit: int) -> str:
    """What a thought can say of an expert's conclusion: its leading sentences, up to a number of words.

    Sentences with figures that the abstract lacks are left out, for citing them would cost grounding.
    """
    abstract = "\n".join(contexts)
    kept: list[str] = []
    for sentence in split_sentences(long_answer):
        joined = " ".join([*kept, sentence])
        # A sentence without figures is not worth looking up.
        if any(token.checked for token in read(sentence)) and unsupported_figures(joined, abstract):
            continue
        if kept and len(joined.split()) > limit:
            break
        kept.append(first_words(sentence, limit))
    said = " ".join(kept)
    return said[:1].upper() + said[1:]


def split_sentences(text: str) -> list[str]:
    """Sentences of a passage.

    >>> split_sentences("Pain fell (p=0.01). No harm was seen.")
    ['Pain fell (p=0.01).', 'No harm was seen.']
    """
    return _SENTENCE_END.split(" ".join(text.split()))


def sentence_begins(text: str) -> list[int]:
    """Where the sentences of a text as given begin.

    >>> sentence_begins("Pain fell (p=0.01).  No harm was seen.")
    [0, 21]
    """
    return [0, *(match.end() for match in _SENTENCE_END.finditer(text))]


def first_words(text: str, limit: int) -> str:
    """The text, or of a longer one its first words."""
    words = text.split()
    return text if len(words) <= limit else " ".join(words[:limit])


def stems(words: Sequence[str]) -> list[str]:
    """The first letters of the longer words, in order.

    >>> stems(["pain", "was", "significantly", "lower"])
    ['pain', 'signif', 'lower']
    """
    return [word[:STEM] for word in words if len(word) > SHORT_WORD]


@lru_cache(maxsize=4096)
def read_conclusion(long_answer: str, contexts: tuple[str, ...], question: str, limit: int) -> _Conclusion:
    """The expert's conclusion, read once for all completions about it."""
    said = conclusion(long_answer, contexts, limit)
    words = tokenize(said)
    asked = frozenset(stems(tokenize(question)))
    beyond = tuple(stem for stem in stems(words) if stem not in asked)
    return _Conclusion(len(split_sentences(said)), beyond, _negations(words), asked)


def _negations(words: Sequence[str]) -> int:
    return sum(word in NEGATIONS for word in words)
