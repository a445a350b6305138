"""Tests of benchmarks.answers: both ways answer, and give the same texts."""

import json
import subprocess
import sys

import pytest

from medgrpo.testing import tiny_policy


@pytest.mark.slow
def test_both_ways_give_the_same_texts(tmp_path):
    """On the tiny policy every text is the same, and the ratio is a number."""
    sizes = ["--cases", "5", "--blocks", "2", "--new-tokens", "6"]
    command = [sys.executable, "-m", "benchmarks.answers", "--model", str(tiny_policy(tmp_path / "policy")), *sizes]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert result["same_text"] == result["cases"] == 5
    assert result["throughput_ratio"]["median"] > 0
