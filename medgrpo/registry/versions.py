"""Model versions: one per evaluated model, however often its registration is tried."""

import contextlib
import hashlib
import json
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.manifests import friendly_disk_errors
from medgrpo.registry.card import model_card, named_results
from medgrpo.registry.connection import connect, plain_errors
from medgrpo.registry.runs import (
    METRICS_FILE,
    SYNC_FILE,
    VERSION_TAG,
    log_points,
    open_run,
    public_config,
    read_json,
    recorded_run,
    rows_from,
    sent_until,
    set_tags,
    to_metrics,
    to_points,
)
from medgrpo.rewards.audit import AuditReport
from medgrpo.training.metrics import raised_alarms, read_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel
    from mlflow.entities.model_registry import ModelVersion

# Limits of MLflow's fields.
MAX_DATASET_DIGEST, MAX_DESCRIPTION = 32, 5000
DIGEST_TAG = "medgrpo.digest"
EVALUATION_TAG = "medgrpo.evaluation_digest"
LOGGED_MODEL_TAG = "medgrpo.logged_model"
FLOW_RUN_TAG = "medgrpo.flow_run"
ALARMS_TAG = "medgrpo.alarms"
# What the served model imports; torch's local version (+cpu, +cu128) is no release anybody could install.
SERVED_WITH = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "jinja2", "numpy", "pandas", "pydantic")


@dataclass(frozen=True)
class Candidate:
    """A trained and evaluated model, ready to be registered.

    Attributes:
        config: settings of the run.
        train_dir: directory of the training, with its metrics and its MLflow run.
        model_dir: the merged model, float32 safetensors with its tokenizer.
        data_dir: prepared data, with `data.json`: {digests, domain, synthetic, counts}.
        evaluation_dir: `metrics.json`, `report.html`, `predictions.json` and, if there are any, `plots/`.
        model_digest: sha256 of the model.
        audit_dir: `audit.json`; None where the rewards were not attacked.
        git_commit: commit the code ran from; None outside a repository.
        tags: further tags of the MLflow run; `medgrpo.flow_run` is repeated on the version.
    """

    config: RunConfig
    train_dir: Path
    model_dir: Path
    data_dir: Path
    evaluation_dir: Path
    model_digest: str
    audit_dir: Path | None = None
    git_commit: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Registration:
    """A registered model version.

    Attributes:
        name: registered model.
        version: its version.
        run_id: MLflow run the version came from.
        uri: `models:/<name>/<version>`, what `mlflow.pyfunc.load_model` takes.
        digest: sha256 of the model.
        aliases: aliases that point to this version now.
    """

    name: str
    version: int
    run_id: str
    uri: str
    digest: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class _Evidence:
    """What the data and evaluation directories say about a candidate."""

    metrics: dict[str, Any]
    metrics_digest: str
    metrics_time: float
    data: dict[str, Any]


def register(candidate: Candidate) -> Registration:
    """Register a candidate as a new version of its model, or return the version it already is.

    The run gets the remaining training metrics, the evaluation as metrics and artifacts, and the data as inputs. The
    version gets a model card, tags and the alias `tracking.alias`. A try that was cut short anywhere is completed.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: an artifact is missing, the alias is reserved, or MLflow refuses.
    """
    config = candidate.config
    evidence = _read_evidence(candidate)
    _check_alias(config.tracking.alias)
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        version = _find_version(client, candidate, evidence)
        if version is not None and VERSION_TAG in client.get_run(str(version.run_id)).data.tags:
            _close_repeated_run(client, candidate, version)
            return _registration(client, candidate, version)
        run_id = str(version.run_id) if version else open_run(config, candidate.train_dir, candidate.tags)
        if version is None:
            _log_evidence(client, run_id, candidate, evidence)
            version = _create_version(client, run_id, candidate, evidence)
        client.set_registered_model_alias(version.name, config.tracking.alias, str(version.version))
        _finish_run(client, run_id, version)
        return _registration(client, candidate, version)


def holds(config: RunConfig, name: str, version: int) -> bool:
    """Whether the registry holds this version of this model.

    Raises:
        ServiceUnreachable: MLflow does not answer.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        return any(int(found.version) == version for found in client.search_model_versions(f"name = '{name}'"))


def _read_evidence(candidate: Candidate) -> _Evidence:
    directory = candidate.evaluation_dir
    needed = [directory / "report.html", directory / "predictions.json", candidate.model_dir / "config.json"]
    for path in needed:
        if not path.is_file():
            raise InputError(f"{path} is missing; a model is registered with it. Evaluate the model again.")
    metrics, data = directory / "metrics.json", candidate.data_dir / "data.json"
    values = read_json(metrics)
    if not isinstance(values.get("models"), dict) or not values["models"]:
        raise InputError(f'{metrics}: expected {{"models": {{…}}}} with at least one model. Evaluate the model again.')
    digest = hashlib.sha256(metrics.read_bytes()).hexdigest()
    return _Evidence(values, digest, metrics.stat().st_mtime, read_json(data))


def _check_alias(alias: str) -> None:
    if alias.lower() == "latest" or re.fullmatch(r"v\d+", alias, re.I):
        raise InputError(
            f"tracking.alias {alias!r} is reserved by MLflow, which would refuse it after the upload. "
            "Choose a word such as 'candidate' or 'champion'."
        )


def _model_name(candidate: Candidate, evidence: _Evidence) -> str:
    return candidate.config.tracking.model_name + ("-synthetic" if evidence.data["synthetic"] else "")


def _find_version(client: "MlflowClient", candidate: Candidate, evidence: _Evidence) -> "ModelVersion | None":
    """The version that holds exactly this model with exactly this evaluation."""
    query = (
        f"name = '{_model_name(candidate, evidence)}' and tags.`{DIGEST_TAG}` = '{candidate.model_digest}' "
        f"and tags.`{EVALUATION_TAG}` = '{evidence.metrics_digest}'"
    )
    versions = client.search_model_versions(query)
    return max(versions, key=lambda version: int(version.version), default=None)


def _close_repeated_run(client: "MlflowClient", candidate: Candidate, version: "ModelVersion") -> None:
    """End the run of a training that came to a model which is already registered."""
    run = recorded_run(client, candidate.config, candidate.train_dir)
    if run is not None:
        _finish_run(client, run.info.run_id, version)


def _finish_run(client: "MlflowClient", run_id: str, version: "ModelVersion") -> None:
    """End a run as FINISHED; the tag comes last, because it says that nothing is left to do."""
    client.set_terminated(run_id, status="FINISHED")
    client.set_tag(run_id, VERSION_TAG, str(version.version))


def _registration(client: "MlflowClient", candidate: Candidate, version: "ModelVersion") -> Registration:
    current = client.get_model_version(version.name, str(version.version))
    return Registration(
        name=current.name,
        version=int(current.version),
        run_id=str(current.run_id),
        uri=f"models:/{current.name}/{current.version}",
        digest=candidate.model_digest,
        aliases=tuple(sorted(current.aliases)),
    )


def _log_evidence(client: "MlflowClient", run_id: str, candidate: Candidate, evidence: _Evidence) -> None:
    """Metrics, inputs, tags and artifacts of the run."""
    train, evaluation = candidate.train_dir, candidate.evaluation_dir
    rows, _ = rows_from(train / METRICS_FILE, sent_until(train / SYNC_FILE, run_id))
    results = to_metrics(_flat_results(evidence.metrics["models"]), int(evidence.metrics_time * 1000))
    log_points(client, run_id, [*(point for row in rows for point in to_points(row)), *results])
    client.log_inputs(run_id, datasets=_dataset_inputs(candidate.config, evidence.data))
    set_tags(client, run_id, _run_tags(candidate, evidence))
    client.log_text(run_id, json.dumps(public_config(candidate.config), indent=2), "config.json")
    for name in ("report.html", "predictions.json", "metrics.json"):
        client.log_artifact(run_id, str(evaluation / name))
    if candidate.audit_dir:
        _log_table(client, run_id, AuditReport.read(candidate.audit_dir / "audit.json").rows(), "audit.json")
    alarms = raised_alarms(read_metrics(train / METRICS_FILE))
    if alarms:
        client.log_text(run_id, json.dumps([asdict(alarm) for alarm in alarms], indent=2), "alarms.json")
    if (evaluation / "plots").is_dir():
        client.log_artifacts(run_id, str(evaluation / "plots"), "plots")


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


def _run_tags(candidate: Candidate, evidence: _Evidence) -> dict[str, str]:
    digests = {f"medgrpo.data.{split}": digest for split, digest in evidence.data["digests"].items()}
    return {**candidate.tags, **digests, **_version_tags(candidate, evidence)}


def _version_tags(candidate: Candidate, evidence: _Evidence) -> dict[str, str]:
    commit = {"medgrpo.git_commit": candidate.git_commit, "mlflow.source.git.commit": candidate.git_commit}
    alarms = raised_alarms(read_metrics(candidate.train_dir / METRICS_FILE))
    return {
        DIGEST_TAG: candidate.model_digest,
        EVALUATION_TAG: evidence.metrics_digest,
        "medgrpo.domain": evidence.data["domain"],
        "medgrpo.synthetic": str(evidence.data["synthetic"]).lower(),
        "medgrpo.base": candidate.config.policy.base,
        ALARMS_TAG: ", ".join(alarm.name for alarm in alarms) or "none",
        **{key: value for key, value in commit.items() if value},
        **{key: value for key, value in candidate.tags.items() if key == FLOW_RUN_TAG},
    }


def _create_version(client: "MlflowClient", run_id: str, candidate: Candidate, evidence: _Evidence) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    name = _model_name(candidate, evidence)
    model = _log_model(client, run_id, candidate)
    try:
        client.create_registered_model(name, description="Reads an abstract and answers yes, no or maybe (medgrpo).")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        name,
        # The artifacts' own address: MLflow would look up `models:/<id>` in its global store, not in this client's.
        source=model.artifact_location,
        run_id=run_id,
        tags=_version_tags(candidate, evidence),
        description=model_card(candidate.config, evidence.data, evidence.metrics)[:MAX_DESCRIPTION],
        model_id=model.model_id,
    )


def _log_model(client: "MlflowClient", run_id: str, candidate: Candidate) -> "LoggedModel":
    """The uploaded model of a run; one that an earlier try has begun or finished is used again."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    known = run.data.tags.get(LOGGED_MODEL_TAG)
    model = client.get_logged_model(known) if known else None
    if model is None or model.tags.get(DIGEST_TAG) != candidate.model_digest:
        tags = {DIGEST_TAG: candidate.model_digest}
        model = client.create_logged_model(run.info.experiment_id, "policy", run_id, tags, model_type="medgrpo")
        client.set_tag(run_id, LOGGED_MODEL_TAG, model.model_id)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    if model.status != LoggedModelStatus.READY:
        with friendly_disk_errors(candidate.config.runs_dir), _staging(candidate.config) as directory:
            _save_model(directory, model, candidate)
            client.log_model_artifacts(model.model_id, str(directory))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model


@contextlib.contextmanager
def _staging(config: RunConfig) -> Iterator[Path]:
    """A work directory beside the runs, where there is room for a model, gone afterwards."""
    config.runs_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".register-", dir=config.runs_dir) as directory:
        yield Path(directory).absolute() / "model"


def _save_model(directory: Path, model: "LoggedModel", candidate: Candidate) -> None:
    """Write the model in MLflow's format. `log_model` would load it to validate the example; this does not."""
    import mlflow.pyfunc
    from mlflow.models import Model

    from medgrpo import serving

    code = Path(serving.__file__)
    limits = {
        "max_new_tokens": candidate.config.grpo.max_completion_length,
        "batch_tokens": candidate.config.evaluation.batch_tokens,
    }
    mlflow.pyfunc.save_model(
        path=str(directory),
        python_model=str(code),
        code_paths=[str(code.parent)],
        artifacts={"model": str(candidate.model_dir.absolute())},
        model_config=limits,
        signature=serving.signature(),
        input_example=serving.INPUT_EXAMPLE,
        pip_requirements=_requirements(),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
            metadata={DIGEST_TAG: candidate.model_digest},
        ),
    )


def _requirements() -> list[str]:
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in SERVED_WITH]
