"""The gate: may a model become a candidate? Yes, no, or not enough evidence, with reasons in sentences.

Nothing is decided on a point estimate. A threshold counts as met, or as missed, when the whole 95 % interval of what
was measured lies on one side of it, and what was not measured is never taken for granted. A model passes when every
check does; a single failure fails it; anything else is not enough evidence, and no promotion either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from medgrpo import domains
from medgrpo.config import GateConfig
from medgrpo.errors import InputError
from medgrpo.evaluation.statistics import (
    Interval,
    detectable_difference,
    mcnemar_one_sided,
    paired_score_interval,
)
from medgrpo.records import DEFAULT_DOMAIN

Outcome = Literal["pass", "fail", "not enough evidence"]
PASS: Outcome = "pass"
FAIL: Outcome = "fail"
UNDECIDED: Outcome = "not enough evidence"

BASE, CHAMPION = "base", "champion"
JUDGED_PROBES = {"no_abstract": "without the {source}", "other_abstract": "with another record's {source}"}
"""Probes that the gate judges. The others are for reading: many abstracts can be understood without their conclusion,
and not every altered number turns the verdict."""


@dataclass(frozen=True)
class Check:
    """One condition on a candidate.

    Attributes:
        name: what is checked.
        outcome: pass, fail or not enough evidence.
        reason: why, in sentences.
        measured: the interval or number that decided, as in metrics.json; None where there is none.
        threshold: what it was held against; None where that is no number.
    """

    name: str
    outcome: Outcome
    reason: str
    measured: dict[str, Any] | float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Gate:
    """The outcome over all checks."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        """Fail if any check fails, else not enough evidence if any lacks it, else pass."""
        return _worst([check.outcome for check in self.checks])

    @property
    def summary(self) -> str:
        """The outcome in one sentence, with the names of the checks behind it."""
        behind = [check.name for check in self.checks if check.outcome == self.outcome]
        if self.outcome == PASS:
            return f"The {self.subject} model passes all {len(behind)} checks."
        if self.outcome == FAIL:
            return f"The {self.subject} model fails: {_listed(behind)}."
        return f"There is not enough evidence to promote the {self.subject} model: {_listed(behind)}."

    def as_dict(self) -> dict[str, Any]:
        """The content of gate.json."""
        checks = [asdict(check) for check in self.checks]
        return {"outcome": self.outcome, "summary": self.summary, "checks": checks}


def judge(
    subject: str,
    metrics: Mapping[str, Any],
    config: GateConfig,
    *,
    audit_holes: str | None,
    alarms: Sequence[str] | None,
    unmeasured_champion: str | None = None,
) -> Gate:
    """Judge a model on the content of metrics.json and what is known of its training.

    Args:
        subject: name of the model in question, one of metrics["models"].
        metrics: content of metrics.json.
        config: the thresholds.
        audit_holes: what the audit found in the rewards that trained it, "" for nothing; None where none was made.
        alarms: sentences of the alarms that rang while it trained; None where it is not known how, and so on what, it
            was trained.
        unmeasured_champion: why a champion that there is, or may be, was not evaluated; None where there is none, or it
            was.

    Raises:
        InputError: the metrics hold no such model.
    """
    if subject not in metrics["models"]:
        raise InputError(
            f"the metrics hold no model named {subject!r}, only {_listed(list(metrics['models']))}; name one of them."
        )
    model, domain = metrics["models"][subject], domains.get(metrics.get("domain", DEFAULT_DOMAIN))
    return Gate(
        subject,
        (
            _better_than_base(subject, metrics, config),
            _not_worse_than_champion(subject, metrics, config, unmeasured_champion),
            _strict_form(model, config),
            _faithfulness(model, config, domain.source),
            _context_reliance(metrics.get("probes", {}).get(subject, {}), config, domain.source),
            _no_collapse(model, config, domain.form.labels),
            _reward_audit(audit_holes),
            _training_alarms(alarms),
            _no_leaks(metrics.get("contamination"), config, known=alarms is not None),
        ),
    )


def _better_than_base(subject: str, metrics: Mapping[str, Any], config: GateConfig) -> Check:
    name, pair = "better than base", _pair(metrics, BASE, subject)
    if subject == BASE:
        return Check(name, UNDECIDED, "This is the base model itself.")
    if pair is None:
        return Check(name, UNDECIDED, f"No model named {BASE!r} answered the same cases, so there is nothing to beat.")
    p_value, interval = mcnemar_one_sided(pair.only_other, pair.only_subject), pair.interval
    if p_value < config.level:
        outcome: Outcome = PASS
        verdict = f"p = {p_value:.2g}, below {config.level:g}."
    elif interval.high < 0:
        outcome = FAIL
        verdict = f"p = {p_value:.2g}: it is worse."
    else:
        outcome = UNDECIDED
        verdict = f"p = {p_value:.2g}, not below {config.level:g}. {pair.detectable(config.level)}"
    reason = f"{pair.sentence('base')} Exact one-sided McNemar {verdict}"
    return Check(name, outcome, reason, p_value, config.level)


def _not_worse_than_champion(
    subject: str, metrics: Mapping[str, Any], config: GateConfig, unmeasured: str | None
) -> Check:
    name, pair = "not worse than champion", _pair(metrics, CHAMPION, subject)
    if subject == CHAMPION:
        return Check(name, PASS, "This is the champion itself.")
    if pair is None and unmeasured is not None:
        return Check(name, UNDECIDED, f"The champion did not answer the same cases: {unmeasured}")
    if pair is None:
        return Check(name, PASS, "There is no champion yet that could be worse off.")
    outcome = _side(pair.interval.as_dict(), -config.margin)
    verdict = {
        PASS: f"It loses less than {_points(config.margin)}.",
        FAIL: f"It loses more than {_points(config.margin)}.",
        UNDECIDED: f"Whether it loses more than {_points(config.margin)} cannot be told.",
    }[outcome]
    reason = f"{pair.sentence('champion')} {verdict}"
    return Check(name, outcome, reason, pair.interval.as_dict(), -config.margin)


def _strict_form(model: Mapping[str, Any], config: GateConfig) -> Check:
    outcome, reason = _held("of the answers are in strict form", model["strict_form"], config.strict_form)
    return Check("strict form", outcome, reason, model["strict_form"], config.strict_form)


def _faithfulness(model: Mapping[str, Any], config: GateConfig, source: str) -> Check:
    found = model.get("faithfulness")
    if not found:
        return Check("faithfulness", UNDECIDED, "Faithfulness was not measured.")
    unsupported, precision = found["unsupported_figures"], found["evidence_precision"]
    parts = [
        _held(
            f"of the answers cite a figure that the {source} lacks",
            unsupported,
            config.unsupported_figures,
            at_most=True,
        ),
        _held(f"of the cited figures are in the {source}", precision, config.evidence_precision),
        _held("of the thoughts conclude another verdict", found["disagreement"], config.disagreement, at_most=True),
    ]
    return _joined("faithfulness", parts, unsupported, config.unsupported_figures)


def _context_reliance(probes: Mapping[str, Any], config: GateConfig, source: str) -> Check:
    name, judged = "context reliance", {probe: where.format(source=source) for probe, where in JUDGED_PROBES.items()}
    missing = [where for probe, where in judged.items() if not probes.get(probe)]
    if missing:
        return Check(
            name, UNDECIDED, f"The model was not probed {' or '.join(missing)}, so it may not need the {source}."
        )
    parts = [_needed(where, probes[probe]["drop"], config, source) for probe, where in judged.items()]
    flips = probes["other_abstract"]["flips"]
    clause = f"of the verdicts change {judged['other_abstract']}"
    parts.append(_held(clause, flips, config.reliance_flips))
    return _joined(name, parts, probes["other_abstract"]["drop"], config.reliance_drop)


def _needed(where: str, drop: Mapping[str, Any], config: GateConfig, source: str) -> tuple[Outcome, str]:
    """Whether accuracy drops under a probe: surely above 0 passes, surely less than what must be at stake fails."""
    if drop["low"] is None:
        return UNDECIDED, f"No case tells how accuracy changes {where}."
    change = f"{'rises' if drop['value'] < 0 else 'drops'} by {_points(abs(drop['value']))}"
    said = f"Accuracy {change} {where} (95 % interval of the drop {_range(drop)})"
    if drop["high"] < config.reliance_drop:
        return FAIL, f"{said}: less than {_points(config.reliance_drop)}, so the {source} is hardly needed."
    if drop["low"] > 0:
        return PASS, f"{said}."
    return UNDECIDED, f"{said}: that may be chance."


def _no_collapse(model: Mapping[str, Any], config: GateConfig, verdicts: Sequence[str]) -> Check:
    name, recall = "no collapse", model.get("recall", {})
    if not verdicts:
        return Check(name, PASS, "Answers are open: there is no verdict that all of them could collapse to.")
    judged = {verdict: one for verdict, one in recall.items() if one["n"] >= config.recall_cases}
    rest = [f"{verdict} ({recall[verdict]['n'] if verdict in recall else 0})" for verdict in verdicts]
    rest = [said for verdict, said in zip(verdicts, rest, strict=True) if verdict not in judged]
    few = f"Fewer than {config.recall_cases} cases, so not judged: {_listed(rest)}." if rest else ""
    if len(judged) < 2:
        reason = f"{few} Whether a model gives one verdict to everything shows only on two verdicts with enough cases."
        return Check(name, UNDECIDED, reason, None, config.recall)
    parts = [
        _held(f"of the cases with verdict {verdict} are found", one, config.recall) for verdict, one in judged.items()
    ]
    lowest = min(judged.values(), key=lambda one: one["value"])
    check = _joined(name, parts, lowest, config.recall)
    return Check(name, check.outcome, f"{check.reason} {few}".strip(), lowest, config.recall)


def _reward_audit(holes: str | None) -> Check:
    if holes is None:
        return Check("reward audit", UNDECIDED, "The rewards that trained this model were not audited.")
    if holes:
        return Check("reward audit", FAIL, f"{_sentence(holes)} What they taught is not to be trusted.")
    return Check("reward audit", PASS, "No attack on the rewards earned as much as a gold completion.", 0.0, 0.0)


def _training_alarms(alarms: Sequence[str] | None) -> Check:
    name = "training alarms"
    if alarms is None:
        return Check(name, UNDECIDED, "How this model was trained is not known, so neither is whether an alarm rang.")
    if alarms:
        said = " ".join(_sentence(alarm) for alarm in alarms)
        return Check(name, FAIL, f"While it trained, {_counted(len(alarms), 'alarm')} rang. {said}", len(alarms), 0.0)
    return Check(name, PASS, "No alarm rang while it trained.", 0.0, 0.0)


def _no_leaks(contamination: Mapping[str, Any] | None, config: GateConfig, known: bool) -> Check:
    """`known`: whether the training records that were compared are those that this model was trained on."""
    name = "no leaks"
    if not contamination or not contamination["compared"]["cases"]:
        return Check(
            name, UNDECIDED, "The cases were not compared with the training records.", None, config.leaked_cases
        )
    cases, train = contamination["compared"]["cases"], contamination["compared"]["train"]
    # A question over another context gives nothing away: the context decides.
    copies = [pair for pair in contamination["pairs"] if pair["abstract"] >= contamination["threshold"]]
    leaked = list(dict.fromkeys(pair["case"] for pair in copies))
    share = len(leaked) / cases
    if not known:
        reason = (
            f"What this model was trained on is not known. Near-duplicates of the {_counted(train, 'record')} prepared "
            f"for training here: {len(leaked)} of {_counted(cases, 'case')}."
        )
        return Check(name, UNDECIDED, reason, share, config.leaked_cases)
    if not leaked:
        reason = (
            f"None of {_counted(cases, 'case')} is a near-duplicate of one of {_counted(train, 'training record')}."
        )
        return Check(name, PASS, reason, 0.0, config.leaked_cases)
    outcome: Outcome = PASS if share <= config.leaked_cases else FAIL
    bound = "no more" if outcome == PASS else "more"
    some = _listed(leaked[:3]) + (" and others" if len(leaked) > 3 else "")
    reason = (
        f"{len(leaked)} of {_counted(cases, 'case')} ({_percent(share)}) have a near-duplicate among the training "
        f"records, {bound} than {_percent(config.leaked_cases)}: {some}."
    )
    return Check(name, outcome, reason, share, config.leaked_cases)


@dataclass(frozen=True)
class _Pair:
    """The subject and another model on the same cases: how many each has right, and right alone."""

    subject: str
    right: tuple[int, int]
    only_subject: int
    only_other: int
    n: int

    @cached_property
    def interval(self) -> Interval:
        """Difference in accuracy, the subject's minus the other's."""
        return paired_score_interval(self.only_other, self.only_subject, self.n)

    def sentence(self, other: str) -> str:
        """Who is right how often, and the difference with its interval."""
        mine, theirs = self.right
        return (
            f"The {self.subject} model is right in {mine} of {_counted(self.n, 'case')}, the {other} in {theirs}; 95 % "
            f"interval of the difference {_range(self.interval.as_dict(), signed=True)}."
        )

    def detectable(self, level: float) -> str:
        """How large a difference would have been found, in a sentence."""
        discordance = (self.only_subject + self.only_other) / self.n
        found = detectable_difference(self.n, discordance, 2 * level)
        if found != found:
            return f"{_counted(self.n, 'case').capitalize()} cannot find any difference."
        return f"{_counted(self.n, 'case').capitalize()} find a difference of {_points(found)} four times in five."


def _pair(metrics: Mapping[str, Any], other: str, subject: str) -> _Pair | None:
    """The comparison of two models, whichever was named first; None where there is none."""
    for one in metrics["comparisons"]:
        if {one["first"], one["second"]} == {other, subject} and other != subject:
            only = {one["first"]: one["only_first"], one["second"]: one["only_second"]}
            n = metrics["n"]
            mine, theirs = (round(metrics["models"][name]["accuracy"]["value"] * n) for name in (subject, other))
            return _Pair(subject, (mine, theirs), only[subject], only[other], n)
    return None


def _side(interval: Mapping[str, Any], threshold: float, at_most: bool = False) -> Outcome:
    """On which side of a threshold a whole interval lies; undecided where the threshold is inside."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return UNDECIDED
    if at_most:
        return PASS if high <= threshold else FAIL if low > threshold else UNDECIDED
    return PASS if low >= threshold else FAIL if high < threshold else UNDECIDED


def _held(clause: str, interval: Mapping[str, Any], threshold: float, at_most: bool = False) -> tuple[Outcome, str]:
    """A share held against a threshold, and that in a sentence."""
    outcome = _side(interval, threshold, at_most)
    bound = f"at {'most' if at_most else 'least'} {_percent(threshold)}"
    if interval["value"] is None or interval["low"] is None:
        return outcome, f"No answer tells how many {clause}; {bound} is asked for."
    low, high = (_percent(interval[end]) for end in ("low", "high"))
    said = f"{_percent(interval['value'])} {clause} (95 % interval {low} to {high}"
    verdict = {PASS: "", FAIL: ": missed", UNDECIDED: ": that cannot be told"}[outcome]
    return outcome, f"{said}; {bound} is asked for){verdict}."


def _joined(name: str, parts: Sequence[tuple[Outcome, str]], measured: Any, threshold: float) -> Check:
    """A check of several parts, as good as the worst of them."""
    return Check(name, _worst([part[0] for part in parts]), " ".join(part[1] for part in parts), measured, threshold)


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    order: Callable[[Outcome], int] = (PASS, UNDECIDED, FAIL).index
    return max(outcomes, key=order)


def _percent(share: float) -> str:
    """A share to a tenth of a per cent: in whole ones, what misses a threshold could read like the threshold."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _points(difference: float) -> str:
    """A difference of shares in percentage points."""
    number = f"{100 * difference:.1f}".removesuffix(".0")
    return f"{number} point{'' if number in ('1', '-1') else 's'}"


def _range(interval: Mapping[str, Any], signed: bool = False) -> str:
    sign = "+" if signed else ""
    low, high = (format(100 * interval[end], f"{sign}.1f").removesuffix(".0") for end in ("low", "high"))
    return f"{low} to {high} points"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _sentence(text: str) -> str:
    """A text as a sentence of its own."""
    said = text.strip()
    return said[:1].upper() + said[1:] + ("" if said.endswith((".", "!", "?")) else ".")
