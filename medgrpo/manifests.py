"""Artifact directories that are either whole or absent.

A stage fills a work directory; `build` hashes it, writes its manifest last and renames it into place. A reader
trusts a directory only after `verify` has found every file unchanged. A work directory that a killed process left
behind stays where it is, so that the next attempt can resume in it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from medgrpo.errors import DiskFull, InputError

MANIFEST = "manifest.json"
COMPLETE = "complete"
"""Mark of a directory that `seal` found whole."""
PROBE_BYTES = 2**20

_held: dict[Path, int] = {}
"""Open files by which this process keeps directories from being cleaned away."""


class Manifest(BaseModel):
    """What an artifact directory holds.

    Attributes:
        uri: absolute path of the directory.
        sha256: digest over the relative paths and contents of its files.
        bytes: their total size.
        files: their number.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    sha256: str
    bytes: int
    files: int

    @property
    def path(self) -> Path:
        """The directory as a Path."""
        return Path(self.uri)


def describe(directory: Path, ignore: str | None = None) -> Manifest:
    """Hash a directory as it stands, its manifest file left out, and files and directories of the name `ignore`."""
    files = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and path != directory / MANIFEST and ignore not in path.relative_to(directory).parts
    )
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{path.relative_to(directory).as_posix()}\0{content}\n".encode())
    size = sum(path.stat().st_size for path in files)
    return Manifest(uri=str(directory.absolute()), sha256=total.hexdigest(), bytes=size, files=len(files))


def verify(manifest: Manifest) -> bool:
    """Whether the directory still holds exactly what the manifest says."""
    return (manifest.path / MANIFEST).is_file() and describe(manifest.path) == manifest


def build(target: Path, fill: Callable[[Path], object]) -> Manifest:
    """The artifact at `target`: as it stands if intact, else filled anew in a work directory beside it.

    Two processes that want the same artifact wait for each other; the lock dies with its process, so a killed run never
    blocks the next one. If `fill` fails, the work directory stays for the next attempt to resume in.

    Raises:
        InputError: the disk is not writable.
        DiskFull: there is no room.
    """
    work = target.with_name(f"{target.name}.partial")
    with friendly_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{target.name}.lock")):
            manifest = read_manifest(target)
            if not (manifest and verify(manifest)):
                work.mkdir(exist_ok=True)
                fill(work)
                manifest = _publish(work, target)
            hold(target / MANIFEST)
            return manifest


def _publish(work: Path, target: Path) -> Manifest:
    """Turn a finished work directory into the artifact `target`; the manifest is the last file written."""
    manifest = describe(work).model_copy(update={"uri": str(target.absolute())})
    write_json(work / MANIFEST, manifest.model_dump())
    if target.exists():
        shutil.rmtree(target)
    work.replace(target)
    return manifest


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """The lock of an artifact, a file that is made where it is missing; yields whether it was got.

    Args:
        path: the file.
        wait: whether to wait for another process that has it, rather than yield False.
    """
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                break
            # Cleaning may have taken the file away between its opening and its locking: then nobody else sees this one.
            if _is_at(path, lock.fileno()):
                yield True
                return
    yield False


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def hold(file: Path) -> None:
    """Keep the directory of a file from being cleaned away while this process lives; check afterwards that it is there.

    Several processes may hold the same one. Nothing happens where the file is missing.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(file, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        earlier = _held.get(file)
        _held[file] = descriptor
        if earlier is not None:
            os.close(earlier)


def let_go() -> None:
    """Hold nothing any more: for a process that goes on after its run."""
    while _held:
        os.close(_held.popitem()[1])


@contextlib.contextmanager
def unused(file: Path) -> Iterator[bool]:
    """Whether no process holds, or has locked, a file; while the context lasts none can begin to. Makes no file."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of an artifact directory; None where there is none, or none that can be read."""
    path = directory / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValidationError:
        return None


def seal(directory: Path) -> None:
    """Mark a directory as whole, once everything in it is on disk, with the digest of what it holds.

    Unlike a manifest the mark names no place, so a sealed directory may lie inside an artifact.
    """
    write_json(directory / COMPLETE, {"sha256": describe(directory, COMPLETE).sha256})


def is_sealed(directory: Path) -> bool:
    """Whether a directory still holds exactly what it was sealed with."""
    try:
        mark = json.loads((directory / COMPLETE).read_bytes())
        return bool(mark["sha256"] == describe(directory, COMPLETE).sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def require_space(directory: Path) -> None:
    """Write a little into a directory, and remove it: some libraries hide why a write of theirs failed.

    Raises:
        OSError: the disk is full, or a file may not grow that large.
    """
    with tempfile.TemporaryFile(dir=directory) as stream:
        stream.write(bytes(PROBE_BYTES))


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as stream:
        temporary = Path(stream.name)
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def friendly_disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space" and "not writable" into a sentence that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left on the disk of {path}. Free some, or choose another place.") from error
        if error.errno in (errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise InputError(
                f"{path} cannot be written ({error.strerror}). Choose a place you may write to."
            ) from error
        raise
