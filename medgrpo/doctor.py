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
from medgrpo.errors import MedgrpoError
from medgrpo.policies.embedded import cache_directory, find_embedded
from medgrpo.provenance import LIBRARIES

GIGABYTE = 1e9
MEMORY_NEEDED = 8
DISK_NEEDED = 3


@dataclass(frozen=True)
class Finding:
    """One thing looked at: "ok", "note" (works without it) or "missing" (nothing can be trained here)."""

    name: str
    state: Literal["ok", "note", "missing"]
    detail: str


def examine() -> list[Finding]:
    """Look at Python, libraries, accelerator, memory, disk, embedded model and tracking server."""
    return [*_software(), *_accelerator(), *_resources(), _embedded(), _tracking()]


def _software() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "missing", f"{version} (3.11 or later is needed)")
    for library in LIBRARIES:
        optional = library == "unsloth"
        try:
            yield Finding(library, "ok", importlib.metadata.version(library))
        except importlib.metadata.PackageNotFoundError:
            detail = "not installed; only needed for a later backend" if optional else "not installed: run make install"
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
    bfloat16 = "bfloat16" if properties.major >= 8 else "no bfloat16: policy.autocast must not be bfloat16"
    yield Finding("cuda", "ok", f"{properties.name}, {memory:.0f} GB, {capability}, {bfloat16}")


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
