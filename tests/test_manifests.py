"""Artifact directories are whole or absent."""

import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medgrpo.errors import DiskFull, InputError
from medgrpo.manifests import (
    COMPLETE,
    MANIFEST,
    build,
    describe,
    friendly_disk_errors,
    hold,
    is_sealed,
    let_go,
    locked,
    read_manifest,
    seal,
    unused,
    verify,
    write_json,
)


def fill(directory: Path) -> None:
    (directory / "sub").mkdir(exist_ok=True)
    (directory / "sub" / "a.txt").write_text("content")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "artifacts" / "x"


def test_build_describes_what_was_filled(target: Path) -> None:
    """A built artifact holds the files and a manifest that verifies."""
    manifest = build(target, fill)
    assert (manifest.uri, manifest.bytes, manifest.files) == (str(target), 7, 1)
    assert read_manifest(target) == manifest
    assert verify(manifest)


def test_intact_artifact_is_reused(target: Path) -> None:
    """An intact artifact is not filled again."""
    manifest = build(target, fill)
    assert build(target, lambda _: pytest.fail("filled again")) == manifest


@pytest.mark.parametrize("damage", ["changed", "missing", "added", "renamed"])
def test_damaged_artifact_is_filled_anew(target: Path, damage: str) -> None:
    """A changed, missing, added or renamed file ends the trust in an artifact, and it is built again."""
    manifest = build(target, fill)
    file = target / "sub" / "a.txt"
    if damage == "changed":
        file.write_text("CONTENT")
    elif damage == "missing":
        file.unlink()
    elif damage == "added":
        (target / "b.txt").touch()
    else:
        file.rename(target / "sub" / "b.txt")
    assert not verify(manifest)
    assert build(target, fill) == manifest
    assert verify(manifest)


@pytest.mark.parametrize("content", [b"", b'{"uri": "/x"', b"[]", b"\xff\xfe", b'{"uri": 1}'])
def test_unreadable_manifest_is_no_manifest(target: Path, content: bytes) -> None:
    """A manifest that is cut short or of another form is not believed; the artifact is built again."""
    build(target, fill)
    (target / MANIFEST).write_bytes(content)
    assert read_manifest(target) is None
    assert verify(build(target, fill))


def test_no_manifest_no_artifact(target: Path) -> None:
    """A directory without a manifest is replaced, its leftovers gone."""
    target.mkdir(parents=True)
    (target / "leftover").touch()
    build(target, fill)
    assert not (target / "leftover").exists()


def test_failed_fill_leaves_no_artifact_and_can_resume(target: Path) -> None:
    """Where filling fails nothing stands at the target, and the next attempt finds the first one's work."""

    def fail(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        build(target, fail)
    assert not target.exists()
    seen: list[bool] = []
    build(target, lambda directory: seen.append((directory / "half").is_file()))
    assert seen == [True]
    assert sorted(path.name for path in target.parent.iterdir()) == ["x", "x.lock"]


def test_concurrent_callers_fill_once(target: Path) -> None:
    """Two callers that want the same artifact wait for each other; one fills, both get it."""
    filled: list[int] = []
    results = []

    def slow(directory: Path) -> None:
        filled.append(1)
        time.sleep(0.2)
        fill(directory)

    threads = [threading.Thread(target=lambda: results.append(build(target, slow))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(filled) == 1
    assert results[0] == results[1]


def test_digest_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    """Two directories with the same files have the same digest, wherever they lie."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name)
    assert describe(tmp_path / "one").sha256 == describe(tmp_path / "two").sha256


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_a_sentence(target: Path, code: int) -> None:
    """A full disk while filling becomes one sentence with the place, and nothing stands there."""

    def fail(directory: Path) -> None:
        raise OSError(code, "No space left on device")

    with pytest.raises(DiskFull, match=f"no space left on the disk of {target}"):
        build(target, fail)
    assert not target.exists()


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_unwritable_place_is_a_sentence(code: int) -> None:
    """A place that cannot be written becomes one sentence with the place."""
    with (
        pytest.raises(InputError, match=r"/some/place cannot be written \(nope\)"),
        friendly_disk_errors(Path("/some/place")),
    ):
        raise OSError(code, "nope")


def test_a_file_in_the_way_is_a_sentence(tmp_path: Path) -> None:
    """A file where a directory is needed becomes one sentence."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        build(tmp_path / "runs" / "x", fill)


def test_other_errors_pass_through(target: Path) -> None:
    """An error that is not about space or rights keeps its own name."""
    with pytest.raises(OSError, match="odd"), friendly_disk_errors(target):
        raise OSError(errno.EIO, "odd")


def test_write_json_replaces_whole_files(tmp_path: Path) -> None:
    """A value that cannot be written leaves the old file as it was, and no temporary file."""
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": "é"})
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_json(path, {"a": "\ud800"})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_write_json_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle of a file leaves neither file nor temporary file."""

    def full(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text[:1].encode())
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match="no space left"), friendly_disk_errors(tmp_path):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_cleaned_away_is_no_lock(target: Path) -> None:
    """Whoever waited for a lock whose file is gone meanwhile locks a new file, so that no two processes have it."""
    path = target.parent / "x.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    waits = threading.Event()

    def wait() -> bool:
        waits.set()
        with locked(path) as mine, locked(path, wait=False) as second:
            return mine and path.exists() and not second

    with ThreadPoolExecutor(1) as pool:
        with locked(path):
            waiting = pool.submit(wait)
            waits.wait()
            time.sleep(0.05)
            path.unlink()
        assert waiting.result(10)


def test_several_hold_a_file_and_nobody_removes_it(tmp_path: Path) -> None:
    """A held file is in use until it is let go; holding it again, or a missing one, does no harm."""
    path = tmp_path / "a.json"
    hold(path)
    path.write_text("{}")
    hold(path)
    hold(path)
    with unused(path) as free:
        assert not free
    let_go()
    with unused(path) as free, unused(path) as second:
        assert (free, second) == (True, False)
    with unused(tmp_path / "none") as free:
        assert free


# --- seals


def _flip(path: Path) -> None:
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _add(path: Path) -> None:
    path.with_name("stray").touch()


@pytest.mark.parametrize("harm", [_flip, _cut, _add, Path.unlink])
def test_a_seal_holds_until_something_changes(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """A sealed directory is whole, also where it is moved to; with a byte changed, cut, added or removed it is not."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "weights").write_bytes(bytes(range(256)))
    assert not is_sealed(tmp_path / "new")
    seal(tmp_path / "new")
    moved = (tmp_path / "new").rename(tmp_path / "moved")
    assert is_sealed(moved)
    harm(moved / "weights")
    assert not is_sealed(moved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_mark_seals_nothing(tmp_path: Path, content: bytes) -> None:
    """An empty or garbled mark is no mark."""
    seal(tmp_path)
    (tmp_path / COMPLETE).write_bytes(content)
    assert not is_sealed(tmp_path)
