"""The command line of a flow, as a person meets it: sentences, exit codes, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.command import resolve
from medgrpo.config import RunConfig, load_config, profile_names

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m flows.train_medgrpo` in a process of its own, on a wide terminal."""
    return subprocess.run(
        [sys.executable, "-m", "flows.train_medgrpo", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "PREFECT_LOGGING_LEVEL": "INFO", **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture(scope="module")
def api_url(prefect_server: None) -> str:
    """The address of the tests' Prefect server, so that the command does not start one."""
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


def test_help_names_every_profile() -> None:
    """`--help` tells what the flow does, which profiles there are, and how to change a setting."""
    done = _command("--help")
    assert done.returncode == 0
    assert all(profile in done.stdout for profile in profile_names())
    assert "Prepare, attack the rewards, train, evaluate" in done.stdout
    assert "--set grpo.steps=10" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dmeo"], "unknown profile 'dmeo'; did you mean 'demo'?"),
        (["absent.toml"], "absent.toml: no such profile file. Shipped profiles:"),
        (["demo", "--set", "grpo.step=3"], "unknown setting 'grpo.step'; did you mean 'steps'"),
        (["demo", "--set", "grpo.steps=many"], "setting 'grpo.steps' is 'many'"),
        (["demo", "--set", "grpo.steps"], "expected key=value"),
    ],
    ids=["profile", "file", "setting", "value", "form"],
)
def test_a_bad_setting_ends_in_a_sentence(arguments: list[str], sentence: str) -> None:
    """A wrong profile or setting is named with its remedy on stderr; exit code 2, and no server is started for it."""
    done = _command(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout == ""


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    """A profile with a typo in its syntax is named, with an example to compare it with."""
    profile = tmp_path / "broken.toml"
    profile.write_text("[grpo\nsteps = 3")
    done = _command(str(profile))
    assert done.returncode == 2
    assert f"{profile}: not a TOML file" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("data.path={missing}", "ori_pqal.json"),
        ("name=a/b", "name 'a/b': expected a plain directory name"),
    ],
    ids=["data", "name"],
)
def test_bad_data_ends_in_a_sentence(setting: str, sentence: str, tmp_path: Path, api_url: str) -> None:
    """What only the running flow can find out ends the same way: a sentence, exit code 2, no traceback, no retry."""
    arguments = ["--set", "data.domain=pubmedqa", "--set", setting.format(missing=tmp_path / "ori_pqal.json")]
    runs = ["--set", f"runs_dir={tmp_path / 'runs'}"]
    done = _command("demo", *runs, *arguments, PREFECT_API_URL=api_url)
    assert done.returncode == 2, done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert sentence in error
    assert "Traceback" not in done.stdout + done.stderr
    assert "Retry" not in done.stdout + done.stderr


def test_a_flow_takes_a_profile_by_name() -> None:
    """A deployment passes a profile's name, a notebook a configuration; both mean the same."""
    assert resolve("demo") == load_config("demo")
    config = RunConfig(seed=5)
    assert resolve(config) is config
