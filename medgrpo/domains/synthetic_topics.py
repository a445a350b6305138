"""What synthetic abstracts are about, and the sentences they are made of."""

from dataclasses import dataclass

from medgrpo.domains.synthetic_findings import Mean, Risk, Scale, Sensitivity


@dataclass(frozen=True)
class Topic:
    """A question that makes medical sense. All noun phrases but `people` are singular; `side` is an unwanted event."""

    treatment: str
    control: str
    people: str
    outcome: str
    scale: Scale
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
SIDE = Risk((0.25, 0.4), 0.67)
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
