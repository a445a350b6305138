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
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

from medgrpo.records import Record, Verdict

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

Interval = tuple[float, float]
Sizes = tuple[int, int]


@dataclass(frozen=True)
class Finding:
    """One comparison as rounded in the abstract: `groups` and `statistics` are its printed figures."""

    scale: "Mean | Risk | Sensitivity"
    estimate: float
    low: float
    high: float
    p: float | None
    groups: str
    statistics: str
    sizes: Sizes

    @property
    def differs(self) -> bool:
        """Whether the interval excludes the null value."""
        return not self.low <= self.scale.null <= self.high

    @property
    def effect(self) -> Verdict | None:
        """Whether the important effect is shown; see `judge`."""
        return judge(self.low, self.estimate, self.high, self.scale.null, self.scale.important)


@dataclass(frozen=True)
class Mean:
    """A continuous outcome, reported as a difference of means; `important` carries the direction asked about."""

    unit: str
    control: Interval
    important: float
    words: tuple[str, str] = ("lower", "higher")
    null: float = 0.0
    neutral: str = "was"
    threshold: str = "A difference of {important:g} {unit} was considered important."

    def draw(self, rng: Random, x: float, s: float, sizes: Sizes | None) -> Finding:
        """A finding with effect x and standard error s (units of `important`); given sizes override s."""
        n, m = sizes or _sizes(rng, 2 * (3.3 / s) ** 2)
        error = 3.3 * abs(self.important) * math.sqrt(1 / n + 1 / m)
        control, estimate = round(rng.uniform(*self.control), 1), round(x * self.important, 1)
        p = _p_value(estimate / error)
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        low, estimate, high = (round(estimate + z * error, 1) + 0.0 for z in (-1.96, 0, 1.96))
        statistics = f"difference {estimate:.1f}, 95% CI {low:.1f} to {high:.1f}, {_p_text(p)}"
        groups = f"{control + estimate:.1f} versus {control:.1f} {self.unit}"
        return Finding(self, estimate, low, high, p, groups, statistics, (n, m))


@dataclass(frozen=True)
class Risk:
    """An event, reported as a relative risk; `important` below 1 asks about less of it, above 1 about more."""

    control: Interval
    important: float
    words: tuple[str, str] = ("less frequent", "more frequent")
    null: float = 1.0
    neutral: str = "occurred in"
    threshold: str = "A relative risk of {important} was considered important."

    def draw(self, rng: Random, x: float, s: float, sizes: Sizes | None) -> Finding:
        """A finding with effect x and standard error s, on the log scale in units of `important`."""
        step = math.log(self.important)
        control = rng.uniform(*self.control)
        treated = min(0.9, control * math.exp(x * step))
        n, m = sizes or _sizes(rng, (1 / treated + 1 / control - 2) / (s * step) ** 2)
        a, b = max(1, round(treated * n)), max(1, round(control * m))
        log_ratio, error = _log_risk_ratio(a, n, b, m)
        estimate, low, high = (round(math.exp(log_ratio + z * error), 2) for z in (0, -1.96, 1.96))
        p = _p_value(log_ratio / error)
        statistics = f"relative risk {estimate:.2f}, 95% CI {low:.2f} to {high:.2f}, {_p_text(p)}"
        groups = f"{a}/{n} ({100 * a / n:.1f}%) versus {b}/{m} ({100 * b / m:.1f}%)"
        return Finding(self, estimate, low, high, p, groups, statistics, (n, m))


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of a test in per cent with its Wilson interval; the required minimum is null and important value."""

    important: float
    null: float
    words: tuple[str, str] = ("below the required minimum", "above the required minimum")
    neutral: str = "was"
    threshold: str = "A minimum sensitivity of {important}% was required in advance."

    def draw(self, rng: Random, x: float, s: float, sizes: Sizes | None) -> Finding:
        """A finding x steps of 4 points above the minimum; given sizes override s."""
        truth = min(0.985, (self.important + 4 * x) / 100)
        n, _ = sizes or _sizes(rng, truth * (1 - truth) / (0.04 * s) ** 2)
        k = round(truth * n)
        centre, half = (k + 1.92) / (n + 3.84), 1.96 / (n + 3.84) * math.sqrt(k * (n - k) / n + 0.96)
        estimate, low, high = (round(100 * share, 1) for share in (k / n, centre - half, centre + half))
        return Finding(self, estimate, low, high, None, f"{k}/{n}", f"{estimate}%, 95% CI {low} to {high}", (n, n))


@dataclass(frozen=True)
class Topic:
    """A question that makes medical sense. All noun phrases but `people` are singular; `side` is an unwanted event."""

    treatment: str
    control: str
    people: str
    outcome: str
    scale: Mean | Risk | Sensitivity
    side: str
    design: str = "trial"
    verb: str = "reduce"


@dataclass(frozen=True)
class Kind:
    """A form of question: its share of the records, topics, wordings, and what to conclude (yes, no, maybe).

    `absence`: yes means that the effect, a harm, is ruled out. `both`: outcome and side event must both improve.
    """

    share: float
    topics: tuple[Topic, ...]
    questions: tuple[str, ...]
    conclusions: tuple[str, str, str]
    absence: bool = False
    both: bool = False


# fmt: off
_TIME = ("shorter", "longer")
_SIDE = Risk((0.25, 0.4), 0.67)
_LESS, _OFTEN_LESS = Risk((0.12, 0.22), 0.75), Risk((0.25, 0.4), 0.75)
_MORE, _OFTEN_MORE = Risk((0.12, 0.22), 1.33), Risk((0.2, 0.35), 1.33)
MEANS = (
    Topic("early mobilisation", "bed rest", "adults after hip fracture", "hospital stay",
          Mean("days", (8, 13), -1.5, _TIME), "delirium", verb="shorten"),
    Topic("chewing gum", "standard care", "women after caesarean birth", "bowel recovery time",
          Mean("hours", (20, 30), -3.0, _TIME), "vomiting", verb="shorten"),
    Topic("soft music", "silence", "adults having colonoscopy", "pain score",
          Mean("points", (35, 50), -8.0), "nausea", verb="lower"),
    Topic("melatonin", "placebo", "adults with insomnia", "total sleep time",
          Mean("minutes", (330, 380), 25.0, _TIME), "headache", "crossover", "lengthen"),
    Topic("a low-salt diet", "the usual diet", "adults with mild hypertension", "systolic pressure",
          Mean("mmHg", (142, 152), -5.0), "dizziness", "crossover", "lower"),
    Topic("home rehabilitation", "usual care", "adults with emphysema", "walking distance",
          Mean("metres", (320, 400), 30.0, _TIME), "chest infection", verb="increase"),
    Topic("telephone coaching", "written advice", "adults with diabetes", "fasting glucose",
          Mean("mmol/L", (8, 9.5), -0.8), "hypoglycaemia", verb="lower"),
    Topic("iron syrup", "placebo", "toddlers with anaemia", "haemoglobin",
          Mean("g/L", (100, 108), 6.0), "constipation", verb="raise"),
    Topic("nurse-led triage", "doctor-led triage", "emergency patients", "waiting time",
          Mean("minutes", (60, 90), -12.0, _TIME), "early departure", "before-after", "shorten"),
    Topic("kangaroo care", "incubator care", "preterm infants", "daily weight gain",
          Mean("g", (14, 19), 2.5), "hypothermia", verb="increase"),
)
EVENTS = (
    Topic("chlorhexidine bathing", "soap bathing", "intensive care patients", "bloodstream infection",
          _LESS, "skin rash", "before-after"),
    Topic("tranexamic acid", "placebo", "women giving birth", "severe bleeding", _LESS, "nausea"),
    Topic("a daily probiotic", "placebo", "inpatients on antibiotics", "diarrhoea", _LESS, "bloating", verb="prevent"),
    Topic("text reminding", "no reminding", "clinic patients", "non-attendance", _OFTEN_LESS, "late arrival"),
    Topic("a safety bundle", "usual care", "care home residents", "falling", _OFTEN_LESS, "distress", "before-after"),
    Topic("early amitriptyline", "placebo", "adults with shingles", "lasting pain", _OFTEN_LESS, "dry mouth"),
    Topic("hygiene teaching", "no teaching", "primary-school pupils", "winter absence", _OFTEN_LESS, "dry skin"),
)
HARMS = (
    Topic("night-shift work", "day work", "hospital nurses", "hypertension", _MORE, "back pain", "cohort"),
    Topic("antacid use", "non-use", "adults in primary care", "bacterial enteritis", _MORE, "fracture", "cohort"),
    Topic("prenatal smoke exposure", "no exposure", "school-age children", "asthma", _MORE, "eczema", "cohort"),
    Topic("maternal obesity", "normal weight", "first-time mothers", "caesarean birth", _MORE, "fever", "cohort"),
    Topic("sleep apnoea", "normal sleep", "surgical patients", "atrial fibrillation", _MORE, "infection", "cohort"),
    Topic("sedative use", "non-use", "older adults", "falling", _OFTEN_MORE, "confusion", "cohort"),
    Topic("vitamin deficiency", "no deficiency", "surgical patients", "delirium", _OFTEN_MORE, "pneumonia", "cohort"),
)
REPLACEMENTS = (
    Topic("oral treatment", "intravenous treatment", "children with bone infection", "relapse", _MORE, "skin rash"),
    Topic("nurse follow-up", "specialist follow-up", "adults after bowel surgery", "readmission", _MORE, "worry"),
    Topic("a five-day course", "a ten-day course", "adults with pneumonia", "treatment failure", _MORE, "diarrhoea"),
    Topic("skin glue", "stitching", "children with facial cuts", "wound reopening", _MORE, "visible scarring"),
)
RISKS = (
    Topic("same-day discharge", "an overnight stay", "adults after stenting", "readmission", _MORE, "poor sleep"),
    Topic("early feeding", "fasting", "adults after bowel resection", "anastomotic leakage", _MORE, "vomiting"),
    Topic("continued aspirin", "interrupted aspirin", "men having prostate biopsy", "bleeding", _MORE, "infection"),
    Topic("nurse sedation", "anaesthetist sedation", "endoscopy patients", "oxygen desaturation", _MORE, "agitation"),
)
TESTS = (
    Topic("bedside troponin", "laboratory testing", "adults with chest pain", "myocardial infarction",
          Sensitivity(90, 90), "false alarm", "diagnostic"),
    Topic("lung ultrasound", "radiography", "feverish children", "pneumonia",
          Sensitivity(85, 85), "false alarm", "diagnostic"),
    Topic("a two-question screen", "an interview", "new mothers", "postnatal depression",
          Sensitivity(80, 80), "false alarm", "diagnostic"),
    Topic("smartphone photography", "lamp examination", "adults with diabetes", "retinopathy",
          Sensitivity(85, 85), "false alarm", "diagnostic"),
)
KINDS = (
    Kind(0.40, MEANS + EVENTS,
         ("Does {x} {verb} {outcome} in {people}?", "Compared with {y}, does {x} {verb} {outcome} in {people}?",
          "Can {x} {verb} {outcome} in {people}?", "Should {people} have {x} rather than {y} to {verb} {outcome}?"),
         ("{x} {verb}s {outcome} compared with {y}", "{x} does not {verb} {outcome} compared with {y}",
          "{x} may or may not {verb} {outcome} compared with {y}")),
    Kind(0.09, MEANS,
         ("Is {x} better than {y} for {people}?", "Do {people} benefit from {x}?"),
         ("{x} improves both {outcome} and {side} compared with {y}",
          "{x} improves neither {outcome} nor {side} compared with {y}",
          "{x} improves only one of {outcome} and {side}, so it may or may not be better than {y}"), both=True),
    Kind(0.21, HARMS,
         ("Does {x} increase the risk of {outcome} in {people}?", "Is {x} a risk factor for {outcome} in {people}?",
          "Is {x} associated with more {outcome} in {people}?"),
         ("{x} increases the risk of {outcome} compared with {y}",
          "{x} does not increase the risk of {outcome} compared with {y}",
          "{x} may or may not increase the risk of {outcome} compared with {y}")),
    Kind(0.10, REPLACEMENTS,
         ("Is {x} non-inferior to {y} in {people}?", "Is {x} as effective as {y} in {people}?",
          "Can {x} replace {y} in {people}?"),
         ("{x} is non-inferior to {y} regarding {outcome}", "{x} is inferior to {y} regarding {outcome}",
          "{x} may or may not be non-inferior to {y} regarding {outcome}"), absence=True),
    Kind(0.10, RISKS,
         ("Is {x} safe in {people}?", "Can {x} be offered safely to {people}?", "Is {x} as safe as {y} in {people}?"),
         ("{x} is as safe as {y} regarding {outcome}", "{x} is not safe, because it causes more {outcome} than {y}",
          "{x} may or may not be as safe as {y} regarding {outcome}"), absence=True),
    Kind(0.10, TESTS,
         ("Can {x} rule out {outcome} in {people}?", "Is {x} sensitive enough for {outcome} in {people}?"),
         ("the sensitivity of {x} for {outcome} suffices", "the sensitivity of {x} for {outcome} is too low",
          "the sensitivity of {x} for {outcome} may or may not suffice")),
)
# Naming the primary outcome makes its sentence, not a distractor, the nearest one that a gold completion quotes.
CONCLUSIONS = ("The primary outcome shows that {claim}.", "The primary analysis suggests that {claim}.",
               "The primary result is that {claim}.")
BACKGROUNDS = ("The role of {x} is debated, and earlier studies disagree in their findings.",
               "Few studies have examined {x}, and their results are conflicting.",
               "Evidence on {x} is sparse, and reviews have asked for better studies.")
DESIGNS = {
    "trial": ("We randomly assigned {n} {people} to {x} and {m} to {y} for {weeks} weeks in {clinics} clinics.",
              "In this randomised trial, {n} {people} had {x} and {m} had {y}, with {weeks} weeks of follow-up."),
    "crossover": ("In a crossover trial with {weeks}-week periods, {n} {people} completed {x} and {m} completed {y}.",),
    "before-after": ("In a before-after study, {m} {people} had {y} and, {weeks} weeks later, {n} had {x}.",
                     "Units were randomised: {n} {people} had {x} and {m} had {y} during {weeks} weeks."),
    "cohort": ("This cohort study compared {n} {people} with {x} and {m} with {y}, followed for {weeks} weeks.",
               "We followed {people} for {weeks} weeks, {n} with {x} and {m} with {y}, from {clinics} clinics."),
    "diagnostic": ("Within {weeks} weeks, {screened} {people} had {x} and {y}; a blinded expert panel "
                   "confirmed {outcome} in {n} of them.",),
}
LEADS = {
    "primary": ("The primary outcome, {name}, {body}.", "Primary outcome: {name} {body}.",
                "Primary endpoint: {name} {body}.", "In the primary analysis, {name} {body}."),
    "secondary": ("A secondary outcome, {name}, {body}.", "Secondary outcome: {name} {body}.",
                  "Secondary endpoint: {name} {body}.", "In a secondary analysis, {name} {body}."),
    "first": ("The first primary outcome, {name}, {body}.",),
    "second": ("The second primary outcome, {name}, {body}.",),
}
BODIES = {
    "differs": ("was {word} with {x} than with {y}", "was significantly {word} with {x} than with {y}"),
    "same": ("did not differ between {x} and {y}", "did not differ significantly between {x} and {y}",
             "was similar with {x} and {y}"),
    "open": ("was possibly {word} with {x} than with {y}", "was not clearly different between {x} and {y}"),
}
TEST_BODIES = {"differs": ("was {word}", "was significantly {word}"),
               "open": ("was possibly {word}", "was not clearly {word}")}
ASIDES = ("Age at baseline differed significantly (p=0.0{d}).", "Age at baseline did not differ (p=0.{dd}).",
          "Adjustment did not change these results.", "However, {d} people were lost to follow-up.",
          "An analysis by sex was not significant (p=0.{dd}).", "An analysis by sex was significant (p=0.0{d}).")
EARLY = ("Recruitment stopped early.", "The planned sample was not reached.")
# fmt: on


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


def judge(low: float, estimate: float, high: float, null: float, important: float) -> Verdict | None:
    """Whether an interval shows an important effect; None where it shows an unimportant one (never generated).

    >>> judge(-2.4, -1.7, -1.0, null=0, important=-1.5), judge(0.93, 1.01, 1.1, null=1, important=0.75)
    ('yes', 'no')
    >>> judge(0.6, 0.9, 1.3, null=1, important=0.75)
    'maybe'
    """
    if important < null:
        low, estimate, high, null, important = -high, -estimate, -low, -null, -important
    if low > null:
        return "yes" if estimate >= important else None
    return "no" if high < important else "maybe"


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
    sizes = _sizes(rng, rng.uniform(200, 450))  # enough to rule out either effect
    main, side = _draw(rng, topic.scale, states[0], sizes), _draw(rng, _SIDE, states[1], sizes)
    first = _sentence(rng, "first", topic.outcome, topic, main)
    return sizes, [first, _sentence(rng, "second", topic.side, topic, side)]


def _draw(rng: Random, scale: Mean | Risk | Sensitivity, state: str, sizes: Sizes | None = None) -> Finding:
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
        log_ratio, error = _log_risk_ratio(a, n, b, m)
        p = _p_value(log_ratio / error)
    word = "less frequent" if log_ratio < 0 else "more frequent"
    wording = rng.choice(BODIES["differs" if significant else rng.choice(("same", "same", "open"))])
    body = f"{wording} ({100 * a / n:.1f}% versus {100 * b / m:.1f}%, {_p_text(p)})"
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


def _sizes(rng: Random, size: float) -> Sizes:
    """Two groups of about `size` people, never fewer than 12."""
    n = max(12, math.ceil(size))
    return n + rng.randint(0, n // 12), n + rng.randint(0, n // 12)


def _log_risk_ratio(a: int, n: int, b: int, m: int) -> tuple[float, float]:
    """Logarithm of (a/n) / (b/m) and its standard error (Katz)."""
    return math.log(a / n) - math.log(b / m), math.sqrt(1 / a - 1 / n + 1 / b - 1 / m)


def _p_value(z: float) -> float:
    """Two-sided p-value of a normal statistic."""
    return 2 * NormalDist().cdf(-abs(z))


def _p_text(p: float) -> str:
    """A p-value as journals print it.

    >>> _p_text(0.00002), _p_text(0.0123), _p_text(0.414), _p_text(0.999)
    ('p<0.001', 'p=0.012', 'p=0.41', 'p=0.99')
    """
    return "p<0.001" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={min(p, 0.99):.2f}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
