"""What old runs left in the runs directory, and how it is removed.

The newest runs are kept, with the one that `latest` names, those under way, and all that they link to or need. Of the
rest, a thing goes if it was last changed before the oldest of these runs began: what is newer may be theirs without a
link to it, such as the work directory of a training that was killed and will be resumed.

Registered versions are MLflow's, which has copies of its own. A later run of the same settings finds what is still
here and makes the rest again; registering the same model with the same evaluation again finds the same version. Answers
that an older code gave are never read again.
"""

import contextlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.manifests import MANIFEST, friendly_disk_errors, locked, unused
from medgrpo.runs import CONFIG_FILE, LATEST, SUMMARY_FILE
from medgrpo.stages import ARTIFACTS, CHAMPION_FILE, VERSION_FILE, answers_directory

TRASH = ".trash"
"""Where a thing is moved before it is deleted, so that a kill leaves it whole or out of the way."""
CLEANING = ".cleaning.lock"
STAGING = ".register-"
"""Beginning of the name of a directory in which a registration collects a version's files."""
_ARTIFACT = re.compile(r"(?P<key>(?P<kind>[a-z]+)-[0-9a-f]{16})(?P<suffix>\.partial|\.lock)?")
_MLFLOW = re.compile(r"mlflow\.db.*|mlartifacts|mlruns")
_RUN_SETTINGS = {"name", "profile", "runs_dir", "data", "grpo"}


@dataclass(frozen=True)
class Entry:
    """Something in the runs directory.

    Attributes:
        path: where it lies.
        kind: run, artifact, unfinished, answers, staging, lock, trash or unknown.
        bytes: size of its files.
        changed: when something in it was last changed, in seconds since the epoch; of a run, when it began.
        goes: whether it is removed.
        reason: why, or why not; empty where there is nothing to say, because it is kept.
    """

    path: Path
    kind: str
    bytes: int
    changed: float
    goes: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What cleaning would remove, or has removed.

    Attributes:
        runs_dir: the runs directory.
        kept: names of the runs that are kept, newest first.
        remove: what goes, in the order in which it goes.
        left: what is left alone although nothing that is kept needs it: in use, or not made here.
    """

    runs_dir: Path
    kept: tuple[str, ...]
    remove: tuple[Entry, ...]
    left: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Size of what goes."""
        return sum(entry.bytes for entry in self.remove)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        remove, left = ([{**vars(e), "path": str(e.path)} for e in entries] for entries in (self.remove, self.left))
        kept = list(self.kept)
        return {"runs_dir": str(self.runs_dir), "bytes": self.bytes, "kept": kept, "remove": remove, "left": left}


def survey(config: RunConfig, keep: int) -> Plan:
    """What `clean` would remove now; changes nothing.

    Args:
        config: names the runs directory.
        keep: how many of the newest runs are kept.

    Raises:
        InputError: there is no runs directory, it cannot be read, or `keep` is not positive.
    """
    runs_dir = config.runs_dir.absolute()
    if keep < 1:
        raise InputError(
            f"--keep {keep}: expected 1 or more, the number of newest runs to keep. To remove all of them, delete "
            f"{runs_dir} yourself; unless tracking.uri names another place, the registry lies in it."
        )
    if not runs_dir.is_dir():
        raise InputError(f"{runs_dir} is no directory, so nothing can be cleaned there. Name another: --set runs_dir=…")
    with friendly_disk_errors(runs_dir):
        runs, others = _top(runs_dir)
        kept = _kept(runs_dir, runs, keep)
        since = min((entry.changed for entry in kept), default=math.inf)
        old = [entry for entry in runs if entry not in kept]
        gone = (replace(entry, goes=True, reason="older than the runs that are kept") for entry in old)
        # What is not ours may link to artifacts too: a run that somebody added notes to.
        strange = [entry.path for entry in others if entry.kind == "unknown" and _is_directory(entry.path)]
        links = [*(entry.path for entry in kept), *strange]
        found = [*gone, *_artifacts(config, links, since), *(_judged(entry, since) for entry in others)]
    return Plan(
        runs_dir,
        tuple(entry.path.name for entry in kept),
        tuple(entry for entry in found if entry.goes),
        tuple(entry for entry in found if entry.reason and not entry.goes),
    )


def clean(config: RunConfig, keep: int) -> Plan:
    """Remove what `survey` finds, unless it has come into use meanwhile; returns what was removed.

    Raises:
        InputError: as `survey`; or another process is cleaning, or something cannot be removed.
    """
    plan = survey(config, keep)
    lock = plan.runs_dir / CLEANING
    with friendly_disk_errors(plan.runs_dir), locked(lock, wait=False) as mine:
        if not mine:
            raise InputError(f"another process is cleaning {plan.runs_dir}. Wait until it is done.")
        try:
            # Runs go first: a kill in between leaves artifacts without links, never links without artifacts.
            removed = [entry for entry in plan.remove if _remove(entry)]
        finally:
            lock.unlink()
    stay = [replace(entry, goes=False, reason="came into use") for entry in plan.remove if entry not in removed]
    return replace(plan, remove=tuple(removed), left=(*plan.left, *stay))


def _top(runs_dir: Path) -> tuple[list[Entry], list[Entry]]:
    """The runs in a runs directory, and what else lies there, artifacts and MLflow's store left out."""
    runs, others = [], []
    for path in sorted(runs_dir.iterdir()):
        if path.name in (ARTIFACTS, LATEST, CLEANING) or _MLFLOW.fullmatch(path.name):
            if path.name == ARTIFACTS and path.is_symlink():
                others.append(_unknown(path, "leads out of the runs directory"))
        elif path.name == TRASH:
            others += _leftovers(path)
        elif path.name.startswith(STAGING) and _is_directory(path):
            others.append(_entry(path, "staging"))
        elif reason := _no_run(path):
            others.append(_unknown(path, reason))
        else:
            runs.append(replace(_entry(path, "run"), changed=(path / CONFIG_FILE).stat().st_mtime))
    return runs, others


def _no_run(path: Path) -> str:
    """Why something is not the directory of a run; empty where it is one."""
    if not _is_directory(path):
        return "not made by a run"
    settings = _read(path / CONFIG_FILE)
    if not settings.keys() >= _RUN_SETTINGS or settings["name"] != path.name:
        return f"has no {CONFIG_FILE} of a run of this name"
    # A kill leaves temporary files of `write_json`.
    strange = [
        entry.name
        for entry in sorted(path.iterdir())
        if not entry.is_symlink() and not (entry.is_file() and (entry.match("*.json") or entry.match("tmp*")))
    ]
    return f"holds {strange[0]}, which no run leaves" if strange else ""


def _kept(runs_dir: Path, runs: Iterable[Entry], keep: int) -> list[Entry]:
    """The newest runs, newest first, with the latest and with those that a process holds."""
    newest = sorted(runs, key=lambda entry: (entry.changed, entry.path.name), reverse=True)
    latest = Path(os.path.realpath(runs_dir / LATEST)).name
    return [
        entry
        for index, entry in enumerate(newest)
        if index < keep or entry.path.name == latest or not _free(entry.path / CONFIG_FILE)
    ]


def _artifacts(config: RunConfig, kept: Iterable[Path], since: float) -> Iterator[Entry]:
    """What lies among the artifacts, each with what becomes of it; what the kept directories need is left out."""
    directory = config.runs_dir.absolute() / ARTIFACTS
    if not _is_directory(directory):
        return
    needed = _needed(directory, kept)
    needed.add(answers_directory(config).name)
    for path in sorted(directory.iterdir()):
        match = _ARTIFACT.fullmatch(path.name)
        if path.name == TRASH:
            yield from (_judged(entry, since) for entry in _leftovers(path))
        elif match and match["suffix"] == ".lock" and not path.is_symlink():
            yield _lock(path)
        elif not match or not _is_directory(path):
            yield _unknown(path, "not made by a run")
        elif path.name not in needed:
            kind = "unfinished" if match["suffix"] else "answers" if match["kind"] == "answers" else "artifact"
            yield _judged(_entry(path, kind), since)


def _judged(entry: Entry, since: float) -> Entry:
    """An entry that nothing needs by name, with what becomes of it."""
    if entry.kind == "unknown":
        return entry
    if entry.kind == "trash":
        return replace(entry, goes=True, reason="an earlier cleaning was interrupted")
    if entry.changed >= since:
        return entry
    if entry.kind in ("artifact", "unfinished") and not (_free(_lock_of(entry.path)) and _free(entry.path / MANIFEST)):
        return replace(entry, reason="in use")
    reasons = {
        "artifact": "no run that is kept needs it",
        "unfinished": "abandoned",
        "answers": "given by older code",
        "staging": "a registration was interrupted",
    }
    return replace(entry, goes=True, reason=reasons[entry.kind])


def _lock(path: Path) -> Entry:
    """A lock file; it goes with what it guards, or once there is nothing to guard."""
    entry = _entry(path, "lock")
    alone = not any(guarded.exists() for guarded in _guarded(path))
    return replace(entry, goes=True, reason="guards nothing") if alone and _free(path) else entry


def _needed(artifacts: Path, runs: Iterable[Path]) -> set[str]:
    """Names of the artifacts that runs link to, of the champions they met, and of what they registered."""
    linked, versions = set(), set()
    for run in runs:
        linked |= _linked(run, artifacts)
        model = _read(run / SUMMARY_FILE).get("model")
        if isinstance(model, dict):
            versions.add((model.get("name"), model.get("version")))
    champions = {_read(artifacts / name / CHAMPION_FILE).get("digest") for name in linked} - {None}
    fetched = ((path, _read(path)) for path in artifacts.glob(f"model-*/{VERSION_FILE}"))
    registered = ((path, _read(path)) for path in artifacts.glob("registration-*/registration.json"))
    return {
        *linked,
        *(path.parent.name for path, version in fetched if version.get("digest") in champions),
        *(path.parent.name for path, found in registered if (found.get("name"), found.get("version")) in versions),
    }


def _linked(run: Path, artifacts: Path) -> set[str]:
    """Names of the artifacts that a run's directory links to."""
    root = Path(os.path.realpath(artifacts))
    targets = (Path(os.path.realpath(path)) for path in run.iterdir() if path.is_symlink())
    return {path.relative_to(root).parts[0] for path in targets if path != root and path.is_relative_to(root)}


def _remove(entry: Entry) -> bool:
    """Remove an entry, unless it is in use or no longer as it was found; says whether it is gone."""
    with contextlib.ExitStack() as locks:
        lock = _lock_of(entry.path) if entry.kind in ("artifact", "unfinished", "lock") else None
        if lock and not locks.enter_context(locked(lock, wait=False)):
            return False
        guard = {"run": CONFIG_FILE, "artifact": MANIFEST}.get(entry.kind)
        if guard and not locks.enter_context(unused(entry.path / guard)):
            return False
        if entry.kind == "artifact" and _is_linked(entry.path):
            return False
        if entry.kind not in ("lock", "trash"):
            if _changed(entry) != entry.changed:
                return False
            entry = replace(entry, path=_set_aside(entry.path))
        if lock and not any(path.exists() for path in _guarded(lock)):
            lock.unlink()
    if entry.kind != "lock":
        shutil.rmtree(entry.path)
    return True


def _set_aside(path: Path) -> Path:
    """Move a directory out of everybody's sight, in one step; returns where it is now."""
    trash = path.parent / TRASH
    trash.mkdir(exist_ok=True)
    return path.rename(trash / f"{path.name}.{uuid.uuid4().hex}")


def _is_linked(artifact: Path) -> bool:
    runs_dir = artifact.parent.parent
    runs = (path for path in runs_dir.iterdir() if _is_directory(path) and not path.name.startswith("."))
    return any(artifact.name in _linked(run, artifact.parent) for run in runs)


def _leftovers(trash: Path) -> list[Entry]:
    if not _is_directory(trash):
        return [_unknown(trash, "not made by a run")]
    return [_entry(path, "trash") for path in sorted(trash.iterdir())]


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name.partition('.')[0]}.lock")


def _guarded(lock: Path) -> tuple[Path, Path]:
    """What a lock file stands for: an artifact and the directory in which it is made."""
    return lock.with_suffix(""), lock.with_suffix(".partial")


def _entry(path: Path, kind: str) -> Entry:
    size, changed = _measure(path)
    return Entry(path, kind, size, changed)


def _unknown(path: Path, reason: str) -> Entry:
    return replace(_entry(path, "unknown"), reason=reason)


def _changed(entry: Entry) -> float:
    if entry.kind == "run":
        return (entry.path / CONFIG_FILE).stat().st_mtime
    return _measure(entry.path)[1]


def _measure(path: Path) -> tuple[int, float]:
    """Bytes of all files at and under a path, and when the newest of them was changed; links are not followed."""
    size, newest = 0, path.lstat().st_mtime
    if not path.is_symlink():
        size = 0 if path.is_dir() else path.stat().st_size
        for directory, names, files in os.walk(path):
            for name in (*names, *files):
                # What is in use may lose files meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    found = Path(directory, name).lstat()
                    size += found.st_size if name in files else 0
                    newest = max(newest, found.st_mtime)
    return size, newest


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _free(file: Path) -> bool:
    with unused(file) as free:
        return free


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
