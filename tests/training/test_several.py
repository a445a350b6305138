"""Tests of a training in several processes: two on the processor, which exchange numbers over gloo.

What they train on is written for them, so that it does not depend on how a step is shared out.
"""

import json
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from medgrpo.config import RunConfig, load_config
from medgrpo.errors import InputError, TrainingCrashed
from medgrpo.testing import tiny_gemma
from medgrpo.training import launch
from medgrpo.training.callbacks import last_complete_checkpoint

pytestmark = pytest.mark.slow

# Two processes start this instead of the training; `hook` runs before each rollout of each of them.
PROGRAM = """
import os, random, signal, sys, time
from collections import Counter
from pathlib import Path

from medgrpo.training import __main__ as process, grouped

rank, rollouts = int(os.environ.get("RANK", "0")), []

def written(trainer, prompts, *_, **__):
    rollouts.append(prompts)
    {hook}
    tokenizer, seen, completions = trainer.processing_class, Counter(), []
    for prompt in map(tuple, prompts):
        draw = random.Random(f"{prompt}/{seen[prompt]}")
        seen[prompt] += 1
        thought = "Mean pain fell with the treatment, " + "and more so than with placebo, " * draw.randrange(3)
        text = f"<thought>{thought}</thought><answer>{draw.choice(['yes', 'no', 'maybe'])}</answer>"
        completions.append([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id])
    return completions, None

grouped.GroupedGRPOTrainer._generate_single_turn = written
sys.exit(process.main(Path(sys.argv[1])))
"""
KILL = "if rank == 1 and len(rollouts) == 4: os.kill(os.getpid(), signal.SIGKILL)"
# The launcher passes the signal on; the step is held up until it has.
STOP = "if rank == 0 and len(rollouts) == 1: os.kill(os.getppid(), signal.SIGTERM); time.sleep(2)"


def start(monkeypatch, directory, text, processes):
    """Let `launch.run` start a program as so many processes."""
    program = directory / "program.py"
    program.write_text(text)
    words = launch.launcher(processes) if processes > 1 else [sys.executable]
    monkeypatch.setattr(launch, "_command", lambda _, work: [*words, str(program), str(work)])


def left_of(directory):
    """Processes that still work in a directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(directory) in (process.info["cmdline"] or []):
            found.append(process)
    return found


def rows_of(work, phase):
    rows = map(json.loads, (work / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["phase"] == phase]


def adapter(work, phase):
    import torch
    from safetensors.torch import load_file

    weights = load_file(work / phase / "adapter" / "adapter_model.safetensors")
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Profile multi-gpu on a tiny Gemma 3 and a few synthetic records, all of which are one step of the warm-up."""
    from medgrpo.preparation import prepare

    directory = tmp_path_factory.mktemp("several")
    changes = {
        "policy.base": tiny_gemma(directory / "policy"),
        "policy.autocast": "none",
        "data.domain": "synthetic",
        "data.synthetic_pool": 20,
        "data.synthetic_test": 3,
        "warmup.batch_size": 16,
        "warmup.micro_batch": 4,
        "warmup.learning_rate": 1e-2,
        "grpo.steps": 5,
        "grpo.prompts_per_step": 4,
        "grpo.group_size": 4,
        "grpo.micro_batch_tokens": 400,
        "grpo.learning_rate": 1e-3,
        "grpo.save_steps": 2,
    }
    config = load_config("multi-gpu", [f"{name}={value}" for name, value in changes.items()])
    assert config.processes == 2
    counts = prepare(config, directory / "data")["counts"]["train"]
    assert sum(counts.values()) == config.warmup.batch_size
    return SimpleNamespace(config=config, data=directory / "data", directory=directory)


@pytest.fixture(scope="module")
def one(prepared):
    """The work directory of the same training in one process."""
    work = prepared.directory / "one"
    with pytest.MonkeyPatch.context() as patch:
        start(patch, prepared.directory, PROGRAM.replace("{hook}", ""), processes=1)
        launch.run(prepared.config.model_copy(update={"processes": 1}), prepared.data, work)
    return work


@pytest.fixture(scope="module")
def two(prepared):
    """A training in two processes that was killed, then stopped, and resumed: its work directory, and what was said."""
    work, said = prepared.directory / "two", []
    for hook in (KILL, STOP, ""):
        with pytest.MonkeyPatch.context() as patch:
            start(patch, prepared.directory, PROGRAM.replace("{hook}", hook), processes=2)
            try:
                launch.run(prepared.config, prepared.data, work)
            except TrainingCrashed as crash:
                said.append(str(crash))
            assert left_of(work) == []
    return SimpleNamespace(work=work, said=said)


def test_two_processes_have_the_loss_of_one(one, two):
    """With the same completions each step has the same loss, gradient, rewards and facts, however it is shared out."""
    for phase, names in (("warmup", ("loss", "grad_norm")), ("grpo", ("loss", "grad_norm", "reward", "reward_std"))):
        rows = {row["step"]: row for row in rows_of(two.work, phase)}
        for wanted in rows_of(one, phase):
            facts = [name for name in wanted if name.startswith(("watch/", "completions/", "rewards/"))]
            for name in (*names, *facts):
                assert rows[wanted["step"]][name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-6), (phase, name)
    assert max(row["reward_std"] for row in rows_of(one, "grpo")) > 0.1


def test_two_processes_train_to_the_weights_of_one(one, two):
    """After warm-up and GRPO, killed and stopped on the way, the adapter is the one of a single process."""
    for phase in ("warmup", "grpo"):
        ours, wanted = adapter(two.work, phase), adapter(one, phase)
        before = adapter(one, "warmup") if phase == "grpo" else 0 * wanted
        assert (ours - wanted).norm() < 1e-2 * (wanted - before).norm(), phase
    assert (adapter(one, "grpo") - adapter(one, "warmup")).norm() > 1e-3


def test_a_killed_process_ends_all_and_a_stopped_training_saves_together(two):
    """SIGKILL of one is named; SIGTERM saves the step that all are in, though none is due; no step is done twice."""
    killed, stopped = two.said
    assert killed.startswith("the training process (one of several) was killed by SIGKILL (out of memory?")
    assert stopped.endswith("stopped by SIGTERM. Step 3 of grpo is saved: running it again goes on from there.")
    assert [row["step"] for row in rows_of(two.work, "grpo")] == [1, 2, 3, 3, 4, 5]
    assert [row["step"] for row in rows_of(two.work, "warmup")] == [1, 2]


def test_one_process_writes(two):
    """There is one adapter and one merged model; nothing half-written is left, and the last checkpoint is whole."""
    assert last_complete_checkpoint(two.work / "grpo").name == "checkpoint-5"
    assert not list(two.work.glob("**/*.partial"))
    assert not list(two.work.glob("**/unfinished"))
    assert not (two.work / "failure.json").exists()
    summary = json.loads((two.work / "training.json").read_text())
    assert summary["adapter_change"] > 1e-3
    assert summary["merge_difference"] < 1e-4


# --- Processes that only seem to train ---------------------------------------------------------------------------

RANK = """
import os, sys, time
from pathlib import Path
rank, directory = int(os.environ["RANK"]), Path(sys.argv[1])
"""


@pytest.fixture
def ranks(monkeypatch, tmp_path):
    """Run a piece of Python as two processes instead of the training; it finds its `rank` and the `directory`."""
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.05)
    return lambda code: start(monkeypatch, tmp_path, RANK + code, processes=2)


def test_the_first_reason_is_the_one_that_is_told(tmp_path, ranks):
    """A process that fails on purpose ends the others, and what they then say does not hide its sentence."""
    ranks(
        "from medgrpo.errors import InputError\n"
        "from medgrpo.training.stopping import Stopping, leave_note\n"
        "with Stopping(directory):\n"
        "    if rank == 0:\n"
        "        time.sleep(60)\n"
        "    time.sleep(1)\n"
        "    leave_note(directory, InputError('The reason, in words.'))\n"
        "    sys.exit(2)\n"
    )
    with pytest.raises(InputError, match=r"^The reason, in words\.$"):
        launch.run(RunConfig(), tmp_path, tmp_path / "work")
    assert left_of(tmp_path / "work") == []


def test_a_killed_launcher_leaves_no_strays(tmp_path, ranks):
    """What it started ends by itself within seconds, though it is in sessions of its own."""
    ranks(
        "import signal\n"
        "from medgrpo.training import __main__ as process\n"
        "from medgrpo.training.stopping import Stopping\n"
        "process._die_with(int(os.environ['MEDGRPO_PARENT']))\n"
        "with Stopping(directory):\n"
        "    (directory / f'ready{rank}').touch()\n"
        "    while rank == 0 and not (directory / 'ready1').exists():\n"
        "        time.sleep(0.1)\n"
        "    if rank == 0:\n"
        "        os.kill(os.getppid(), signal.SIGKILL)\n"
        "    time.sleep(60)\n"
    )
    with pytest.raises(TrainingCrashed, match="the training process was killed by SIGKILL"):
        launch.run(RunConfig(), tmp_path, tmp_path / "work")
    deadline = time.monotonic() + 10
    while left_of(tmp_path / "work") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_of(tmp_path / "work") == []


def test_two_trainings_at_once_do_not_meet(tmp_path, ranks):
    """Each launcher takes a port of its own."""
    ranks(
        "(directory / f'port{rank}').write_text(os.environ['MASTER_PORT'])\n"
        "time.sleep(4)\n"
        "(directory / 'training.json').write_text('{}')\n"
    )
    runs = [
        threading.Thread(target=launch.run, args=(RunConfig(), tmp_path, tmp_path / name)) for name in ("left", "right")
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    ports = [{(tmp_path / name / f"port{rank}").read_text() for rank in (0, 1)} for name in ("left", "right")]
    assert all(len(found) == 1 for found in ports)
    assert ports[0] != ports[1]
