"""Examine the machine: what medgrpo can run here, and why not."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from medgrpo.config import load_config, resolve_mlflow_uri
from medgrpo.errors import InputError, MedgrpoError
from medgrpo.policies.embedded import cache_directory, find_embedded
from medgrpo.policies.precision import Precision, precision_for
from medgrpo.provenance import LIBRARIES

GIGABYTE = 1e9
MEMORY_NEEDED = 8
DISK_NEEDED = 3
MODELS = {"SmolLM2": "llama", "Gemma 3": "gemma3_text"}
"""The models of the shipped profiles, with their architectures."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: "ok", "note" (works without it) or "missing" (nothing can be trained here)."""

    name: str
    state: Literal["ok", "note", "missing"]
    detail: str


def examine() -> list[Finding]:
    """Look at Python, libraries, accelerator, precision, memory, disk, embedded model and tracking server."""
    return [*_software(), *_accelerator(), *_policy(), *_resources(), _embedded(), _tracking()]


def _software() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "missing", f"{version} (3.11 or later is needed)")
    for library in LIBRARIES:
        optional = library == "unsloth"
        try:
            yield Finding(library, "ok", importlib.metadata.version(library))
        except importlib.metadata.PackageNotFoundError:
            detail = "not installed; policy.backend=unsloth needs it" if optional else "not installed: run make install"
            yield Finding(library, "note" if optional else "missing", detail)


def _accelerator() -> Iterator[Finding]:
    if not importlib.util.find_spec("torch"):
        return
    import torch

    if not torch.cuda.is_available():
        yield Finding("cuda", "note", "no CUDA device; profiles demo and cpu run on the processor, t4 needs a GPU")
        return
    properties = torch.cuda.get_device_properties(0)
    capability = f"sm_{properties.major}{properties.minor}"
    memory = properties.total_memory / GIGABYTE
    yield Finding("cuda", "ok", f"{properties.name}, {memory:.0f} GB, {capability}")


def _policy() -> Iterator[Finding]:
    """What models are trained in here, and what "auto" stands for."""
    if not importlib.util.find_spec("torch"):
        return
    from medgrpo.policies.backends import choose_backend, installed_packages, present_capability

    capability, packages = present_capability(), installed_packages()
    models: dict[Precision, list[str]] = {}
    try:
        for name, architecture in MODELS.items():
            models.setdefault(precision_for(capability, architecture), []).append(name)
    except InputError as error:
        yield Finding("precision", "missing", str(error))
        return
    for row, names in models.items():
        yield Finding(f"precision ({', '.join(names)})", "ok", _precision(row))
    backend, reason = choose_backend("auto", capability is not None, "unsloth" in packages)
    yield Finding("backend", "ok", f"policy.backend=auto takes {backend}: {reason}")
    if capability and "bitsandbytes" not in packages:
        detail = "not installed; policy.quantization=4bit and grpo.optimizer=adamw_8bit need it"
        yield Finding("bitsandbytes", "note", detail)


def _precision(row: Precision) -> str:
    from medgrpo.training.precision import bfloat16_pays

    autocast = row.autocast if row.autocast != "auto" else "bfloat16" if bfloat16_pays() else "none"
    return f"policy.autocast=auto takes {autocast}: {row.reason}"


def _resources() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE
    enough = memory >= MEMORY_NEEDED
    yield Finding("memory", "ok" if enough else "note", f"{memory:.0f} GB; the demo needs {MEMORY_NEEDED}")
    cache = cache_directory()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free / GIGABYTE
    detail = f"{free:.0f} GB free at {cache}; {DISK_NEEDED} are needed (MEDGRPO_CACHE chooses another place)"
    yield Finding("disk", "ok" if free >= DISK_NEEDED else "missing", detail)


def _embedded() -> Finding:
    try:
        return Finding("embedded model", "ok", str(find_embedded()))
    except MedgrpoError as error:
        return Finding("embedded model", "note", str(error))


def _tracking() -> Finding:
    from medgrpo.registry import connect

    config = load_config("demo")
    uri = resolve_mlflow_uri(config)
    if uri.startswith("sqlite:"):
        return Finding("tracking", "ok", f"{uri} (made by the first run; MLFLOW_TRACKING_URI names a server)")
    try:
        connect(config)
    except MedgrpoError as error:
        return Finding("tracking", "note", str(error))
    return Finding("tracking", "ok", uri)
