"""A trained and evaluated model on its way into the registry, and what its directories say about it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.registry.facts import Facts, gather
from medgrpo.registry.lookup import registered_name
from medgrpo.registry.runs import read_json

NOT_EVALUATED = "not evaluated"
"""Outcome of a gate that was not run."""


@dataclass(frozen=True)
class Candidate:
    """A trained and evaluated model, ready to be registered.

    Attributes:
        config: settings of the run.
        train_dir: directory of the training, with its metrics, its adapters and its MLflow run.
        model_dir: the merged model, float32 safetensors with its tokenizer.
        data_dir: prepared data, with `data.json`: {digests, domain, synthetic, counts}.
        evaluation_dir: `metrics.json`, `report.html`, `predictions.json` and, if there are any, `plots/`.
        model_digest: sha256 of the model.
        audit_dir: `audit.json`; None where the rewards were not attacked.
        gate: content of `gate.json`, what the gate made of the evaluation; None where there was no gate.
        champion: digest of the champion it was measured against, "none" where there was none; None where that is not
            known.
        git_commit: commit the code ran from; None outside a repository.
        tags: further tags of the MLflow run; `medgrpo.flow_run` and `medgrpo.reason` are repeated on the version.
    """

    config: RunConfig
    train_dir: Path
    model_dir: Path
    data_dir: Path
    evaluation_dir: Path
    model_digest: str
    audit_dir: Path | None = None
    gate: Mapping[str, Any] | None = None
    champion: str | None = None
    git_commit: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def adapter_dir(self) -> Path:
        """The LoRA adapter that was merged into the model."""
        return self.train_dir / "grpo" / "adapter"


@dataclass(frozen=True)
class Evidence:
    """What the data and evaluation directories say about a candidate.

    Attributes:
        candidate: the candidate.
        name: registered model that it becomes a version of.
        metrics: content of metrics.json.
        digest: sha256 of the metrics, of what the gate made of them, and of the champion's digest: another judgement is
            another version.
        time: when the metrics were written, in seconds since the epoch.
        data: content of data.json.
    """

    candidate: Candidate
    name: str
    metrics: dict[str, Any]
    digest: str
    time: float
    data: dict[str, Any]

    @cached_property
    def facts(self) -> Facts:
        """What else is known of it; looked up once, the base model's card on the Hub included."""
        return gather(self.candidate.config, self.data, self.candidate.train_dir)


def read_evidence(candidate: Candidate) -> Evidence:
    """What is registered with a candidate.

    Raises:
        InputError: a file is missing, or the evaluation holds no model.
    """
    directory = candidate.evaluation_dir
    needed = [directory / "report.html", directory / "predictions.json", candidate.model_dir / "config.json"]
    for path in needed:
        if not path.is_file():
            raise InputError(f"{path} is missing; a model is registered with it. Evaluate the model again.")
    metrics = directory / "metrics.json"
    values, data = read_json(metrics), read_json(candidate.data_dir / "data.json")
    if not isinstance(values.get("models"), dict) or not values["models"]:
        raise InputError(f'{metrics}: expected {{"models": {{…}}}} with at least one model. Evaluate the model again.')
    judged = json.dumps([candidate.gate, candidate.champion], sort_keys=True).encode()
    digest = hashlib.sha256(metrics.read_bytes() + judged).hexdigest()
    name = registered_name(candidate.config, data["domain"])
    return Evidence(candidate, name, values, digest, metrics.stat().st_mtime, data)
