"""Context-reliance probes: the same questions over abstracts that can no longer support the answer.

Called after PubMedQA's; what a domain calls its contexts is its `source`.

- `no_abstract`: a sentence that says there is none.
- `other_abstract`: another case's abstract, of another verdict as far as the verdicts' shares allow.
- `no_conclusion`: the abstract without the sentences that bear the conclusion (see `without_conclusion`).
- `altered_numbers`: the abstract with the numbers altered that the verdict rests on (see `with_altered_numbers`).

A model that reads the abstract answers differently: its accuracy drops and its verdicts change. One that keeps both
does not need the abstract, whatever its accuracy. Only contexts are altered, so that a probe's cases are rendered,
answered and kept as any others.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from medgrpo import domains
from medgrpo.evaluation.alteration import alter_numbers, sentences_as_written
from medgrpo.evaluation.statistics import mcnemar, paired_score_interval, wilson
from medgrpo.prompts import nearness
from medgrpo.records import Record
from medgrpo.rewards.agreement import NEGATIONS, stems
from medgrpo.rewards.grounding import read, tokenize

PROBES = ("no_abstract", "other_abstract", "no_conclusion", "altered_numbers")
NOTHING = "No {source} is available."
# A sentence at least half as near to the expert's conclusion as the nearest one says much of what that says.
NEAR_SHARE = 0.5
# Stems of words that compare, or report what came out.
FINDING_STEMS = frozenset(
    stems(
        tokenize(
            "significant different correlated associated related predicted independent effective higher lower greater "
            "smaller longer shorter more less fewer most better worse increased decreased reduced improved similar "
            "comparable compared equal revealed showed found demonstrated indicated identified observed achieved"
        )
    )
)


def probe_cases(records: Sequence[Record], seed: int) -> dict[str, dict[str, Record]]:
    """The altered records of each probe by id, in the order of `records`; those it cannot alter are left out.

    Args:
        records: the evaluated cases.
        seed: seed of who gets whose abstract.
    """
    donors = derange(records, seed)
    alterations: dict[str, Callable[[Record], tuple[str, ...]]] = {
        "no_abstract": lambda record: (NOTHING.format(source=domains.get(record.domain).source),),
        "other_abstract": lambda record: donors.get(record.id, record).contexts,
        "no_conclusion": without_conclusion,
        "altered_numbers": with_altered_numbers,
    }
    return {
        probe: {
            record.id: record.model_copy(update={"contexts": contexts})
            for record in records
            if (contexts := alterations[probe](record)) != record.contexts
        }
        for probe in PROBES
    }


def derange(records: Sequence[Record], seed: int) -> dict[str, Record]:
    """Another record for each one, every record once; as few as possible of the same verdict. One alone gets none.

    In an order that keeps each verdict together, everybody gets the record that stands as many places on as the
    largest group has members: past the end of the own group, unless that holds more than half of all.
    """
    groups: dict[str, list[Record]] = {}
    for record in random.Random(seed).sample(records, len(records)):
        groups.setdefault(record.verdict, []).append(record)
    if len(records) < 2:
        return {}
    ordered = [record for group in groups.values() for record in group]
    shift = min(max(map(len, groups.values())), len(records) - 1)
    return {record.id: ordered[(place + shift) % len(ordered)] for place, record in enumerate(ordered)}


def without_conclusion(record: Record) -> tuple[str, ...]:
    """The abstract's sections without the sentences that bear the conclusion; sections left empty are dropped.

    PubMedQA's abstracts come without their conclusion, but the findings that it restates are there. Left out are the
    sentences near the long_answer (at least half as near as the nearest one), and of the abstract's second half also
    those that read like a finding (see `reads_like_finding`): better one sentence of methods too few than a result too
    many. One sentence always stays: the one least near.
    """
    sentences = _sentences(record)
    half = len(sentences) // 2
    kept = [
        one for at, one in enumerate(sentences) if not (one.near or (at >= half and reads_like_finding(one.text)))
    ] or [min(sentences, key=lambda one: one.nearness)]
    texts = ["".join(one.text for one in kept if one.section == place) for place in range(len(record.contexts))]
    return tuple(text.strip() for text in texts if text.strip())


def with_altered_numbers(record: Record) -> tuple[str, ...]:
    """The abstract with the numbers of its comparisons altered (see `alteration`), the rest as it is.

    Where none of them stands in a sentence near the long_answer (as in `without_conclusion`), the verdict hardly rests
    on them, and the abstract stays as it is.
    """
    if not any(one.near and alter_numbers(one.text) != one.text for one in _sentences(record)):
        return record.contexts
    return tuple(alter_numbers(section) for section in record.contexts)


class _Sentence(NamedTuple):
    """A sentence as written, the section it stands in, its nearness to the long_answer, and whether that is near."""

    text: str
    section: int
    nearness: float
    near: bool


def _sentences(record: Record) -> list[_Sentence]:
    found = [
        (sentence, place, nearness(sentence, record, place))
        for place, section in enumerate(record.contexts)
        for sentence in sentences_as_written(section)
    ]
    limit = NEAR_SHARE * (max(near for *_, near in found) or math.inf)
    return [_Sentence(*one, near=one[2] >= limit) for one in found]


def reads_like_finding(sentence: str) -> bool:
    """Whether a sentence compares, negates or gives a share.

    >>> [reads_like_finding(s) for s in ("Pain fell in 12%.", "Groups did not differ.", "We asked 120 adults.")]
    [True, True, False]
    """
    tokens = read(sentence)
    words = [token.word for token in tokens]
    compares = FINDING_STEMS & {*stems(words)} or NEGATIONS & {*words}
    return bool(compares) or any(token.percent for token in tokens) or alter_numbers(sentence) != sentence


def probe_metrics(
    records: Sequence[Record],
    own: Mapping[str, str | None],
    probed: Mapping[str, Mapping[str, str | None]],
) -> dict[str, dict[str, Any]]:
    """What each probe did to one model's verdicts, as metrics.json holds it.

    Args:
        records: the evaluated cases.
        own: the verdict on each case with its own abstract, by id; None is unreadable.
        probed: the same under each probe, of the cases that it could alter.

    Returns:
        Per probe: accuracy, drop (accuracy with the own abstract minus accuracy under the probe, on the same cases)
        and flips (share of cases whose verdict is another one, an unreadable one included), each with its interval
        (Wilson's, for the drop Tango's); n, the cases it altered; skipped, those that it could not alter.
    """
    experts = {record.id: record.verdict for record in records}
    return {probe: _measure(experts, own, verdicts) for probe, verdicts in probed.items()}


def _measure(
    experts: Mapping[str, str],
    own: Mapping[str, str | None],
    probed: Mapping[str, str | None],
) -> dict[str, Any]:
    n = len(probed)
    before, after = ([verdicts[i] == experts[i] for i in probed] for verdicts in (own, probed))
    only_before, only_after, _ = mcnemar(before, after)
    return {
        "accuracy": wilson(sum(after), n).as_dict(),
        # Not resampled: where nothing changed on a few cases, resampling would be sure that nothing ever does.
        "drop": paired_score_interval(only_after, only_before, n).as_dict(),
        "flips": wilson(sum(own[i] != probed[i] for i in probed), n).as_dict(),
        "n": n,
        "skipped": len(experts) - n,
    }
