"""MLflow: runs, metrics, dataset inputs, model versions and aliases.

One training is one MLflow run, however often it is killed and resumed; one evaluated model is one registered version,
however often its registration is tried. Both hold because every step first looks for what an earlier attempt left.
Everything goes through an `MlflowClient` with an explicit URI: MLflow's active run and global URI are neither read nor
set. MLflow is imported inside functions, so that `import medgrpo.registry` is quick.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import socket
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import MANIFEST, friendly_disk_errors, read_manifest, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion

METRICS_FILE = "metrics.jsonl"
"""Training metrics inside a training directory, one JSON row per line."""
RUN_FILE = "mlflow_run.json"
"""Which MLflow run a training directory belongs to."""
SYNC_FILE = "mlflow_sync.json"
"""How far the training metrics are logged."""

DIGEST_TAG = "medgrpo.digest"
EVALUATION_TAG = "medgrpo.evaluation_digest"
VERSION_TAG = "medgrpo.model_version"
TRAINING_RUN_TAG = "medgrpo.training_run"
TRAINING_DIGEST_TAG = "medgrpo.training_digest"
LOGGED_MODEL_TAG = "medgrpo.logged_model"
FAILURE_TAG = "medgrpo.failure"
FLOW_RUN_TAG = "medgrpo.flow_run"

PROBE_SECONDS = 8
CALL_SECONDS = 15
# Limits of MLflow's batch API and fields.
MAX_METRICS, MAX_PARAMS, MAX_VALUE, MAX_KEY, MAX_DATASET_DIGEST, MAX_DESCRIPTION = 1000, 100, 6000, 250, 32, 5000
# What the served model imports; torch's local version (+cpu, +cu128) is no release anybody could install.
SERVED_WITH = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "jinja2", "numpy", "pandas", "pydantic")

_NOT_IN_A_METRIC_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)
_ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\"()\]]+)")
_log = logging.getLogger(__name__)


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
        git_commit: commit the code ran from; None outside a repository.
        tags: further tags of the MLflow run; `medgrpo.flow_run` is repeated on the version.
    """

    config: RunConfig
    train_dir: Path
    model_dir: Path
    data_dir: Path
    evaluation_dir: Path
    model_digest: str
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


# --- connection


def connect(config: RunConfig) -> "MlflowClient":
    """A client of the run's MLflow store that has answered once.

    MLflow's usage telemetry is off unless MLFLOW_DISABLE_TELEMETRY says otherwise.

    Raises:
        ServiceUnreachable: no answer within about ten seconds.
        InputError: the URI names something that cannot be an MLflow store.
    """
    uri = resolve_mlflow_uri(config)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _check_store(uri)
    with _sentences(uri), _http_timeout(PROBE_SECONDS):
        from mlflow import MlflowClient

        try:
            client = MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        except ModuleNotFoundError as error:
            raise InputError(
                f"MLflow at {_public(uri)} needs the Python package {error.name!r}, which is not installed. "
                "Install it, or name the address of an MLflow server."
            ) from error
        client.search_experiments(max_results=1)
    return client


def _check_store(uri: str) -> None:
    """Look at a database before MLflow does, which would try for minutes to open one that cannot be opened."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        _check_sqlite(uri)
    elif parts.scheme not in ("http", "https") and parts.hostname and parts.port:
        try:
            socket.create_connection((parts.hostname, parts.port), timeout=PROBE_SECONDS).close()
        except OSError as error:
            _unreachable(uri, error)


def _check_sqlite(uri: str) -> None:
    path = Path(uri.partition(":///")[2].partition("?")[0])
    if path == Path():
        return
    with friendly_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            _unreachable(uri, error)
        raise InputError(
            f"tracking.uri {uri}: {path} cannot be used as an SQLite database ({error}). "
            "Name another file, or the address of an MLflow server."
        ) from error


@contextlib.contextmanager
def _http_timeout(seconds: int) -> Iterator[None]:
    """One try of `seconds` per HTTP request; MLflow's own settings would keep a training waiting for minutes.

    MLflow reads these variables at each request and offers no other way, so they are set and put back.
    """
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _sentences(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into ServiceUnreachable or InputError."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (requests.RequestException, OperationalError) as error:
        _unreachable(uri, error)
    except MlflowException as error:
        if error.error_code == "TEMPORARILY_UNAVAILABLE" or error.message.startswith("API request to http"):
            _unreachable(uri, error)
        raise InputError(f"MLflow at {_public(uri)} refused: {_first_line(error.message)}") from error


def _unreachable(uri: str, error: Exception) -> NoReturn:
    """Raise ServiceUnreachable with the reason alone; the connection's own traceback helps nobody."""
    text = str(error)
    errno = _ERRNO.search(text)
    reason = errno[1].strip() if errno else "timed out" if "timed out" in text else _first_line(text)
    raise ServiceUnreachable(
        f"MLflow at {_public(uri)} did not answer ({reason}). Start it or correct tracking.uri "
        "(or MLFLOW_TRACKING_URI), then run again: finished stages are reused and metrics catch up."
    ) from None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def _public(uri: str) -> str:
    """The URI without user name and password.

    >>> _public("https://me:secret@mlflow.example:5000/x")
    'https://mlflow.example:5000/x'
    """
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


# --- runs


def open_run(config: RunConfig, train_dir: Path, tags: Mapping[str, str]) -> str:
    """Id of the MLflow run of a training, RUNNING from now on.

    A training that was killed goes on in the run named by `train_dir/mlflow_run.json`. If that run already has a model
    version (the training was a cache hit), or is gone, a new run is made that names it in a tag.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: MLflow refuses, or the experiment was deleted.
    """
    client = connect(config)
    with _sentences(resolve_mlflow_uri(config)), _http_timeout(CALL_SECONDS):
        experiment = _experiment_id(client, config)
        origin = _origin(train_dir)
        run = _recorded_run(client, config, train_dir) or _unfinished_run(client, config, experiment, origin)
        if run is None:
            return _create_run(client, config, experiment, train_dir, {**origin, **tags})
        client.update_run(run.info.run_id, status="RUNNING")
        _set_tags(client, run.info.run_id, tags)
        return str(run.info.run_id)


def fail_run(config: RunConfig, run_id: str, reason: str) -> None:
    """End a run as FAILED and say why in its tag `medgrpo.failure`.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: there is no such run.
    """
    client = connect(config)
    with _sentences(resolve_mlflow_uri(config)), _http_timeout(CALL_SECONDS):
        client.set_tag(run_id, FAILURE_TAG, reason[:MAX_VALUE])
        client.set_terminated(run_id, status="FAILED")


def _experiment_id(client: "MlflowClient", config: RunConfig) -> str:
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server decides itself where artifacts go; without one, MLflow would take the working directory.
        served = urlsplit(resolve_mlflow_uri(config)).scheme in ("http", "https", "databricks")
        location = None if served else (config.runs_dir.absolute() / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # Another process may have created it since.
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"the MLflow experiment {name!r} was deleted. Restore it (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}), or set tracking.experiment to another name."
        )
    return str(found.experiment_id)


def _origin(train_dir: Path) -> dict[str, str]:
    """The tag that says which training a run belongs to, once its directory is not this run's own."""
    if (train_dir / RUN_FILE).is_file():
        return {TRAINING_RUN_TAG: _read_json(train_dir / RUN_FILE)["run_id"]}
    manifest = read_manifest(train_dir)
    return {TRAINING_DIGEST_TAG: manifest.sha256} if manifest else {}


def _recorded_run(client: "MlflowClient", config: RunConfig, train_dir: Path) -> "Run | None":
    """The run that the training directory names, if it is here and has no model version yet."""
    path = train_dir / RUN_FILE
    if not path.is_file():
        return None
    recorded = _read_json(path)
    if recorded.get("uri") != _public(resolve_mlflow_uri(config)):
        return None
    run = _existing_run(client, recorded["run_id"])
    return None if run is None or VERSION_TAG in run.data.tags else run


def _existing_run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _unfinished_run(
    client: "MlflowClient", config: RunConfig, experiment: str, origin: Mapping[str, str]
) -> "Run | None":
    """The run that an earlier try made for a training directory which names no usable run."""
    for tag, value in origin.items():
        query = f"tags.`{tag}` = '{value}' and attributes.run_name = '{_run_name(config)}'"
        runs = client.search_runs([experiment], query, order_by=["attributes.start_time DESC"])
        return next((run for run in runs if VERSION_TAG not in run.data.tags), None)
    return None


def _create_run(
    client: "MlflowClient", config: RunConfig, experiment: str, train_dir: Path, tags: Mapping[str, str]
) -> str:
    from mlflow.entities import Param

    who = {"mlflow.user": os.environ.get("USER", "unknown"), "mlflow.source.name": "medgrpo"}
    run = client.create_run(experiment, run_name=_run_name(config), tags={**who, **tags})
    run_id = str(run.info.run_id)
    params = [Param(key[:MAX_KEY], value[:MAX_VALUE]) for key, value in _flatten(_public_config(config)).items()]
    for part in _parts(params, MAX_PARAMS):
        client.log_batch(run_id, params=part)
    # A published directory is hashed: a file added to it now would make the cached training look damaged.
    mine = train_dir.is_dir() and os.access(train_dir, os.W_OK) and not (train_dir / MANIFEST).exists()
    if mine and not (train_dir / RUN_FILE).exists():
        write_json(train_dir / RUN_FILE, {"run_id": run_id, "uri": _public(resolve_mlflow_uri(config))})
    return run_id


def _run_name(config: RunConfig) -> str:
    return (config.name or config.profile).replace("'", "")


def _public_config(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON values, without a password in the tracking URI."""
    values = config.model_dump(mode="json")
    if config.tracking.uri:
        values["tracking"]["uri"] = _public(config.tracking.uri)
    return values


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names.

    >>> _flatten({"grpo": {"steps": 20}, "name": None})
    {'grpo.steps': '20', 'name': 'None'}
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)}
    return flat


def _set_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


# --- metrics


def log_metric_rows(config: RunConfig, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Log rows of {phase, step, time, numbers…}: each finite number as metric `<phase>/<key>` at that step.

    Logging a row again changes nothing: MLflow keeps one point per metric, step, time and value.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: a row without phase, step or time, or no such run.
    """
    points = [point for row in rows for point in _points(row)]
    if not points:
        return
    client = connect(config)
    with _sentences(resolve_mlflow_uri(config)), _http_timeout(CALL_SECONDS):
        _log_points(client, run_id, points)


def sync_metrics(config: RunConfig, run_id: str, metrics_jsonl: Path, state: Path) -> int:
    """Log the rows of a growing JSON-lines file that are not logged yet.

    `state` keeps the run and the byte offset logged so far; another run, or a file that was cut back, starts over. The
    last line waits until it is whole. During an outage nothing is lost: the next call sends the same rows.

    Returns:
        Number of rows logged.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: no such run, or `state` cannot be written.
    """
    sent = _sent_until(state, run_id)
    rows, offset = _rows_from(metrics_jsonl, sent)
    log_metric_rows(config, run_id, rows)
    if offset != sent:
        with friendly_disk_errors(state):
            write_json(state, {"run_id": run_id, "offset": offset})
    return len(rows)


def _sent_until(state: Path, run_id: str) -> int:
    if not state.is_file():
        return 0
    known = _read_json(state)
    return int(known["offset"]) if known.get("run_id") == run_id else 0


def _rows_from(path: Path, offset: int) -> tuple[list[Mapping[str, Any]], int]:
    """Rows of the whole lines from a byte offset on, and the offset behind them."""
    content = path.read_bytes() if path.is_file() else b""
    # A resumed training may cut its metrics back to the checkpoint; an offset inside a line is from before that.
    if content[max(offset - 1, 0) : offset] not in (b"", b"\n") or offset > len(content):
        offset = 0
    end = content.rfind(b"\n") + 1
    lines = [line for line in content[offset:end].split(b"\n") if line.strip()]
    rows = [row for line in lines if (row := _parse_row(line)) is not None]
    if len(rows) < len(lines):
        # A process killed while writing leaves half a line, and its successor writes on behind it.
        _log.warning("%s: %d unreadable lines were not sent to MLflow.", path, len(lines) - len(rows))
    return rows, end


def _parse_row(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"phase", "step", "time"} <= row.keys() else None


def _points(row: Mapping[str, Any]) -> "list[Metric]":
    missing = {"phase", "step", "time"} - row.keys()
    if missing:
        raise InputError(f"a metrics row has no {' and no '.join(sorted(missing))}: {dict(row)!r}.")
    step, milliseconds = int(row["step"]), int(row["time"] * 1000)
    values = {f"{row['phase']}/{key}": value for key, value in row.items() if key not in ("phase", "step", "time")}
    return _metrics(values, milliseconds, step)


def _metrics(values: Mapping[str, Any], milliseconds: int, step: int = 0) -> "list[Metric]":
    """MLflow metrics of the finite numbers; anything else is no point on a curve."""
    from mlflow.entities import Metric

    return [
        Metric(_NOT_IN_A_METRIC_NAME.sub("_", key)[:MAX_KEY], float(value), milliseconds, step)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _log_points(client: "MlflowClient", run_id: str, points: "Sequence[Metric]") -> None:
    for part in _parts(points, MAX_METRICS):
        client.log_batch(run_id, metrics=part)


# --- registration


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
    with _sentences(resolve_mlflow_uri(config)):
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
    with _sentences(resolve_mlflow_uri(config)):
        return any(int(found.version) == version for found in client.search_model_versions(f"name = '{name}'"))


def _read_evidence(candidate: Candidate) -> _Evidence:
    directory = candidate.evaluation_dir
    needed = [directory / "report.html", directory / "predictions.json", candidate.model_dir / "config.json"]
    for path in needed:
        if not path.is_file():
            raise InputError(f"{path} is missing; a model is registered with it. Evaluate the model again.")
    metrics, data = directory / "metrics.json", candidate.data_dir / "data.json"
    values = _read_json(metrics)
    if not isinstance(values.get("models"), dict) or not values["models"]:
        raise InputError(f'{metrics}: expected {{"models": {{…}}}} with at least one model. Evaluate the model again.')
    digest = hashlib.sha256(metrics.read_bytes()).hexdigest()
    return _Evidence(values, digest, metrics.stat().st_mtime, _read_json(data))


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
    run = _recorded_run(client, candidate.config, candidate.train_dir)
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
    rows, _ = _rows_from(train / METRICS_FILE, _sent_until(train / SYNC_FILE, run_id))
    results = _metrics(_flat_results(evidence.metrics["models"]), int(evidence.metrics_time * 1000))
    _log_points(client, run_id, [*(point for row in rows for point in _points(row)), *results])
    client.log_inputs(run_id, datasets=_dataset_inputs(candidate.config, evidence.data))
    _set_tags(client, run_id, _run_tags(candidate, evidence))
    client.log_text(run_id, json.dumps(_public_config(candidate.config), indent=2), "config.json")
    for name in ("report.html", "predictions.json", "metrics.json"):
        client.log_artifact(run_id, str(evaluation / name))
    if (evaluation / "plots").is_dir():
        client.log_artifacts(run_id, str(evaluation / "plots"), "plots")


def _results(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each result of a model with its name; nested ones (`f1: {yes: …}`) are named by their path.

    >>> list(_results({"accuracy": {"value": 0.5, "n": 50}, "f1": {"yes": {"value": 0.4}}}))
    [('accuracy', {'value': 0.5, 'n': 50}), ('f1_yes', {'value': 0.4})]
    """
    for name, result in results.items():
        if isinstance(result, Mapping) and "value" not in result:
            yield from _results(result, f"{prefix}{name}_")
        elif isinstance(result, int | float | Mapping):
            yield prefix + name, result if isinstance(result, Mapping) else {"value": result}


def _flat_results(models: Mapping[str, Any]) -> dict[str, float]:
    """Evaluation results as metric names.

    >>> _flat_results({"base": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 50}}})
    {'eval/base/accuracy': 0.5, 'eval/base/accuracy_low': 0.4, 'eval/base/accuracy_high': 0.6}
    """
    suffixes = {"value": "", "low": "_low", "high": "_high"}
    return {
        f"eval/{model}/{name}{suffix}": result[part]
        for model, results in models.items()
        for name, result in _results(results)
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
    return {
        DIGEST_TAG: candidate.model_digest,
        EVALUATION_TAG: evidence.metrics_digest,
        "medgrpo.domain": evidence.data["domain"],
        "medgrpo.synthetic": str(evidence.data["synthetic"]).lower(),
        "medgrpo.base": candidate.config.policy.base,
        **{key: value for key, value in commit.items() if value},
        **{key: value for key, value in candidate.tags.items() if key == FLOW_RUN_TAG},
    }


# --- the model version


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


def model_card(config: RunConfig, data: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Markdown description of a version: what it is, what it learned from, how well it does, what it is not for."""
    synthetic = data["synthetic"]
    origin = "**synthetic** records, invented by a generator" if synthetic else "expert-labelled abstracts"
    warmup = f"supervised warm-up ({config.warmup.epochs:g} epochs), then " if config.warmup.enabled else ""
    grpo = config.grpo
    sizes = ", ".join(
        f"{split} {sum(count.values()) if isinstance(count, Mapping) else count}"
        for split, count in data["counts"].items()
    )
    limits = "Numbers on synthetic records say nothing about real abstracts. " if synthetic else ""
    return "\n".join(
        [
            "Reads one abstract, cites it in a thought and answers a question with yes, no or maybe.",
            "",
            f"- Base model: {config.policy.base}" + (f" @ {config.policy.revision}" if config.policy.revision else ""),
            f"- Training: {warmup}GRPO, {grpo.steps} steps of {grpo.prompts_per_step} prompts x {grpo.group_size} "
            f"completions; LoRA rank {config.policy.lora_rank}, merged in float32",
            f"- Data: {data['domain']}, {origin} ({sizes})",
            f"- Profile: {config.profile}, seed {config.seed}",
            "",
            f"**Not medical advice.** {limits}It reads single English abstracts, knows nothing beyond them, and may "
            "cite correctly and still conclude wrongly; its verdict can be empty. Not validated for clinical use.",
            "",
            f"Results on the {config.evaluation.split} split, greedy, with 95 % intervals:",
            "",
            *_results_table(metrics["models"]),
        ]
    )


def _results_table(models: Mapping[str, Any]) -> list[str]:
    """One line per model and metric, so that models with different metrics fit the same table."""
    lines = ["| model | metric | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for model, results in models.items():
        for name, result in _results(results):
            low, high = result.get("low"), result.get("high")
            interval = "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            value = "–" if result["value"] is None else f"{result['value']:.3f}"
            lines.append(f"| {model} | {name} | {value} | {interval} | {result.get('n', '–')} |")
    return lines


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Remove it, and the stage that wrote it runs again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value
