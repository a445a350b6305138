"""Abstracts whose numbers say another thing: where they showed a difference they show none, and the other way round.

Altered are, sentence by sentence and with their own number of decimals: p-values, across 0.05; the second of two
figures that are compared (12% versus 30%), made equal to the first, or half of it where the two did not differ, and the
count behind it (36/120); odds, risk and hazard ratios and differences with their confidence intervals, moved to where
there is no effect, or away from it. Whether a comparison differs is read from its interval, else from its p-value,
else from the figures themselves.

Words stay, so "significantly higher" may stand beside p=0.61. A reader who goes by the words alone keeps the verdict,
and numbers that carry a verdict without any comparison (a sensitivity of 60%) are not altered.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from medgrpo.rewards.agreement import sentence_begins
from medgrpo.rewards.grounding import read

SIGNIFICANT = 0.05
P_WITHOUT_EFFECT, P_WITH_EFFECT = "0.61", "0.003"
# Two figures without a test differ from a fifth of the larger one on.
RELATIVE_DIFFERENCE = 0.2
# Estimate, lower and upper bound of a ratio. Halving the second of two figures makes a ratio of 2.
RATIO_WITHOUT_EFFECT, RATIO_WITH_EFFECT = (1.0, 0.8, 1.25), (2.0, 1.5, 2.7)
# Farther apart, two figures hardly belong to one comparison.
NEAR = 14

_COMPARING = frozenset(("versus", "vs", "against", "compared"))
# Words that compare two figures only where the sentence has a p-value.
_JOINING = frozenset(("and", "than"))
# Levels of significance, which methods name without any result.
_LEVELS = frozenset(("0.05", "0.01", "0.1", "0.001"))
_RATIOS = frozenset(("odds ratio", "hazard ratio", "hazards ratio", "risk ratio", "rate ratio", "relative risk"))
# May mean something else (HR is a heart rate, too), so these need an interval.
_SHORT_RATIOS = frozenset(("OR", "RR", "HR", "aOR", "aHR", "AOR", "AHR"))
_FILLERS = frozenset(("value", "values", "of", "was", "is", "for", "trend", "or", "rr", "hr"))
# What makes the figure after it no group's result: a spread, a size, a statistic, a label, a bound.
_SPREADS = frozenset(("sd", "se", "sem", "iqr", "range", "n", "aged", "r", "df", "t", "f", "than", "least"))
_LABELS = frozenset(
    ("grade", "grades", "group", "groups", "factor", "stage", "type", "phase", "level", "day", "week", "month", "year")
)
_SIGN = re.compile(r"[<>=≤≥]=?")
_DIGITS = re.compile(r"([\d.,·]+)\s?(?:%|per\s?cent)?", re.I)
_SPREAD_MARK = re.compile(r"(?:±|\+/?[-−]?)\s*$")
_LEVEL = re.compile(
    r"\b(?:considered|regarded|accepted|defined|taken|set (?:at|to))\b|\blevel of signif|\bsignificance level", re.I
)
_ABBREVIATION = re.compile(r"\bvs\.\s*$", re.I)


def alter_numbers(text: str) -> str:
    """A section of an abstract with the figures of its comparisons altered; without any, the text as it is.

    >>> alter_numbers("Pain fell by 2.4 points with A and by 0.9 points with B (p<0.01). It was worse in 12% vs 13%.")
    'Pain fell by 2.4 points with A and by 2.4 points with B (p=0.61). It was worse in 12% vs 6%.'
    >>> alter_numbers("The odds ratio was 1.10 (95% CI 0.85 to 1.42) in 240 adults.")
    'The odds ratio was 2.00 (95% CI 1.50 to 2.70) in 240 adults.'
    """
    return "".join(_alter_sentence(sentence) for sentence in sentences_as_written(text))


def sentences_as_written(text: str) -> list[str]:
    """The sentences of a text with the space behind them, so that joined they are the text; "vs." ends none.

    >>> sentences_as_written("It fell in 12% vs. 30%.  No harm was seen.")
    ['It fell in 12% vs. 30%.  ', 'No harm was seen.']
    """
    begins = [at for at in sentence_begins(text) if not _ABBREVIATION.search(text[max(0, at - 8) : at])]
    return [text[start:end] for start, end in pairwise([*begins, len(text)])]


class _Edit(NamedTuple):
    """New text for characters [start, end)."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class _Test:
    """A p-value: the figure's place among the tokens, where its sign stands, and whether it shows a difference."""

    place: int
    sign: tuple[int, int] | None
    differs: bool


@dataclass(frozen=True)
class _Estimate:
    """A ratio or a difference: places of its figure and of its interval's bounds, and the value of no effect."""

    place: int
    bounds: tuple[int, ...]
    null: float


class _Sentence:
    """A sentence with its tokens; figures are named by their place among these."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens = text, read(text)
        self.words = [token.word for token in self.tokens]

    def written(self, at: int) -> str:
        """A token as it stands in the text."""
        return self.text[self.tokens[at].start : self.tokens[at].end]

    def gap(self, at: int) -> str:
        """What stands between a token and the one before it."""
        return self.text[self.tokens[at - 1].end if at else 0 : self.tokens[at].start]

    def digits(self, at: int) -> str:
        """A figure as written, without its percent sign; "" for words, spelled figures and powers of ten."""
        found = _DIGITS.fullmatch(self.written(at)) if self.tokens[at].is_figure else None
        return found[1] if found else ""

    def decimals(self, at: int) -> int:
        """Digits behind a figure's point."""
        return len(self.digits(at).replace("·", ".").partition(".")[2])

    def value(self, at: int) -> float:
        """A figure's value without its sign."""
        return float(self.words[at])

    def signed(self, at: int) -> float:
        """A figure's value, negative where a minus stands before it that does not join it to something."""
        start = self.tokens[at].start
        minus, joined = self.text[start - 1 : start], self.text[max(0, start - 2) : start - 1]
        negative = minus in ("-", "−", "–") and not (joined.isalnum() or joined in (")", "%"))
        return -self.value(at) if negative else self.value(at)

    def replace(self, at: int, text: str) -> _Edit:
        """Other digits for a figure."""
        start = self.tokens[at].start
        return _Edit(start, start + len(self.digits(at)), text)

    def figure_after(self, at: int) -> int | None:
        """The figure that a word announces, with little between."""
        for place in range(at + 1, min(at + 4, len(self.tokens))):
            if self.tokens[place].is_figure:
                return place if self.digits(place) else None
            if self.words[place] not in _FILLERS:
                return None
        return None

    def is_bracketed(self, at: int) -> bool:
        """Whether a figure stands in brackets behind another one, as a spread or a share does."""
        behind = 0 < at < len(self.tokens) and self.tokens[at].is_figure and self.tokens[at - 1].is_figure
        return behind and self.gap(at).strip() in ("(", "[")

    def total(self, at: int) -> int | None:
        """Place of the total behind a count, as in "36/120" or "36 of 120"; None for what is no count."""
        if at < 0 or not self._is_plain(at):
            return None
        place = at + 2 if self.words[at + 1 : at + 2] == ["of"] else at + 1
        if not self._is_plain(place):
            return None
        return place if place == at + 2 or self.gap(place).strip() == "/" else None

    def _is_plain(self, at: int) -> bool:
        return at < len(self.tokens) and bool(self.digits(at)) and not self.tokens[at].percent

    def is_result(self, at: int) -> bool:
        """Whether a figure may be a group's result: no year, size, label, spread, interval or part of a fraction."""
        digits, percent = self.digits(at), self.tokens[at].percent
        if not digits or "," in digits or self.words[max(0, at - 1)] in _SPREADS | _LABELS:
            return False
        is_level = self.words[at] in ("90", "95", "99") and {"ci", "confidence"} & {*self.words[at + 1 : at + 3]}
        in_interval = {"ci", "interval"} & {*self.words[max(0, at - 4) : at]}
        if is_level or in_interval or self.total(at) or at in (self.total(at - 1), self.total(at - 2)):
            return False
        is_year = re.fullmatch(r"(?:19|20)\d\d", self.words[at])
        is_spread = self.is_bracketed(at) and not self.tokens[at - 1].percent
        has_share = self.is_bracketed(at + 1) and self.tokens[at + 1].percent
        return not _SPREAD_MARK.search(self.gap(at)) and (percent or not (is_year or is_spread or has_share))


def _alter_sentence(text: str) -> str:
    sentence = _Sentence(text)
    tests, estimates = list(_tests(sentence)), list(_estimates(sentence))
    moved = {e: values for e in estimates if (values := _moved(sentence, e, tests))}
    differences = {e.place: values[0] for e, values in moved.items() if not e.null}
    taken = {test.place for test in tests} | {at for e in estimates for at in (e.place, *e.bounds)}
    results = [at for at in range(len(sentence.tokens)) if at not in taken and sentence.is_result(at)]
    edits = [
        *(edit for test in tests for edit in _alter_test(sentence, test)),
        *(edit for estimate, values in moved.items() for edit in _alter_estimate(sentence, estimate, values)),
        *_alter_pairs(sentence, list(_pairs(sentence, results, tests)), tests, differences),
    ]
    for start, end, new in sorted({edit.start: edit for edit in edits}.values(), reverse=True):
        text = text[:start] + new + text[end:]
    return text


# p-values


def _tests(sentence: _Sentence) -> Iterator[_Test]:
    for at, word in enumerate(sentence.words):
        place = sentence.figure_after(at) if word == "p" else None
        names_a_level = place and sentence.words[place] in _LEVELS and _LEVEL.search(sentence.text)
        if place is None or sentence.value(place) > 1 or names_a_level:
            continue
        begin, sign = sentence.tokens[place - 1].end, _SIGN.search(sentence.gap(place))
        written = sign[0] if sign else "="
        value = sentence.value(place)
        below = value < SIGNIFICANT or (value == SIGNIFICANT and written != "=")
        differs = below and written[0] not in (">", "≥")
        yield _Test(place, (begin + sign.start(), begin + sign.end()) if sign else None, differs)


def _alter_test(sentence: _Sentence, test: _Test) -> Iterator[_Edit]:
    figure = P_WITHOUT_EFFECT if test.differs else P_WITH_EFFECT
    yield sentence.replace(test.place, figure.lstrip("0") if sentence.digits(test.place)[0] == "." else figure)
    if test.sign and sentence.text[slice(*test.sign)] != "=":
        yield _Edit(*test.sign, "=")


def _test_of(tests: list[_Test], place: int) -> _Test | None:
    """The p-value that belongs to a figure: the next one, else the sentence's last."""
    return next((test for test in tests if test.place > place), tests[-1] if tests else None)


# Ratios and differences with their intervals


def _estimates(sentence: _Sentence) -> Iterator[_Estimate]:
    seen: set[int] = set()
    for at, word in enumerate(sentence.words):
        is_short = sentence.written(at) in _SHORT_RATIOS
        is_ratio = is_short or " ".join(sentence.words[max(0, at - 1) : at + 1]) in _RATIOS
        place = sentence.figure_after(at) if is_ratio or word == "difference" else None
        if place is None or place in seen or (is_ratio and sentence.tokens[place].percent):
            continue
        bounds = _bounds(sentence, place)
        if bounds or not is_short:
            seen.add(place)
            yield _Estimate(place, bounds, 1.0 if is_ratio else 0.0)


def _bounds(sentence: _Sentence, place: int) -> tuple[int, ...]:
    """The two figures of the confidence interval that follows an estimate, or none."""
    for at in range(place + 1, min(place + 6, len(sentence.tokens))):
        if sentence.tokens[at].is_figure and not sentence.tokens[at].percent:
            break
        if sentence.words[at] in ("ci", "interval", "intervals"):
            near = range(at + 1, min(at + 6, len(sentence.tokens)))
            found = [i for i in near if sentence.digits(i) and not sentence.tokens[i].percent]
            return tuple(found[:2]) if len(found) > 1 else ()
    return ()


def _moved(sentence: _Sentence, estimate: _Estimate, tests: list[_Test]) -> tuple[float, float, float] | None:
    """Where an estimate and its bounds go; None where nothing says whether it shows an effect."""
    bounds = [sentence.signed(at) for at in estimate.bounds]
    test = _test_of(tests, estimate.place)
    if not bounds and not test:
        return None
    differs = not min(bounds) <= estimate.null <= max(bounds) if bounds else bool(test and test.differs)
    if estimate.null:
        return RATIO_WITHOUT_EFFECT if differs else RATIO_WITH_EFFECT
    half = (max(bounds) - min(bounds)) / 2 if bounds else sentence.value(estimate.place) + 1
    return (0.0, -half, half) if differs else (2 * half, half, 3 * half)


def _alter_estimate(sentence: _Sentence, estimate: _Estimate, values: tuple[float, float, float]) -> Iterator[_Edit]:
    for at, value in zip((estimate.place, *estimate.bounds), values, strict=False):
        start, end, _ = sentence.replace(at, "")
        # Bounds of a ratio without decimals would both be 1.
        decimals = max(sentence.decimals(at), 1 if estimate.null else 0)
        yield _Edit(start - (sentence.signed(at) < 0), end, f"{value:.{decimals}f}")


# Two figures that are compared


def _pairs(sentence: _Sentence, results: list[int], tests: list[_Test]) -> Iterator[tuple[int, int]]:
    """Neighbouring results of one kind with a comparing word between them, or with "and" where a p-value stands."""
    for first, second in pairwise(results):
        compared = {*sentence.words[first + 1 : second]} & (_COMPARING | _JOINING if tests else _COMPARING)
        parted = second - first > NEAR or any(first < test.place < second for test in tests)
        if compared and not parted and _same_kind(sentence, first, second):
            yield first, second


def _same_kind(sentence: _Sentence, first: int, second: int) -> bool:
    """Whether two figures measure the same: both in per cent, with the same unit, or side by side."""
    one, other = sentence.tokens[first], sentence.tokens[second]
    if one.percent or other.percent:
        return one.percent and other.percent
    fractional = all(sentence.decimals(at) for at in (first, second))
    # Single digits are mostly labels: grade 0 and grade 1.
    if not fractional and not all(len(token.word) > 1 for token in (one, other)):
        return False
    same_unit = sentence.words[first + 1 : first + 2] == sentence.words[second + 1 : second + 2]
    return fractional or same_unit or second - first == 2


def _alter_pairs(
    sentence: _Sentence, pairs: list[tuple[int, int]], tests: list[_Test], differences: Mapping[int, float]
) -> Iterator[_Edit]:
    """Alter the second figure of each pair; `differences` are the altered ones by place."""
    now = {at: sentence.value(at) for pair in pairs for at in pair}
    for first, second in pairs:
        test, one, other = _test_of(tests, second), sentence.value(first), sentence.value(second)
        differs = test.differs if test else abs(one - other) >= RELATIVE_DIFFERENCE * max(one, other)
        apart = next((value for place, value in differences.items() if place > second), 0.0)
        # A difference that stands behind the two figures is theirs.
        other_now = now[first] - apart if 0 < apart < now[first] else now[first] / 2
        now[second] = now[first] if differs else other_now
        decimals = max(sentence.decimals(at) for at in ((first, second) if differs else (second,)))
        text = f"{now[second]:.{decimals}f}"
        if float(text) != other and (differs or now[first]):
            yield sentence.replace(second, text)
            yield from _alter_count(sentence, second, float(text))


def _alter_count(sentence: _Sentence, place: int, percent: float) -> Iterator[_Edit]:
    """The count behind an altered percentage, as 36 in "36/120 (30%)", "30% (36/120)" and "36 (30%)"."""
    if not sentence.tokens[place].percent:
        return
    bracketed, behind = sentence.is_bracketed(place), sentence.total(place + 1)
    before = next((at for at in (place - 2, place - 3) if sentence.total(at) == place - 1), None)
    if bracketed and before is not None:
        count, number = before, sentence.value(place - 1) * percent / 100
    elif bracketed and sentence.value(place):
        count, number = place - 1, sentence.value(place - 1) * percent / sentence.value(place)
    elif behind and sentence.gap(place + 1).strip() in ("(", "[", ","):
        count, number = place + 1, sentence.value(behind) * percent / 100
    else:
        return
    if sentence.digits(count) and round(number) != sentence.value(count):
        yield sentence.replace(count, str(round(number)))
