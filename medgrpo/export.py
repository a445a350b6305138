"""A trained model as plain files: what transformers alone loads, checked against the adapter it was merged from.

The weights are those of the training, merged once in float32, byte for byte: an exported version has the digest that
was measured and approved.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig, parse_config, resolve_mlflow_uri
from medgrpo.errors import InputError, MedgrpoError, ServiceUnreachable
from medgrpo.manifests import describe, friendly_disk_errors, write_json, write_text
from medgrpo.prompts import render_prompt
from medgrpo.provenance import git_commit

TOLERANCE = 1e-3
"""Largest difference of a logit between merged model and adapter."""
PROMPTS = 4
"""Prompts whose logits are compared, at their last POSITIONS tokens."""
POSITIONS = 64
EXPORT_FILE = "medgrpo.json"
"""What an exported directory says about itself."""
MODEL_URI = "models:/"


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        source: where it came from: address in the registry, or the run's name.
        digest: sha256 of the model's files, as `medgrpo.manifests.describe` gives it.
        difference: largest difference between a logit of the merged model and of base with adapter, both in float32;
            None where it could not be measured.
        unchecked: why it could not; empty where it was.
    """

    source: str
    digest: str
    difference: float | None
    unchecked: str


@dataclass(frozen=True)
class _Found:
    """The parts of a model that is exported.

    Attributes:
        source: where they came from.
        model: directory of the merged model.
        config: settings of its training; None where they are not known.
        adapter: directory of the adapter that was merged into it; None where it is gone.
        data: directory of the prepared data; None where it is not at hand.
        card: the model card.
    """

    source: str
    model: Path
    config: RunConfig | None
    adapter: Path | None
    data: Path | None
    card: str


def export(model: str, directory: Path, config: RunConfig) -> Export:
    """Write a trained model to `directory` as plain transformers loads it, with tokenizer and model card.

    Args:
        model: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, or the directory of a run.
        directory: where the files go; it must not exist, or be empty.
        config: settings that name the registry.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: no such model, a directory in use, files that are not the registered ones, or a merged model that
            does not answer as its adapter does.
    """
    directory = directory.absolute()
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise InputError(f"{directory} is not empty. Name a new directory: nothing there would be replaced.")
    with friendly_disk_errors(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as scratch:
            found = _find(model, Path(scratch), config)
            work = Path(scratch) / "export"
            shutil.copytree(found.model, work)
            digest = describe(work).sha256
            exported = Export(found.source, digest, *_compare(found, work))
            write_json(work / EXPORT_FILE, _note(exported))
            write_text(work / "README.md", f"{found.card.rstrip()}\n\n{_usage(exported)}")
            work.replace(directory)
    return exported


def _find(model: str, scratch: Path, config: RunConfig) -> _Found:
    return _registered(model, scratch, config) if model.startswith(MODEL_URI) else _trained(Path(model))


def _registered(uri: str, scratch: Path, config: RunConfig) -> _Found:
    """A version's model, verified, and what its run keeps beside it."""
    from medgrpo import registry
    from medgrpo.registry.card import CARD_FILE
    from medgrpo.registry.connection import plain_errors
    from medgrpo.registry.evidence import ADAPTER, CONFIG_FILE
    from medgrpo.registry.runs import read_json, run_artifact

    version = registry.find_version(config, uri)
    model = registry.download(config, version.name, str(version.version), scratch / "model")
    client = registry.connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        kept = {name: run_artifact(client, version.run_id, name, scratch) for name in (CARD_FILE, ADAPTER, CONFIG_FILE)}
        described = client.get_model_version(version.name, str(version.version)).description
    card, settings = kept[CARD_FILE], kept[CONFIG_FILE]
    return _Found(
        source=version.uri,
        model=model,
        config=parse_config(read_json(settings), f"{version.uri}, {CONFIG_FILE}") if settings else None,
        adapter=kept[ADAPTER],
        data=None,
        card=card.read_text(encoding="utf-8") if card else described or "",
    )


def _trained(run: Path) -> _Found:
    """What a run's directory holds."""
    from medgrpo.registry.candidate import Candidate, Evidence
    from medgrpo.registry.card import hub_card
    from medgrpo.registry.lookup import registered_name
    from medgrpo.registry.runs import read_json

    train, data, evaluation = (run / name for name in ("train", "data", "evaluation"))
    if not (train / "model" / "config.json").is_file():
        raise InputError(
            f"{run} is not the directory of a run with a trained model: it holds no train/model. Expected a run such "
            "as runs/latest, or a version of a registered model such as models:/medgrpo@champion."
        )
    config = parse_config(read_json(run / "config.json"), str(run / "config.json"))
    described, gate, summary = read_json(data / "data.json"), evaluation / "gate.json", run / "summary.json"
    candidate = Candidate(
        config=config,
        train_dir=train,
        model_dir=train / "model",
        data_dir=data,
        evaluation_dir=evaluation,
        model_digest="",
        gate=read_json(gate) if gate.is_file() else None,
        git_commit=read_json(summary).get("git_commit") if summary.is_file() else None,
    )
    metrics = read_json(evaluation / "metrics.json") if (evaluation / "metrics.json").is_file() else {}
    name = registered_name(config, described["domain"])
    card = hub_card(Evidence(candidate, name, metrics, "", 0.0, described))
    adapter = candidate.adapter_dir if candidate.adapter_dir.is_dir() else None
    return _Found(f"run {run.resolve().name}", candidate.model_dir, config, adapter, data, card)


def _compare(found: _Found, model: Path) -> tuple[float | None, str]:
    """How far the merged model, loaded as plain files, is from its base with the adapter, or why that is not known.

    The largest difference between two logits, both in float32, at the last tokens of a few prompts: cases of the run's
    evaluation, or synthetic ones without its data.

    Raises:
        InputError: it is too far, or the merged model cannot be loaded.
    """
    from medgrpo.policies import load_model, load_trainable

    if found.adapter is None or found.config is None:
        return None, f"the adapter that was merged into it is not kept with {found.source}"
    config, adapter, questions = found.config, found.adapter, _questions(found.config, found.data)
    # One after the other: two models of a billion weights would need eight gigabytes.
    merged = _logits(lambda: load_model(model), questions)
    try:
        apart = _logits(lambda: load_trainable(config.policy, adapter), questions)
    except MedgrpoError as error:
        return None, str(error)
    difference = largest_difference(merged, apart)
    # "Not at most" rather than "more than", so that a NaN is refused.
    if not difference <= TOLERANCE:
        raise InputError(
            f"{found.source}: the merged model's logits differ from those of its base with the adapter by "
            f"{difference:.2g}, and at most {TOLERANCE:g} is allowed. The base model was changed since, or the merged "
            "weights were: train it again."
        )
    return difference, ""


def largest_difference(ones: Sequence[Any], others: Sequence[Any]) -> float:
    """Largest absolute difference between tensors, pair by pair; NaN if there is one anywhere."""
    import torch

    # Python's max would drop a NaN that does not come first.
    return float(torch.stack([(one - other).abs().max() for one, other in zip(ones, others, strict=True)]).max())


def _questions(config: RunConfig, data: Path | None) -> list[list[dict[str, str]]]:
    from medgrpo.domains import load_corpus
    from medgrpo.preparation import load_records

    # Without the run's data, the generator's cases are prompts of the same kind.
    at_hand = load_records(data, config.evaluation.split) if data else load_corpus(RunConfig().data).split("test")
    return [render_prompt(record) for record in at_hand[:PROMPTS]]


def _logits(load: Callable[[], tuple[Any, Any]], questions: Sequence[list[dict[str, str]]]) -> list[Any]:
    """[<= POSITIONS, V] logits at the end of each prompt."""
    import torch

    model, tokenizer = load()
    model.eval()
    found = []
    with torch.inference_mode():
        for question in questions:
            ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
            inputs = torch.tensor([ids], device=model.device)
            found.append(model(input_ids=inputs, logits_to_keep=POSITIONS).logits[0].float().cpu())
    return found


def _note(exported: Export) -> dict[str, Any]:
    """What stands beside the weights. Why they are unchecked is for whoever exports: it may name places."""
    return {
        "source": exported.source,
        "digest": exported.digest,
        "difference": exported.difference,
        "tolerance": TOLERANCE,
        "git_commit": git_commit(),
    }


def _usage(exported: Export) -> str:
    """The last section of the README: how the files are used, and what was checked about them."""
    checked = (
        f"Merged once in float32. On {PROMPTS} prompts no logit differs from those of base and adapter by more than "
        f"{exported.difference:.1e}."
        if exported.difference is not None
        else "Merged once in float32; not compared with the adapter that was merged."
    )
    return f"""## Files

{checked}

- Source: {exported.source}
- sha256 of the model's files: {exported.digest}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
```
"""


def check_push(hub_id: str) -> None:
    """Whether a model could be pushed under this name, before it is exported.

    Raises:
        InputError: the name is not one of the Hub's, or there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise InputError(f"{hub_id!r} is not a name on the Hugging Face Hub ({error}). Expected OWNER/NAME.") from error
    if not get_token():
        raise InputError(
            f"there is no token to push {hub_id} to the Hugging Face Hub with. Run `hf auth login`, or set HF_TOKEN to "
            "a token that may write."
        )


def push(directory: Path, hub_id: str, endpoint: str | None = None) -> str:
    """Upload an exported directory to the Hugging Face Hub; a repository that is made for it is private.

    Args:
        directory: the exported files.
        hub_id: OWNER/NAME of the repository.
        endpoint: address of another Hub; None for HF_ENDPOINT, else the public one.

    Returns:
        Address of the commit.

    Raises:
        InputError: no usable name or token, or the Hub refuses.
        ServiceUnreachable: the Hub does not answer.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_push(hub_id)
    api = HfApi(endpoint)
    try:
        api.create_repo(hub_id, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=hub_id, folder_path=directory, commit_message="Upload from medgrpo"))
    except HfHubHTTPError as error:
        raise InputError(
            f"the Hugging Face Hub refused {hub_id}: {_first_line(error)}. The files are in {directory}; check the "
            "name and what the token may do."
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise ServiceUnreachable(
            f"the Hugging Face Hub did not answer ({_first_line(error)}). The files are in {directory}; push them "
            f"later with `hf upload {hub_id} {directory}`."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:300] or type(error).__name__
