"""What there is to train with on this machine (device, packages, the model's architecture), and the backend for it.

Unsloth must be imported before transformers, TRL and PEFT to change them, so nothing here imports any of those.
"""

import importlib.util
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from medgrpo.config import EMBEDDED_MODEL, PolicyConfig, RunConfig
from medgrpo.errors import InputError
from medgrpo.policies import hub_unreachable, is_local, resolve_base
from medgrpo.policies.embedded import EMBEDDED_CONFIG
from medgrpo.policies.precision import Capability

Backend = Literal["transformers", "unsloth"]

PACKAGES = ("unsloth", "bitsandbytes", "vllm")
"""Packages that only some settings need."""


def choose_backend(
    setting: Literal["auto", "transformers", "unsloth"], cuda: bool, installed: bool, processes: int = 1
) -> tuple[Backend, str]:
    """The backend that loads and trains the model.

    Args:
        setting: `policy.backend`.
        cuda: whether there is a CUDA device.
        installed: whether the package unsloth is installed.
        processes: how many processes train.

    Returns:
        "unsloth" or "transformers", and why.

    Raises:
        InputError: unsloth is asked for, and not installed, or for several processes.

    >>> choose_backend("auto", cuda=False, installed=True)
    ('transformers', 'there is no CUDA device')
    """
    if setting == "unsloth" and not installed:
        raise InputError(
            f"policy.backend is 'unsloth', but the package unsloth is not installed for {sys.executable}. Install "
            "medgrpo[gpu], or set policy.backend=transformers, or auto, which takes what is there."
        )
    if setting == "unsloth" and processes > 1:
        raise InputError(
            f"policy.backend is 'unsloth' and processes is {processes}, but unsloth is tested with one process only, "
            "and several might train apart. Set processes=1 or policy.backend=transformers."
        )
    if setting != "auto":
        return setting, "policy.backend says so"
    if not cuda:
        return "transformers", "there is no CUDA device"
    if not installed:
        return "transformers", "the package unsloth is not installed"
    if processes > 1:
        return "transformers", "unsloth is tested with one process only"
    return "unsloth", "there are a CUDA device and the package unsloth"


def check_packages(config: RunConfig, installed: Collection[str]) -> None:
    """Compare what is set with what is installed.

    Raises:
        InputError: one sentence per setting whose package is missing.
    """
    policy, grpo = config.policy, config.grpo
    needs = (
        (policy.quantization == "4bit", "policy.quantization is '4bit'", "bitsandbytes", "policy.quantization=none"),
        (
            grpo.optimizer == "adamw_8bit",
            "grpo.optimizer is 'adamw_8bit'",
            "bitsandbytes",
            "grpo.optimizer=adamw_torch",
        ),
        (grpo.use_vllm, "grpo.use_vllm is true", "vllm", "grpo.use_vllm=false"),
    )
    missing = [
        f"{setting}, but the package {package} is not installed for {sys.executable}. Install it, or set {remedy}."
        for asked, setting, package, remedy in needs
        if asked and package not in installed
    ]
    if missing:
        raise InputError("\n".join(missing))


def installed_packages() -> frozenset[str]:
    """Which of `PACKAGES` are installed; none is imported."""
    return frozenset(package for package in PACKAGES if importlib.util.find_spec(package))


def present_capability(processes: int = 1) -> Capability:
    """Compute capability of the CUDA device that trains, the oldest where several processes do; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    used = range(min(processes, torch.cuda.device_count()))
    return min(torch.cuda.get_device_capability(device) for device in used)


def architecture_of(config: PolicyConfig) -> str:
    """`model_type` of the configured base; empty where its config.json names none, errors as of `read_model_config`."""
    return str(read_model_config(config).get("model_type") or "")


def read_model_config(config: PolicyConfig) -> Mapping[str, Any]:
    """The config.json of the configured base.

    Raises:
        InputError: the base is not a model.
        ServiceUnreachable: a Hugging Face id whose files are neither cached nor reachable.
    """
    if config.base == EMBEDDED_MODEL:
        return EMBEDDED_CONFIG
    base = resolve_base(config)
    path = Path(base) / "config.json" if is_local(config.base) else _from_hub(base, config.revision)
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except ValueError as error:
        raise InputError(
            f"{path} is not a model's configuration ({error}). Save or download the model again."
        ) from error
    return found


def _from_hub(base: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(base, "config.json", revision=revision))
    except (OSError, ValueError) as error:
        raise hub_unreachable(base, error) from error
