"""SIGKILL at seeded moments of a run: it completes by itself, and nothing but the steps since a checkpoint is lost.

MEDGRPO_KILL_LOG names a file that the table of all kills is written to.
"""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.stack import WAIT_SECONDS, Run, Stack, check_result, gone_within
from medgrpo import stages

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SAVE_STEPS = 2


@dataclass(frozen=True)
class Phase:
    """Part of a run.

    Attributes:
        process: the process that is in it.
        place: what there is among the run's artifacts by then.
        stack: what the process's stack shows, innermost call first.
    """

    process: str
    place: str
    stack: re.Pattern[str]


def _within(*calls: str) -> re.Pattern[str]:
    return re.compile(".*".join(calls), re.DOTALL)


PHASES = {
    "warm-up": Phase("training", "train-*/warmup", _within("in training_step", "in train_warmup")),
    "rollout": Phase("training", "train-*/grpo", _within("in _generate_and_score_completions", "in train_grpo")),
    "optimiser step": Phase(
        "training", "train-*/grpo", _within("(torch/optim/|in backward|in compute_loss)", "in train_grpo")
    ),
    "checkpoint": Phase("training", "train-*/grpo", _within("in _save_checkpoint", "in train_grpo")),
    "evaluation": Phase("flow", "evaluation-*.partial", _within("in evaluate_training")),
    "registration": Phase("flow", "registration-*.partial", _within("medgrpo/registry/", "in register")),
}


@dataclass(frozen=True)
class Kill:
    """What is killed, and when.

    Attributes:
        seed: decides at which moment of the phase.
        victim: "training"; "flow", which is the flow run's process; "worker"; or "host", which is all of them at once.
        phase: one of `PHASES`.
    """

    seed: int
    victim: str
    phase: str


# Two pools, so that a run may wait for its retry while another one works.
KILLS = {
    "cpu": [
        Kill(1, "training", "warm-up"),
        Kill(2, "training", "rollout"),
        Kill(3, "training", "optimiser step"),
        Kill(4, "training", "checkpoint"),
        Kill(5, "flow", "evaluation"),
        Kill(6, "flow", "registration"),
    ],
    "t4": [
        Kill(7, "flow", "warm-up"),
        Kill(8, "flow", "checkpoint"),
        Kill(9, "worker", "rollout"),
        Kill(10, "worker", "registration"),
        Kill(11, "host", "optimiser step"),
    ],
}


@dataclass
class Outcome:
    """A kill and what came of it.

    Attributes:
        run: the run.
        before: rows of metrics.jsonl when its training was gone, or when the worker was.
        moment: the innermost of the calls that were interrupted.
        seconds: from the kill to the end of the run.
        summary: of the completed run.
    """

    kill: Kill
    run: Run
    before: list[dict[str, Any]]
    moment: str
    seconds: float
    summary: dict[str, Any]

    @property
    def repeated(self) -> int:
        """Steps that were trained again."""
        steps = [(row["phase"], row["step"]) for row in self.run.rows()]
        return len(steps) - len(set(steps))

    def as_row(self) -> str:
        kill, last = self.kill, self.before[-1] if self.before else {"phase": "-", "step": 0}
        states = " → ".join(self.run.states())
        cells = (kill.seed, kill.victim, kill.phase, self.moment, f"{last['phase']} {last['step']}", self.repeated)
        return f"| {' | '.join(map(str, cells))} | {self.seconds:.0f} | {states} |"


HEADER = (
    "| seed | killed | phase | in | last step | steps repeated | seconds to completion | states |\n"
    "|---|---|---|---|---|---|---|---|"
)


def _stopped_in(run: Run, phase: Phase, rng: random.Random) -> tuple[psutil.Process, str]:
    """Stop the process at a seeded moment of the phase; returns it, and the call that it is in."""
    countdown, deadline = rng.randint(1, 2), time.monotonic() + WAIT_SECONDS
    while not list(run.artifacts.glob(phase.place)) and time.monotonic() < deadline:
        time.sleep(0.02)
    process = None
    while time.monotonic() < deadline:
        process = process if process and process.is_running() else run.process(phase.process)
        with suppress(psutil.Error):
            if process and (found := phase.stack.search(_stack(run.stack, process))):
                countdown -= 1
                if countdown == 0:
                    return process, _innermost(found)
            if process:
                process.resume()
        time.sleep(rng.uniform(0.01, 0.04) if process else 0.1)
    raise AssertionError(f"the run was never seen in {phase}: {run.states()}\n{run.log()}")


def _stack(stack: Stack, process: psutil.Process) -> str:
    """What the main thread of a process is doing, which is stopped there; empty where it cannot tell yet."""
    file = stack.root / "stacks" / str(process.pid)
    if not file.is_file():
        return ""
    before = file.stat().st_size
    process.send_signal(signal.SIGUSR1)
    limit = time.monotonic() + 1
    while file.stat().st_size == before and time.monotonic() < limit:
        time.sleep(0.001)
    process.suspend()
    return file.read_bytes()[before:].decode(errors="replace")


def _innermost(found: re.Match[str]) -> str:
    [(file, call), *_] = re.findall(r'File "[^"]*?([^/"]+)", line \d+, in (\w+)', found.string)
    return f"{file}: {call}"


def _kill(stack: Stack, pool: str, run: Run, victim: str, stopped: psutil.Process) -> None:
    """SIGKILL; what is left of the run goes on, and the worker is started again as a service manager would."""
    worker = f"worker-{pool}"
    if victim == "training":
        stopped.kill()
    elif victim == "flow":
        flow = run.process("flow")
        assert flow, "the run has no process that could be killed"
        flow.kill()
    else:
        stack.kill(worker)
        if victim == "host":
            _end(run)
    with suppress(psutil.Error):
        stopped.resume()
    if worker not in stack.started:
        stack.start(worker)


def _suffer(stack: Stack, pool: str, kill: Kill) -> Outcome:
    """A run that is killed once, and completes."""
    # As many as it takes to be seen in the middle of them.
    steps = 40 if "train_grpo" in PHASES[kill.phase].stack.pattern else 8
    changes: dict[str, Any] = {
        "seed": kill.seed,
        "warmup": {"epochs": 1.5, "save_steps": SAVE_STEPS},
        "grpo": {"steps": steps, "save_steps": SAVE_STEPS},
    }
    run = stack.train(pool, stack.config(f"kill-{kill.seed}", **changes))
    with ExitStack() as failed:
        # What is left of it would keep the pool's only slot.
        failed.callback(_end, run)
        outcome = _killed_once(stack, pool, kill, run)
        failed.pop_all()
    return outcome


def _end(run: Run) -> None:
    for process in run.processes():
        with suppress(psutil.Error):
            process.kill()


def _killed_once(stack: Stack, pool: str, kill: Kill, run: Run) -> Outcome:
    """What comes of a run that has been started."""
    stopped, moment = _stopped_in(run, PHASES[kill.phase], random.Random(kill.seed))
    working = {process.pid for process in [run.process("training")] if process}
    killed = time.monotonic()
    _kill(stack, pool, run, kill.victim, stopped)
    if kill.victim != "worker":
        left = gone_within(lambda: [process for process in run.processes() if process.pid in working], 30)
        assert not left, "the training went on without the flow that follows it"
    before = run.rows()
    summary = run.completed()
    return Outcome(kill, run, before, moment, time.monotonic() - killed, summary)


@pytest.fixture(scope="module")
def outcomes(stack: Stack, request: pytest.FixtureRequest) -> dict[Kill, Callable[[], Outcome]]:
    """Every kill that is asked for, pools side by side; a call gives its outcome, or raises what went wrong."""
    wanted = {item.callspec.params.get("kill") for item in request.session.items if hasattr(item, "callspec")}
    lanes = {pool: ThreadPoolExecutor(1) for pool in KILLS}
    ended = {
        kill: lanes[pool].submit(_suffer, stack, pool, kill)
        for pool, kills in KILLS.items()
        for kill in kills
        if kill in wanted
    }
    rows = [future.result().as_row() for future in ended.values() if not future.exception()]
    if path := os.environ.get("MEDGRPO_KILL_LOG"):
        Path(path).write_text("\n".join([HEADER, *rows]) + "\n")
    return {kill: future.result for kill, future in ended.items()}


@pytest.fixture(scope="module")
def digest(stack: Stack) -> str:
    """Digest of the data that nothing disturbed the preparation of."""
    return stages.prepare(stack.config("undisturbed")).sha256


@pytest.mark.parametrize(
    "kill", [kill for kills in KILLS.values() for kill in kills], ids=lambda kill: f"seed-{kill.seed}"
)
def test_a_killed_run_completes(kill: Kill, outcomes: dict[Kill, Callable[[], Outcome]], digest: str) -> None:
    """One version, one MLflow run, every step, the same data, no stray process; little is repeated, nothing lost."""
    outcome = outcomes[kill]()
    check_result(outcome.run, outcome.summary, digest)
    assert outcome.run.rows()[: len(outcome.before)] == outcome.before
    assert outcome.repeated <= SAVE_STEPS
