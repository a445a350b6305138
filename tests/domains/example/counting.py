"""A domain in one file, with open answers: two numbers are added. It is the example that CONTRIBUTING.md speaks of.

question: How many pears does Ann have then?
contexts: Ann has 12 pears. / Ben gives her 31 more pears.
verdict:  43
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

from medgrpo.completions import AnswerForm
from medgrpo.config import DataConfig, RewardConfig
from medgrpo.domains.domain import Domain
from medgrpo.records import Corpus, Record
from medgrpo.rewards import grounding as figures
from medgrpo.rewards.grounding import Evidence

_NUMBER = re.compile(r"0|[1-9]\d*")
_STATED = re.compile(r"\banswer is (\d+)", re.I)


def load(config: DataConfig) -> Corpus:
    """As many records as the settings ask for."""
    rng = Random(config.synthetic_seed)
    records = [_record(i, rng) for i in range(config.synthetic_pool + config.synthetic_test)]
    ids = tuple(record.id for record in records)
    pool, test = ids[: config.synthetic_pool], ids[config.synthetic_pool :]
    splits = {"train": pool, "dev": (), "test": test}
    return Corpus(name="counting", records={r.id: r for r in records}, splits=splits, synthetic=True)


def _record(number: int, rng: Random) -> Record:
    first, more = rng.sample(range(11, 60), 2)
    return Record(
        id=f"counting-{number}",
        question="How many pears does Ann have then?",
        contexts=(f"Ann has {first} pears.", f"Ben gives her {more} more pears."),
        verdict=str(first + more),
        long_answer=f"Together these are {first + more} pears for Ann.",
        synthetic=True,
        domain="counting",
    )


def render(question: str, contexts: Sequence[str]) -> str:
    """The user's turn."""
    return " ".join([*contexts, question])


def gold_thought(record: Record, config: RewardConfig) -> str:
    """Both numbers, and their sum."""
    first, more = figures.figures(" ".join(record.contexts))
    return f"Ann has {first} pears at first and then {more} more, so {first} + {more} = {record.verdict}."


def correctness(answer: str | None, expert: str, config: RewardConfig, agreement: float) -> float:
    """All for the right number, less the share of agreement as far as the thought does not come to it."""
    return 1 - config.agreement * (1 - agreement) if answer == expert else 0.0


def agreement(thought: str, record: Record, config: RewardConfig) -> float:
    """Whether the thought ends in the expert's number."""
    return float(figures.figures(thought)[-1:] == (record.verdict,))


def evidence(thought: str, contexts: Sequence[str], question: str) -> Evidence:
    """What the thought cites; a sum of two cited numbers is as good as one that was given."""
    found = figures.evidence(thought, contexts, question)
    sums = {str(int(one) + int(other)) for one, other in combinations(found.supported, 2)}
    return replace(found, unsupported=tuple(figure for figure in found.unsupported if figure not in sums))


def grounding(thought: str, contexts: Sequence[str], question: str, config: RewardConfig) -> float:
    """Half for each of the two numbers; nothing where another one stands beside them."""
    found = evidence(thought, contexts, question)
    return 0.0 if found.unsupported else min(1.0, len(found.supported) / 2)


def _stated(thought: str) -> str | None:
    said = _STATED.findall(thought)
    return said[-1] if said else None


def _lenient(text: str) -> str | None:
    match = _NUMBER.search(text)
    return match[0] if match else None


DOMAIN = Domain(
    name="counting",
    summary="Adds two numbers",
    load=load,
    read_labelled=None,
    system="Add the numbers. Think between <thought> and </thought>, answer between <answer> and </answer>.",
    render=render,
    gold_thought=gold_thought,
    correctness=correctness,
    agreement=agreement,
    grounding=grounding,
    evidence=evidence,
    disagrees=lambda thought, answer, question: answer is not None and _stated(thought) not in (None, answer),
    other=lambda record: str(int(record.verdict) + 1),
    attacks={"one number left out": lambda target: target.answer(target.thought.split(" and ")[0])},
    card={"intended_use": "For tests.", "limitations": "It can only add.", "data": "sums"},
    form=AnswerForm(
        strict=lambda text: text if _NUMBER.fullmatch(text) else None,
        lenient=_lenient,
        stated=_stated,
        labels=(),
        kind="number",
    ),
)
