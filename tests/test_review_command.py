"""`medgrpo review` as a person meets it: what it shows, what it writes, sentences and exit codes."""

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medgrpo import cli
from medgrpo.config import RunConfig
from medgrpo.registry import connect, review
from medgrpo.testing import tiny_version

Run = Callable[..., tuple[int, str, str]]

pytestmark = [
    pytest.mark.slow,
    # Emitted by third parties while MLflow is imported and its store is opened, whoever imports it.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*``noload`` loader strategy is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with version 1 under review, and version 2 that did not pass its gate."""
    config = RunConfig(runs_dir=tmp_path_factory.mktemp("template"))
    tiny_version(config, weights="1")
    tiny_version(config, gate="fail", weights="2", gate_reasons="not better \x1b[31m [bold]than base[/bold]")
    return config.runs_dir / "mlflow.db"


@pytest.fixture
def config(tmp_path: Path, store: Path) -> RunConfig:
    (tmp_path / "runs").mkdir()
    shutil.copy(store, tmp_path / "runs" / "mlflow.db")
    return RunConfig(runs_dir=tmp_path / "runs")


@pytest.fixture
def run(config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `medgrpo review` on that registry; gives exit code, standard output and standard error."""
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object, runs: Path = config.runs_dir) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medgrpo", "review", *map(str, arguments), "--set", f"runs_dir={runs}"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_list(run: Run) -> None:
    """One line per version, newest first, with the beginning of its digest."""
    code, out, _ = run("list")
    assert code == 0
    lines = [line.replace("│", " ").split() for line in out.splitlines() if "│" in line]
    assert [line[:-1] for line in lines] == [["2", "fail"], ["1", "candidate", "pass"]]
    assert [len(line[-1]) for line in lines] == [12, 12]


def test_what_show_prints_approves(run: Run, config: RunConfig) -> None:
    """The last line of `show` is the command that approves what was shown; the reviewer is who is logged in."""
    code, out, _ = run("show")
    assert code == 0
    assert "nothing, there is no champion" in out
    command = shlex.split(out.splitlines()[-1])
    assert command[:4] == ["medgrpo", "review", "approve", "1"]
    code, out, _ = run(*command[2:])
    assert (code, out.partition(" Decided by ann at ")[0]) == (0, "version 1 of medgrpo-synthetic is the champion.")
    champion = review.show(config, "champion").version
    assert (champion.tags["medgrpo.reviewer"], champion.tags["medgrpo.review_note"]) == ("ann", "WHY")


def test_show_of_a_version_that_failed(run: Run) -> None:
    """Objections are named, and what others wrote in tags neither steers the terminal nor is taken for markup."""
    code, out, _ = run("show", 2)
    assert code == 0
    assert "against it  the gate's outcome is 'fail', not 'pass'" in out
    assert "gate  not better [31m [bold]than base[/bold]" in out
    assert "\x1b" not in out
    assert '--despite-gate "WHY"' in out


def test_reject_and_roll_back(run: Run, config: RunConfig) -> None:
    """A rejection and a rollback end in a sentence that says what is true now."""
    for number, weights in ((1, "1"), (3, "3")):
        if number == 3:
            tiny_version(config, weights=weights)
        digest = review.show(config).version.digest
        assert run("approve", "candidate", "--digest", digest, "--note", "better", "--reviewer", "zoe")[0] == 0
    code, out, _ = run("rollback", "--note", "worse", "--replaces", "3")
    assert (code, out) == (0, "version 1 of medgrpo-synthetic is the champion again.\n")
    code, out, _ = run("reject", 2, "--note", "cites nothing")
    assert code == 0
    assert out.startswith("version 2 of medgrpo-synthetic is rejected. Decided by ann at ")
    assert "rolled back" in run("list")[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["approve", "9", "--digest", "0" * 64, "--note", "x"], "has no version '9'. Versions: 1, 2"),
        (["approve", "1", "--digest", "0" * 64, "--note", "x"], "that is not the model that was reviewed"),
        (["approve", "1", "--digest", "abc", "--note", "x"], "'abc' has 3 characters. medgrpo review show 1 shows it"),
        (["approve", "1", "--digest", "0" * 64, "--note", " "], "note is empty"),
        (["approve", "1", "--digest", "0" * 64, "--note", "x", "--reviewer", ""], "reviewer is empty"),
        (["reject", "9", "--note", "x"], "has no version '9'"),
        (["rollback", "--note", "x"], "has no champion, so there is nothing to roll back"),
        (["show", "--profile", "dmo"], "unknown profile 'dmo'"),
        (["show", "--set", "tracking.model_name=other"], "holds no registered model 'other-synthetic'"),
    ],
)
def test_bad_input(run: Run, config: RunConfig, arguments: list[str], sentence: str) -> None:
    """A sentence on standard error, exit code 2, and nothing is promoted."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in " ".join(err.split())
    assert "champion" not in connect(config).get_registered_model("medgrpo-synthetic").aliases


def test_without_a_user_name_the_reviewer_must_be_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container without $USER nobody signs by accident."""
    monkeypatch.delenv("USER")
    code, _, err = run("reject", 1, "--note", "x")
    assert (code, "reviewer is empty" in err) == (2, True)


def test_an_empty_store(run: Run, tmp_path: Path) -> None:
    """Before anything is registered, the sentence says so."""
    code, _, err = run("list", runs=tmp_path / "none")
    assert (code, "holds no registered model 'medgrpo-synthetic'" in err) == (2, True)
