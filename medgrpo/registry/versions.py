"""Model versions: one per evaluated model, however often its registration is tried."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from medgrpo import domains
from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.manifests import friendly_disk_errors
from medgrpo.registry.candidate import Candidate, Evidence, read_evidence
from medgrpo.registry.card import model_card
from medgrpo.registry.connection import connect, plain_errors
from medgrpo.registry.evidence import EVALUATION_TAG, PASS, log_evidence, version_tags
from medgrpo.registry.lookup import CHAMPION, DIGEST_TAG, FILES_TAG, Registration, files_digest, registration
from medgrpo.registry.runs import VERSION_TAG, experiment_id, known_run, open_run
from medgrpo.serving import AnswerSettings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

MAX_DESCRIPTION = 5000
"""Characters of a version's description that every MLflow server keeps."""
LOGGED_MODEL_TAG = "medgrpo.logged_model"
# What the served model imports; torch's local version (+cpu, +cu128) is no release anybody could install.
SERVED_WITH = (
    "mlflow",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "jinja2",
    "numpy",
    "pandas",
    "peft",
    "pydantic",
    "rapidfuzz",
)
LEAST_SAMPLES = 5
"""Sampled answers behind a served confidence, where the evaluation took fewer."""


def register(candidate: Candidate) -> Registration:
    """Register a candidate as a new version of its model, or return the version it already is.

    The run gets the remaining training metrics, the evaluation as metrics and artifacts, the adapter, and the data as
    inputs. The version gets a model card and tags, and the alias `tracking.alias` if the gate's outcome is "pass";
    otherwise the alias stays where it is. A try that was cut short anywhere is completed.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: an artifact is missing, the alias is reserved, or MLflow refuses.
    """
    config = candidate.config
    evidence = read_evidence(candidate)
    _check_alias(config.tracking.alias)
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        version = _find_version(client, evidence)
        if version is not None and VERSION_TAG in client.get_run(str(version.run_id)).data.tags:
            _close_repeated_run(client, candidate, version)
            return _current(client, version)
        run_id = str(version.run_id) if version else open_run(config, candidate.train_dir, candidate.tags)
        if version is None:
            log_evidence(client, run_id, evidence)
            version = _create_version(client, run_id, evidence)
        if candidate.gate and candidate.gate["outcome"] == PASS:
            client.set_registered_model_alias(version.name, config.tracking.alias, str(version.version))
        _finish_run(client, run_id, version)
        return _current(client, version)


def holds(config: RunConfig, name: str, version: int) -> bool:
    """Whether the registry holds this version of this model.

    Raises:
        ServiceUnreachable: MLflow does not answer.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        return any(int(found.version) == version for found in client.search_model_versions(f"name = '{name}'"))


def _check_alias(alias: str) -> None:
    if alias.lower() == "latest" or re.fullmatch(r"v\d+", alias, re.I):
        raise InputError(
            f"tracking.alias {alias!r} is reserved by MLflow, which would refuse it after the upload. "
            "Choose a word such as 'candidate' or 'challenger'."
        )
    if alias.endswith(CHAMPION):
        raise InputError(
            f"tracking.alias {alias!r} names the model in use, which only a review may change. "
            "Choose a word such as 'candidate' or 'challenger'."
        )


def _find_version(client: "MlflowClient", evidence: Evidence) -> "ModelVersion | None":
    """The version that holds exactly this model with exactly this evaluation."""
    query = (
        f"name = '{evidence.name}' and tags.`{DIGEST_TAG}` = '{evidence.candidate.model_digest}' "
        f"and tags.`{EVALUATION_TAG}` = '{evidence.digest}'"
    )
    versions = client.search_model_versions(query)
    return max(versions, key=lambda version: int(version.version), default=None)


def _close_repeated_run(client: "MlflowClient", candidate: Candidate, version: "ModelVersion") -> None:
    """End the run of a training that came to a model which is already registered."""
    config = candidate.config
    run = known_run(client, config, candidate.train_dir, experiment_id(client, config))
    if run is not None:
        _finish_run(client, run.info.run_id, version)


def _finish_run(client: "MlflowClient", run_id: str, version: "ModelVersion") -> None:
    """End a run as FINISHED; the tag comes last, because it says that nothing is left to do."""
    client.set_terminated(run_id, status="FINISHED")
    client.set_tag(run_id, VERSION_TAG, str(version.version))


def _current(client: "MlflowClient", version: "ModelVersion") -> Registration:
    """A version as it is now, with its aliases."""
    return registration(client.get_model_version(version.name, str(version.version)))


def _create_version(client: "MlflowClient", run_id: str, evidence: Evidence) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    name = evidence.name
    model = _log_model(client, run_id, evidence.candidate)
    try:
        summary = domains.get(evidence.data["domain"]).summary
        client.create_registered_model(name, description=f"{summary} (medgrpo).")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        name,
        # The artifacts' own address: MLflow would look up `models:/<id>` in its global store, not in this client's.
        source=model.artifact_location,
        run_id=run_id,
        tags={**version_tags(evidence), **{tag: model.tags[tag] for tag in (FILES_TAG,) if tag in model.tags}},
        description=model_card(evidence, MAX_DESCRIPTION),
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
            client.set_logged_model_tags(model.model_id, {FILES_TAG: files_digest(directory)})
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
    settings = _answer_settings(candidate.config)
    example = domains.get(candidate.config.data.domain).example
    mlflow.pyfunc.save_model(
        path=str(directory),
        python_model=str(code),
        code_paths=[str(code.parent)],
        artifacts={"model": str(candidate.model_dir.absolute())},
        model_config=asdict(settings),
        signature=serving.signature(settings.samples),
        input_example=[dict(example)] if example else None,
        pip_requirements=_requirements(),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
            metadata={DIGEST_TAG: candidate.model_digest},
        ),
    )


def _answer_settings(config: RunConfig) -> AnswerSettings:
    """Settings of the served model: those of the evaluation, with samples enough for a confidence."""
    return AnswerSettings(
        max_new_tokens=config.grpo.max_completion_length,
        batch_tokens=config.evaluation.batch_tokens,
        samples=max(config.evaluation.samples, LEAST_SAMPLES),
        temperature=config.evaluation.sample_temperature,
        seed=config.evaluation.seed,
        domain=config.data.domain,
    )


def _requirements() -> list[str]:
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in SERVED_WITH]
