"""Where results come from: code, commit, and the environment they were computed in."""

import dis
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any

PACKAGE = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "evaluate", "mlflow", "prefect", "unsloth")


def fingerprint(value: Any) -> str:
    """16 hex characters that identify a JSON-like value, independent of the order of its keys.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_version(*modules: str) -> str:
    """Digest of the source of some modules of this package and of everything in it that they import.

    A result is cached under it, so that a change to the report does not retrain a model, while a change to a reward
    does. Imports inside functions count.

    Args:
        modules: dotted names, for example "medgrpo.training.grpo".
    """
    sources: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if path and name not in sources:
            sources[name] = path.read_text(encoding="utf-8")
            waiting += _known_imports(sources[name], PACKAGE.name)
    return fingerprint(sources)


def git_commit() -> str | None:
    """Commit of the working tree the code runs from, with "+changes" where it differs; None outside git."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return None
    return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit


def environment() -> dict[str, str]:
    """Versions and hardware, for summaries and reports."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        **versions,
    }


def _source(module: str) -> Path | None:
    relative = PACKAGE.parent.joinpath(*module.split("."))
    for path in (relative.with_suffix(".py"), relative / "__init__.py"):
        if path.is_file():
            return path
    return None


@cache
def _known_imports(source: str, package: str) -> tuple[str, ...]:
    """What a source imports, read once in a process: stages have most of their modules in common."""
    return tuple(_imports(source))


def _imports(source: str) -> list[str]:
    """Names of this package's modules that a source imports, anywhere in it.

    Read from compiled code: Python 3.11's `ast.parse` fails now and then (SystemError, "recursion depth mismatch")
    while another thread parses too, as Prefect's do.
    """
    names: list[str] = []
    waiting = [compile(source, PACKAGE.name, "exec", dont_inherit=True)]
    while waiting:
        code, module = waiting.pop(), ""
        waiting += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME":
                module = step.argval
                names.append(module)
            elif step.opname == "IMPORT_FROM":
                names.append(f"{module}.{step.argval}")
    return [name for name in names if name.split(".")[0] == PACKAGE.name]


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
