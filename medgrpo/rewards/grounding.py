"""Grounding: does the thought cite data points that really are in the abstract?

A data point is a figure of the abstract with the words that stand beside it there, or four words of a verbatim phrase.
What the thought gets wrong counts against it: figures and names with digits (T4, IL-6) that are nowhere in abstract and
question, and those that stand in a quoted passage where the abstract has others (2.4 and 0.9 exchanged). Figures
without context, a citation that comes again, phrases that only repeat the question and long copies earn nothing.

`Evidence` keeps where every citation stands, in the thought and in the abstract, so that it can be shown.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from medgrpo.config import RewardConfig

WORDS_PER_POINT = 4
# Words of its place in the abstract that make a figure beside them a data point; one that stands there once suffices.
CONTEXT_WORDS = 2
# Share of quoted words that must be new: evidence and conclusion may share a phrase, a loop earns less.
NEW_WORDS = 0.6
# Tokens of a passage that make a figure's place a quotation of it: on both sides together, or on one side alone.
QUOTED_AROUND, QUOTED_BESIDE = 3, 5
# Words looked at on each side of a figure.
NEIGHBOURS = 6
# What comes after is not read, so that no text takes long: four times the longest thought that earns anything.
MAX_CHARACTERS = 8000

_SMALL = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SPELLED = {
    **{word: 11 + i for i, word in enumerate(_TEENS)},
    **{word: 20 + 10 * i for i, word in enumerate(_TENS)},
    **{f"{ten}-{one}": 21 + 10 * i + j for i, ten in enumerate(_TENS) for j, one in enumerate(_SMALL)},
}
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-") | {ord("·"): "."}
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"), "")
_FIGURE = r"(?<![\w.])(?<![A-Za-z]-)(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE]-?\d{1,2}(?!\d))?(?!\d)"
_SPELLED_FIGURE = rf"\b(?a:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL)}))?|{'|'.join(_TEENS)})\b"
# The looks ahead save most places of a text two of the three alternatives.
_TOKEN = re.compile(
    rf"(?=[\d.])(?P<figure>{_FIGURE})(?P<percent>\s?(?:%|per\s?cent\b))?"
    rf"|(?=[efnst])(?P<spelled>{_SPELLED_FIGURE})(?P<spelled_percent>\s?(?:%|per\s?cent\b))?"
    r"|[^\W_]+(?:[.,]\d+)*",
    re.I,
)


@dataclass(frozen=True)
class Span:
    """A citation: characters [start, end) of the thought, and of the abstract's sections joined by line breaks.

    Attributes:
        kind: "figure" or "phrase".
        supported: False for a figure that is nowhere in the abstract, or misquoted.
        start, end: where it stands in the thought.
        source: where it stands in the abstract; None where it does not.
    """

    kind: str
    supported: bool
    start: int
    end: int
    source: tuple[int, int] | None


@dataclass(frozen=True)
class Evidence:
    """What a thought cites.

    Attributes:
        supported: distinct figures of the thought that stand in the abstract, normalised.
        unsupported: distinct figures, and names with digits, that stand neither there nor in the question, or have
            another one's place in a passage that is quoted.
        figure_points: distinct supported figures beside words of their place in the abstract.
        phrase_points: four-word pieces of verbatim phrases of the abstract, beyond the question's own words.
        longest_copy: length in words of the longest verbatim run.
        copied_words: words of the abstract that stand in the thought in verbatim runs.
        copied_share: their share of the abstract.
        new_share: share of the words in verbatim runs that were not quoted before.
        spans: every citation, in the order of the thought.
    """

    supported: tuple[str, ...]
    unsupported: tuple[str, ...]
    figure_points: int
    phrase_points: int
    longest_copy: int
    copied_words: int
    copied_share: float
    new_share: float
    spans: tuple[Span, ...]


class Token(NamedTuple):
    """A word, or a figure as a plain decimal, and where it stands in the text as given.

    Attributes:
        word: in lower case.
        is_figure: whether it is a number.
        percent: whether it is followed by a percent sign.
        start, end: its characters.
        checked: whether an abstract must hold it: figures, and names with digits.
        key: what two passages with different figures have in common.
    """

    word: str
    is_figure: bool
    percent: bool
    start: int
    end: int
    checked: bool
    key: str


def normalize(text: str) -> str:
    """One spelling for dashes, digits and ligatures; invisible characters are left out.

    >>> normalize("1·5–2.0")
    '1.5-2.0'
    """
    return unicodedata.normalize("NFKC", text.translate(_DASHES | _INVISIBLE))


def figures(text: str) -> tuple[str, ...]:
    """Distinct figures in order of appearance, as plain decimals; spelled ones from eleven to ninety-nine too.

    >>> figures("1,234 of 2.50 (p = .05, p=5e-2), 12% in TNF1, and twenty-four more")
    ('1234', '2.5', '0.05', '12', '24')
    """
    return tuple(dict.fromkeys(token.word for token in read(text) if token.is_figure))


def tokenize(text: str) -> list[str]:
    """Lower-case words, and figures as plain decimals, without punctuation.

    >>> tokenize("Mortality fell (p<.050).")
    ['mortality', 'fell', 'p', '0.05']
    """
    return [token.word for token in read(text)]


def unsupported_figures(text: str, abstract: str) -> tuple[str, ...]:
    """Figures of a text that are nowhere in the abstract, or misquoted."""
    return evidence(text, [abstract]).unsupported


def evidence(thought: str, contexts: Sequence[str], question: str = "") -> Evidence:
    """What a thought cites of an abstract; of a very long thought, what its first MAX_CHARACTERS cite.

    >>> found = evidence("Mean survival rose to 14 months; 99 died.", ["Mean survival rose to 14 months."])
    >>> found.supported, found.unsupported, found.figure_points, found.phrase_points
    (('14',), ('99',), 1, 1)
    """
    source = read_source("\n".join(contexts))
    tokens = read(thought[:MAX_CHARACTERS])
    asked = read(question)
    runs = _shared_runs([token.word for token in tokens], source)
    covered = {place for _, start, length in runs for place in range(start, start + length)}
    known = {token.word for token in asked if token.checked}
    keys = tuple([token.key for token in tokens])
    cited = [_cite(tokens, keys, place, source, known) for place, token in enumerate(tokens) if token.checked]
    wrong = dict.fromkeys(one.token.word for one in cited if not one.span.supported)
    right = [one for one in cited if one.token.is_figure and one.source is not None and one.token.word not in wrong]
    phrases = [
        Span("phrase", True, tokens[at].start, tokens[at + length - 1].end, source.characters(start, length))
        for at, start, length in runs
    ]
    return Evidence(
        supported=tuple(dict.fromkeys(one.token.word for one in right)),
        unsupported=tuple(wrong),
        figure_points=len({one.token.word for one in right if one.in_context}),
        phrase_points=len(_phrase_pieces(covered, source, [token.word for token in asked])),
        longest_copy=max((length for *_, length in runs), default=0),
        copied_words=len(covered),
        copied_share=len(covered) / max(1, len(source.words)),
        new_share=len(covered) / max(1, sum(length for *_, length in runs)) if runs else 1.0,
        spans=tuple(sorted([*(one.span for one in cited), *phrases], key=lambda span: (span.start, span.end))),
    )


def grounding(thought: str, contexts: Sequence[str], question: str, config: RewardConfig) -> float:
    """Grounding grade in [0, 1]: share of the asked-for evidence, less for wrong figures and repeated quotes."""
    found = evidence(thought, contexts, question)
    # A short abstract may be quoted whole.
    pasted = found.copied_share > config.max_copied_share and found.copied_words > config.max_copied_words // 2
    if pasted or found.longest_copy > config.max_copied_words or len(thought) > MAX_CHARACTERS:
        return 0.0
    # Figures alone, however many, are a list and not a reading.
    figures_paid = found.figure_points if found.phrase_points else min(found.figure_points, config.evidence - 1)
    points = figures_paid + found.phrase_points
    cited = len(found.supported) + len(found.unsupported)
    honesty = len(found.supported) / cited if cited else 1.0
    return min(1.0, points / config.evidence) * honesty * min(1.0, found.new_share / NEW_WORDS)


@lru_cache(maxsize=1024)
def read(text: str) -> tuple[Token, ...]:
    """The words and figures of a text, in order, with where they stand."""
    plain, origin = _plain(text)
    tokens = []
    for match in _TOKEN.finditer(plain):
        start, end = match.span()
        word, kind = match[0].lower(), match.lastgroup
        checked = kind is not None or (not word.isalpha() and any(map(str.isdigit, word)))
        if kind:
            figure, spelled = match["figure"], match["spelled"]
            word = format(Decimal(figure.replace(",", "")).normalize(), "f") if figure else _spelled_figure(spelled)
        if origin:
            start, end = origin[start], origin[end - 1] + 1
        percent = kind is not None and kind.endswith("percent")
        tokens.append(Token(word, kind is not None, percent, start, end, checked, "#" if checked else word))
    return tuple(tokens)


def _spelled_figure(words: str) -> str:
    return str(_SPELLED[words.lower().replace(" ", "-")])


def _plain(text: str) -> tuple[str, list[int] | None]:
    """The normalised text, and for each of its characters the index in the text as given (None: the same)."""
    if text.isascii():
        return text, None
    plain, origin = [], []
    for index, character in enumerate(text):
        piece = _character(character)
        plain.append(piece)
        origin += [index] * len(piece)
    return "".join(plain), origin


@lru_cache(maxsize=4096)
def _character(character: str) -> str:
    return normalize(character)


class _Source:
    """Where every word, figure and sequence of words of an abstract stands."""

    def __init__(self, abstract: str) -> None:
        self.tokens = read(abstract)
        self.words = [token.word for token in self.tokens]
        keys = tuple([token.key for token in self.tokens])
        self.counts = Counter(self.words)
        self.by_word: dict[str, list[int]] = {}
        self.by_frame: dict[_Frame, list[int]] = {}
        for place, token in enumerate(self.tokens):
            if token.checked:
                self.by_word.setdefault(token.word, []).append(place)
                for frame in _frames(keys, place):
                    self.by_frame.setdefault(frame, []).append(place)
        self.starts: dict[tuple[str, ...], list[int]] = {}
        for place in range(len(self.words) - WORDS_PER_POINT + 1):
            self.starts.setdefault(tuple(self.words[place : place + WORDS_PER_POINT]), []).append(place)

    def characters(self, start: int, length: int) -> tuple[int, int]:
        """Characters of `length` tokens from `start`."""
        return self.tokens[start].start, self.tokens[start + length - 1].end

    def framed(self, keys: tuple[str, ...], place: int) -> set[int]:
        """Places of figures that may stand in a passage quoted around the figure at `place` of another text."""
        return {at for frame in _frames(keys, place) for at in self.by_frame.get(frame, ())}

    def has_percent(self, place: int) -> bool:
        """Whether a figure is a percentage, as 5 is in "5 to 7%" too."""
        ahead = self.tokens[place : place + 3]
        return any(token.percent for token in ahead if token.is_figure)


_Frame = tuple[tuple[str, ...], tuple[str, ...]]


def _frames(keys: tuple[str, ...], place: int) -> tuple[_Frame, ...]:
    """What must be the same around two figures, one of these at least, for one text to quote the other there."""
    before, behind = keys[max(0, place - QUOTED_BESIDE) : place], keys[place + 1 : place + 1 + QUOTED_BESIDE]
    return (before[-2:], behind[:1]), (before[-1:], behind[:2]), (before, ()), ((), behind)


@lru_cache(maxsize=4096)
def read_source(abstract: str) -> _Source:
    """An abstract, read once for all completions about it."""
    return _Source(abstract)


@dataclass(frozen=True)
class _Cited:
    """A figure or name of the thought, its place in the abstract, and whether it stands there among the same words."""

    token: Token
    source: int | None
    in_context: bool
    span: Span


def _cite(tokens: Sequence[Token], keys: tuple[str, ...], place: int, source: _Source, known: Set[str]) -> _Cited:
    """Find a figure or name of the thought in the abstract.

    The place among the most of the same words is the one meant. If that holds another figure, this one is misquoted.
    """
    token = tokens[place]
    found, best = None, _NOWHERE
    for at in source.by_word.get(token.word, ()):
        agreement = _agreement(tokens, place, source, at)
        if (not token.percent or source.has_percent(at)) and (found is None or agreement > best):
            found, best = at, agreement
    misquoted = any(
        source.tokens[at].word != token.word and other.is_quotation and other > best
        for at in source.framed(keys, place)
        if (other := _agreement(tokens, place, source, at))
    )
    found = None if misquoted else found
    supported = found is not None or (token.word in known and not misquoted)
    where = None if found is None else source.characters(found, 1)
    in_context = best.words >= CONTEXT_WORDS or best.rarest == 1
    return _Cited(token, found, in_context, Span("figure", supported, token.start, token.end, where))


class _Agreement(NamedTuple):
    """Tokens that two texts share without a gap around two of their figures.

    Attributes:
        shared: how many, on both sides.
        words: how many of them are no figures.
        before, behind: how many on each side.
        rarest: smallest number of times that one of the words stands in the abstract.
    """

    shared: int
    words: int
    before: int
    behind: int
    rarest: float

    @property
    def is_quotation(self) -> bool:
        """Whether one text quotes the other there: some words on both sides, or many on one."""
        around = min(self.before, self.behind) > 0 and self.shared >= QUOTED_AROUND
        return around or max(self.before, self.behind) >= QUOTED_BESIDE


_NOWHERE = _Agreement(0, 0, 0, 0, float("inf"))


def _agreement(tokens: Sequence[Token], place: int, source: "_Source", at: int) -> _Agreement:
    """Compare the tokens around two figures; a figure beside another one is passed over, whatever its value."""
    shared, words, rarest, others = [0, 0], 0, float("inf"), source.tokens
    for side, step in enumerate((-1, 1)):
        for distance in range(1, NEIGHBOURS + 1):
            here, there = place + step * distance, at + step * distance
            if not (0 <= here < len(tokens) and 0 <= there < len(others)) or tokens[here].key != others[there].key:
                break
            shared[side] += tokens[here].word == others[there].word
            if not tokens[here].checked:
                words += 1
                rarest = min(rarest, source.counts[tokens[here].word])
    before, behind = shared
    return _Agreement(before + behind, words, before, behind, rarest)


def _phrase_pieces(covered: Set[int], source: _Source, question: Sequence[str]) -> list[int]:
    """Where four-word pieces of the covered stretches begin that are no part of the question and no row of figures."""
    asked = {tuple(question[i : i + WORDS_PER_POINT]) for i in range(len(question) - WORDS_PER_POINT + 1)}
    pieces: list[int] = []
    for place in sorted(covered):
        piece = range(place, place + WORDS_PER_POINT)
        if (pieces and place < pieces[-1] + WORDS_PER_POINT) or not all(at in covered for at in piece):
            continue
        words = [source.tokens[at] for at in piece]
        is_text = sum(token.checked for token in words) <= 1
        if is_text and tuple(token.word for token in words) not in asked:
            pieces.append(place)
    return pieces


def _shared_runs(words: list[str], source: _Source) -> list[tuple[int, int, int]]:
    """Maximal runs of at least WORDS_PER_POINT words that stand in the abstract in the same order.

    Returns:
        (place in `words`, place in the abstract, length) of each.
    """
    runs, place = [], 0
    while place <= len(words) - WORDS_PER_POINT:
        seeds = source.starts.get(tuple(words[place : place + WORDS_PER_POINT]), [])
        length, start = max(((_common_prefix(words, place, source.words, s), s) for s in seeds), default=(0, 0))
        if length:
            runs.append((place, start, length))
        place += max(length, 1)
    return runs


def _common_prefix(words: Sequence[str], place: int, others: Sequence[str], start: int) -> int:
    length = 0
    while (
        place + length < len(words) and start + length < len(others) and words[place + length] == others[start + length]
    ):
        length += 1
    return length
