"""The directory a run leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from medgrpo.config import RunConfig, parse_config
from medgrpo.errors import InputError
from medgrpo.manifests import Manifest, describe, write_json
from medgrpo.runs import link, open_run_directory, show_result, summarize, summary_markdown

SHARE = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 50}
MODEL = dict.fromkeys(("accuracy", "macro_f1", "strict_form", "grounding"), SHARE)
REGISTRATION = {"run_id": "r1", "name": "medgrpo", "version": "3", "aliases": ["candidate"], "digest": "d", "other": 1}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(profile="demo", runs_dir=tmp_path / "runs", name="night")


@pytest.fixture
def trained(tmp_path: Path) -> Manifest:
    write_json(tmp_path / "train" / "training.json", {"flags": ["odd loss"]})
    return describe(tmp_path / "train")


@pytest.fixture
def evaluated(tmp_path: Path) -> Manifest:
    pair = {"first": "base", "second": "tuned", "only_first": 3, "only_second": 9, "p_value": 0.146}
    metrics = {
        "models": {"base": MODEL, "tuned": MODEL},
        "comparisons": [pair],
        "references": {},
        "domain": "synthetic",
        "synthetic": True,
    }
    write_json(tmp_path / "evaluation" / "metrics.json", metrics)
    write_json(tmp_path / "evaluation" / "gate.json", GATE)
    (tmp_path / "evaluation" / "report.html").write_text("<p>")
    return describe(tmp_path / "evaluation")


GATE = {
    "outcome": "fail",
    "checks": [
        {"name": "strict form", "outcome": "pass", "reason": "All answers are in strict form."},
        {"name": "better than base", "outcome": "fail", "reason": "It is worse."},
        {"name": "context reliance", "outcome": "not enough evidence", "reason": "Nothing was asked."},
    ],
}


def summary_of(config: RunConfig, trained: Manifest, evaluated: Manifest) -> dict[str, Any]:
    return summarize(config, [{"name": "prepare"}], evaluated, trained, REGISTRATION, "flow")


def test_open_run_directory(config: RunConfig) -> None:
    """A run starts with its resolved settings on disk, readable as they were."""
    opened, directory = open_run_directory(config)
    assert directory == config.runs_dir / "night"
    assert parse_config(json.loads((directory / "config.json").read_text())) == opened


def test_unnamed_run_is_named_after_its_profile(config: RunConfig) -> None:
    """Without a name a run is named after profile and time, and its settings carry that name."""
    opened, directory = open_run_directory(config.model_copy(update={"name": None}))
    assert opened.name == directory.name
    assert directory.name.startswith("demo-20")


def test_of_two_that_start_at_once_each_has_a_directory(config: RunConfig) -> None:
    """Unnamed runs of one second do not write into each other's directory."""
    unnamed = config.model_copy(update={"name": None})
    names = [open_run_directory(unnamed)[0].name for _ in range(4)]
    assert len(set(names)) == 4
    assert any(str(name).endswith("-2") for name in names)


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", ".hidden", "..", "latest"])
def test_bad_names(config: RunConfig, name: str) -> None:
    """A name that is no plain directory name is refused in a sentence before anything is written."""
    with pytest.raises(InputError, match="expected a plain directory name"):
        open_run_directory(config.model_copy(update={"name": name}))
    assert not config.runs_dir.exists()


def test_runs_dir_is_a_file(config: RunConfig) -> None:
    """A runs_dir that is a file is named in a sentence."""
    config.runs_dir.write_text("")
    with pytest.raises(InputError, match=r"runs/night cannot be written"):
        open_run_directory(config)


def test_link_moves(tmp_path: Path) -> None:
    """A link is replaced in place, and stays valid when the directory above it moves."""
    for name in ("one", "two"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        link(tmp_path / "runs" / "latest", tmp_path / "runs" / name)
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest").resolve().name == "two"
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["latest", "one", "two"]


def test_show_result(config: RunConfig, trained: Manifest, evaluated: Manifest) -> None:
    """The run's directory shows each artifact and the report; `latest` moves once there is a trained model to find."""
    _, directory = open_run_directory(config)
    show_result(directory, "data", trained)
    assert not (config.runs_dir / "latest").exists()
    show_result(directory, "train", trained)
    assert (config.runs_dir / "latest" / "train" / "training.json").is_file()
    show_result(directory, "evaluation", evaluated)
    assert (directory / "evaluation" / "metrics.json").is_file()
    assert (directory / "report.html").read_text() == "<p>"


def test_summary_keeps_its_contract(config: RunConfig, trained: Manifest, evaluated: Manifest) -> None:
    """summary.json holds the keys other tools rely on, and is JSON."""
    summary = summary_of(config, trained, evaluated)
    expected = {"flow_run", "mlflow_run_id", "model", "base", "tuned", "comparison", "gate", "stages", "environment"}
    assert expected <= json.loads(json.dumps(summary)).keys()
    assert summary["gate"] == {
        "outcome": "fail",
        "reasons": ["better than base: It is worse.", "context reliance: Nothing was asked."],
    }
    assert summary["model"] == {key: REGISTRATION[key] for key in ("name", "version", "aliases", "digest")}


def test_summary_markdown_is_for_people(config: RunConfig, trained: Manifest, evaluated: Manifest) -> None:
    """The text gives n, intervals and the paired test, is labelled synthetic, and shows flags."""
    text = summary_markdown(summary_of(config, trained, evaluated))
    parts = ("60.0% (50.0% to 70.0%)", "50 held-out synthetic cases", "p = 0.15", "Not medical advice", "odd loss")
    for part in (*parts, "**Gate: fail.**", "- better than base: It is worse."):
        assert part in text
    assert "warmup" not in text
