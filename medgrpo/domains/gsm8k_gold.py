"""Gold thoughts of GSM8K: the published solution, cleaned until every pillar pays it in full.

A line with a false equation or a figure from nowhere is replaced by the equations of it that hold, or left out; a long
solution is cut down to its equations. What still does not compute the answer is given last equations that do, found by
search among the problem's numbers: they are true, but not always the reasoning that a person would give.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, islice, product

from medgrpo.arithmetic.equations import equations
from medgrpo.arithmetic.numbers import canonical
from medgrpo.arithmetic.quantities import quantities
from medgrpo.completions import Completion
from medgrpo.config import RewardConfig
from medgrpo.domains.gsm8k_grounding import agreement, evidence, grounding
from medgrpo.records import Record
from medgrpo.rewards.structure import structure

# Bounds on the search for equations that lead to an answer whose published solution has none that are read.
MOST_NUMBERS, MOST_DERIVATIONS = 16, 40
SMALL = tuple(map(Fraction, (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 60, 100)))


def gold_thought(record: Record, config: RewardConfig) -> str:
    """A thought that earns the maximum with the record's answer.

    The first of these that does: the solution as published, without what is unsupported, as equations alone, and those
    with last equations made from the problem's numbers. Where none does, the last.
    """
    thought = ""
    for thought in chain(_published(record), _searched(record)):
        if earns_all(thought, record, config):
            break
    return thought


def unteachable(record: Record, config: RewardConfig) -> str:
    """Why the gold thought should not be imitated: its last equations were found by search; "" where none were."""
    if any(earns_all(thought, record, config) for thought in _published(record)):
        return ""
    return "the published solution has no equations that compute its answer"


def earns_all(thought: str, record: Record, config: RewardConfig) -> bool:
    """Whether a thought earns the maximum with the record's answer."""
    formed = structure(Completion(thought, record.verdict, True), config)
    return (
        formed == 1.0
        and agreement(thought, record, config) == 1.0
        and grounding(thought, record.contexts, record.question, config) == 1.0
    )


def _published(record: Record) -> Iterator[str]:
    """Thoughts that say what the published solution says, the nearest to it first."""
    lines = _lines(record)
    yield _concluded(lines, record)
    for kept in (_supported(lines, record), _bare(lines, record)):
        yield _concluded(kept, record)
        yield _concluded([*kept, *_closing(record, kept)], record)


def _searched(record: Record) -> Iterator[str]:
    """Thoughts that end in equations made from the problem's numbers."""
    lines = _lines(record)
    for begun in (_supported(lines, record), _bare(lines, record), []):
        for steps in islice(_derivations(record, begun), MOST_DERIVATIONS):
            yield _concluded([*begun, *steps], record)
    yield _concluded([f"{step}." for step in _built(record)], record)


def _lines(record: Record) -> list[str]:
    """The lines of the published solution, each a sentence."""
    return [_closed(line) for line in record.long_answer.split("\n") if line.strip()]


def _bare(lines: list[str], record: Record) -> list[str]:
    """The true equations alone, without what is unsupported."""
    return _supported([_equations_of(line) for line in lines], record)


def _concluded(lines: list[str], record: Record) -> str:
    return " ".join([*lines, f"So the answer is {record.verdict}."])


def _closed(line: str) -> str:
    line = " ".join(line.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _equations_of(line: str) -> str:
    """The true equations of a line, as a line."""
    true = [f"{equation.written}." for equation in equations(line) if equation.true]
    return " ".join(dict.fromkeys(true))


def _supported(lines: list[str], record: Record) -> list[str]:
    """The lines, those with something unsupported as their true equations, or left out if that does not help."""
    kept: list[str] = []
    for line in lines:
        for said in (line, _equations_of(line)):
            if said and not evidence(" ".join([*kept, said]), record.contexts, record.question).unsupported:
                kept.append(said)
                break
    return kept


def _closing(record: Record, lines: list[str]) -> list[str]:
    """One of the lines' equations that gives the answer, said again at the end."""
    answer = Fraction(record.verdict)
    found = [one for one in equations(" ".join(lines)) if answer in one.made]
    return [f"{found[-1].written}."] if found else []


def _derivations(record: Record, lines: list[str]) -> Iterator[list[str]]:
    """Equations that lead from the problem's numbers to the answer, one or two of them, the fewest constants first."""
    answer = Fraction(record.verdict)
    given = quantities("\n".join([*record.contexts, record.question]))
    made = [value for one in reversed(equations(" ".join(lines))) for value in one.made]
    base = [value for value, quantity in given.items() if str(value) == quantity.key]
    near = list(dict.fromkeys([*made, *base, *given]))[:MOST_NUMBERS]
    pool = list(dict.fromkeys([*near, *SMALL]))
    for one, other in product(near, pool):
        for written, value in _results(one, other):
            if value == answer:
                yield [f"{written}."]
    for first, second in product(near, pool):
        for written, middle in _results(first, second):
            for third in pool:
                for last, value in _results(middle, third):
                    if value == answer:
                        yield [f"{written}.", f"{last}."]


def _built(record: Record) -> Iterator[str]:
    """The answer built digit by digit from a number of the problem: right, and no solution, but better than a guess.

    One published solution in four hundred needs it.
    """
    digits = record.verdict.lstrip("-").replace(".", "").lstrip("0")
    given = quantities("\n".join([*record.contexts, record.question]))
    begun = next((value for value in given if value > 1 and value.denominator == 1), Fraction(2))
    yield f"{canonical(begun)} / {canonical(begun)} = 1"
    value = 1
    if digits[:1] > "1":
        value = int(digits[0])
        yield f"1 + {value - 1} = {value}"
    for digit in digits[1:]:
        yield f"{value} * 10 = {value * 10}"
        value *= 10
        if digit != "0":
            yield f"{value} + {digit} = {value + int(digit)}"
            value += int(digit)
    places = len(record.verdict.partition(".")[2])
    if places:
        yield f"{value} / {' / '.join(['10'] * places)} = {record.verdict.lstrip('-')}"
    if record.verdict.startswith("-"):
        yield f"0 - {record.verdict[1:]} = {record.verdict}"


def _results(one: Fraction, other: Fraction) -> Iterator[tuple[str, Fraction]]:
    """Two numbers' sum, difference, product and quotient where they end as decimals, written as equations."""
    if other in (0, 1):
        return
    for sign, value in (("+", one + other), ("-", one - other), ("*", one * other), ("/", one / other)):
        if value > 0 and "/" not in canonical(value):
            yield f"{canonical(one)} {sign} {canonical(other)} = {canonical(value)}", value
