"""Tests of medgrpo.training.callbacks."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from medgrpo.config import RunConfig, WatchConfig
from medgrpo.errors import TrainingAlarm
from medgrpo.manifests import seal
from medgrpo.training import callbacks
from medgrpo.training.callbacks import (
    ORDER,
    CompleteCheckpoints,
    KeptOrder,
    MetricsFile,
    last_complete_checkpoint,
)
from medgrpo.training.launch import CHILD_ENVIRONMENT
from medgrpo.training.metrics import read_metrics
from medgrpo.training.sampling import SpreadOrder
from medgrpo.training.watch import Watch

ROOT = Path(__file__).parents[2]


def state(step, steps=10, main_process=True):
    return SimpleNamespace(
        global_step=step, max_steps=steps, is_world_process_zero=main_process, best_model_checkpoint=None
    )


def watching(**settings):
    return Watch(RunConfig(watch=WatchConfig(**settings)))


def started(path, phase="grpo", at=0, watch=None):
    callback = MetricsFile(path, phase, watch or watching())
    callback.on_train_begin(None, state(at), None)
    return callback


def checkpoint(directory, step, complete=True):
    path = directory / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if complete:
        seal(path)
    return path


def arguments_for(directory, keep=2):
    return SimpleNamespace(output_dir=str(directory), save_total_limit=keep)


def test_a_metrics_row_says_phase_step_steps_and_time_left(tmp_path):
    """Each logged step becomes one JSON line with its phase, step, steps, time and numbers."""
    callback = started(tmp_path / "metrics.jsonl")
    before = time.time()
    callback.on_log(None, state(3), None, {"loss": 0.5, "reward": 1.25, "note": "not a number"})
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert before <= row.pop("time") <= time.time()
    assert row.pop("seconds_left") >= 0
    assert row.pop("smooth/reward") == 1.25
    assert row == {"phase": "grpo", "step": 3, "steps": 10, "loss": 0.5, "reward": 1.25, "watch/alarms": 0}


@pytest.mark.parametrize(("first", "step", "left"), [(0, 4, 60.0), (0, 10, 0.0), (2, 4, 120.0), (4, 4, 240.0)])
def test_the_time_left_is_judged_by_the_steps_of_this_process(tmp_path, monkeypatch, first, step, left):
    """After a resume only steps done since then count: 40 seconds for them, the rest of 10 steps at that pace."""
    clock = iter([100.0, 140.0])
    # The module's clock, not the process's: other threads read that one.
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
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


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_number_that_is_not_finite_always_stops(tmp_path, action):
    """Whatever `watch.action` is, a NaN loss ends the training with a sentence, and its row is in the file."""
    callback = started(tmp_path / "metrics.jsonl", watch=watching(action=action))
    with pytest.raises(TrainingAlarm, match=r"loss is nan at step 7.* No checkpoint is from before\.$"):
        callback.on_log(None, state(7), None, {"loss": math.nan})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["alarms"].keys() == {"not_finite"}


def kl_rows(callback, values, saves=None):
    """Log one step per value of the divergence, saving where `saves` says so; the state."""
    now = state(0)
    for now.global_step, value in enumerate(values, start=1):
        callback.on_log(None, now, None, {"loss": 0.1, "kl": value})
        if saves:
            saves(now)
    return now


def test_an_alarm_that_warns_is_said_once_and_stands_in_each_row(tmp_path, caplog):
    """An alarm is logged when it begins to ring, stands in every row while it does, and may ring again later."""
    callback = started(tmp_path / "metrics.jsonl", watch=watching(span=1, patience=2))
    kl_rows(callback, [0.1, 2.0, 2.0, 2.0, 0.1, 3.0, 3.0])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "kl" in row.get("alarms", {})] == [3, 4, 7]
    assert [row["watch/alarms"] for row in rows] == [0, 0, 1, 1, 0, 0, 1]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "alarm kl at step 3",
        "alarm kl at step 7",
    ]


def test_an_alarm_that_stops_names_the_last_good_checkpoint_and_the_way_on(tmp_path):
    """The sentence says what is wrong, which checkpoint is from before the trouble, and how to go on all the same."""
    watch = watching(span=1, patience=3, action="stop")
    callback, marks = started(tmp_path / "metrics.jsonl", watch=watch), CompleteCheckpoints(watch)
    arguments = arguments_for(tmp_path)

    def save(now):
        checkpoint(tmp_path, now.global_step, complete=False)
        marks.on_save(arguments, now, None)

    with pytest.raises(TrainingAlarm) as alarm:
        kl_rows(callback, [0.1, 0.2, 2.0, 2.0, 2.0], save)
    assert "2 nats per token" in str(alarm.value)
    assert f"The last checkpoint from before is {tmp_path / 'checkpoint-2'}." in str(alarm.value)
    assert "watch.action = 'warn'" in str(alarm.value)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_a_resumed_watch_has_seen_what_was_before_and_nothing_after(tmp_path, caplog):
    """Resumed after step 4, the averages are those of steps 1 to 4, rows behind the checkpoint do not count, and an
    alarm that rang already is not said again."""
    path, values = tmp_path / "metrics.jsonl", [0.1, 1.5, 2.5, 3.5, 9.0, 0.7]
    kl_rows(started(path, watch=watching(span=2, patience=2)), values[:5])
    caplog.clear()
    resumed = started(path, at=4, watch=watching(span=2, patience=2))
    resumed.on_log(None, state(5), None, {"loss": 0.1, "kl": values[5]})
    plain = tmp_path / "plain.jsonl"
    kl_rows(started(plain, watch=watching(span=2, patience=2)), [*values[:4], values[5]])
    assert read_metrics(path)[-1]["smooth/kl"] == read_metrics(plain)[-1]["smooth/kl"]
    assert [record.message for record in caplog.records if "alarm kl at step 5" in record.message] == []


@pytest.mark.parametrize("phase", ["warmup", "grpo"])
def test_rows_of_the_other_phase_are_not_this_phases_past(tmp_path, phase):
    """The warm-up's steps do not enter GRPO's averages."""
    path = tmp_path / "metrics.jsonl"
    kl_rows(started(path, phase=phase, watch=watching(span=2)), [0.1, 0.9])
    started(path, at=2, watch=watching(span=2)).on_log(None, state(3), None, {"loss": 0.1, "kl": 0.4})
    expected = 0.4 if phase == "warmup" else (0.1 / 9 + 0.9 / 3 + 0.4) / (1 / 9 + 1 / 3 + 1)
    assert read_metrics(path)[-1]["smooth/kl"] == pytest.approx(expected)


def test_a_checkpoint_from_before_the_trouble_is_kept(tmp_path):
    """While there is trouble the trainer's best checkpoint stays the last one from before, which it never deletes."""
    watch = watching(span=1, patience=2)
    marks, arguments, best = CompleteCheckpoints(watch), arguments_for(tmp_path), []

    def save(now):
        checkpoint(tmp_path, now.global_step, complete=False)
        marks.on_save(arguments, now, None)
        best.append(now.best_model_checkpoint)

    kl_rows(started(tmp_path / "metrics.jsonl", watch=watch), [0.1, 2.0, 2.0, 0.1], save)
    assert best == [str(tmp_path / f"checkpoint-{step}") for step in (1, 1, 1, 4)]


@pytest.mark.parametrize(("step", "best"), [(0, None), (2, "checkpoint-2"), (3, None)])
def test_a_resumed_training_takes_its_checkpoint_for_good_if_it_is(tmp_path, step, best):
    """Resumed where all was well, that checkpoint is from before any trouble; in the trouble, or at the start, none."""
    path, now = tmp_path / "metrics.jsonl", state(step)
    kl_rows(started(path, watch=watching(span=1)), [0.1, 0.1, 2.0])
    watch = watching(span=1)
    for callback in (MetricsFile(path, "grpo", watch), CompleteCheckpoints(watch)):
        callback.on_train_begin(arguments_for(tmp_path), now, None)
    assert now.best_model_checkpoint == (best and str(tmp_path / best))


def test_the_order_is_written_into_the_checkpoint(tmp_path):
    """What an order has drawn and learnt lies in the checkpoint, written by the main process only."""
    order = SpreadOrder(["yes"] * 5, 4, 2, 0.0, 0)
    drawn = order[:2]
    order.learn([True, False])
    path, arguments = checkpoint(tmp_path, 1, complete=False), arguments_for(tmp_path)
    KeptOrder(order).on_save(arguments, state(1, main_process=False), None)
    assert list(path.iterdir()) == []
    KeptOrder(order).on_save(arguments, state(1), None)
    assert json.loads((path / ORDER).read_text()) == {"drawn": [drawn], "spread": [[1, 0]]}


def test_a_saved_checkpoint_is_marked_by_the_main_process(tmp_path):
    """The mark is written after the save, and only by one process."""
    arguments = arguments_for(tmp_path)
    path = checkpoint(tmp_path, 5, complete=False)
    CompleteCheckpoints(watching()).on_save(arguments, state(5, main_process=False), None)
    assert last_complete_checkpoint(tmp_path) is None
    CompleteCheckpoints(watching()).on_save(arguments, state(5), None)
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


def test_older_checkpoints_go_and_the_last_calm_one_stays(tmp_path):
    """As many are kept as the setting says: the newest, the last calm one, whole ones before it; a half-written one, or
    one of a later step that a resume passed over, is removed."""
    watch = SimpleNamespace(calm=True)
    marks, arguments, now = CompleteCheckpoints(watch), arguments_for(tmp_path, keep=3), state(0)
    for step, calm in ((1, True), (2, True), (3, False), (4, False), (5, False)):
        watch.calm, now.global_step = calm, step
        checkpoint(tmp_path, step, complete=False)
        if step == 4:
            checkpoint(tmp_path, 9)
            (tmp_path / "checkpoint-3" / "complete").unlink()
        marks.on_save(arguments, now, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def test_free_pages_go_back_after_each_step():
    """Blocks that were freed amid others that are in use are no longer resident memory; what is in use is unharmed."""
    script = (
        "import ctypes, psutil\n"
        "from medgrpo.training.callbacks import TrimmedHeap\n"
        "libc, memory = ctypes.CDLL(None), lambda: psutil.Process().memory_info().rss / 2**20\n"
        "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "blocks = [libc.malloc(2**20) for _ in range(200)]\n"
        "for block in blocks: ctypes.memset(ctypes.c_void_p(block), 7, 2**20)\n"
        "for block in blocks[1::2]: libc.free(block)\n"
        "before = memory()\n"
        "TrimmedHeap().on_step_end(None, None, None)\n"
        "assert all(ctypes.string_at(block, 2**20) == bytes([7]) * 2**20 for block in blocks[0::2])\n"
        "print(before - memory())\n"
    )
    environment = {**os.environ, **CHILD_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if platform.libc_ver()[0] == "glibc":
        assert float(done.stdout) > 80
