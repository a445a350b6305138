"""The adapter that a run goes on from: found in the registry, a run or a directory, and held against its settings.

What comes of it is a directory of `adapter/` and `start.json`: {source, digest, base}, where `base` is what was
recorded of the model that the adapter was trained on.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.config import PolicyConfig, RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.manifests import COMPLETE, is_sealed, write_json
from medgrpo.policies import adapter_problems, adapter_shapes, describe_base, directory_digest, fresh_lora, resolve_base
from medgrpo.registry.connection import connect, plain_errors
from medgrpo.registry.lookup import find_version
from medgrpo.registry.runs import read_json, run_artifact
from medgrpo.training.start import ADAPTER, START_FILE, adapter_digest

SETTINGS_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
CHOICES = (
    "Expected models:/NAME@ALIAS or models:/NAME/VERSION, a run such as runs/NAME, or a directory with a LoRA adapter"
)
ANY = "*"
"""Revision of a base where none was recorded."""
SAME_KIND = (
    *("use_dora", "use_rslora", "bias", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern"),
    *("layers_to_transform", "layer_replication", "trainable_token_indices", "target_parameters", "init_lora_weights"),
)
"""PEFT's settings that make another kind of adapter than the one that is trained here."""


@dataclass(frozen=True)
class Source:
    """Where an adapter is.

    Attributes:
        name: as provenance has it: `models:/NAME/VERSION`, "run NAME" or "directory NAME".
        digest: what tells it from another of that name.
        directory: the adapter; None where the registry has it.
        base: what is recorded of its base: name, revision and digest; empty where the registry has that.
    """

    name: str
    digest: str
    directory: Path | None
    base: Mapping[str, str | None]


def find(config: RunConfig) -> Source:
    """What `policy.start_from` names.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: there is no such version, run or directory, or it holds no adapter.
    """
    named = str(config.policy.start_from)
    if named.startswith("models:/"):
        version = find_version(config, named)
        return Source(version.uri, version.digest, None, {})
    directory = _directory(config, named)
    if (directory / SETTINGS_FILE).is_file():
        return _plain(directory)
    if "policy" in _settings(directory):
        return _run(directory)
    if (directory / "config.json").is_file():
        raise InputError(
            f"policy.start_from {directory} is a whole model without an adapter: what was trained is merged into its "
            f"weights. {CHOICES}; or set policy.base={directory}, for a fresh adapter on that model."
        )
    raise InputError(f"policy.start_from {directory} is neither a run nor an adapter: no {SETTINGS_FILE}. {CHOICES}.")


def pinned(config: RunConfig) -> str | None:
    """What `policy.start_from` names, by a name that does not move: an alias's version, the run that a link leads to.

    Raises:
        ServiceUnreachable, InputError: as `find`.
    """
    named = config.policy.start_from
    if named is None:
        return None
    source = find(config)
    return source.name if source.directory is None else str(_directory(config, named).resolve())


def fetch(config: RunConfig, source: Source, directory: Path) -> None:
    """Copy an adapter into a directory, and write what is known of it.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: the version has no adapter, or not the one that was registered.
    """
    adapter, base = directory / ADAPTER, source.base
    shutil.rmtree(adapter, ignore_errors=True)
    if source.directory is None:
        base = _download(config, source.name, directory)
    elif (source.directory / COMPLETE).is_file():
        shutil.copytree(source.directory, adapter)
    else:
        adapter.mkdir()
        for name in (SETTINGS_FILE, WEIGHTS_FILE):
            shutil.copy(source.directory / name, adapter)
    write_json(directory / START_FILE, {"source": source.name, "digest": adapter_digest(adapter), "base": dict(base)})


def check(config: RunConfig, start: Path) -> None:
    """Hold a fetched adapter against the run that is to go on from it.

    Raises:
        InputError: another base, rank, scale, kind or set of layers; the sentence says what to set, where that helps.
        ServiceUnreachable: the base is on the Hub, neither cached nor reachable.
    """
    known = read_json(start / START_FILE)
    _check_base(known["source"], known["base"], config.policy)
    _check_kind(known["source"], start / ADAPTER, config.policy)
    _check_layers(known["source"], start / ADAPTER, config.policy)


def _directory(config: RunConfig, named: str) -> Path:
    """A directory as it is named, or the run of that name."""
    for place in (Path(named).expanduser(), config.runs_dir / named.removeprefix("runs/")):
        if place.is_dir():
            return place
    trained = sorted(path.parts[-4] for path in config.runs_dir.glob(f"[!.]*/train/grpo/{ADAPTER}"))
    runs = f"Runs with an adapter in {config.runs_dir}: {', '.join(trained) or 'none'}."
    raise InputError(f"policy.start_from {named!r} is not there. {CHOICES}. {runs}")


def _settings(directory: Path) -> dict[str, Any]:
    return read_json(directory / "config.json") if (directory / "config.json").is_file() else {}


def _run(run: Path) -> Source:
    adapter, name = run / "train" / "grpo" / ADAPTER, run.resolve().name
    if not adapter.is_dir():
        raise InputError(
            f"policy.start_from {run}: the run {name} holds no trained adapter (train/grpo/{ADAPTER}). Its training "
            f"has not finished, or was cleaned away: run it again, or name another. {CHOICES}."
        )
    training, policy = read_json(run / "train" / "training.json"), _settings(run)["policy"]
    # Runs from before the training said so have it in their settings, without a digest.
    base = training.get("base") or {"name": policy["base"], "revision": policy.get("revision"), "digest": None}
    return _whole(Source(f"run {name}", adapter_digest(adapter), adapter, base))


def _plain(adapter: Path) -> Source:
    if not (adapter / WEIGHTS_FILE).is_file():
        raise InputError(f"policy.start_from {adapter} holds {SETTINGS_FILE}, but no {WEIGHTS_FILE}. Save it again.")
    content = b"".join(hashlib.sha256((adapter / name).read_bytes()).digest() for name in (SETTINGS_FILE, WEIGHTS_FILE))
    saved = read_json(adapter / SETTINGS_FILE)
    trained_on = Path(str(saved.get("base_model_name_or_path"))).expanduser()
    base = {
        "name": saved.get("base_model_name_or_path"),
        "revision": saved.get("revision") or ANY,
        "digest": directory_digest(trained_on) if trained_on.is_dir() else None,
    }
    name = f"directory {adapter.resolve().name}"
    return _whole(Source(name, hashlib.sha256(content).hexdigest(), adapter, base))


def _whole(source: Source) -> Source:
    """The source, once its adapter is found to be what its training saved, where that left a mark."""
    directory = source.directory
    if directory and (directory / COMPLETE).is_file() and not is_sealed(directory):
        raise InputError(
            f"policy.start_from: the files of {source.name} ({directory}) are not what its training saved. Train it "
            "again, or name another."
        )
    return source


def _download(config: RunConfig, uri: str, directory: Path) -> dict[str, str | None]:
    """Fetch the adapter of a version, found unchanged; returns what its run recorded of the base."""
    from medgrpo.registry.evidence import ADAPTER_TAG, BASE_DIGEST_TAG, CONFIG_FILE

    client, version = connect(config), find_version(config, uri)
    with plain_errors(resolve_mlflow_uri(config)):
        tags = client.get_model_version(version.name, str(version.version)).tags
        adapter = run_artifact(client, version.run_id, ADAPTER, directory)
        settings = run_artifact(client, version.run_id, CONFIG_FILE, directory)
    if adapter is None or settings is None:
        raise InputError(
            f"policy.start_from {uri}: its MLflow run keeps no {'adapter' if adapter is None else CONFIG_FILE}, only "
            "the merged model, which has no adapter to go on from. Name a version that train-medgrpo registered; or "
            "export this one (medgrpo export) and set policy.base to it, for a fresh adapter on that model."
        )
    tag = tags.get(ADAPTER_TAG)
    # Versions from before this tag have the mark that the adapter's training left.
    if not (adapter_digest(adapter) == tag if tag else is_sealed(adapter)):
        raise InputError(
            f"policy.start_from {uri}: its adapter is not what was registered; the files were changed since, or the "
            f"tag {ADAPTER_TAG} was. Train and register it again, or name another version."
        )
    policy = read_json(settings)["policy"]
    settings.unlink()
    return {"name": policy["base"], "revision": policy.get("revision"), "digest": tags.get(BASE_DIGEST_TAG)}


def _check_base(source: str, recorded: Mapping[str, str | None], policy: PolicyConfig) -> None:
    ours = describe_base(policy)
    if recorded["digest"] and ours["digest"]:
        # The same files may lie elsewhere.
        same = recorded["digest"] == ours["digest"]
    else:
        named = recorded["name"] in (policy.base, resolve_base(policy))
        same = named and recorded["revision"] in (policy.revision, ANY)
    if not same:
        raise InputError(
            f"policy.start_from: the adapter of {source} was trained on {_base_words(recorded)}, but this run's base "
            f"is {_base_words(ours)}, on which it would mean something else. Set policy.base and policy.revision to "
            "those of the adapter, or name another one."
        )


def _base_words(base: Mapping[str, str | None]) -> str:
    revision = f" in revision {base['revision']}" if base["revision"] not in (None, ANY) else ""
    return f"{base['name']}{revision}" + (f" (sha256 {base['digest'][:12]})" if base["digest"] else "")


def _check_kind(source: str, adapter: Path, policy: PolicyConfig) -> None:
    from peft import PeftConfig

    with adapter_problems(adapter):
        saved = PeftConfig.from_pretrained(str(adapter))
    fresh = fresh_lora(policy)
    if saved.peft_type != fresh.peft_type:
        raise InputError(f"policy.start_from: the adapter of {source} is {saved.peft_type}, and only LoRA is trained.")
    other = [name for name in SAME_KIND if (getattr(saved, name, None) or None) != (getattr(fresh, name, None) or None)]
    if other:
        found = ", ".join(f"{name} = {getattr(saved, name)!r}" for name in other)
        raise InputError(
            f"policy.start_from: the adapter of {source} is of another kind than the LoRA that is trained here: "
            f"{found}. Name one without."
        )
    if (saved.r, saved.lora_alpha) != (policy.lora_rank, policy.lora_alpha):
        raise InputError(
            f"policy.start_from: the adapter of {source} has rank {saved.r} and alpha {saved.lora_alpha}, but "
            f"policy.lora_rank is {policy.lora_rank} and policy.lora_alpha {policy.lora_alpha}, and an adapter keeps "
            f"its shape. Use --set policy.lora_rank={saved.r} --set policy.lora_alpha={saved.lora_alpha}."
        )


def _check_layers(source: str, adapter: Path, policy: PolicyConfig) -> None:
    """Every matrix that a fresh adapter would have, in its shape, and no other."""
    from safetensors import safe_open

    with adapter_problems(adapter), safe_open(adapter / WEIGHTS_FILE, framework="pt") as weights:
        found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    expected = adapter_shapes(policy)
    if found != expected:
        amiss = min(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise InputError(
            f"policy.start_from: the adapter of {source} does not have the matrices of a LoRA on all linear layers of "
            f"{policy.base}: {amiss} is {found.get(amiss, 'missing')}, expected {expected.get(amiss, 'none')} "
            f"({len(found)} matrices, expected {len(expected)}). Name an adapter with target_modules='all-linear'."
        )
