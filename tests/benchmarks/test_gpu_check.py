"""Tests of benchmarks.gpu_check: a dry run finds, says and keeps what a CUDA machine would."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_page import render

PARTS = ("environment", "guards", "backends", "resume", "evaluation", "exchange", "curve")


def check(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the results of a dry run, in two calls."""
    out = tmp_path_factory.mktemp("dry")
    for parts in (PARTS[:1], PARTS[1:]):
        done = check(out, "--dry-run", "--parts", *parts)
        assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def parts(dry: Path) -> dict[str, Any]:
    """What each part found, from the JSON."""
    report = json.loads((dry / "gpu_check.json").read_text())
    assert report["dry_run"] is True
    return dict(report["parts"])


@pytest.mark.slow
def test_every_part_has_an_outcome(parts):
    """All is ok, but what a machine without Unsloth cannot do, which says so; both calls are in one file."""
    states = {name: part["state"] for name, part in parts.items()}
    assert states == {name: "not possible here" if name == "exchange" else "ok" for name in PARTS}, parts
    assert parts["exchange"]["why"] == "the package unsloth is not installed."
    assert all(part["device"] and part["seconds"] >= 0 for part in parts.values())


@pytest.mark.slow
def test_environment_and_guards(parts):
    """The precision row and the backend are there; a training in each precision passed the guards with real numbers."""
    found = parts["environment"]["found"]
    assert found["backend"]["auto"] == "transformers"
    assert found["precision"]["weights"] == "float32"
    assert {"torch", "trl"} <= found["versions"].keys()
    for one in parts["guards"]["found"].values():
        assert one["steps"] == [1, 2, 3, 4, 5, 6]
        assert len(one["losses"]["warmup"]) > 1
        assert len(one["losses"]["grpo"]) == 6
    assert set(parts["guards"]["found"]) == {"none", "bfloat16"}


@pytest.mark.slow
def test_backends_are_timed(parts):
    """Plain TRL and ours have time, speed and memory; Unsloth says why it has none."""
    found = parts["backends"]["found"]
    for side in ("trl", "medgrpo"):
        assert found[side]["steps"] == 3
        assert 0 < found[side]["step_seconds"]["min"] <= found[side]["step_seconds"]["median"]
        assert found[side]["tokens_per_second"] > 0
        assert found[side]["peak_memory_gb"] > 0
    assert found["unsloth"]["state"] == "not possible here"


@pytest.mark.slow
def test_a_killed_training_goes_on(parts):
    """It resumes behind a checkpoint, has every step, and the numbers of the one that was not killed."""
    found = parts["resume"]["found"]
    assert found["steps"] == [1, 2, 3, 4, 5, 6]
    assert 1 < found["resumed_at_step"] <= found["killed_after_step"] + 1
    assert set(found["largest_differences"]) == {"loss", "completions/mean_length"}
    assert max(found["largest_differences"].values()) < 1e-4


@pytest.mark.slow
def test_evaluation_and_curve(parts):
    """Answers have a speed; base, warm-up and GRPO have scores with intervals, in that order."""
    found = parts["evaluation"]["found"]
    assert (found["cases"], found["model"]) == (4, "resumed")
    assert found["seconds_a_case"] > 0
    points = parts["curve"]["found"]["points"]
    assert [point["label"] for point in points[:2]] == ["base", "warm-up"]
    assert points[-1]["label"] == "GRPO"
    assert points[-1]["step"] == 3
    assert all(point["n"] == 6 for point in points)
    assert all(p[m]["low"] <= p[m]["value"] <= p[m]["high"] for p in points for m in ("accuracy", "macro_f1"))


@pytest.mark.slow
def test_the_page(dry, parts):
    """The page names every part with its outcome and why, what was skipped included; its plot lies beside it."""
    page = (dry / "gpu_check.md").read_text()
    assert "**A dry run**" in page
    for name in PARTS:
        assert f"| {name} | {parts[name]['state']} |" in page
    assert "the package unsloth is not installed." in page
    assert "](curve.png)" in page
    assert (dry / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_results_of_different_kinds_do_not_mix(dry):
    """A real call is refused where a dry run's results are, or, without a device, before that; both with code 2."""
    done = check(dry)
    assert done.returncode == 2
    expected = "results of a dry run" if torch.cuda.is_available() else "there is no CUDA device"
    assert expected in done.stderr


def test_a_failure_is_told_and_a_missing_part_too():
    """The page shows a failed part's sentence whole, and that others were not run."""
    part = {
        "state": "failed",
        "why": "it broke.\nBadly | so",
        "seconds": 1.0,
        "device": "X",
        "commit": None,
        "at": "now",
    }
    page = render({"dry_run": False, "parts": {"guards": {**part, "found": {}}}})
    assert "| guards | failed | it broke.<br>Badly \\| so | 1 | X, no commit, now |" in page
    assert page.count("| not run |") == 6
    assert "dry run" not in page


@pytest.mark.parametrize("pubmedqa", [None, Path("data")])
def test_the_settings_of_a_real_call(tmp_path, monkeypatch, pubmedqa):
    """Short trainings are float32 and of few steps; the long one leaves precision to the machine and asks all cases."""
    monkeypatch.setattr(gpu_check, "_budget", lambda: 4096)
    options = Namespace(out=tmp_path, work=None, base="model", pubmedqa=pubmedqa, minutes=9.0, dry_run=False)
    plan = gpu_check._plan(options, {}, lambda found: None)
    assert (plan.short.policy.autocast, plan.long.policy.autocast) == ("none", "auto")
    assert plan.short.grpo.steps < 10 < plan.long.grpo.steps
    assert plan.long.grpo.schedule == "constant"
    assert plan.long.evaluation.cases == "all"
    assert plan.long.data.path == (pubmedqa and pubmedqa / "ori_pqal.json")
    assert plan.long.data.domain == ("pubmedqa" if pubmedqa else "synthetic")
    assert plan.minutes == 9
