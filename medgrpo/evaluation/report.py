"""The report of a run: one self-contained HTML page that a person can read, mail, print and search.

The page loads nothing from outside. What a model wrote is hostile input: Jinja2 escapes every value, only matplotlib's
SVG is inserted as it is, and the page's content security policy runs no script and applies no style but its own.

`report_tables.py`, `report_cases.py` and `report_words.py` turn results into words and rows; `report.html.j2` lays
them out with `report.css` and `report.js`; `plots.py` draws.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo import domains
from medgrpo.domains.domain import Domain
from medgrpo.evaluation import plots, report_tables
from medgrpo.evaluation import report_words as words
from medgrpo.evaluation.report_cases import case_view
from medgrpo.evaluation.report_words import Row
from medgrpo.manifests import write_text
from medgrpo.records import DEFAULT_DOMAIN
from medgrpo.training.metrics import raised_alarms

if TYPE_CHECKING:
    from jinja2 import Template

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ONE_SIDED = "The gate's test is one-sided: it only asks whether the model is better, and its p is half of this one."
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def render_report(
    run: Row, metrics: Row, cases: Sequence[Row], training: Sequence[Row], gate: Row | None = None
) -> str:
    """The report as one HTML page.

    Args:
        run: what was run: name, profile, base, config, data, environment, seconds; all but the name may be missing.
        metrics: the content of `metrics.json`. Per model the metrics with their intervals; what else is there
            (comparisons, references, probes, slices, contamination) is shown, what is missing left out. The first
            reference is the one that the summary names.
        cases: one per evaluated case: question, contexts, the expert's verdict, each model's answer.
        training: the rows of `metrics.jsonl`; may be empty.
        gate: the content of `gate.json`; None where no gate judged.
    """
    models = words.ordered(metrics["models"])
    subject = words.subject_of(metrics["models"])
    domain = domains.get(metrics.get("domain") or DEFAULT_DOMAIN)
    form, source = domain.form, domain.source
    return _template().render(
        name=run["name"],
        facts=_facts({"domain": metrics.get("domain"), **run}, subject),
        source=source,
        caution=domain.caution,
        synthetic=_is_synthetic(run, metrics, cases),
        gate=report_tables.gate_verdict(gate),
        summary=[*_summary(metrics), *_alarm_note(training)],
        alarms=[str(alarm) for alarm in raised_alarms(training)],
        labels={model: words.label(model) for model in models},
        subject={"label": words.label(subject), "name": words.name(subject)},
        metric_groups=report_tables.metric_groups(metrics, models, form.labels, source),
        comparisons=[report_tables.comparison(row) for row in metrics.get("comparisons", [])],
        references=[report_tables.reference(row, metrics["models"]) for row in metrics.get("references", [])],
        probes=report_tables.probe_tables(metrics, source),
        slices=report_tables.slice_tables(metrics, models),
        look_alikes=report_tables.look_alikes(metrics.get("contamination"), cases),
        figures=_figures(metrics, models, training, domain),
        cases=[case_view(case, form, source) for case in cases],
        filters=words.references(models),
        weights=[(words.label(model), known) for model, known in (run.get("weights") or {}).items()],
        data=_data(run.get("data") or {}),
        settings=_settings(run.get("config") or {}),
        environment=[(key, _setting(value)) for key, value in (run.get("environment") or {}).items()],
        seconds=_stages(run.get("seconds") or {}),
    )


def write_report(
    path: Path, run: Row, metrics: Row, cases: Sequence[Row], training: Sequence[Row], gate: Row | None = None
) -> Path:
    """Write the report to `path`, whole or not at all; returns the path. Arguments as for `render_report`."""
    write_text(path, render_report(run, metrics, cases, training, gate))
    return path


@cache
def _template() -> "Template":
    """The page's template: everything escaped, and a name it does not get is an error rather than a gap."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    directory = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(directory),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _source_hash
    for name in ("style", "script"):
        file = directory / {"style": "report.css", "script": "report.js"}[name]
        environment.globals[name] = Markup(file.read_text(encoding="utf-8"))
    return environment.get_template("report.html.j2")


def _source_hash(source: str) -> str:
    """The base64 hash by which a content security policy names an inline script or style."""
    from base64 import b64encode

    return b64encode(sha256(source.encode()).digest()).decode()


def _printable(value: Any) -> Any:
    """Values as they may stand in a page: no None, no NUL, no lone surrogate (it cannot be written as UTF-8)."""
    if value is None:
        return words.DASH
    if isinstance(value, str) and _UNPRINTABLE.search(value):
        return type(value)(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value))
    return value


def _is_synthetic(run: Row, metrics: Row, cases: Sequence[Row]) -> bool:
    return bool(run.get("synthetic") or metrics.get("synthetic") or any(case.get("synthetic") for case in cases))


def _facts(run: Row, subject: str) -> list[tuple[str, str]]:
    """What the line under the title says, as far as it is known; digests by their beginnings."""
    weights = (run.get("weights") or {}).get(subject) or ""
    facts = [
        ("profile", run.get("profile")),
        ("domain", run.get("domain")),
        ("base model", run.get("base")),
        (f"weights of {words.name(subject)}", weights if "@" in weights else weights[:12]),
        ("created", run.get("created")),
        ("commit", str(run.get("git_commit") or "")[:12]),
    ]
    return [(label, value) for label, value in facts if value]


# Summary


def _summary(metrics: Row) -> list[str]:
    """What was compared and what came out, in paragraphs made from the numbers."""
    models = metrics["models"]
    subject = words.subject_of(models)
    others = [model for model in words.ordered(models) if model != subject]
    n = metrics.get("n", 0)
    kind = "synthetic " if metrics.get("synthetic") else ""
    shares = [f", {words.name(model)} in {words.with_interval(models[model]['accuracy'])}" for model in others]
    where = f"On {n} held-out {kind}case{'' if n == 1 else 's'} ({metrics.get('split', 'test')} split)"
    lead = f"{words.name(subject)} is right in {words.with_interval(models[subject]['accuracy'])}"
    return [
        f"{where}, {lead}{''.join(shares)}; 95{words.PERCENT} intervals in brackets.",
        *(
            sentence
            for other in words.references(models)
            for sentence in _test_sentences(metrics.get("comparisons", []), subject, other)
        ),
        *_against_reference(metrics.get("references", []), models),
    ]


def _test_sentences(comparisons: Sequence[Row], subject: str, other: str) -> list[str]:
    """A paragraph on the paired test of the model in question and another; none where it was not made."""
    row = next((row for row in comparisons if {row["first"], row["second"]} == {other, subject}), None)
    if row is None or subject == other:
        return []
    only = {row["first"]: row["only_first"], row["second"]: row["only_second"]}
    tested, ours, theirs = words.number(row["p_value"]), words.cases(only[subject]), only[other]
    counts = f"Only {words.name(subject)} is right in {ours}, only {words.name(other)} in {theirs}"
    test = f"exact two-sided McNemar test, {words.p_value(tested)}"
    return [f"{counts} ({test}). {_outcome(only, subject, other, tested)}"]


def _outcome(only: Mapping[str, int], subject: str, other: str, p_value: float | None) -> str:
    if p_value is None:
        return "No test of the difference was possible."
    if p_value >= report_tables.SIGNIFICANCE:
        said = "The difference is not distinguishable from chance at this size: do not read it as a change."
        one_sided = other == "base" and only[subject] > only[other] and p_value / 2 < report_tables.SIGNIFICANCE
        return f"{said} {_ONE_SIDED}" if one_sided else said
    better = "better" if only[subject] > only[other] else "worse"
    return (
        f"The difference is distinguishable from chance at this size: {words.name(subject)} is {better} on such cases."
    )


def _against_reference(references: Sequence[Row], models: Row) -> list[str]:
    if not references:
        return []
    row, subject = references[0], words.subject_of(models)
    n, name = models[subject]["accuracy"].get("n") or 0, words.name(subject)
    where = {"above": f"which {name} exceeds", "below": f"which {name} does not reach"}
    place = where.get(report_tables.place(row, models), f"which {name}'s interval does not exclude")
    return [f"For comparison, {row['name']} is right in {words.quantity(row['accuracy'], n)}, {place}."]


def _alarm_note(training: Sequence[Row]) -> list[str]:
    names = [alarm.name for alarm in raised_alarms(training)]
    return [f"Alarms rang during the training ({', '.join(names)}); what they said is under Training."] if names else []


def _figures(metrics: Row, models: Sequence[str], training: Sequence[Row], domain: Domain) -> dict[str, Any]:
    """The plots as markup: the only text of the page that is not escaped, and none of it comes from a model."""
    from markupsafe import Markup

    values, labels = metrics["models"], domain.form.labels
    probed, calibrated = plots.probed(metrics), plots.calibrated(metrics)
    return {
        "rewards": Markup(plots.reward_curves(training)),
        "watched": Markup(plots.watched_curves(training)),
        "verdicts": Markup(plots.verdict_curves(training, labels)),
        "loss": Markup(plots.warmup_loss(training)),
        "confusion": [
            Markup(plots.confusion(values[model].get("confusion") or {}, words.label(model), labels))
            for model in models
            if labels
        ],
        "probes": [
            Markup(plots.probe_effects(probes, words.label(model), domain.source)) for model, probes in probed.items()
        ],
        "calibration": [Markup(plots.calibration(bins, words.label(model))) for model, bins in calibrated.items()],
    }


# Data, settings, time


def _data(data: Row) -> dict[str, Any]:
    """Counts and digests by split, and the dropped records, summed by reason and listed."""
    dropped = data.get("dropped") or []
    digests = data.get("digests") or {}
    lost = Counter(row.get("split") for row in dropped)
    splits = [split for split in ("train", "dev", "test") if split in data or split in digests]
    return {
        "splits": [(split, data.get(split), lost[split], digests.get(split)) for split in splits],
        "dropped": [tuple(row.get(key) for key in ("id", "split", "reason")) for row in dropped],
        "reasons": Counter(str(row.get("reason")) for row in dropped).most_common(),
    }


def _settings(config: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The configuration as sections of (setting, value), top-level settings first."""
    top = [(key, _setting(value)) for key, value in config.items() if not isinstance(value, Mapping)]
    sections = [(key, value) for key, value in config.items() if isinstance(value, Mapping)]
    parts = [(name, [(key, _setting(value)) for key, value in part.items()]) for name, part in sections]
    return ([("run", top)] if top else []) + parts


def _setting(value: Any) -> str:
    """A value as text, without the user name and password that a tracking address may carry."""
    text = "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return _CREDENTIALS.sub("…", text)


def _stages(seconds: Row) -> list[tuple[str, str]]:
    stages = [(name, words.duration(value)) for name, value in seconds.items()]
    total = sum(words.number(value) or 0.0 for value in seconds.values())
    return [*stages, ("total", words.duration(total))] if len(stages) > 1 else stages
