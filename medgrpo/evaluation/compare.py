"""Evaluate models on the same held-out cases and write what came of it."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from medgrpo import domains
from medgrpo.config import EvaluationConfig, RunConfig
from medgrpo.domains.domain import Domain
from medgrpo.evaluation.asking import Answered, Contestant, Probed, Progress, ask
from medgrpo.evaluation.baselines import majority_rule
from medgrpo.evaluation.contamination import contamination
from medgrpo.evaluation.gate import Gate, judge
from medgrpo.evaluation.plots import save_plots
from medgrpo.evaluation.probes import probe_metrics
from medgrpo.evaluation.report import write_report
from medgrpo.evaluation.scoring import answer_row, compare, model_metrics, verdict_metric
from medgrpo.evaluation.slices import slices
from medgrpo.evaluation.statistics import mcnemar, paired_score_interval
from medgrpo.manifests import write_json, write_text
from medgrpo.policies import resolve_base
from medgrpo.preparation import SUMMARY, load_records, too_many_cases
from medgrpo.provenance import environment, git_commit
from medgrpo.records import Record
from medgrpo.rewards.audit import AuditReport
from medgrpo.training.metrics import METRICS_FILE, raised_alarms, read_metrics

logger = logging.getLogger(__name__)


def contestants(config: RunConfig, train: Path, champion: Contestant | None = None) -> list[Contestant]:
    """Base, champion, warm-up (where there are such) and tuned model of a finished training."""
    base = resolve_base(config.policy)
    warmup = train / "warmup" / "adapter"
    found = [Contestant("base", base, revision=config.policy.revision), *([champion] if champion else [])]
    if warmup.is_dir():
        found.append(Contestant("warmup", base, warmup, config.policy.revision))
    return [*found, Contestant("tuned", str(train / "model"))]


def evaluate(
    config: RunConfig,
    data: Path,
    models: Sequence[Contestant],
    directory: Path,
    answers_cache: Path,
    on_progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Answer the cases with each model, score and compare.

    Writes predictions.jsonl (a row per case), predictions.json (the last model's verdicts in the official form) and
    metrics.json into `directory`.

    Args:
        config: the run's settings.
        data: directory of the prepared data.
        models: the models, the reference first and the one in question last.
        directory: where results go.
        answers_cache: where answers are kept as they arrive, so that a killed evaluation goes on, and a model that
            was asked before is not asked again.
        on_progress: called with (model name, answers so far, cases); under a probe the name is "tuned, no abstract".

    Returns:
        The content of metrics.json.
    """
    records = draw_cases(load_records(data, config.evaluation.split), config.evaluation)
    return write_results(config, data, ask(models, records, config, answers_cache, on_progress), directory)


def write_results(config: RunConfig, data: Path, answered: Answered, directory: Path) -> dict[str, Any]:
    """Score and compare what models answered, and write predictions and metrics; see `evaluate`."""
    records = answered.records
    answers = {
        name: [answer_row(record, given, config.rewards) for record, given in zip(records, generations, strict=True)]
        for name, generations in answered.generations.items()
    }
    last = list(answers)[-1]
    metrics = score(config, json.loads((data / SUMMARY).read_text()), load_records(data, "train"), records, answers)
    probes = score_probes(records, answers[last], answered.probed)
    metrics["probes"] = {last: probes} if probes else {}
    write_json(directory / "metrics.json", metrics)
    # Rows of several evaluations may be put together, and a model may be asked about more than one domain.
    where = {"domain": metrics["domain"]}
    rows = [where | case_row(record, answers, i, answered.probed) for i, record in enumerate(records)]
    write_text(directory / "predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(directory / "predictions.json", {row["id"]: row["answers"][last]["verdict"] for row in rows})
    return metrics


@dataclass(frozen=True)
class Training:
    """A finished training, and what else is known where its model is judged.

    Attributes:
        directory: what the training left.
        audit: what attacks on its rewards earned.
        champion: the model in service; None where there is none, or none that is known.
        champion_unknown: why it is not known whether there is one; empty where it is.
    """

    directory: Path
    audit: AuditReport
    champion: Contestant | None = None
    champion_unknown: str = ""


def evaluate_training(
    config: RunConfig,
    data: Path,
    training: Training,
    directory: Path,
    answers_cache: Path,
    on_progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Evaluate a finished training against base and champion, and let the gate judge it.

    Adds gate.json, plots/ and report.html to what `evaluate` writes.
    """
    models = contestants(config, training.directory, training.champion)
    metrics = evaluate(config, data, models, directory, answers_cache, on_progress)
    rows = read_metrics(training.directory / METRICS_FILE)
    gate = judge(
        models[-1].name,
        metrics,
        config.gate,
        audit_holes=training.audit.holes(),
        alarms=[str(alarm) for alarm in raised_alarms(rows)],
        unmeasured_champion=training.champion_unknown or None,
    )
    seconds = {"train": json.loads((training.directory / "training.json").read_text())["seconds"]}
    _publish(directory, {**describe_run(config, data, models), "seconds": seconds}, metrics, gate, rows)
    return metrics


def evaluate_models(
    config: RunConfig,
    data: Path,
    models: Sequence[Contestant],
    directory: Path,
    answers_cache: Path,
    on_progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Evaluate any models, the one in question last; nothing is known of how they were trained.

    Adds gate.json, plots/ and report.html to what `evaluate` writes.
    """
    metrics = evaluate(config, data, models, directory, answers_cache, on_progress)
    asked = "only the models that were named were asked."
    gate = judge(models[-1].name, metrics, config.gate, audit_holes=None, alarms=None, unmeasured_champion=asked)
    _publish(directory, describe_run(config, data, models), metrics, gate, [])
    return metrics


_Row = Mapping[str, Any]


def _publish(directory: Path, run: _Row, metrics: _Row, gate: Gate, training: Sequence[_Row]) -> None:
    write_json(directory / "gate.json", gate.as_dict())
    save_plots(directory / "plots", metrics, training)
    write_report(directory / "report.html", run, metrics, read_cases(directory), training, gate.as_dict())


def describe_run(config: RunConfig, data: Path, models: Sequence[Contestant]) -> dict[str, Any]:
    """What the report says about where its numbers come from, and whose they are."""
    weights = {model.name: model.weights for model in models}
    prepared = json.loads((data / SUMMARY).read_text())
    return {
        "name": config.name or config.profile,
        "profile": config.profile,
        "domain": prepared["domain"],
        "synthetic": prepared["synthetic"],
        # A profile's base that nobody asked has nothing to do with the models.
        "base": config.policy.base if "base" in weights else None,
        "weights": weights,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "environment": environment(),
        "config": config.model_dump(mode="json"),
        "data": {
            **{split: sum(counts.values()) for split, counts in prepared["counts"].items()},
            "dropped": prepared["dropped"],
            "digests": prepared["digests"],
        },
    }


def score(
    config: RunConfig,
    data: Mapping[str, Any],
    train: Sequence[Record],
    records: Sequence[Record],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Metrics of each model and every pairwise comparison, as metrics.json holds them."""
    experts, domain, settings = [record.verdict for record in records], domains.get(data["domain"]), config.evaluation
    form = domain.form
    return {
        "n": len(records),
        "split": config.evaluation.split,
        "domain": data["domain"],
        "synthetic": data["synthetic"],
        "models": {name: model_metrics(experts, rows, settings, form) for name, rows in answers.items()},
        "comparisons": [compare(a, b, experts, answers, settings, form) for a, b in combinations(answers, 2)],
        "slices": slices(records, answers, config.evaluation),
        "references": _references(domain, train, records, list(answers.values())[-1]),
        "contamination": contamination(train, records, config.evaluation.near_duplicate),
    }


def score_probes(records: Sequence[Record], answers: Sequence[Mapping[str, Any]], probed: Probed) -> dict[str, Any]:
    """What the probes did to one model, as metrics.json holds it; see `probe_metrics`."""
    own = {record.id: answer["verdict"] for record, answer in zip(records, answers, strict=True)}
    verdicts = {probe: {i: answer["verdict"] for i, answer in rows.items()} for probe, rows in probed.items()}
    return probe_metrics(records, own, verdicts)


def draw_cases(records: Sequence[Record], config: EvaluationConfig) -> list[Record]:
    """The cases to evaluate: all, or a seeded draw that keeps the verdicts' shares.

    Raises:
        InputError: more cases are asked for than there are.
    """
    if config.cases == "all" or config.cases == len(records):
        return list(records)
    if config.cases > len(records):
        raise too_many_cases(config, len(records))
    by_verdict: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: hashlib.sha256(f"{config.seed} {r.id}".encode()).digest()):
        by_verdict.setdefault(domains.get(record.domain).form.class_of(record.verdict), []).append(record)
    ranked = sorted(
        ((position + 0.5) / len(group), record.id)
        for group in by_verdict.values()
        for position, record in enumerate(group)
    )
    chosen = {record_id for _, record_id in ranked[: config.cases]}
    return [record for record in records if record.id in chosen]


def case_row(
    record: Record, answers: Mapping[str, Sequence[Mapping[str, Any]]], index: int, probed: Probed | None = None
) -> dict[str, Any]:
    """One case with every model's answer, and those of the model in question under the probes, as in predictions.jsonl.

    Args:
        record: the case.
        answers: each model's answers to all cases.
        index: which of them are this case's.
        probed: answers under each probe; without any the row has none.
    """
    probes = {probe: rows[record.id] for probe, rows in (probed or {}).items() if record.id in rows}
    return {
        "id": record.id,
        "question": record.question,
        "contexts": list(record.contexts),
        "expert": record.verdict,
        "long_answer": record.long_answer,
        "synthetic": record.synthetic,
        "answers": {name: rows[index] for name, rows in answers.items()},
        **({"probes": probes} if probed else {}),
    }


def read_cases(directory: Path) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl."""
    text = (directory / "predictions.jsonl").read_text(encoding="utf-8")
    # Not splitlines(): a text may hold U+2028 or U+0085, which JSON leaves as they are.
    return [json.loads(line) for line in text.split("\n") if line]


def _references(
    domain: Domain, train: Sequence[Record], records: Sequence[Record], answers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What a model must beat; of a rule that answered the same cases `difference` is the model's accuracy minus its."""
    rule, experts = majority_rule(train), [record.verdict for record in records]
    given = [rule(record) for record in records]
    scores = verdict_metric().compute(predictions=given, references=experts)
    if not domain.form.labels:
        scores = {"accuracy": scores["accuracy"]}
    said = [answer["verdict"] for answer in answers]
    right = [[one == expert for one, expert in zip(verdicts, experts, strict=True)] for verdicts in (given, said)]
    only_rule, only_model, _ = mcnemar(*right)
    always = {
        "name": f'always "{given[0]}"',
        **scores,
        "difference": paired_score_interval(only_rule, only_model, len(records)).as_dict(),
        "note": "on these cases",
    }
    return [always, *(dict(published) for published in domain.references)]
