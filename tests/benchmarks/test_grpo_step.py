"""Tests of benchmarks.grpo_step: both sides really step, agree, and the file has the numbers."""

import json
import multiprocessing
import subprocess
import sys

import pytest

from benchmarks.step_worker import received
from medgrpo.errors import TrainingCrashed
from medgrpo.testing import tiny_policy


@pytest.mark.slow
def test_a_comparison_of_the_tiny_policy_is_printed_and_saved(tmp_path):
    """Two pairs of steps: positive ratios and phases, equal gradients, a table on the screen, JSON and a plot."""
    sizes = ["--group", "2", "--prompt", "40", "--completion", "4", "--prompts", "2", "--pairs", "2"]
    saved, plot = tmp_path / "step.json", tmp_path / "step.png"
    command = [sys.executable, "-m", "benchmarks.grpo_step", "--base", str(tiny_policy(tmp_path / "policy")), *sizes]
    done = subprocess.run([*command, "--json", str(saved), "--plot", str(plot)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| 2 | 40 | 4 |" in done.stdout
    result = json.loads(saved.read_text())
    assert 0 < result["step_ratio"]["min"] <= result["step_ratio"]["median"] <= result["step_ratio"]["max"]
    assert result["parity_max_rel"] < 1e-4
    assert result["memory_ratio"] > 0
    assert result["pairs"] == 2
    assert result["step_ratio_bfloat16_rollout"]["median"] > 0
    for side in ("trl", "medgrpo", "medgrpo, bfloat16 rollout"):
        seconds = result["seconds"][side]
        phases = [seconds[name] for name in ("prefill", "decode", "loss forward", "backward", "optimiser")]
        assert all(phase > 0 for phase in phases)
        assert sum(phases) <= seconds["step"]
    assert plot.stat().st_size > 1000


@pytest.mark.slow
def test_a_side_that_cannot_start_says_why(tmp_path):
    """What is wrong with the model ends in a sentence and code 2, although another process found it."""
    command = [sys.executable, "-m", "benchmarks.grpo_step", "--base", str(tmp_path), "--prompt", "40"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"error: policy.base {tmp_path} is not a model directory: it holds no config.json.\n" in done.stderr


def test_a_process_that_ends_without_a_word_is_told_by_its_last_lines(tmp_path):
    """A crash, out of memory for one, is an error with what the log ends with."""
    log = tmp_path / "side.log"
    log.write_text("first\ntorch.OutOfMemoryError: CUDA out of memory\n")
    here, there = multiprocessing.Pipe(duplex=False)
    there.close()
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(TrainingCrashed, match="exit code 3") as caught:
        received(here, Ended(process), log)
    assert str(caught.value).endswith("first\ntorch.OutOfMemoryError: CUDA out of memory")


class Ended:
    """A process in the form that multiprocessing gives one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.join = process.wait
        self.exitcode = process.wait()
