"""Where results come from."""

import ast
import subprocess
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from medgrpo import provenance

code_version = provenance.code_version.__wrapped__


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in which `train` imports `rewards` lazily, and `report` imports nothing."""
    root = tmp_path / "house"
    (root / "rewards").mkdir(parents=True)
    (root / "train.py").write_text("import json\n\ndef run():\n    from house.rewards import pay\n")
    (root / "rewards" / "__init__.py").write_text("from house.rewards.pay import PAY\n")
    (root / "rewards" / "pay.py").write_text("import house.train\nPAY = 1\n")
    (root / "report.py").write_text("")
    monkeypatch.setattr(provenance, "PACKAGE", root)
    return root


@pytest.mark.parametrize(
    ("changed", "matters"),
    [("train.py", True), ("rewards/__init__.py", True), ("rewards/pay.py", True), ("report.py", False)],
)
def test_code_version_follows_imports(package: Path, changed: str, matters: bool) -> None:
    """A change to anything a module imports, also inside functions and in circles, is another version."""
    before = code_version("house.train")
    with (package / changed).open("a") as stream:
        stream.write("# changed\n")
    assert (code_version("house.train") != before) is matters


def test_imports_are_found_while_other_threads_parse() -> None:
    """Threads that parse Python meanwhile, as Prefect's do, neither fail the reading of imports nor change it."""
    source = Path(provenance.__file__).with_name("stages.py").read_text()
    alone = provenance._imports(source)
    with ThreadPoolExecutor(4) as pool:
        parsing = [pool.submit(ast.parse, source) for _ in range(40)]
        found = [provenance._imports(source) for _ in range(20)]
        wait(parsing)
    assert found == [alone] * 20
    assert "medgrpo.training.launch" in alone


def test_reports_do_not_retrain_but_rewards_do() -> None:
    """In this package training depends on rewards and prompts, and not on the report."""
    seen, waiting = set(), ["medgrpo.training.__main__", "medgrpo.domains.pubmedqa"]
    while waiting:
        name = waiting.pop()
        path = provenance._source(name)
        if path and name not in seen:
            seen.add(name)
            waiting += provenance._imports(path.read_text())
    assert {"medgrpo.rewards.grounding", "medgrpo.completions", "medgrpo.domains.abstracts"} <= seen
    assert "medgrpo.evaluation.report" not in seen


def test_fingerprint_ignores_key_order_only() -> None:
    """Key order does not matter, values and list order do."""
    assert provenance.fingerprint({"a": [1, 2], "b": Path("x")}) == provenance.fingerprint(
        {"b": Path("x"), "a": [1, 2]}
    )
    assert provenance.fingerprint([1, 2]) != provenance.fingerprint([2, 1])


@pytest.mark.parametrize(("error"), [FileNotFoundError("no git"), subprocess.TimeoutExpired("git", 10)])
def test_no_git_no_commit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git, or with one that hangs, the commit is unknown and nothing fails."""

    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(provenance.subprocess, "run", run)
    assert provenance.git_commit() is None


@pytest.mark.parametrize(("status", "commit"), [("", "abc"), (" M file", "abc+changes")])
def test_uncommitted_changes_are_marked(status: str, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit with uncommitted changes on top says so."""
    monkeypatch.setattr(provenance, "_git", lambda *arguments: "abc" if arguments[0] == "rev-parse" else status)
    assert provenance.git_commit() == commit


def test_environment_names_versions() -> None:
    """The environment holds strings only, and the versions of what is installed."""
    found = provenance.environment()
    assert all(isinstance(value, str) for value in found.values())
    assert {"python", "platform", "cpus", "torch", "trl"} <= found.keys()
