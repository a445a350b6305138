"""Attacks on the rewards: what a policy could write to be paid without reading, tried on every training record.

Each attack derives a completion from a record's gold completion. None may earn as much as the gold completion it comes
from, and none with a wrong verdict as much as the plainest right answer. `audit` tries them all before training,
because a policy that samples for hours finds whatever pays.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Self

from medgrpo import domains
from medgrpo.completions import Completion, parse_completion, render_completion
from medgrpo.config import RewardConfig
from medgrpo.prompts import gold_completion
from medgrpo.records import Record
from medgrpo.rewards import score_completion
from medgrpo.rewards.attacks import AT_THE_CAP, FORM_ATTACKS, PLAINEST_THOUGHT, Attack, Target


@dataclass(frozen=True)
class KindResult:
    """One kind of attack over all records.

    Attributes:
        kind: its name.
        records: how many it was tried on.
        worst_margin: smallest distance to the gold completion's reward; at most 0 is a hole.
        median_margin: the median distance.
        holes: ids of records where it reaches gold.
        outranks_truth: ids where it has a wrong verdict and earns at least as much as the plainest right answer.
        example: a completion that got through, or else the one with the smallest margin.
    """

    kind: str
    records: int
    worst_margin: float
    median_margin: float
    holes: tuple[str, ...]
    outranks_truth: tuple[str, ...]
    example: str

    @property
    def holds(self) -> bool:
        """Whether the rewards withstand it everywhere."""
        return not self.holes and not self.outranks_truth


@dataclass(frozen=True)
class AuditReport:
    """All kinds, weakest first, and how near the gold completions come to the maximum.

    Attributes:
        kinds: results by kind.
        lowest_gold: smallest share of the maximum that a gold completion earns.
        records: how many records were tried.
    """

    kinds: tuple[KindResult, ...]
    lowest_gold: float
    records: int

    @property
    def holds(self) -> bool:
        """Whether no kind got through."""
        return all(kind.holds for kind in self.kinds)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `dataclasses.asdict` wrote as JSON."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "kinds": tuple(KindResult(**kind) for kind in values["kinds"])})

    def holes(self) -> str:
        """That the rewards can be gamed and how, in a sentence; empty where nothing got through."""
        found = [
            f"{kind.kind!r} earns as much as the gold completion on {len(kind.holes)} of {kind.records} records"
            if kind.holes
            else f"{kind.kind!r} with a wrong verdict outranks a right one on {len(kind.outranks_truth)} records"
            for kind in self.kinds
            if not kind.holds
        ]
        return f"the rewards can be gamed: {'; '.join(found)}." if found else ""

    def rows(self) -> list[dict[str, object]]:
        """One row per kind, for a table."""
        return [
            {
                "attack": kind.kind,
                "records": kind.records,
                "worst margin": round(kind.worst_margin, 3),
                "median margin": round(kind.median_margin, 3),
                "reaches gold": len(kind.holes),
                "wrong above right": len(kind.outranks_truth),
            }
            for kind in self.kinds
        ]


def audit(
    records: Sequence[Record],
    config: RewardConfig,
    seed: int = 0,
    on_record: Callable[[int, int], None] = lambda done, total: None,
) -> AuditReport:
    """Try every attack on every record.

    Args:
        records: labelled training records, at least two.
        config: the rewards under attack.
        seed: of the random choices in attacks.
        on_record: called with (done, total) after each record.
    """
    golds = [gold_completion(record, config) for record in records]
    thoughts = [_parse(record, gold).thought for record, gold in zip(records, golds, strict=True)]
    maximum = config.correctness + config.grounding + config.structure
    tried: dict[str, list[_Outcome]] = defaultdict(list)
    earned = []
    for place, record in enumerate(records):
        domain = domains.get(record.domain)
        said, wrong = domain.conclusion(record, config), domain.other(record)
        target = Target(record, thoughts[place], said, wrong, thoughts[place - 1], Random(f"{seed} {record.id}"))
        gold = score_completion(record, golds[place], config).total
        earned.append(gold / maximum)
        for kind, outcome in _attack(target, gold, config):
            tried[kind].append(outcome)
        on_record(place + 1, len(records))
    kinds = sorted((_result(kind, outcomes) for kind, outcomes in tried.items()), key=lambda kind: kind.worst_margin)
    return AuditReport(tuple(kinds), min(earned), len(records))


_Outcome = tuple[float, bool, str, str]
"""Distance to gold, whether a wrong verdict earns a right one's reward, record id, completion."""


def _attack(target: Target, gold: float, config: RewardConfig) -> Iterator[tuple[str, _Outcome]]:
    """Every attack on one record."""
    record = target.record
    plain = score_completion(record, render_completion(PLAINEST_THOUGHT, record.verdict), config).total
    for kind, attack in attacks_on(record).items():
        text = attack(target)
        if text is not None:
            total = score_completion(record, text, config, used=1.0 if kind in AT_THE_CAP else None).total
            is_wrong = _parse(record, text).verdict != record.verdict
            yield kind, (gold - total, is_wrong and total >= plain, record.id, text)


def attacks_on(record: Record) -> Mapping[str, Attack]:
    """Every kind of attack on the answers of a record's domain, its own first and instead of others of their name."""
    own = domains.get(record.domain).attacks
    return {**own, **{kind: attack for kind, attack in FORM_ATTACKS.items() if kind not in own}}


def _parse(record: Record, text: str) -> Completion:
    return parse_completion(text, domains.get(record.domain).form)


def _result(kind: str, outcomes: Sequence[_Outcome]) -> KindResult:
    worst = min(margin for margin, *_ in outcomes)
    *_, example = min(outcomes, key=lambda outcome: (not outcome[1], outcome[0]))
    return KindResult(
        kind=kind,
        records=len(outcomes),
        worst_margin=worst,
        median_margin=median(margin for margin, *_ in outcomes),
        holes=tuple(record for margin, _, record, _ in outcomes if margin <= 1e-9),
        outranks_truth=tuple(record for _, outranks, record, _ in outcomes if outranks),
        example=example,
    )
