"""Synthetic trial abstracts: generated from tables, with verdicts that follow from the reported numbers.

Nothing here is medical evidence: every trial, patient and figure is invented. The shape is PubMedQA's: a question, the
abstract without its conclusion, that conclusion, and yes, no or maybe in PubMedQA's class balance. One record:

@EXAMPLE@

How a verdict follows. Each abstract names its primary outcome and the smallest important effect. The reported interval
then shows the effect (it excludes none, and the estimate is important), rules it out (it excludes the important
effect) or leaves it open (it holds both). "Does it help?" and "does it harm?" are answered yes, no, maybe in that
order; "is it safe?" and "is it non-inferior?" ask for the absence of harm and swap yes and no. Two co-primary outcomes
that disagree give maybe. Secondary outcomes usually point the other way, so words alone do not give the verdict away.
"""

import math
from dataclasses import dataclass
from random import Random
from statistics import NormalDist
from typing import Literal

from medgrpo.records import Record, Verdict

BALANCE: dict[Verdict, int] = {"yes": 276, "no": 169, "maybe": 55}
"""Verdicts among PubMedQA's 500 expert-labelled test records."""
MAX_WORDS = 120
"""Longest abstract; optional sentences that would pass it are left out."""

State = Literal["shown", "absent", "reversed", "open"]
Interval = tuple[float, float]

STATES: dict[State, tuple[Interval, Interval]] = {
    "shown": ((1.2, 2.2), (0.25, 0.5)),
    "absent": ((-0.3, 0.3), (0.25, 0.4)),
    "reversed": ((-2.2, -1.2), (0.25, 0.5)),
    "open": ((-0.2, 0.9), (0.6, 1.3)),
}
"""Ranges of the effect and of its standard error, both in units of the smallest important effect."""


@dataclass(frozen=True)
class Finding:
    """One reported comparison, as rounded in the abstract.

    Attributes:
        groups: the figure of each group ("7.1 versus 9.0 days").
        statistics: estimate, interval and p-value, as text.
        sizes: people in the treatment and in the control group.
    """

    estimate: float
    low: float
    high: float
    p: float | None
    groups: str
    statistics: str
    sizes: tuple[int, int]


@dataclass(frozen=True)
class Mean:
    """A continuous outcome, reported as a difference of means; `important` carries the direction asked about."""

    unit: str
    control: Interval
    important: float
    less: str = "lower"
    more: str = "higher"
    null: float = 0.0
    neutral: str = "was"

    def draw(self, rng: Random, x: float, s: float, paired: bool = False, sizes: tuple[int, int] | None = None) -> Finding:
        """A finding with true effect x and standard error s (units of `important`); given sizes override s."""
        spread = 3.3 * abs(self.important)
        sizes = sizes or _sizes(rng, 2 * (3.3 / s) ** 2, paired)
        error = spread * math.sqrt(1 / sizes[0] + 1 / sizes[1])
        control = round(rng.uniform(*self.control), 1)
        estimate = round(x * self.important, 1)
        low, high = round(estimate - 1.96 * error, 1), round(estimate + 1.96 * error, 1)
        p = _p_value(estimate / error)
        groups = f"{control + estimate:.1f} versus {control:.1f} {self.unit}"
        statistics = f"difference {estimate:.1f}, 95% CI {low:.1f} to {high:.1f}, {_p_text(p)}"
        return Finding(estimate, low, high, p, groups, statistics, sizes)


@dataclass(frozen=True)
class Risk:
    """A yes/no outcome, reported as a relative risk; `important` below 1 asks about less of it, above 1 about more."""

    control: Interval
    important: float
    less: str = "less frequent"
    more: str = "more frequent"
    null: float = 1.0
    neutral: str = "occurred in"

    def draw(self, rng: Random, x: float, s: float, paired: bool = False) -> Finding:
        """A finding with true effect x and standard error s, both on the log scale in units of `important`."""
        log_important = math.log(self.important)
        control = rng.uniform(*self.control)
        treated = min(0.9, control * math.exp(x * log_important))
        size = (1 / treated + 1 / control - 2) / (s * log_important) ** 2
        n, m = _sizes(rng, size, paired)
        a, b = max(1, round(treated * n)), max(1, round(control * m))
        error = math.sqrt(1 / a - 1 / n + 1 / b - 1 / m)
        log_ratio = math.log(a / n) - math.log(b / m)
        estimate = round(math.exp(log_ratio), 2)
        low, high = (round(math.exp(log_ratio + z * error), 2) for z in (-1.96, 1.96))
        p = _p_value(log_ratio / error)
        groups = f"{a}/{n} ({100 * a / n:.1f}%) versus {b}/{m} ({100 * b / m:.1f}%)"
        statistics = f"relative risk {estimate:.2f}, 95% CI {low:.2f} to {high:.2f}, {_p_text(p)}"
        return Finding(estimate, low, high, p, groups, statistics, (n, m))


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of a test in per cent, with its Wilson interval, against a required minimum."""

    important: float
    less: str = "below the required minimum"
    more: str = "above the required minimum"
    neutral: str = "was"

    @property
    def null(self) -> float:
        """The required minimum is both the null value and the important one."""
        return self.important

    def draw(self, rng: Random, x: float, s: float, paired: bool = True) -> Finding:
        """A finding x steps of 4 points above the minimum; `paired` is ignored, all are tested both ways."""
        truth = min(0.985, (self.important + 4 * x) / 100)
        n = _sizes(rng, truth * (1 - truth) / (0.04 * s) ** 2, paired=True)[0]
        k = round(truth * n)
        z2 = 1.96**2
        centre = (k + z2 / 2) / (n + z2)
        half = 1.96 / (n + z2) * math.sqrt(k * (n - k) / n + z2 / 4)
        estimate, low, high = (round(100 * share, 1) for share in (k / n, centre - half, centre + half))
        return Finding(estimate, low, high, None, f"{k}/{n}", f"{estimate}%, 95% CI {low} to {high}", (n, n))


@dataclass(frozen=True)
class Topic:
    """A question that makes medical sense. All noun phrases are singular; `side` is an unwanted event."""

    treatment: str
    control: str
    people: str
    problem: str
    outcome: str
    scale: Mean | Risk | Sensitivity
    side: str
    design: str = "trial"
    verb: str = "reduce"


# fmt: off
BENEFIT_ON_MEANS = (
    Topic("early mobilisation", "bed rest", "adults after hip fracture", "Hip fracture leads to long admissions.",
          "hospital stay", Mean("days", (8, 13), -1.5, "shorter", "longer"), "delirium", verb="shorten"),
    Topic("chewing gum", "standard care", "women after caesarean birth", "Caesarean birth slows the gut.",
          "bowel recovery time", Mean("hours", (20, 30), -3.0, "shorter", "longer"), "vomiting", verb="shorten"),
    Topic("soft music", "silence", "outpatients having colonoscopy", "Many patients dread colonoscopy.",
          "pain score", Mean("points", (35, 50), -8.0), "nausea", verb="lower"),
    Topic("melatonin", "placebo", "adults with insomnia", "Insomnia is common and hard to treat.",
          "total sleep time", Mean("minutes", (330, 380), 25.0, "shorter", "longer"), "headache", "crossover", "lengthen"),
    Topic("a low-salt diet", "the usual diet", "adults with mild hypertension", "Dietary advice is seldom followed.",
          "systolic pressure", Mean("mmHg", (142, 152), -5.0), "dizziness", "crossover", "lower"),
    Topic("home rehabilitation", "usual care", "adults with emphysema", "Emphysema limits everyday activity.",
          "walking distance", Mean("metres", (320, 400), 30.0, "shorter", "longer"), "chest infection", verb="increase"),
    Topic("telephone coaching", "written advice", "adults with diabetes", "Self-care in diabetes is demanding.",
          "fasting glucose", Mean("mmol/L", (8, 9.5), -0.8), "hypoglycaemia", verb="lower"),
    Topic("iron syrup", "placebo", "toddlers with anaemia", "Anaemia in early childhood is widespread.",
          "haemoglobin", Mean("g/L", (100, 108), 6.0), "constipation", verb="raise"),
    Topic("nurse-led triage", "doctor-led triage", "emergency patients", "Emergency departments are crowded.",
          "waiting time", Mean("minutes", (60, 90), -12.0, "shorter", "longer"), "early departure", "wards", "shorten"),
    Topic("kangaroo care", "incubator care", "preterm infants", "Preterm infants grow slowly.",
          "daily weight gain", Mean("g", (14, 19), 2.5), "hypothermia", verb="increase"),
)
BENEFIT_ON_RISKS = (
    Topic("chlorhexidine bathing", "soap bathing", "intensive care patients", "Infections prolong intensive care.",
          "bloodstream infection", Risk((0.12, 0.2), 0.75), "skin rash", "wards"),
    Topic("tranexamic acid", "placebo", "women giving birth", "Blood loss at birth is dangerous.",
          "severe bleeding", Risk((0.15, 0.25), 0.75), "nausea"),
    Topic("a daily probiotic", "placebo", "inpatients on antibiotics", "Antibiotics disturb the gut.",
          "diarrhoea", Risk((0.2, 0.35), 0.75), "bloating", verb="prevent"),
    Topic("text reminding", "no reminding", "clinic patients", "Clinics lose many hours to absent patients.",
          "non-attendance", Risk((0.2, 0.35), 0.75), "late arrival"),
    Topic("a fall-prevention bundle", "usual care", "nursing home residents", "Old age brings unsteady gait.",
          "falling", Risk((0.3, 0.45), 0.75), "pressure injury", "wards"),
    Topic("early amitriptyline", "placebo", "adults with shingles", "Shingles can leave lasting trouble.",
          "lasting nerve pain", Risk((0.25, 0.4), 0.75), "dry mouth", verb="prevent"),
    Topic("hygiene teaching", "no teaching", "primary-school pupils", "Colds spread fast in classrooms.",
          "winter absence", Risk((0.3, 0.5), 0.75), "skin irritation"),
)
HARM = (
    Topic("night-shift work", "day work", "hospital nurses", "Shift work disturbs the body clock.",
          "hypertension", Risk((0.12, 0.2), 1.33), "back pain", "cohort"),
    Topic("acid-suppressant use", "non-use", "adults in primary care", "Acid suppressants are widely prescribed.",
          "bacterial enteritis", Risk((0.1, 0.16), 1.33), "wrist fracture", "cohort"),
    Topic("prenatal smoke exposure", "no exposure", "school-age children", "Lungs develop before birth.",
          "asthma", Risk((0.1, 0.18), 1.33), "eczema", "cohort"),
    Topic("maternal obesity", "normal maternal weight", "first-time mothers", "Obesity is rising worldwide.",
          "emergency caesarean", Risk((0.15, 0.25), 1.33), "perineal tear", "cohort"),
    Topic("sleep apnoea", "normal sleep", "surgical patients", "Rhythm problems often follow surgery.",
          "atrial fibrillation", Risk((0.12, 0.2), 1.33), "wound infection", "cohort"),
    Topic("benzodiazepine use", "non-use", "older adults", "Sedatives remain popular in old age.",
          "falling", Risk((0.2, 0.3), 1.33), "confusion", "cohort"),
    Topic("vitamin D deficiency", "normal vitamin D", "hip-surgery patients", "Confusion often follows surgery.",
          "delirium", Risk((0.2, 0.35), 1.33), "transfusion", "cohort"),
)
NONINFERIOR = (
    Topic("oral treatment", "intravenous treatment", "children with bone infection", "Long drips burden children.",
          "treatment failure", Risk((0.15, 0.25), 1.33), "skin rash"),
    Topic("nurse follow-up", "specialist follow-up", "adults after bowel surgery", "Specialist clinics are full.",
          "unplanned readmission", Risk((0.15, 0.25), 1.33), "persistent worry"),
    Topic("a five-day course", "a ten-day course", "adults with pneumonia", "Long courses breed resistance.",
          "relapse", Risk((0.15, 0.25), 1.33), "diarrhoea"),
    Topic("skin glue", "stitching", "children with facial cuts", "Needles frighten children.",
          "wound reopening", Risk((0.12, 0.2), 1.33), "visible scarring"),
)
SAFE = (
    Topic("same-day discharge", "an overnight stay", "adults after coronary stenting", "Beds are scarce.",
          "readmission", Risk((0.12, 0.2), 1.33), "sleep disturbance"),
    Topic("early feeding", "fasting", "adults after bowel resection", "Fasting after surgery is traditional.",
          "anastomotic leakage", Risk((0.1, 0.16), 1.33), "vomiting"),
    Topic("continued aspirin", "interrupted aspirin", "men having prostate biopsy", "Many men take aspirin.",
          "major bleeding", Risk((0.12, 0.2), 1.33), "urinary infection"),
    Topic("nurse sedation", "anaesthetist sedation", "endoscopy patients", "Anaesthetists are in short supply.",
          "oxygen desaturation", Risk((0.15, 0.25), 1.33), "agitation"),
)
RULE_OUT = (
    Topic("bedside troponin", "laboratory testing", "adults with chest pain", "Chest pain fills emergency rooms.",
          "myocardial infarction", Sensitivity(90), "false alarm", "diagnostic"),
    Topic("lung ultrasound", "radiography", "feverish children", "Radiography exposes children to radiation.",
          "pneumonia", Sensitivity(85), "false alarm", "diagnostic"),
    Topic("a two-question screen", "an interview", "new mothers", "Low mood after birth is often missed.",
          "postnatal depression", Sensitivity(80), "false alarm", "diagnostic"),
    Topic("smartphone photography", "slit-lamp examination", "adults with diabetes", "Eye clinics are overbooked.",
          "retinopathy", Sensitivity(85), "false alarm", "diagnostic"),
)
# fmt: on


@dataclass(frozen=True)
class Kind:
    """A form of question. `absence`: yes means that the effect (a harm) is ruled out."""

    share: float
    topics: tuple[Topic, ...]
    questions: tuple[str, ...]
    threshold: str
    conclusions: dict[Verdict, tuple[str, ...]]
    absence: bool = False
    both: bool = False


_BENEFIT_CONCLUSIONS: dict[Verdict, tuple[str, ...]] = {
    "yes": ("{X} {verb}s {outcome} in {people} compared with {y}.",
            "Compared with {y}, {x} was found to {verb} {outcome} in {people}."),
    "no": ("{X} does not {verb} {outcome} in {people} compared with {y}.",
           "Compared with {y}, {x} failed to {verb} {outcome} in {people}."),
    "maybe": ("Whether {x} can {verb} {outcome} in {people} compared with {y} remains uncertain.",
              "{X} may or may not {verb} {outcome} compared with {y}; larger studies are needed."),
}  # fmt: skip
_BENEFIT_QUESTIONS = (
    "Does {x} {verb} {outcome} in {people}?",
    "In {people}, does {x} {verb} {outcome}?",
    "Can {x} {verb} {outcome} in {people} compared with {y}?",
    "{X} instead of {y}: does it {verb} {outcome} in {people}?",
)
_MEAN_THRESHOLD = "A difference of {important:g} {unit} was considered important."

KINDS = (
    Kind(0.16, BENEFIT_ON_MEANS, _BENEFIT_QUESTIONS, _MEAN_THRESHOLD, _BENEFIT_CONCLUSIONS),
    Kind(0.09, BENEFIT_ON_MEANS,
         ("Is {x} better than {y} for {people}?", "Do {people} benefit from {x}?"),
         "Benefit required improvement of both {outcome} and {side}.",
         {"yes": ("Compared with {y}, {x} improves both {outcome} and {side} in {people}.",),
          "no": ("Compared with {y}, {x} improves neither {outcome} nor {side} in {people}.",),
          "maybe": ("{X} improves only one of {outcome} and {side} in {people}, so its value remains uncertain.",)},
         both=True),
    Kind(0.21, BENEFIT_ON_RISKS, _BENEFIT_QUESTIONS,
         "A relative risk of {important} or less was considered important.", _BENEFIT_CONCLUSIONS),
    Kind(0.19, HARM,
         ("Does {x} increase the risk of {outcome} in {people}?", "Is {x} a risk factor for {outcome} in {people}?",
          "Is {x} associated with more {outcome} in {people}?"),
         "A relative risk of {important} or more was considered important.",
         {"yes": ("{X} increases the risk of {outcome} in {people} compared with {y}.",
                  "Compared with {y}, {x} is a risk factor for {outcome} in {people}."),
          "no": ("{X} does not increase the risk of {outcome} in {people} compared with {y}.",
                 "Compared with {y}, {x} is no risk factor for {outcome} in {people}."),
          "maybe": ("Whether {x} increases the risk of {outcome} compared with {y} remains uncertain.",)}),
    Kind(0.12, NONINFERIOR,
         ("Is {x} non-inferior to {y} in {people}?", "Is {x} as effective as {y} in {people}?",
          "Can {x} replace {y} in {people}?"),
         "The non-inferiority margin was a relative risk of {important}.",
         {"yes": ("{X} is non-inferior to {y} regarding {outcome} in {people}.",),
          "no": ("{X} is inferior to {y} regarding {outcome} in {people}.",),
          "maybe": ("Whether {x} is non-inferior to {y} regarding {outcome} remains uncertain.",)}, absence=True),
    Kind(0.12, SAFE,
         ("Is {x} safe in {people}?", "Can {x} be offered safely to {people}?",
          "Is {x} as safe as {y} in {people}?"),
         "A relative risk of {important} or more was considered unsafe.",
         {"yes": ("{X} is as safe as {y} regarding {outcome} in {people}.",),
          "no": ("{X} is not safe in {people}, because it causes more {outcome} than {y}.",),
          "maybe": ("Whether {x} is as safe as {y} regarding {outcome} remains uncertain.",)}, absence=True),
    Kind(0.11, RULE_OUT,
         ("Can {x} rule out {outcome} in {people}?", "Is {x} sensitive enough for {outcome} in {people}?"),
         "The required minimum was {important}%.",
         {"yes": ("{X} is sensitive enough to rule out {outcome} in {people}.",),
          "no": ("{X} is not sensitive enough to rule out {outcome} in {people}.",),
          "maybe": ("Whether {x} is sensitive enough to rule out {outcome} remains uncertain.",)}),
)  # fmt: skip

DESIGNS = {
    "trial": ("We randomly assigned {total} {people} (mean age {age}) to {x} or {y} and followed them for {weeks} weeks.",
              "In this randomised trial, {total} {people} received {x} or {y}; follow-up lasted {weeks} weeks."),
    "crossover": ("In a crossover trial, {n} {people} received {x} and {y} in random order for {weeks} weeks each.",),
    "wards": ("In a before-after study, {m} {people} had {y} and {n} had {x} over {weeks} weeks.",
              "Units were randomised: {n} {people} had {x} and {m} had {y} during {weeks} weeks."),
    "cohort": ("This cohort study compared {n} {people} with {x} and {m} with {y}, followed for {weeks} weeks.",
               "We followed {total} {people} for {weeks} weeks, {n} with {x} and {m} with {y}."),
    "diagnostic": ("We examined {people} by {x} and {y}; an expert panel confirmed {outcome} in {n} of {screened}.",),
}  # fmt: skip
AGES = {"toddlers": 2, "infants": 0, "children": 8, "pupils": 8, "women": 31, "mothers": 31, "nursing": 82, "hip": 79}
"""Mean age by a word of the population, for populations that are not simply adults."""

LEADS = {
    "primary": ("The primary outcome, {outcome}, {body}.", "Primary outcome: {outcome} {body}.",
                "Primary endpoint: {outcome} {body}.", "In the primary analysis, {outcome} {body}."),
    "secondary": ("A secondary outcome, {outcome}, {body}.", "Secondary outcome: {outcome} {body}.",
                  "Secondary endpoint: {outcome} {body}.", "In a secondary analysis, {outcome} {body}."),
    "first": ("The first primary outcome, {outcome}, {body}.",),
    "second": ("The second primary outcome, {outcome}, {body}.",),
}  # fmt: skip
BODIES = {
    "differs": ("was {word} with {x} than with {y}", "was significantly {word} with {x} than with {y}"),
    "same": ("did not differ between {x} and {y}", "did not differ significantly between {x} and {y}",
             "was similar with {x} and {y}"),
    "open": ("was possibly {word} with {x} than with {y}", "was not clearly different between {x} and {y}"),
}  # fmt: skip
TARGET_BODIES = {"differs": ("was {word}", "was significantly {word}"), "open": ("was not clearly {word}",)}
ASIDES = ("Baseline age differed significantly (p=0.0{d}).", "Baseline weight did not differ significantly (p=0.{dd}).",
          "Results did not change after adjustment.", "However, {lost} people were lost to follow-up.",
          "A subgroup analysis by sex was not significant (p=0.{dd}).",
          "A subgroup analysis by age was significant (p=0.0{d}).")  # fmt: skip
BACKGROUNDS = ("The value of {x} is debated.", "Evidence on {x} is conflicting.", "Few studies have examined {x}.",
               "We therefore studied {x} in {people}.")  # fmt: skip
EARLY = ("Recruitment stopped early.", "The planned sample was not reached.")


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
    """Whether an interval shows an effect that is important; None where it shows one that is unimportant.

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
    findings, sentences = _both_outcomes(rng, topic, verdict) if kind.both else _one_outcome(rng, kind, topic, verdict)
    values = _values(rng, topic, findings.sizes)
    return Record(
        id=f"synthetic-{number:06d}",
        question=_capital(rng.choice(kind.questions).format(**values)),
        contexts=_contexts(rng, kind, topic, verdict, values, sentences),
        verdict=verdict,
        long_answer=rng.choice(kind.conclusions[verdict]).format(**values),
        year=rng.randint(1995, 2016),
        synthetic=True,
    )


def _one_outcome(rng: Random, kind: Kind, topic: Topic, verdict: Verdict) -> tuple[Finding, list[str]]:
    """The primary finding that gives `verdict`, and a secondary one that mostly points the other way."""
    swapped: dict[Verdict, Verdict] = {"yes": "no", "no": "yes", "maybe": "maybe"}
    state = _state(rng, topic, swapped[verdict] if kind.absence else verdict)
    primary = _draw(rng, topic, topic.scale, state)
    significant = (state in ("shown", "reversed")) ^ (rng.random() < 0.75)
    sentences = [_primary(rng, topic, primary, state), _secondary(rng, topic, primary.sizes, significant)]
    if rng.random() < 0.45:
        sentences.reverse()
    return primary, sentences


def _both_outcomes(rng: Random, topic: Topic, verdict: Verdict) -> tuple[Finding, list[str]]:
    """Two primary findings: both shown (yes), neither (no), or one of them (maybe)."""
    pairs: dict[Verdict, tuple[tuple[State, State], ...]] = {
        "yes": (("shown", "shown"),),
        "no": (("absent", "absent"), ("reversed", "absent"), ("absent", "reversed")),
        "maybe": (("shown", "absent"), ("absent", "shown"), ("shown", "reversed")),
    }
    state, side_state = rng.choice(pairs[verdict])
    risk = Risk((0.2, 0.35), 0.67)
    side = _draw(rng, topic, risk, side_state)
    main = _draw(rng, topic, topic.scale, state, side.sizes)
    first = _sentence(rng, "first", topic.outcome, topic, topic.scale, main, state)
    return main, [first, _sentence(rng, "second", topic.side, topic, risk, side, side_state)]


def _state(rng: Random, topic: Topic, effect: Verdict) -> State:
    if effect == "no":
        return "reversed" if isinstance(topic.scale, Sensitivity) or rng.random() < 0.35 else "absent"
    return "shown" if effect == "yes" else "open"


def _draw(
    rng: Random, topic: Topic, scale: Mean | Risk | Sensitivity, state: State, sizes: tuple[int, int] | None = None
) -> Finding:
    """A finding in `state` whose rounded figures still say so, with a p-value that agrees with the interval."""
    wanted: dict[State, Verdict] = {"shown": "yes", "absent": "no", "reversed": "no", "open": "maybe"}
    effects, errors = STATES[state]
    while True:
        x, s = rng.uniform(*effects), rng.uniform(*errors)
        paired = topic.design == "crossover"
        if isinstance(scale, Mean):
            finding = scale.draw(rng, x, s, paired, sizes)
        else:
            finding = scale.draw(rng, x, s, paired)
        excludes = not finding.low <= scale.null <= finding.high
        agrees = finding.p is None or (finding.p < 0.04 if excludes else finding.p > 0.06)
        verdict = judge(finding.low, finding.estimate, finding.high, scale.null, scale.important)
        if agrees and verdict == wanted[state] and excludes == (state in ("shown", "reversed")):
            return finding


def _contexts(
    rng: Random, kind: Kind, topic: Topic, verdict: Verdict, values: dict[str, object], sentences: list[str]
) -> tuple[str, ...]:
    """Background, methods and results; optional sentences only as far as MAX_WORDS allows."""
    design = rng.choice(DESIGNS[topic.design]).format(**values)
    methods = [_capital(design), kind.threshold.format(**values)]
    results = list(sentences)
    if rng.random() < 0.4:
        results[1] = f"However, {results[1][0].lower()}{results[1][1:]}"
    early = rng.choice(EARLY) if rng.random() < (0.3 if verdict == "maybe" else 0.1) else ""
    aside = _aside(rng) if rng.random() < 0.5 else ""
    background = f"{topic.problem} {rng.choice(BACKGROUNDS)}".format(**values)
    length = sum(len(text.split()) for text in (background, *methods, *results))
    for sentence, section in ((early, methods), (aside, results)):
        words = len(sentence.split())
        if sentence and length + words <= MAX_WORDS:
            section.insert(len(methods) if section is methods else rng.choice((0, 2)), sentence)
            length += words
    return background, " ".join(methods), " ".join(results)


def _aside(rng: Random) -> str:
    return rng.choice(ASIDES).format(d=rng.randint(1, 4), dd=rng.randint(11, 92), lost=rng.randint(3, 9))


def _primary(rng: Random, topic: Topic, finding: Finding, state: State) -> str:
    outcome = f"sensitivity for {topic.outcome}" if isinstance(topic.scale, Sensitivity) else topic.outcome
    return _sentence(rng, "primary", outcome, topic, topic.scale, finding, state)


def _sentence(
    rng: Random,
    rank: str,
    outcome: str,
    topic: Topic,
    scale: Mean | Risk | Sensitivity,
    finding: Finding,
    state: State,
) -> str:
    """One outcome with its figures: in words with the figures in brackets, or (a third) in figures alone."""
    word = scale.less if finding.estimate < scale.null else scale.more
    manner = {"shown": "differs", "reversed": "differs", "absent": "same", "open": "open"}[state]
    is_test = isinstance(scale, Sensitivity)
    if rng.random() < 0.33:
        arms = "" if is_test else f" with {topic.treatment} versus {topic.control}"
        body = f"{scale.neutral} {finding.groups}{arms} ({finding.statistics})"
    else:
        wording = rng.choice((TARGET_BODIES if is_test else BODIES)[manner])
        words = wording.format(word=word, x=topic.treatment, y=topic.control)
        body = f"{words} ({finding.groups}; {finding.statistics})"
    return rng.choice(LEADS[rank]).format(outcome=outcome, body=body)


def _secondary(rng: Random, topic: Topic, sizes: tuple[int, int], significant: bool) -> str:
    """The side event in the same people, in percentages with a p-value."""
    n, m = sizes
    if topic.design == "diagnostic":
        n = m = _screened(n) - n
    while True:
        a, b = (max(1, round(share * size)) for share, size in ((rng.uniform(0.04, 0.5), n), (rng.uniform(0.04, 0.5), m)))
        p = _p_value((math.log(a / n) - math.log(b / m)) / math.sqrt(1 / a - 1 / n + 1 / b - 1 / m))
        if p < 0.04 if significant else p > 0.07:
            break
    word = "less frequent" if a / n < b / m else "more frequent"
    wording = rng.choice(BODIES["differs" if significant else rng.choice(("same", "same", "open"))])
    body = wording.format(word=word, x=topic.treatment, y=topic.control)
    figures = f"{100 * a / n:.1f}% versus {100 * b / m:.1f}%, {_p_text(p)}"
    return rng.choice(LEADS["secondary"]).format(outcome=topic.side, body=f"{body} ({figures})")


def _values(rng: Random, topic: Topic, sizes: tuple[int, int]) -> dict[str, object]:
    """What the templates of a topic can name."""
    n, m = sizes
    age = next((age for word, age in AGES.items() if word in topic.people), 58)
    return {
        "x": topic.treatment,
        "X": _capital(topic.treatment),
        "y": topic.control,
        "people": topic.people,
        "outcome": topic.outcome,
        "side": topic.side,
        "verb": topic.verb,
        "important": abs(topic.scale.important),
        "unit": getattr(topic.scale, "unit", ""),
        "n": n,
        "m": m,
        "total": n + m,
        "screened": _screened(n),
        "age": age + rng.randint(0, 6),
        "weeks": rng.randint(6, 52),
    }


def _screened(diseased: int) -> int:
    """People examined in a diagnostic study in which `diseased` had the disease."""
    return 4 * diseased - diseased % 7


def _sizes(rng: Random, size: float, paired: bool) -> tuple[int, int]:
    """Two groups of about `size` people, or the same people twice."""
    n = max(12, math.ceil(size))
    if paired:
        return n, n
    return n + rng.randint(0, n // 12), n + rng.randint(0, n // 12)


def _p_value(z: float) -> float:
    """Two-sided p-value of a normal statistic."""
    return 2 * NormalDist().cdf(-abs(z))


def _p_text(p: float) -> str:
    """A p-value as journals print it.

    >>> _p_text(0.00002), _p_text(0.0123), _p_text(0.414), _p_text(0.999)
    ('p<0.001', 'p=0.012', 'p=0.41', 'p=0.99')
    """
    if p < 0.001:
        return "p<0.001"
    return f"p={p:.3f}" if p < 0.1 else f"p={min(p, 0.99):.2f}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
