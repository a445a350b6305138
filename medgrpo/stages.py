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
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from medgrpo import domains
from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import MANIFEST, Manifest, build, describe, read_manifest, verify, write_json
from medgrpo.policies import base_identity, resolve_base
from medgrpo.preparation import SUMMARY, gold_rewards
from medgrpo.provenance import PACKAGE, code_version, fingerprint

if TYPE_CHECKING:
    from medgrpo.evaluation.asking import Contestant
    from medgrpo.registry import Registration

ARTIFACTS, MODEL = ".artifacts", "model"
VERSION_FILE, CHAMPION_FILE = "version.json", "champion.json"

logger = logging.getLogger(__name__)


class Champion(BaseModel):
    """The model in service, which a candidate would replace."""

    model_config = ConfigDict(frozen=True)

    model: Manifest | None = None
    """Its files, as `fetch` leaves them; None where there is none, or none that is known."""
    unknown: str = ""
    """Why it is not known whether there is one; empty where it is."""

    @property
    def digest(self) -> str | None:
        """Digest of its model; "none" where there is no champion, None where that is not known."""
        if self.model:
            return str(json.loads((self.model.path / VERSION_FILE).read_text())["digest"])
        return None if self.unknown else "none"


def prepare(config: RunConfig) -> Manifest:
    """Prepared data (see `medgrpo.preparation`)."""
    from medgrpo.preparation import prepare as fill

    return build(_target(config, prepare_key(config)), lambda directory: fill(config, directory))


def prepare_key(config: RunConfig) -> str:
    """Key of the prepared data: settings, content of the input files, code."""
    inputs = {
        "data": config.data.model_dump(mode="json", exclude={"path", "ground_truth"}),
        "files": [_content(path) for path in domains.get(config.data.domain).files(config.data)],
        "tokenizer": base_identity(config.policy),
        "completion": config.grpo.max_completion_length,
        "rewards": gold_rewards(config.rewards).model_dump(),
        "code": _code(config, "medgrpo.preparation"),
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
        shown = "".join(f" {kind.kind}, for example: {kind.example}" for kind in report.kinds if not kind.holds)
        advice = f"{report.holes()}{shown} Change rewards.*; `medgrpo audit` tries them without a run."
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
        "code": _code(config, "medgrpo.rewards.audit"),
    }
    return f"audit-{fingerprint(inputs)}"


def fetch_start(config: RunConfig) -> Manifest | None:
    """The adapter that `policy.start_from` names (see `medgrpo.starting`); None where a fresh one is trained.

    Raises:
        ServiceUnreachable: MLflow, or the Hub with the base's settings, does not answer.
        InputError: there is no such adapter, or not one that this run could go on from.
    """
    if config.policy.start_from is None:
        return None
    from medgrpo import starting

    source = starting.find(config)
    key = f"start-{fingerprint([source.name, source.digest])}"
    start = build(_target(config, key), lambda directory: starting.fetch(config, source, directory))
    starting.check(config, start.path)
    return start


def train(
    config: RunConfig,
    data: Manifest,
    on_progress: Callable[[Mapping[str, Any]], None],
    begin: Callable[[Path], None],
    start: Manifest | None = None,
) -> Manifest:
    """A trained policy (see `medgrpo.training`).

    Args:
        config: the run's settings.
        data: the prepared data.
        on_progress: called with each row of metrics.jsonl.
        begin: called with the work directory before training starts.
        start: what `fetch_start` gives.

    Raises:
        InputError: it would be trained for an evaluation that cannot be.
    """
    from medgrpo.preparation import check_cases
    from medgrpo.sweep.warmups import shared_warmup
    from medgrpo.training.launch import run
    from medgrpo.training.start import hand_over

    def fill(directory: Path) -> None:
        check_cases(config, data.path)
        if start:
            hand_over(start.path, directory)
        begin(directory)
        with shared_warmup(config, data, directory):
            run(config, data.path, directory, on_progress)

    return build(_target(config, train_key(config, data, start)), fill)


def train_key(config: RunConfig, data: Manifest, start: Manifest | None = None) -> str:
    """Key of the trained policy: everything that shapes its weights."""
    inputs = {
        "data": data.path.name,
        "policy": config.policy.model_dump(exclude={"start_from"}),
        "base": base_identity(config.policy),
        # An alias may point to another version tomorrow.
        "start": start.sha256 if start else None,
        "warmup": config.warmup.model_dump(),
        "grpo": config.grpo.model_dump(),
        "rewards": config.rewards.model_dump(),
        "seed": config.seed,
        "processes": config.processes,
        "code": _code(config, "medgrpo.training.__main__"),
    }
    return f"train-{fingerprint(inputs)}"


def evaluate(
    config: RunConfig,
    data: Manifest,
    audited: Manifest,
    trained: Manifest,
    champion: Champion,
    on_progress: Callable[[str, int, int], None],
) -> Manifest:
    """Predictions, metrics, the gate's judgement and report of a training (see `medgrpo.evaluation.compare`).

    Args:
        config: the run's settings.
        data: the prepared data.
        audited: what attacks on the rewards earned.
        trained: the trained policy.
        champion: the model in service, as far as it is known.
        on_progress: called with (model name, answers so far, cases).
    """
    from medgrpo.evaluation.asking import Contestant
    from medgrpo.evaluation.compare import Training, evaluate_training
    from medgrpo.rewards.audit import AuditReport

    def fill(directory: Path) -> None:
        report = AuditReport.read(audited.path / "audit.json")
        rival = Contestant("champion", str(champion.model.path / MODEL)) if champion.model else None
        answers, training = answers_directory(config), Training(trained.path, report, rival, champion.unknown)
        evaluate_training(config, data.path, training, directory, answers, on_progress)
        write_json(directory / CHAMPION_FILE, {"digest": champion.digest})

    return build(_target(config, evaluate_key(config, data, audited, trained, champion)), fill)


def evaluate_key(config: RunConfig, data: Manifest, audited: Manifest, trained: Manifest, champion: Champion) -> str:
    """Key of an evaluation: the weights as they are on disk, what they are compared with, the cases, the settings."""
    inputs = {
        "audit": audited.sha256,
        "weights": trained.sha256,
        CHAMPION_FILE: [champion.model.sha256 if champion.model else None, champion.unknown],
        **_evaluation_inputs(config, data),
    }
    return f"evaluation-{fingerprint(inputs)}"


def compare(
    config: RunConfig, data: Manifest, models: Mapping[str, str], on_progress: Callable[[str, int, int], None]
) -> Manifest:
    """The same of any models, name -> directory or Hugging Face id as `locate` gives it; the last is in question."""
    from medgrpo.evaluation.compare import evaluate_models

    asked = contestants(config, models)
    identities = [(one.name, one.identity()) for one in asked]

    def fill(directory: Path) -> None:
        evaluate_models(config, data.path, asked, directory, answers_directory(config), on_progress)

    key = f"evaluation-{fingerprint({'models': identities, **_evaluation_inputs(config, data)})}"
    return build(_target(config, key), fill)


def contestants(config: RunConfig, models: Mapping[str, str]) -> "list[Contestant]":
    """Models by name, as `locate` gives them, ready to be asked; the policy's base in the revision that is set."""
    from medgrpo.evaluation.asking import Contestant

    policies = {name: with_base(config, source).policy for name, source in models.items()}
    return [Contestant(name, policy.base, revision=policy.revision) for name, policy in policies.items()]


def ask_fresh(
    config: RunConfig, data: Manifest, champion: "Registration", on_progress: Callable[[str, int, int], None]
) -> Manifest:
    """What the champion makes of fresh labelled records (see `medgrpo.retraining`).

    Args:
        config: the run's settings.
        data: the prepared data, whose records are not fresh.
        champion: the version in use; it is fetched only if it has to answer.
        on_progress: called with (model name, answers so far, cases).
    """
    from medgrpo import retraining

    def fill(directory: Path) -> None:
        fresh = retraining.find_fresh(config, data.path)
        rows: list[dict[str, Any]] = []
        if fresh.counts.n >= config.retrain.fresh_cases:
            [model] = contestants(config, {"champion": locate(config, champion.uri)})
            rows = retraining.ask(config, fresh.records, model, answers_directory(config), on_progress)
        retraining.write_measured(directory, fresh, rows)

    return build(_target(config, fresh_key(config, data, champion)), fill)


def fresh_key(config: RunConfig, data: Manifest, champion: "Registration") -> str:
    """Key of a champion's answers to fresh records: its weights, the records, the data, and how it is asked."""
    inputs = {
        "champion": champion.digest,
        "fresh": _content(config.retrain.fresh) if config.retrain.fresh else None,
        "cases": config.retrain.fresh_cases,
        "completion": config.grpo.max_completion_length,
        "data": data.path.name,
        "evaluation": config.evaluation.model_dump(),
        "code": _code(config, "medgrpo.retraining"),
    }
    return f"fresh-{fingerprint(inputs)}"


def _evaluation_inputs(config: RunConfig, data: Manifest) -> dict[str, Any]:
    return {
        "data": data.path.name,
        "evaluation": config.evaluation.model_dump(),
        "gate": config.gate.model_dump(),
        "rewards": config.rewards.model_dump(),
        "code": _code(config, "medgrpo.evaluation.compare"),
        "page": [_content(PACKAGE / "evaluation" / f"report.{kind}") for kind in ("html.j2", "css", "js")],
    }


def answers_directory(config: RunConfig) -> Path:
    """Where answers are kept between evaluations, while what gives them is the same code."""
    return config.runs_dir / ARTIFACTS / f"answers-{code_version('medgrpo.evaluation.generate', 'medgrpo.policies')}"


def fetch_champion(config: RunConfig, data: Manifest) -> Champion:
    """The registry's champion.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: the champion's files are not what was registered.
    """
    from medgrpo.registry import find_champion

    domain = json.loads((data.path / SUMMARY).read_text())["domain"]
    found = find_champion(config, domain)
    return Champion(model=fetch(config, found.uri) if found else None)


def fetch(config: RunConfig, uri: str) -> Manifest:
    """A registered model's files, verified against their digest; the artifact holds version.json and model/.

    Args:
        config: where the registry is, and where artifacts go.
        uri: `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: no such model or version, or files that are not what was registered.
    """
    from medgrpo.registry import download, find_version

    version = find_version(config, uri)

    def fill(directory: Path) -> None:
        write_json(directory / VERSION_FILE, {key: getattr(version, key) for key in ("name", "version", "digest")})
        download(config, version.name, str(version.version), directory / MODEL)

    return build(_target(config, f"model-{fingerprint([version.name, version.version, version.digest])}"), fill)


def with_base(config: RunConfig, base: str) -> RunConfig:
    """The same settings for another base model, whose revision is not that of the one it stands in for."""
    changed = {} if base == config.policy.base else {"base": base, "revision": None}
    return config.model_copy(update={"policy": config.policy.model_copy(update=changed)})


def locate(config: RunConfig, source: str) -> str:
    """Directory or Hugging Face id of a model: a `models:/` address is downloaded, an embedded model unpacked.

    Of a run's directory it is the model that was trained. What a model was trained on does not matter.
    """
    if source.startswith("models:/"):
        return str(fetch(config, source).path / MODEL)
    trained = Path(source).expanduser() / "train" / MODEL
    if (trained / "config.json").is_file():
        return str(trained)
    return resolve_base(with_base(config, source).policy)


def register(
    config: RunConfig,
    data: Manifest,
    audited: Manifest,
    trained: Manifest,
    evaluated: Manifest,
    tags: Mapping[str, str],
) -> Manifest:
    """A model version in the MLflow registry, of a sweep's trial only a run; the artifact holds registration.json."""
    from medgrpo.provenance import git_commit
    from medgrpo.registry import Candidate, record_trial
    from medgrpo.registry import register as register_candidate

    candidate = Candidate(
        config=config,
        train_dir=trained.path,
        model_dir=trained.path / "model",
        data_dir=data.path,
        evaluation_dir=evaluated.path,
        audit_dir=audited.path,
        gate=json.loads((evaluated.path / "gate.json").read_text()),
        champion=json.loads((evaluated.path / CHAMPION_FILE).read_text())["digest"],
        model_digest=describe(trained.path / "model").sha256,
        git_commit=git_commit(),
        tags=tags,
    )

    def fill(directory: Path) -> None:
        registered = record_trial(candidate) if config.trial else asdict(register_candidate(candidate))
        write_json(directory / "registration.json", registered)

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
        "trial": config.trial and [config.trial.sweep, config.trial.number],
        "uri": resolve_mlflow_uri(config),
        "code": _code(config, "medgrpo.serving"),
    }
    return f"registration-{fingerprint(inputs)}"


def registration_holds(config: RunConfig, manifest: Manifest) -> bool:
    """Whether a registration's artifact is intact and the registry, as far as it answers, still holds its version."""
    from medgrpo.registry import holds

    if not verify(manifest):
        return False
    registration = read_registration(manifest)
    if registration["version"] is None:
        return True
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


def _code(config: RunConfig, module: str) -> str:
    """Version of a module's code and of the run's domain, which no module imports by its name."""
    return code_version(module, f"{domains.__name__}.{config.data.domain}")


def _content(path: Path) -> str | None:
    """Digest of a file; None where it cannot be read, which the stage itself reports in plain words."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
