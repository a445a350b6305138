"""Tests of benchmarks.memory: the memory plan beside a training's measured peak."""

import json
import sys

import pytest

from benchmarks import memory

FOUND = {
    "plan_gb": {"peak": 4.0, "largest": "warm-up", "phases": {"warm-up": {"weights": 4.0}}},
    "measured_gb": {"loaded": 1.0, "warm-up": 5.0, "GRPO": 4.5},
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command without training anything; gives what it prints and what would be trained."""
    asked = []
    monkeypatch.setattr(memory, "measure", lambda overrides: asked.append(overrides) or FOUND)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["memory", *map(str, arguments)])
        memory.main()
        return capsys.readouterr().out.splitlines(), asked

    return call


def test_each_size_is_a_row_of_estimate_and_measured_peak(run, tmp_path):
    """The peak is that of the whole process, whichever phase had it, and everything is in the file."""
    lines, asked = run("short", "default", "--set", "seed=3", "--json", tmp_path / "memory.json")
    assert [line.split() for line in lines[1:]] == [
        ["short", "4.00", "5.00", "0.80", "warm-up"],
        ["default", "4.00", "5.00", "0.80", "warm-up"],
    ]
    assert all(overrides[-1] == "seed=3" for overrides in asked)
    rows = json.loads((tmp_path / "memory.json").read_text())
    assert [(row["size"], row["estimate_gb"], row["measured_gb"]["warm-up"]) for row in rows] == [
        ("short", 4.0, 5.0),
        ("default", 4.0, 5.0),
    ]


def test_quick_is_three_sizes_and_an_unknown_one_is_refused(run, capsys):
    """--quick measures a short, a long and a wide one; a size that is none ends with the known ones."""
    assert len(run("--quick")[1]) == 3
    with pytest.raises(SystemExit):
        run("huge")
    assert "no size is called 'huge'; known: short" in capsys.readouterr().err


@pytest.mark.slow
def test_the_plan_is_within_a_quarter_of_a_small_training():
    """Warm-up and GRPO of a random model of 170 million weights, a step each, of three passes and of one: estimated and
    measured peak of the process differ by a quarter at most."""
    small = [*memory.SIZES[memory.WIDE], "warmup.batch_size=3", "warmup.micro_batch=1", "grpo.prompts_per_step=1"]
    found = memory.measure([*small, "grpo.group_size=2", "grpo.max_completion_length=32"])
    assert found["plan_gb"]["peak"] == pytest.approx(max(found["measured_gb"].values()), rel=0.25)
    assert found["measured_gb"]["runtime"] <= found["measured_gb"]["warm-up"] <= found["measured_gb"]["GRPO"]
