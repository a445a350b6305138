"""MLflow runs: one per training, however often it is killed and resumed; metrics that catch up after an outage."""

import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.manifests import MANIFEST, friendly_disk_errors, read_manifest, write_json
from medgrpo.registry.connection import CALL_SECONDS, connect, http_timeout, plain_errors, public_uri
from medgrpo.sweep.settings import TrialConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_log = logging.getLogger(__name__)

# Limits of MLflow's batch API and fields.
MAX_METRICS, MAX_PARAMS, MAX_VALUE, MAX_KEY = 1000, 100, 6000, 250
RUN_FILE = "mlflow_run.json"
"""Which MLflow run a training directory belongs to."""
SYNC_FILE = "mlflow_sync.json"
"""How far the training metrics are logged."""
VERSION_TAG = "medgrpo.model_version"
TRAINING_RUN_TAG = "medgrpo.training_run"
TRAINING_DIGEST_TAG = "medgrpo.training_digest"
FAILURE_TAG = "medgrpo.failure"
TRIAL_TAG = "medgrpo.trial"
_NOT_IN_A_METRIC_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)


def open_run(config: RunConfig, train_dir: Path, tags: Mapping[str, str]) -> str:
    """Id of the MLflow run of a training, RUNNING from now on.

    A training that was killed goes on in the run named by `train_dir/mlflow_run.json`. If that run already has a model
    version (the training was a cache hit), or is gone, a new run is made that names it in a tag.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: MLflow refuses, or the experiment was deleted.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)), http_timeout(CALL_SECONDS):
        experiment = experiment_id(client, config)
        run = known_run(client, config, train_dir, experiment)
        if run is None:
            run_id = create_run(client, config, experiment, {**_origin(train_dir), **tags})
            _name_run(config, train_dir, run_id)
            return run_id
        client.update_run(run.info.run_id, status="RUNNING")
        if FAILURE_TAG in run.data.tags:
            client.delete_tag(run.info.run_id, FAILURE_TAG)
        set_tags(client, run.info.run_id, tags)
        return str(run.info.run_id)


def trial_tags(config: RunConfig) -> dict[str, str]:
    """Tags by which the run of a sweep's trial is found, and nested under the sweep's; none for an ordinary run."""
    trial = config.trial
    return {TRIAL_TAG: trial_name(trial), "mlflow.parentRunId": trial.parent} if trial else {}


def trial_name(trial: TrialConfig) -> str:
    """A trial as its tag names it."""
    return f"{trial.sweep}/{trial.number}"


def fail_run(config: RunConfig, run_id: str, reason: str) -> None:
    """End a run as FAILED and say why in its tag `medgrpo.failure`.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: there is no such run.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)), http_timeout(CALL_SECONDS):
        client.set_tag(run_id, FAILURE_TAG, reason[:MAX_VALUE])
        client.set_terminated(run_id, status="FAILED")


def experiment_id(client: "MlflowClient", config: RunConfig) -> str:
    """Id of the run's experiment, which is made where there is none.

    Raises:
        InputError: it was deleted.
    """
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
        return {TRAINING_RUN_TAG: read_json(train_dir / RUN_FILE)["run_id"]}
    manifest = read_manifest(train_dir)
    return {TRAINING_DIGEST_TAG: manifest.sha256} if manifest else {}


def known_run(client: "MlflowClient", config: RunConfig, train_dir: Path, experiment: str) -> "Run | None":
    """The run of a training that has no model version yet: the one that its directory names, or one opened since."""
    run = _recorded_run(client, config, train_dir)
    return run or _unfinished_run(client, config, experiment, _origin(train_dir))


def _recorded_run(client: "MlflowClient", config: RunConfig, train_dir: Path) -> "Run | None":
    """The run that the training directory names, if it is here, has no model version yet, and is no other trial's."""
    path = train_dir / RUN_FILE
    if not path.is_file():
        return None
    recorded = read_json(path)
    if recorded.get("uri") != public_uri(resolve_mlflow_uri(config)):
        return None
    run = _existing_run(client, recorded["run_id"])
    return run if run and _is_usable(run, config) else None


def _is_usable(run: "Run", config: RunConfig) -> bool:
    """Whether a run has no model version yet, and is of the same trial, or of none as these settings are."""
    # A trial that was pruned leaves its training half done, and whatever has the same settings goes on with it.
    trial = trial_tags(config).get(TRIAL_TAG)
    return VERSION_TAG not in run.data.tags and run.data.tags.get(TRIAL_TAG) == trial


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
        return next((run for run in runs if _is_usable(run, config)), None)
    return None


def create_run(client: "MlflowClient", config: RunConfig, experiment: str, tags: Mapping[str, str]) -> str:
    """Id of a new MLflow run with a run's name, tags and settings."""
    from mlflow.entities import Param

    who = {"mlflow.user": os.environ.get("USER", "unknown"), "mlflow.source.name": "medgrpo"}
    run = client.create_run(experiment, run_name=_run_name(config), tags={**who, **tags})
    run_id = str(run.info.run_id)
    params = [Param(key[:MAX_KEY], value[:MAX_VALUE]) for key, value in _flatten(public_config(config)).items()]
    for part in _parts(params, MAX_PARAMS):
        client.log_batch(run_id, params=part)
    return run_id


def _name_run(config: RunConfig, train_dir: Path, run_id: str) -> None:
    """Note the run in the directory of its training, unless that is finished, or has one."""
    # A published directory is hashed: a file added to it now would make the cached training look damaged.
    mine = train_dir.is_dir() and os.access(train_dir, os.W_OK) and not (train_dir / MANIFEST).exists()
    if mine and not (train_dir / RUN_FILE).exists():
        write_json(train_dir / RUN_FILE, {"run_id": run_id, "uri": public_uri(resolve_mlflow_uri(config))})


def _run_name(config: RunConfig) -> str:
    return (config.name or config.profile).replace("'", "")


def public_config(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON values, without a password in the tracking URI, and without what sweeps would try."""
    values = config.model_dump(mode="json", exclude={"sweep"})
    if config.tracking.uri:
        values["tracking"]["uri"] = public_uri(config.tracking.uri)
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


def set_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run, as many tags as there are in calls as large as MLflow takes."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])


def run_artifact(client: "MlflowClient", run_id: str, name: str, directory: Path) -> Path | None:
    """An artifact of a run, downloaded into a directory; None where the run has no such one."""
    if name not in {artifact.path for artifact in client.list_artifacts(run_id)}:
        return None
    return Path(client.download_artifacts(run_id, name, str(directory)))


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def log_metric_rows(config: RunConfig, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Log rows of {phase, step, time, numbers…}: each finite number as metric `<phase>/<key>` at that step.

    Logging a row again changes nothing: MLflow keeps one point per metric, step, time and value.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: a row without phase, step or time, or no such run.
    """
    points = [point for row in rows for point in to_points(row)]
    if not points:
        return
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)), http_timeout(CALL_SECONDS):
        log_points(client, run_id, points)


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
    sent = sent_until(state, run_id)
    rows, offset = rows_from(metrics_jsonl, sent)
    log_metric_rows(config, run_id, rows)
    if offset != sent:
        with friendly_disk_errors(state):
            write_json(state, {"run_id": run_id, "offset": offset})
    return len(rows)


def sent_until(state: Path, run_id: str) -> int:
    """Byte offset up to which a run has the rows; 0 where another run, or none, was being sent."""
    if not state.is_file():
        return 0
    known = read_json(state)
    return int(known["offset"]) if known.get("run_id") == run_id else 0


def rows_from(path: Path, offset: int) -> tuple[list[Mapping[str, Any]], int]:
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


def to_points(row: Mapping[str, Any]) -> "list[Metric]":
    """One row of metrics.jsonl as MLflow metrics at the row's step."""
    missing = {"phase", "step", "time"} - row.keys()
    if missing:
        raise InputError(f"a metrics row has no {' and no '.join(sorted(missing))}: {dict(row)!r}.")
    step, milliseconds = int(row["step"]), int(row["time"] * 1000)
    values = {f"{row['phase']}/{key}": value for key, value in row.items() if key not in ("phase", "step", "time")}
    return to_metrics(values, milliseconds, step)


def to_metrics(values: Mapping[str, Any], milliseconds: int, step: int = 0) -> "list[Metric]":
    """MLflow metrics of the finite numbers; anything else is no point on a curve."""
    from mlflow.entities import Metric

    return [
        Metric(_NOT_IN_A_METRIC_NAME.sub("_", key)[:MAX_KEY], float(value), milliseconds, step)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    ]


def log_points(client: "MlflowClient", run_id: str, points: "Sequence[Metric]") -> None:
    """Send metrics in batches as large as MLflow takes."""
    for part in _parts(points, MAX_METRICS):
        client.log_batch(run_id, metrics=part)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of ours.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}). Remove it, and the stage that wrote it runs again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value
