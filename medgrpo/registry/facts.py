"""What is known of a model beyond its results: under which licence its base is, what it came from, what it cost."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.config import EMBEDDED_MODEL, PolicyConfig, RunConfig
from medgrpo.policies import is_local
from medgrpo.registry.runs import public_config, read_json
from medgrpo.resources import of_training

EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
UNKNOWN = "unknown"
# Beginnings of Hub ids in lower case, for models whose card is not at hand.
KNOWN_LICENCES = {"huggingfacetb/smollm2": "apache-2.0", "google/gemma": "gemma"}
# Settings that say where a run's files go, or why it was started, not what comes out of it.
WHEREABOUTS = ("name", "profile", "runs_dir", "tracking", "retrain")
_IDENTIFIER = re.compile(r"[\w.+-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Facts:
    """What is known of a model beyond its results.

    Attributes:
        base: name of the base model; of a local one the directory's name.
        hub_base: its id on the Hugging Face Hub; None for a local directory.
        licence: identifier of its licence as the Hub writes it, or "unknown".
        data_digest: sha256 over the digests of all splits.
        config_digest: sha256 of the settings, without those that only say where files go.
        device: "gpu" or "cpu", what the model was trained on; None where the training does not say.
        hours: hours of training, all attempts, summed over processes; None where device or time are not known.
        cost: hours at the configured price; None without one.
        used: what the training used (see `medgrpo.resources.totals`).
        started_from: `source` and `digest` of the adapter that the training went on from; empty for a fresh one.
        base_digest: sha256 of a local base as it was trained on; None for others.
    """

    base: str
    hub_base: str | None
    licence: str
    data_digest: str
    config_digest: str
    device: str | None
    hours: float | None
    cost: float | None
    used: Mapping[str, Any]
    started_from: Mapping[str, Any]
    base_digest: str | None


def gather(config: RunConfig, data: Mapping[str, Any], train_dir: Path) -> Facts:
    """The facts about a finished training.

    Args:
        config: its settings.
        data: content of data.json.
        train_dir: directory of the training.
    """
    hub_base = hub_id(config.policy)
    training = read_json(train_dir / "training.json") if (train_dir / "training.json").is_file() else {}
    device = {"cuda": "gpu", "cpu": "cpu"}.get(training.get("device", ""))
    used = of_training(train_dir, config.processes)
    hours = used["wall_hours"] * config.processes if device and used["wall_hours"] is not None else None
    price = config.tracking.price_per_hour
    return Facts(
        base=hub_base or Path(config.policy.base).expanduser().resolve().name,
        hub_base=hub_base,
        licence=base_licence(config.policy),
        data_digest=data_digest(data),
        config_digest=_digest({key: value for key, value in public_config(config).items() if key not in WHEREABOUTS}),
        device=device,
        hours=hours,
        cost=None if hours is None or price is None else hours * price,
        used=used,
        started_from=training.get("started_from") or {},
        base_digest=training.get("base", {}).get("digest"),
    )


def data_digest(data: Mapping[str, Any]) -> str:
    """sha256 (hex) over the digests of all splits; `data` is the content of data.json."""
    return _digest(data["digests"])


def hub_id(policy: PolicyConfig) -> str | None:
    """Id of the base model on the Hugging Face Hub; None for a local directory."""
    if policy.base == EMBEDDED_MODEL:
        return EMBEDDED_HUB_ID
    return None if is_local(policy.base) else policy.base


def base_licence(policy: PolicyConfig) -> str:
    """Licence of the base model: what its own card says, else what is known of it, else "unknown".

    >>> base_licence(PolicyConfig())
    'apache-2.0'
    """
    hub = hub_id(policy)
    known = next((KNOWN_LICENCES[start] for start in KNOWN_LICENCES if (hub or "").lower().startswith(start)), UNKNOWN)
    if policy.base == EMBEDDED_MODEL:
        return known
    card = (
        _hub_card(hub, policy.revision, ask=known == UNKNOWN) if hub else Path(policy.base).expanduser() / "README.md"
    )
    return (_card_licence(card) if card and card.is_file() else None) or known


def _hub_card(name: str, revision: str | None, ask: bool) -> Path | None:
    """The model's card on the Hub: from the cache, else asked for, if it is to be; None where it cannot be had."""
    import httpx
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "README.md", revision=revision, etag_timeout=5, local_files_only=not ask))
    except (OSError, ValueError, httpx.HTTPError):
        return None


def _card_licence(card: Path) -> str | None:
    """The licence in the front matter of a card; None where there is none that can be read."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        values = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return None
    named = values.get("license_name") if values.get("license") == "other" else None
    licence = named or values.get("license")
    return licence if isinstance(licence, str) and _IDENTIFIER.fullmatch(licence) else None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
