"""Synthetic trial abstracts: generated from tables, with verdicts that follow from the reported numbers.

Nothing here is medical evidence: every study, patient and figure is invented. The shape is PubMedQA's (a question, the
abstract without its conclusion, that conclusion, and yes, no or maybe in PubMedQA's class balance). One record:

>>> record = generate(40, seed=7)[31]
>>> record.question, record.verdict
('Does iron syrup raise haemoglobin in toddlers with anaemia?', 'maybe')
>>> print(*record.contexts)  # doctest: +NORMALIZE_WHITESPACE
Evidence on iron syrup is sparse, and reviews have asked for better studies. We randomly assigned 59 toddlers with
anaemia to iron syrup and 58 to placebo for 22 weeks in 9 clinics. A difference of 6 g/L was considered important. The
primary outcome, haemoglobin, was possibly higher with iron syrup than with placebo (105.8 versus 101.0 g/L;
difference 4.8, 95% CI -2.4 to 12.0, p=0.19). Secondary endpoint: constipation was significantly more frequent with
iron syrup than with placebo (59.3% versus 27.6%, p=0.001).
>>> record.long_answer
'The primary analysis suggests that iron syrup may or may not raise haemoglobin compared with placebo.'

How a verdict follows. Each abstract names its primary outcome and an important effect. The interval of the primary
outcome shows an effect (it excludes none, and the estimate is important), rules it out (it excludes the important
effect) or leaves it open (it holds both). "Does it help?" and "does it harm?" are answered yes, no, maybe in that
order; "is it safe?" and "is it non-inferior?" ask for the absence of harm and swap yes and no. Two primary outcomes
that disagree give maybe. Secondary outcomes mostly point the other way, so words alone do not give the verdict away.
"""

import math
from random import Random

from medgrpo.completions import Verdict
from medgrpo.config import DataConfig
from medgrpo.domains.abstracts import abstracts_domain
from medgrpo.domains.synthetic_findings import (
    Finding,
    Scale,
    Sensitivity,
    Sizes,
    draw_sizes,
    log_risk_ratio,
    p_text,
    p_value,
)
from medgrpo.domains.synthetic_topics import (
    ASIDES,
    BACKGROUNDS,
    BODIES,
    CONCLUSIONS,
    DESIGNS,
    EARLY,
    KINDS,
    LEADS,
    SIDE,
    TEST_BODIES,
    Topic,
)
from medgrpo.errors import InputError
from medgrpo.records import Corpus, Record

BALANCE: dict[Verdict, int] = {"yes": 276, "no": 169, "maybe": 55}
"""Verdicts among PubMedQA's 500 expert-labelled test records."""
NEGATED: dict[Verdict, Verdict] = {"yes": "no", "no": "yes", "maybe": "maybe"}
MAX_WORDS = 120
"""Longest abstract; optional sentences that would pass it are left out."""
OPPOSED = 0.6
"""Share of secondary outcomes that are significant where the primary one is not, or the other way round."""
STATES = {
    "shown": ((1.2, 2.2), (0.25, 0.5)),
    "absent": ((-0.3, 0.3), (0.25, 0.4)),
    "reversed": ((-2.2, -1.2), (0.25, 0.5)),
    "open": ((-0.2, 0.9), (0.6, 1.1)),
}
"""Ranges of the effect and of its standard error, both in units of the smallest important effect."""


def generate(count: int, seed: int) -> list[Record]:
    """`count` different records in PubMedQA's class balance, the same ones for the same arguments."""
    return _records(Random(seed), count, first=0, seen=set())


def load(pool: int, test: int, seed: int) -> tuple[list[Record], list[Record]]:
    """Pool and test records, each in PubMedQA's balance; no id and no abstract occurs twice."""
    rng, seen = Random(seed), set[tuple[str, ...]]()
    return _records(rng, pool, first=0, seen=seen), _records(rng, test, first=pool, seen=seen)


def apportion(count: int) -> dict[Verdict, int]:
    """How many records of each verdict, by largest remainder.

    >>> apportion(300)
    {'yes': 166, 'no': 101, 'maybe': 33}
    """
    total = sum(BALANCE.values())
    shares = {verdict: count * weight // total for verdict, weight in BALANCE.items()}
    by_remainder = sorted(BALANCE, key=lambda verdict: count * BALANCE[verdict] % total, reverse=True)
    for verdict in by_remainder[: count - sum(shares.values())]:
        shares[verdict] += 1
    return shares


def _records(rng: Random, count: int, first: int, seen: set[tuple[str, ...]]) -> list[Record]:
    """New records whose abstracts are not in `seen`, which grows."""
    verdicts = [verdict for verdict, share in apportion(count).items() for _ in range(share)]
    rng.shuffle(verdicts)
    records: list[Record] = []
    for number, verdict in enumerate(verdicts, start=first):
        record = _record(rng, number, verdict)
        while record.contexts in seen:
            record = _record(rng, number, verdict)
        seen.add(record.contexts)
        records.append(record)
    return records


def _record(rng: Random, number: int, verdict: Verdict) -> Record:
    kind = rng.choices(KINDS, [kind.share for kind in KINDS])[0]
    topic = rng.choice(kind.topics)
    effect = NEGATED[verdict] if kind.absence else verdict
    sizes, results = (_two_primaries if kind.both else _primary_and_secondary)(rng, topic, effect)
    values = _values(rng, topic, sizes)
    claim = kind.conclusions[("yes", "no", "maybe").index(verdict)].format(**values)
    methods = [_capital(rng.choice(DESIGNS[topic.design]).format(**values))]
    both = "Improvement of both {outcome} and {side} was required."
    methods.append((both if kind.both else topic.scale.threshold).format(**values))
    background = rng.choice(BACKGROUNDS).format(**values)
    _add_asides(rng, verdict, background, methods, results)
    return Record(
        id=f"synthetic-{number:06d}",
        question=_capital(rng.choice(kind.questions).format(**values)),
        contexts=(background, " ".join(methods), " ".join(results)),
        verdict=verdict,
        long_answer=_capital(rng.choice(CONCLUSIONS).format(claim=claim, **values)),
        year=rng.randint(1995, 2016),
        synthetic=True,
        domain="synthetic",
    )


def _primary_and_secondary(rng: Random, topic: Topic, effect: Verdict) -> tuple[Sizes, list[str]]:
    """A primary finding with this verdict on its effect, and a secondary one that mostly points the other way."""
    is_test = isinstance(topic.scale, Sensitivity)
    unproven = "reversed" if is_test or rng.random() < 0.3 else "absent"
    finding = _draw(rng, topic.scale, {"yes": "shown", "no": unproven, "maybe": "open"}[effect])
    name = f"sensitivity for {topic.outcome}" if is_test else topic.outcome
    significant = finding.differs ^ (rng.random() < OPPOSED)
    sentences = [_sentence(rng, "primary", name, topic, finding), _secondary(rng, topic, finding.sizes, significant)]
    return finding.sizes, sentences if rng.random() < 0.55 else sentences[::-1]


def _two_primaries(rng: Random, topic: Topic, effect: Verdict) -> tuple[Sizes, list[str]]:
    """Two primary findings: both shown (yes), neither (no), or one of them (maybe)."""
    neither = (("absent", "absent"), ("reversed", "absent"), ("absent", "reversed"))
    one = (("shown", "absent"), ("absent", "shown"), ("shown", "reversed"))
    pairs: dict[Verdict, tuple[tuple[str, str], ...]] = {"yes": (("shown", "shown"),), "no": neither, "maybe": one}
    states = rng.choice(pairs[effect])
    sizes = draw_sizes(rng, rng.uniform(200, 450))  # enough to rule out either effect
    main, side = _draw(rng, topic.scale, states[0], sizes), _draw(rng, SIDE, states[1], sizes)
    first = _sentence(rng, "first", topic.outcome, topic, main)
    return sizes, [first, _sentence(rng, "second", topic.side, topic, side)]


def _draw(rng: Random, scale: Scale, state: str, sizes: Sizes | None = None) -> Finding:
    """A finding in `state` whose rounded figures still say so, with a p-value that agrees with the interval."""
    wanted = {"shown": "yes", "open": "maybe"}.get(state, "no")
    while True:
        x, s = (rng.uniform(*bounds) for bounds in STATES[state])
        finding = scale.draw(rng, x, s, sizes)
        agrees = finding.p is None or (finding.p < 0.04 if finding.differs else finding.p > 0.06)
        if agrees and finding.effect == wanted and finding.differs == (state in ("shown", "reversed")):
            return finding


def _sentence(rng: Random, rank: str, name: str, topic: Topic, finding: Finding) -> str:
    """One outcome with its figures: in words with the figures in brackets, or (a third) in figures alone."""
    is_test = isinstance(finding.scale, Sensitivity)
    if rng.random() < 0.33:
        arms = "" if is_test else f" with {topic.treatment} versus {topic.control}"
        body = f"{finding.scale.neutral} {finding.groups}{arms} ({finding.statistics})"
    else:
        manner = "differs" if finding.differs else "same" if finding.effect == "no" else "open"
        word = finding.scale.words[finding.estimate > finding.scale.null]
        wording = rng.choice((TEST_BODIES if is_test else BODIES)[manner])
        body = f"{wording} ({finding.groups}; {finding.statistics})"
        body = body.format(word=word, x=topic.treatment, y=topic.control)
    return rng.choice(LEADS[rank]).format(name=name, body=body)


def _secondary(rng: Random, topic: Topic, sizes: Sizes, significant: bool) -> str:
    """The side event in the same people (of a test: in those without the disease), as percentages with a p-value."""
    n, m = sizes if topic.design != "diagnostic" else (_screened(sizes[0]) - sizes[0],) * 2
    p = 0.05
    while not (p < 0.04 if significant else p > 0.07):
        share, z = rng.uniform(0.08, 0.4), rng.choice((-1, 1)) * rng.uniform(*((2.2, 4.0) if significant else (0, 1.5)))
        treated = min(0.9, share * math.exp(z * math.sqrt((1 / share - 1) * (1 / n + 1 / m))))
        a, b = max(1, round(treated * n)), max(1, round(share * m))
        log_ratio, error = log_risk_ratio(a, n, b, m)
        p = p_value(log_ratio / error)
    word = "less frequent" if log_ratio < 0 else "more frequent"
    wording = rng.choice(BODIES["differs" if significant else rng.choice(("same", "same", "open"))])
    body = f"{wording} ({100 * a / n:.1f}% versus {100 * b / m:.1f}%, {p_text(p)})"
    body = body.format(word=word, x=topic.treatment, y=topic.control)
    return rng.choice(LEADS["secondary"]).format(name=topic.side, body=body)


def _add_asides(rng: Random, verdict: Verdict, background: str, methods: list[str], results: list[str]) -> None:
    """Insert what does not decide the verdict, as far as MAX_WORDS allows."""
    early = rng.choice(EARLY) if rng.random() < (0.3 if verdict == "maybe" else 0.1) else ""
    aside = rng.choice(ASIDES).format(d=rng.randint(2, 4), dd=rng.randint(11, 92)) if rng.random() < 0.5 else ""
    if ":" not in results[1] and rng.random() < 0.6:
        results[1] = f"However, {results[1][0].lower()}{results[1][1:]}"
    room = MAX_WORDS - sum(len(text.split()) for text in (background, *methods, *results))
    for sentence, section in ((early, methods), (aside, results)):
        if 0 < len(sentence.split()) <= room:
            section.insert(rng.choice((0, 2)) if section is results else 2, sentence)
            room -= len(sentence.split())


def _values(rng: Random, topic: Topic, sizes: Sizes) -> dict[str, object]:
    """What the templates of a topic can name."""
    n, m = sizes
    names = {"x": topic.treatment, "y": topic.control, "important": abs(topic.scale.important)}
    counts = {"n": n, "m": m, "screened": _screened(n), "clinics": rng.randint(3, 19), "weeks": rng.randint(6, 52)}
    return vars(topic) | names | counts | {"unit": getattr(topic.scale, "unit", "")}


def _screened(diseased: int) -> int:
    """People examined in a diagnostic study in which `diseased` had the disease."""
    return 4 * diseased - diseased % 7


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _load(config: DataConfig) -> Corpus:
    if config.path or config.ground_truth:
        raise InputError(
            "data.path is set, but data.domain is 'synthetic', which is generated: set data.domain=pubmedqa."
        )
    pool, test = load(config.synthetic_pool, config.synthetic_test, config.synthetic_seed)
    return Corpus(
        name="synthetic",
        records={record.id: record for record in [*pool, *test]},
        splits={"train": tuple(r.id for r in pool), "dev": (), "test": tuple(r.id for r in test)},
        synthetic=True,
    )


DOMAIN = abstracts_domain(
    "synthetic", load=_load, read_labelled=None, data="**synthetic** records, invented by a generator"
)
