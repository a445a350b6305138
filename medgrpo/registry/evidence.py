"""What a run and a version say about a candidate: metrics, data, artifacts and tags."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from medgrpo.config import RunConfig
from medgrpo.registry.candidate import NOT_EVALUATED, Evidence
from medgrpo.registry.card import CARD_FILE, hub_card, named_results
from medgrpo.registry.lookup import DATA_TAG, DIGEST_TAG
from medgrpo.registry.runs import (
    SYNC_FILE,
    log_points,
    public_config,
    rows_from,
    sent_until,
    set_tags,
    to_metrics,
    to_points,
)
from medgrpo.rewards.audit import AuditReport
from medgrpo.runs import gate_reasons
from medgrpo.training.metrics import METRICS_FILE, raised_alarms, read_metrics
from medgrpo.training.start import adapter_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

# Limits of MLflow's fields; a server with another database may keep no more of a tag.
MAX_DATASET_DIGEST, MAX_TAG = 32, 5000
EVALUATION_TAG = "medgrpo.evaluation_digest"
FLOW_RUN_TAG = "medgrpo.flow_run"
REASON_TAG = "medgrpo.reason"
"""Tag of a run and a version: why it was trained, where somebody, or retrain-medgrpo, said so."""
ALARMS_TAG = "medgrpo.alarms"
GATE_TAG, GATE_REASONS_TAG = "medgrpo.gate", "medgrpo.gate_reasons"
COMPARED_TAG = "medgrpo.compared_with"
"""Tag of a version: digest of the champion that its gate held it against, or "none"."""
START_TAG, START_DIGEST_TAG = "medgrpo.started_from", "medgrpo.start_digest"
"""Tags of a run and a version: the model whose adapter its training went on from, and the digest of that adapter."""
ADAPTER_TAG, BASE_DIGEST_TAG = "medgrpo.adapter_digest", "medgrpo.base_digest"
"""Tags of a version: digest of the adapter that its run keeps, and of its base where that is a directory."""
PASS = "pass"
"""The gate's outcome that makes a version a candidate for review."""
ADAPTER, CONFIG_FILE = "adapter", "config.json"
"""Where a run keeps the adapter that was merged into its model, and the settings it was trained with."""


def log_evidence(client: "MlflowClient", run_id: str, evidence: Evidence) -> None:
    """Metrics, inputs, tags and artifacts of the run."""
    candidate = evidence.candidate
    train, evaluation = candidate.train_dir, candidate.evaluation_dir
    rows, _ = rows_from(train / METRICS_FILE, sent_until(train / SYNC_FILE, run_id))
    results = to_metrics(_flat_results(evidence.metrics["models"]), int(evidence.time * 1000))
    used = {f"resources/{name}": value for name, value in evidence.facts.used.items()}
    results += to_metrics(used, int(evidence.time * 1000))
    log_points(client, run_id, [*(point for row in rows for point in to_points(row)), *results])
    client.log_inputs(run_id, datasets=_dataset_inputs(candidate.config, evidence.data))
    set_tags(client, run_id, _run_tags(evidence))
    client.log_text(run_id, json.dumps(public_config(candidate.config), indent=2), CONFIG_FILE)
    client.log_text(run_id, hub_card(evidence), CARD_FILE)
    if candidate.gate:
        client.log_text(run_id, json.dumps(candidate.gate, indent=2, ensure_ascii=False), "gate.json")
    for name in ("report.html", "predictions.json", "metrics.json"):
        client.log_artifact(run_id, str(evaluation / name))
    if candidate.audit_dir:
        _log_table(client, run_id, AuditReport.read(candidate.audit_dir / "audit.json").rows(), "audit.json")
    alarms = raised_alarms(read_metrics(train / METRICS_FILE))
    if alarms:
        client.log_text(run_id, json.dumps([asdict(alarm) for alarm in alarms], indent=2), "alarms.json")
    for directory, name in ((evaluation / "plots", "plots"), (candidate.adapter_dir, ADAPTER)):
        if directory.is_dir():
            client.log_artifacts(run_id, str(directory), name)


def _log_table(client: "MlflowClient", run_id: str, rows: Sequence[Mapping[str, object]], name: str) -> None:
    """Rows as a table that MLflow's pages show and compare."""
    with warnings.catch_warnings():
        # MLflow looks for images among the columns in a way that pandas deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        client.log_table(run_id, {column: [row[column] for row in rows] for column in rows[0]}, name)


def _flat_results(models: Mapping[str, Any]) -> dict[str, float]:
    """Evaluation results as metric names.

    >>> _flat_results({"base": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 50}}})
    {'eval/base/accuracy': 0.5, 'eval/base/accuracy_low': 0.4, 'eval/base/accuracy_high': 0.6}
    """
    suffixes = {"value": "", "low": "_low", "high": "_high"}
    return {
        f"eval/{model}/{name}{suffix}": result[part]
        for model, results in models.items()
        for name, result in named_results(results)
        for part, suffix in suffixes.items()
        if part in result
    }


def _dataset_inputs(config: RunConfig, data: Mapping[str, Any]) -> "list[DatasetInput]":
    """The training split and the evaluated split as MLflow inputs.

    They are described from `data.json`: MLflow's own wrappers would load the records and guess a schema.
    """
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = CodeDatasetSource({"medgrpo.domain": data["domain"], "medgrpo.synthetic": str(data["synthetic"]).lower()})
    inputs = []
    for split, context in (("train", "training"), (config.evaluation.split, "evaluation")):
        digest, counts = data["digests"][split], data["counts"][split]
        rows = sum(counts.values()) if isinstance(counts, Mapping) else counts
        dataset = Dataset(
            name=f"{data['domain']}-{split}",
            digest=digest[:MAX_DATASET_DIGEST],
            source_type="code",
            source=source.to_json(),
            profile=json.dumps({"num_rows": rows, "verdicts": counts}),
        )
        tags = [InputTag("mlflow.data.context", context), InputTag("medgrpo.sha256", digest)]
        inputs.append(DatasetInput(dataset, tags))
    return inputs


def _run_tags(evidence: Evidence) -> dict[str, str]:
    digests = {f"medgrpo.data.{split}": digest for split, digest in evidence.data["digests"].items()}
    return {**evidence.candidate.tags, **digests, **version_tags(evidence)}


def version_tags(evidence: Evidence) -> dict[str, str]:
    """What a version says about itself, for searches and for whoever reviews it."""
    candidate, facts = evidence.candidate, evidence.facts
    alarms = raised_alarms(read_metrics(candidate.train_dir / METRICS_FILE))
    tags = {
        DIGEST_TAG: candidate.model_digest,
        EVALUATION_TAG: evidence.digest,
        DATA_TAG: facts.data_digest,
        "medgrpo.config_digest": facts.config_digest,
        "medgrpo.git_commit": candidate.git_commit,
        "mlflow.source.git.commit": candidate.git_commit,
        "medgrpo.domain": evidence.data["domain"],
        "medgrpo.synthetic": str(evidence.data["synthetic"]).lower(),
        "medgrpo.base": candidate.config.policy.base,
        BASE_DIGEST_TAG: facts.base_digest,
        ADAPTER_TAG: adapter_digest(candidate.adapter_dir) if candidate.adapter_dir.is_dir() else None,
        START_TAG: facts.started_from.get("source"),
        START_DIGEST_TAG: facts.started_from.get("digest"),
        "medgrpo.base_licence": facts.licence,
        f"medgrpo.{facts.device}_hours": None if facts.hours is None else f"{facts.hours:.4f}",
        "medgrpo.cost": None if facts.cost is None else f"{facts.cost:.4f}",
        ALARMS_TAG: ", ".join(alarm.name for alarm in alarms) or "none",
        **_gate_tags(candidate.gate),
        COMPARED_TAG: candidate.champion,
        **{tag: candidate.tags.get(tag) for tag in (FLOW_RUN_TAG, REASON_TAG)},
    }
    return {key: value for key, value in tags.items() if value}


def _gate_tags(gate: Mapping[str, Any] | None) -> dict[str, str]:
    """The gate's outcome, and the reasons of the checks that decided it: those that hold only where all do."""
    if gate is None:
        return {GATE_TAG: NOT_EVALUATED}
    return {GATE_TAG: gate["outcome"], GATE_REASONS_TAG: "\n".join(gate_reasons(gate))[:MAX_TAG]}
