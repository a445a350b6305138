"""Tests of medgrpo.training.callbacks."""

import json
import math
import time
from types import SimpleNamespace

import pytest

from medgrpo.errors import TrainingAlarm
from medgrpo.training.callbacks import COMPLETE, Alarms, CompleteCheckpoints, MetricsFile, last_complete_checkpoint


def state(step, steps=10, main_process=True):
    return SimpleNamespace(global_step=step, max_steps=steps, is_world_process_zero=main_process)


def started(path, phase="grpo", at=0):
    callback = MetricsFile(path, phase)
    callback.on_train_begin(None, state(at), None)
    return callback


def checkpoint(directory, step, complete=True):
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if complete:
        (path / COMPLETE).touch()
    return path


def test_a_metrics_row_says_phase_step_steps_and_time_left(tmp_path):
    """Each logged step becomes one JSON line with its phase, step, steps, time and numbers."""
    callback = started(tmp_path / "metrics.jsonl")
    before = time.time()
    callback.on_log(None, state(3), None, {"loss": 0.5, "reward": 1.25, "note": "not a number"})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert before <= row.pop("time") <= time.time()
    assert row.pop("seconds_left") >= 0
    assert row == {"phase": "grpo", "step": 3, "steps": 10, "loss": 0.5, "reward": 1.25}


@pytest.mark.parametrize(("first", "step", "left"), [(0, 4, 60.0), (0, 10, 0.0), (2, 4, 120.0), (4, 4, 240.0)])
def test_the_time_left_is_judged_by_the_steps_of_this_process(tmp_path, monkeypatch, first, step, left):
    """After a resume only steps done since then count: 40 seconds for them, the rest of 10 steps at that pace."""
    clock = iter([100.0, 140.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    started(tmp_path / "metrics.jsonl", at=first).on_log(None, state(step), None, {"loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["seconds_left"] == left


def test_the_metrics_file_is_only_appended_to(tmp_path):
    """A second phase, and a resumed one, leave every earlier byte as it was; each line is one JSON object."""
    path = tmp_path / "metrics.jsonl"
    for phase, first in (("warmup", 0), ("grpo", 0), ("grpo", 1)):
        before = path.read_bytes() if path.exists() else b""
        callback = started(path, phase, first)
        for step in (first + 1, first + 2):
            callback.on_log(None, state(step), None, {"loss": 0.1})
        assert path.read_bytes().startswith(before)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [
        ("warmup", 1),
        ("warmup", 2),
        ("grpo", 1),
        ("grpo", 2),
        ("grpo", 2),
        ("grpo", 3),
    ]


@pytest.mark.parametrize(
    ("logs", "main_process"),
    [(None, True), ({}, True), ({"train_runtime": 12.0}, True), ({"loss": 0.1}, False)],
    ids=["nothing", "empty", "the final summary", "another process"],
)
def test_only_the_main_process_writes_and_only_steps(tmp_path, logs, main_process):
    """The trainer's closing summary, empty logs, and the other processes of a multi-GPU run write no row."""
    callback = started(tmp_path / "metrics.jsonl")
    callback.on_log(None, state(1, main_process=main_process), None, logs)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_training(name, value):
    """A NaN or infinite loss or gradient raises a sentence with the step and a remedy."""
    with pytest.raises(TrainingAlarm) as alarm:
        Alarms(patience=3).on_log(None, state(7), None, {"loss": 0.1, "grad_norm": 0.2, name: value})
    sentence = str(alarm.value)
    assert f"{name} is {value} at step 7" in sentence
    assert "learning rate" in sentence
    assert "policy.autocast" in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize("logs", [None, {}, {"loss": 0.0, "grad_norm": 0.0}, {"reward": math.nan}])
def test_ordinary_steps_raise_no_alarm(logs):
    """A zero loss is normal with one iteration and no KL term, and logs without a loss are not judged."""
    alarms = Alarms(patience=1)
    for step in range(1, 5):
        alarms.on_log(None, state(step), None, logs)
    assert alarms._empty == 0


@pytest.mark.parametrize("patience", [1, 3])
def test_completions_that_stay_empty_stop_training(patience):
    """After `patience` steps in a row with nothing but end tokens comes a sentence that names the causes."""
    alarms = Alarms(patience)
    for step in range(1, patience):
        alarms.on_log(None, state(step), None, {"loss": 0.0, "completions/mean_length": 1.0})
    with pytest.raises(TrainingAlarm) as alarm:
        alarms.on_log(None, state(patience), None, {"loss": 0.0, "completions/mean_length": 0.0})
    sentence = str(alarm.value)
    assert f"empty for {patience} steps (at step {patience})" in sentence
    assert "chat template" in sentence
    assert "end-of-turn token" in sentence


def test_one_filled_completion_resets_the_count():
    """Only consecutive empty steps count, and logs without lengths, as in the warm-up, neither count nor reset."""
    alarms = Alarms(patience=3)
    for step, length in enumerate([1.0, 1.0, 20.0, 1.0, 1.0], start=1):
        alarms.on_log(None, state(step), None, {"completions/mean_length": length})
        alarms.on_log(None, state(step), None, {"train_loss": 0.1})
    with pytest.raises(TrainingAlarm):
        alarms.on_log(None, state(6), None, {"completions/mean_length": 1.0})


def test_a_saved_checkpoint_is_marked_by_the_main_process(tmp_path):
    """The mark is written after the save, and only by one process."""
    arguments = SimpleNamespace(output_dir=str(tmp_path))
    path = checkpoint(tmp_path, 5, complete=False)
    CompleteCheckpoints().on_save(arguments, state(5, main_process=False), None)
    assert last_complete_checkpoint(tmp_path) is None
    CompleteCheckpoints().on_save(arguments, state(5), None)
    assert last_complete_checkpoint(tmp_path) == path


def test_the_last_complete_checkpoint_ignores_unmarked_ones(tmp_path):
    """A checkpoint that a kill cut short has no mark, and the newest marked one before it is taken."""
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    torn = checkpoint(tmp_path, 6, complete=False)
    (torn / "optimizer.pt").write_bytes(b"\x80")
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_checkpoints_are_ordered_by_number_not_by_name(tmp_path):
    """Step 100 is later than step 20, whatever the alphabet says."""
    for step in (20, 100, 9):
        checkpoint(tmp_path, step)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize("exists", [True, False])
def test_without_a_checkpoint_there_is_none(tmp_path, exists):
    """A new run starts from the beginning, whether or not its directory exists."""
    assert last_complete_checkpoint(tmp_path if exists else tmp_path / "missing") is None
