"""The five stages of a run: what each depends on, where its artifact lies, and how it is filled.

An artifact's key covers the settings, the inputs and the code that it depends on, and nothing else: changing an
evaluation setting leaves training untouched.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import MANIFEST, Manifest, build, describe, read_manifest, verify, write_json
from medgrpo.policies import base_identity
from medgrpo.provenance import PACKAGE, code_version, fingerprint

ARTIFACTS = ".artifacts"

logger = logging.getLogger(__name__)


def prepare(config: RunConfig) -> Manifest:
    """Prepared data (see `medgrpo.preparation`)."""
    from medgrpo.preparation import prepare as fill

    return build(_target(config, prepare_key(config)), lambda directory: fill(config, directory))


def prepare_key(config: RunConfig) -> str:
    """Key of the prepared data: settings, content of the input files, code."""
    inputs = {
        "data": config.data.model_dump(mode="json", exclude={"path", "ground_truth"}),
        "files": [_content(path) for path in _input_files(config)],
        "tokenizer": base_identity(config.policy),
        "completion": config.grpo.max_completion_length,
        "rewards": config.rewards.model_dump(),
        "code": code_version("medgrpo.preparation"),
    }
    return f"data-{fingerprint(inputs)}"


def audit(config: RunConfig, data: Manifest) -> Manifest:
    """What attacks on the rewards would earn (see `medgrpo.rewards.audit`); the artifact holds audit.json.

    Raises:
        InputError: an attack got through, and `audit` is "fail".
    """
    from medgrpo.preparation import load_records
    from medgrpo.rewards.audit import audit as attack

    def fill(directory: Path) -> None:
        report = attack(load_records(data.path, "train"), config.rewards)
        write_json(directory / "audit.json", asdict(report))
        advice = f"{report.holes()} Change rewards.*; `medgrpo audit` shows the completions."
        if not report.holds and config.audit == "fail":
            raise InputError(f"{advice} To train all the same, set audit=warn.")
        if not report.holds:
            logger.warning(advice)

    return build(_target(config, audit_key(config, data)), fill)


def audit_rows(audited: Manifest) -> list[dict[str, Any]]:
    """One row per kind of attack, weakest defence first, for a table."""
    from medgrpo.rewards.audit import AuditReport

    return AuditReport.read(audited.path / "audit.json").rows()


def audit_key(config: RunConfig, data: Manifest) -> str:
    """Key of an audit: the records, the rewards, and what a hole does."""
    inputs = {
        "data": data.path.name,
        "rewards": config.rewards.model_dump(),
        "audit": config.audit,
        "code": code_version("medgrpo.rewards.audit"),
    }
    return f"audit-{fingerprint(inputs)}"


def train(
    config: RunConfig, data: Manifest, on_progress: Callable[[Mapping[str, Any]], None], begin: Callable[[Path], None]
) -> Manifest:
    """A trained policy (see `medgrpo.training`).

    Args:
        config: the run's settings.
        data: the prepared data.
        on_progress: called with each row of metrics.jsonl.
        begin: called with the work directory before training starts.
    """
    from medgrpo.training.launch import run

    def fill(directory: Path) -> None:
        begin(directory)
        run(config, data.path, directory, on_progress)

    return build(_target(config, train_key(config, data)), fill)


def train_key(config: RunConfig, data: Manifest) -> str:
    """Key of the trained policy: everything that shapes its weights."""
    inputs = {
        "data": data.path.name,
        "policy": config.policy.model_dump(),
        "base": base_identity(config.policy),
        "warmup": config.warmup.model_dump(),
        "grpo": config.grpo.model_dump(),
        "rewards": config.rewards.model_dump(),
        "seed": config.seed,
        "processes": config.processes,
        "code": code_version("medgrpo.training.__main__"),
    }
    return f"train-{fingerprint(inputs)}"


def evaluate(
    config: RunConfig, data: Manifest, trained: Manifest, on_progress: Callable[[str, int, int], None]
) -> Manifest:
    """Predictions, metrics and report (see `medgrpo.evaluation.compare`)."""
    from medgrpo.evaluation.compare import evaluate_training

    answers = config.runs_dir / ARTIFACTS / f"answers-{code_version('medgrpo.evaluation.generate', 'medgrpo.policies')}"

    def fill(directory: Path) -> None:
        evaluate_training(config, data.path, trained.path, directory, answers, on_progress)

    return build(_target(config, evaluate_key(config, data, trained)), fill)


def evaluate_key(config: RunConfig, data: Manifest, trained: Manifest) -> str:
    """Key of an evaluation: the weights as they are on disk, the cases, the settings."""
    inputs = {
        "data": data.path.name,
        "weights": trained.sha256,
        "evaluation": config.evaluation.model_dump(),
        "rewards": config.rewards.model_dump(),
        "code": code_version("medgrpo.evaluation.compare"),
        "template": _content(PACKAGE / "evaluation" / "report.html.j2"),
    }
    return f"evaluation-{fingerprint(inputs)}"


def register(
    config: RunConfig,
    data: Manifest,
    audited: Manifest,
    trained: Manifest,
    evaluated: Manifest,
    tags: Mapping[str, str],
) -> Manifest:
    """A model version in the MLflow registry; the artifact holds registration.json."""
    from medgrpo.provenance import git_commit
    from medgrpo.registry import Candidate
    from medgrpo.registry import register as register_candidate

    candidate = Candidate(
        config=config,
        train_dir=trained.path,
        model_dir=trained.path / "model",
        data_dir=data.path,
        evaluation_dir=evaluated.path,
        audit_dir=audited.path,
        model_digest=describe(trained.path / "model").sha256,
        git_commit=git_commit(),
        tags=tags,
    )

    def fill(directory: Path) -> None:
        write_json(directory / "registration.json", asdict(register_candidate(candidate)))

    target = _target(config, register_key(config, trained, evaluated))
    recorded = read_manifest(target)
    if recorded and not registration_holds(config, recorded):
        # Files alone do not make a registration: without its manifest the directory is filled anew.
        (target / MANIFEST).unlink()
    return build(target, fill)


def register_key(config: RunConfig, trained: Manifest, evaluated: Manifest) -> str:
    """Key of a registration: exactly these weights with exactly this evaluation, in this registry."""
    inputs = {
        "weights": trained.sha256,
        "evaluation": evaluated.sha256,
        "tracking": config.tracking.model_dump(),
        "uri": resolve_mlflow_uri(config),
        "code": code_version("medgrpo.serving"),
    }
    return f"registration-{fingerprint(inputs)}"


def registration_holds(config: RunConfig, manifest: Manifest) -> bool:
    """Whether a registration's artifact is intact and the registry, as far as it answers, still holds its version."""
    from medgrpo.registry import holds

    if not verify(manifest):
        return False
    registration = read_registration(manifest)
    try:
        return holds(config, registration["name"], registration["version"])
    except ServiceUnreachable as error:
        logger.warning("%s The registration is taken as it was recorded.", error)
        return True


def read_registration(manifest: Manifest) -> dict[str, Any]:
    """The content of registration.json."""
    return json.loads((manifest.path / "registration.json").read_text())


def _target(config: RunConfig, key: str) -> Path:
    return config.runs_dir.absolute() / ARTIFACTS / key


def _input_files(config: RunConfig) -> list[Path]:
    from medgrpo.domains.pubmedqa import DEFAULT_GROUND_TRUTH

    if not config.data.path:
        return []
    return [config.data.path, config.data.ground_truth or config.data.path.parent / DEFAULT_GROUND_TRUTH]


def _content(path: Path) -> str | None:
    """Digest of a file; None where it cannot be read, which the stage itself reports in plain words."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
