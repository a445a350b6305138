"""Tests of medgrpo.training.stopping and resumable: real trainings of the tiny policy, told to stop at chosen moments.

The training process sends itself the signal, from within a rollout or an optimiser step, so that the moment is exact.
"""

import fcntl
import json
import logging
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from medgrpo.errors import DiskFull, InputError, TrainingCrashed
from medgrpo.testing import tiny_config
from medgrpo.training import launch
from medgrpo.training.callbacks import last_complete_checkpoint
from medgrpo.training.stopping import LOCK_FILE, only_writer

# What a training process does first in these tests; `at` runs before the given call of a method.
PROGRAM = """
import os, resource, signal, sys
from pathlib import Path

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

def shrink():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

def fill():
    disk = os.statvfs(sys.argv[1])
    # What is left is enough for a row of numbers, not for a checkpoint.
    (Path(sys.argv[1]) / "filler").write_bytes(bytes(disk.f_bavail * disk.f_frsize - 32_768))

def at(owner, name, call, act):
    kept, calls = getattr(owner, name), []
    def counted(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            act()
        return kept(*arguments, **options)
    setattr(owner, name, counted)

import torch
from medgrpo.prefix import adapters
from medgrpo.training import __main__ as process, grouped, resumable, verdict_loss
{hook}
sys.exit(process.main(Path(sys.argv[1])))
"""
# Where the signal comes -> what to hook in, and the step of which phase must be saved.
MOMENTS = {
    "warm-up": ("at(verdict_loss.VerdictWeightedTrainer, 'compute_loss', 4, stop)", "warmup", 3),
    "rollout": ("at(grouped, 'generate_completions', 3, stop)", "grpo", 2),
    "optimiser step": ("at(torch.optim.AdamW, 'step', 3 + {warmup}, stop)", "grpo", 3),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepared data and settings that save only at the end of a phase."""
    from medgrpo.preparation import prepare

    directory = tmp_path_factory.mktemp("stopping")
    config = tiny_config(
        directory,
        data={"synthetic_pool": 24, "synthetic_test": 3},
        warmup={"epochs": 1.0, "batch_size": 4, "micro_batch": 4, "learning_rate": 1e-2, "save_steps": 100},
        grpo={"steps": 5, "max_completion_length": 6, "learning_rate": 1e-2, "save_steps": 100, "sampling": "spread"},
    )
    prepare(config, directory / "data")
    return SimpleNamespace(config=config, data=directory / "data", directory=directory)


@pytest.fixture(scope="module")
def whole(prepared):
    """The work directory of a training that nothing interrupted."""
    launch.run(prepared.config, prepared.data, prepared.directory / "whole")
    return prepared.directory / "whole"


@pytest.fixture
def hooked(monkeypatch):
    """Start the training process with a piece of Python before it."""

    def hook(code):
        program = PROGRAM.replace("{hook}", code)
        monkeypatch.setattr(launch, "_command", lambda _, directory: [sys.executable, "-c", program, str(directory)])

    return hook


def steps(work, phase):
    return [
        row["step"]
        for row in map(json.loads, (work / "metrics.jsonl").read_text().splitlines())
        if row["phase"] == phase
    ]


def numbers(state, path=()):
    """The numbers of a nested state, by path."""
    import torch

    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in numbers(value, (*path, key)).items()}
    if isinstance(state, list | tuple):
        return {k: v for place, value in enumerate(state) for k, v in numbers(value, (*path, place)).items()}
    return {path: torch.as_tensor(state)} if isinstance(state, torch.Tensor | int | float) else {}


def assert_same_training(ours, theirs):
    """Weights, optimiser, schedule and random states at the end of both phases are equal to the value."""
    import torch
    from safetensors.torch import load_file

    for phase in ("warmup", "grpo"):
        name = last_complete_checkpoint(theirs / phase).name
        weights = [load_file(work / phase / name / "adapter_model.safetensors") for work in (ours, theirs)]
        states = [{"weights": dict(one)} for one in weights]
        for part in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            for state, work in zip(states, (ours, theirs), strict=True):
                state[part] = torch.load(work / phase / name / part, weights_only=False)
        got, wanted = map(numbers, states)
        assert got.keys() == wanted.keys()
        assert [key for key in wanted if not torch.equal(got[key], wanted[key])] == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_training_saves_its_last_step_and_goes_on_as_if_nothing_had_been(
    prepared, whole, hooked, monkeypatch, tmp_path, moment
):
    """SIGTERM in the warm-up, a rollout or an optimiser step: the sentence names the saved step, no step is done twice,
    and the finished training equals the uninterrupted one to the value."""
    hook, phase, saved = MOMENTS[moment]
    hooked(hook.format(warmup=len(steps(whole, "warmup"))))
    with pytest.raises(TrainingCrashed, match=rf"stopped by SIGTERM\. Step {saved} of {phase} is saved"):
        launch.run(prepared.config, prepared.data, tmp_path)
    assert last_complete_checkpoint(tmp_path / phase).name == f"checkpoint-{saved}"
    monkeypatch.undo()
    launch.run(prepared.config, prepared.data, tmp_path)
    for each in ("warmup", "grpo"):
        assert steps(tmp_path, each) == steps(whole, each)
    assert_same_training(tmp_path, whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_and_adapter_are_passed_over(prepared, whole, tmp_path):
    """A flipped byte in the newest checkpoint, and a truncated adapter: the older checkpoint is used, the warm-up's
    adapter is made again, and the final weights are still equal."""
    config = prepared.config.model_copy(
        update={"grpo": prepared.config.grpo.model_copy(update={"save_steps": 2}), "keep_checkpoints": 3}
    )
    launch.run(config, prepared.data, tmp_path)
    newest = last_complete_checkpoint(tmp_path / "grpo") / "optimizer.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    shutil.rmtree(tmp_path / "grpo" / "adapter")
    weights = tmp_path / "warmup" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    launch.run(config, prepared.data, tmp_path)
    assert steps(tmp_path, "grpo") == [1, 2, 3, 4, 5, 5]
    log = (tmp_path / "train.log").read_text()
    assert f"{newest.parent} is passed over" in log
    assert f"{weights.parent} is made again" in log
    assert_same_training(tmp_path, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def assert_costs_only_itself(config, data, work, whole, sentence, make_room, error=InputError):
    """A checkpoint that cannot be written ends in the sentence, and with room again the training goes on."""
    with pytest.raises(error, match=sentence):
        launch.run(config, data, work)
    assert sorted(path.name for path in (work / "grpo").glob("*-*")) == ["checkpoint-1", "checkpoint-2"]
    assert not (work / "grpo" / "unfinished").exists()
    make_room()
    launch.run(config, data, work)
    assert steps(work, "grpo")[-3:] == [3, 4, 5]
    assert_same_training(work, whole)


def every_step_saved(config):
    return config.model_copy(update={"grpo": config.grpo.model_copy(update={"save_steps": 1})})


@pytest.mark.slow
def test_a_file_that_may_not_grow_costs_one_checkpoint(prepared, whole, hooked, monkeypatch, tmp_path):
    """Where files may not grow any more in the middle of GRPO, the sentence names the place, the older checkpoint is
    whole, nothing half-written is left, and with room again the training goes on."""
    hooked("at(grouped, 'generate_completions', 3, shrink)")
    sentence = f"{tmp_path} cannot be written"
    assert_costs_only_itself(
        every_step_saved(prepared.config), prepared.data, tmp_path, whole, sentence, monkeypatch.undo
    )


@pytest.mark.slow
def test_a_full_disk_costs_one_checkpoint(prepared, whole, hooked, monkeypatch, small_disk):
    """The same on a disk that is really full, on which not even the note finds room."""
    hooked("at(grouped, 'generate_completions', 3, fill)")

    def make_room():
        (small_disk / "filler").unlink()
        monkeypatch.undo()

    sentence = f"no space left on the disk of {small_disk}"
    assert_costs_only_itself(
        every_step_saved(prepared.config), prepared.data, small_disk, whole, sentence, make_room, error=DiskFull
    )


def test_a_second_process_waits_for_the_first(tmp_path, caplog):
    """While one writes in a directory another one waits, says so, and goes on when the first has ended."""
    order = []

    def second():
        with only_writer(tmp_path):
            order.append("second")

    with caplog.at_level(logging.WARNING), only_writer(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(5)
    assert order == ["first", "second"]
    assert "another training process still works in" in caplog.text
    with (tmp_path / LOCK_FILE).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
