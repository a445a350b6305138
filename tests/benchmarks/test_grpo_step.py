"""Tests of benchmarks.grpo_step: both sides really step, agree, and the file has the numbers."""

import json
import subprocess
import sys

import pytest

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
