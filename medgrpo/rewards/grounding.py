"""Grounding: does the thought cite data points that really are in the abstract?

A data point is a figure of the abstract, or four words of a verbatim phrase of it. Figures that are nowhere in the
abstract are counted against the thought; long copies, and phrases that only repeat the question, earn nothing.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from medgrpo.config import RewardConfig

WORDS_PER_POINT = 4

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-") | {ord("·"): "."}
_FIGURE = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE]-?\d{1,2}(?!\d))?(?!\d)"
)
_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Evidence:
    """What a thought cites.

    Attributes:
        supported: distinct figures of the thought that stand in the abstract, normalised.
        unsupported: distinct figures that do not.
        phrase_points: four-word pieces of verbatim phrases of the abstract, beyond the question's own words.
        longest_copy: length in words of the longest verbatim run.
    """

    supported: tuple[str, ...]
    unsupported: tuple[str, ...]
    phrase_points: int
    longest_copy: int


def normalize(text: str) -> str:
    """One spelling for dashes, digits and ligatures.

    >>> normalize("1·5–2.0")
    '1.5-2.0'
    """
    return unicodedata.normalize("NFKC", text.translate(_DASHES))


def figures(text: str) -> tuple[str, ...]:
    """Distinct figures in order of appearance, as plain decimals.

    >>> figures("1,234 of 2.50 (p = .05, p=5e-2), 12% in TNF1")
    ('1234', '2.5', '0.05', '12')
    """
    found = (match[0].replace(",", "") for match in _FIGURE.finditer(normalize(text)))
    return tuple(dict.fromkeys(format(Decimal(figure).normalize(), "f") for figure in found))


def tokenize(text: str) -> list[str]:
    """Lower-case words and figures, without punctuation.

    >>> tokenize("Mortality fell (p<0.05).")
    ['mortality', 'fell', 'p', '0.05']
    """
    return _WORD.findall(normalize(text).lower())


def unsupported_figures(text: str, abstract: str) -> tuple[str, ...]:
    """Figures of a text that are nowhere in the abstract."""
    known = set(figures(abstract))
    return tuple(figure for figure in figures(text) if figure not in known)


def evidence(thought: str, contexts: Sequence[str], question: str = "") -> Evidence:
    """What a thought cites of an abstract.

    >>> found = evidence("Mean survival rose to 14 months; 99 died.", ["Mean survival rose to 14 months."])
    >>> found.supported, found.unsupported, found.phrase_points
    (('14',), ('99',), 1)
    """
    abstract = "\n".join(contexts)
    invented = unsupported_figures(thought, abstract)
    runs = _shared_runs(tokenize(thought), tokenize(abstract))
    asked = " ".join(tokenize(question))
    cited = {run for run in map(" ".join, runs) if run not in asked}
    return Evidence(
        supported=tuple(figure for figure in figures(thought) if figure not in invented),
        unsupported=invented,
        phrase_points=sum(len(run.split()) // WORDS_PER_POINT for run in cited),
        longest_copy=max(map(len, runs), default=0),
    )


def grounding(thought: str, contexts: Sequence[str], question: str, config: RewardConfig) -> float:
    """Grounding grade in [0, 1]: share of the asked-for evidence, times the share of figures that are supported."""
    found = evidence(thought, contexts, question)
    if found.longest_copy > config.max_copied_words:
        return 0.0
    points = len(found.supported) + found.phrase_points
    cited = len(found.supported) + len(found.unsupported)
    honesty = len(found.supported) / cited if cited else 1.0
    return min(1.0, points / config.evidence) * honesty


def _shared_runs(words: list[str], source: list[str]) -> list[tuple[str, ...]]:
    """Maximal runs of at least WORDS_PER_POINT words of `words` that stand in `source` in the same order."""
    starts: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(source) - WORDS_PER_POINT + 1):
        starts.setdefault(tuple(source[i : i + WORDS_PER_POINT]), []).append(i)
    runs, position = [], 0
    while position <= len(words) - WORDS_PER_POINT:
        seeds = starts.get(tuple(words[position : position + WORDS_PER_POINT]), [])
        length = max((_common_prefix(words[position:], source[start:]) for start in seeds), default=0)
        if length:
            runs.append(tuple(words[position : position + length]))
        position += max(length, 1)
    return runs


def _common_prefix(first: list[str], second: list[str]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length
