"""The loop that keeps trials under way."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from medgrpo.config import RunConfig
from medgrpo.sweep.loop import run_trials
from medgrpo.sweep.study import open_study
from medgrpo.sweep.trials import Proposal, Result

pytestmark = pytest.mark.slow


@dataclass
class FakeRunner:
    """Trials take as many looks as there are slots; those named fail."""

    capacity: int = 1
    fails: tuple[int, ...] = ()
    started: list[int] = field(default_factory=list)
    most: int = 0
    looks: dict[int, int] = field(default_factory=dict)

    def start(self, proposal: Proposal) -> None:
        self.started.append(proposal.number)
        self.looks[proposal.number] = 0
        self.most = max(self.most, len(self.looks))

    def ended(self, proposal: Proposal) -> Result | None:
        self.looks[proposal.number] += 1
        if self.looks[proposal.number] < self.capacity:
            return None
        del self.looks[proposal.number]
        if proposal.number in self.fails:
            return Result("failed", reason="no GPU")
        return Result("complete", (0.1, 0.2, 0.3))


def _run(config: RunConfig, runner: FakeRunner, stop_after: int | None = None) -> list[str]:
    states = []
    with open_study(config) as study:
        for trial in run_trials(study, runner, pause=lambda: None):
            states.append(trial.result.state)
            if len(states) == stop_after:
                break
    return states


@pytest.mark.parametrize("capacity", [1, 3])
def test_as_many_trials_as_there_are_slots(capacity: int, sweep_config: Callable[..., RunConfig]) -> None:
    """Each number is started once, in order, and never more at a time than the runner takes."""
    runner = FakeRunner(capacity)
    assert _run(sweep_config(), runner) == ["complete"] * 6
    assert runner.started == list(range(6))
    assert runner.most == capacity


def test_a_failed_trial_is_no_failed_sweep(sweep_config: Callable[..., RunConfig]) -> None:
    """The others go on, and the failed one is counted."""
    states = _run(sweep_config(), FakeRunner(fails=(0, 3)))
    assert states == ["failed", "complete", "complete", "failed", "complete", "complete"]


def test_interrupted_trials_are_taken_up_first(sweep_config: Callable[..., RunConfig]) -> None:
    """What was under way when the sweep was killed is started again under its numbers, and then the rest."""
    _run(sweep_config(), FakeRunner(capacity=3), stop_after=1)
    runner = FakeRunner(capacity=3)
    _run(sweep_config(), runner)
    assert runner.started == [1, 2, 3, 4, 5]


def test_values_that_do_not_fit_together_are_a_failed_trial(sweep_config: Callable[..., RunConfig]) -> None:
    """Where the corners of a space are valid and a point inside is not, that trial fails with the sentence."""
    space = {"grpo.prompts_per_step": {"low": 2, "high": 4}}
    others = {"processes": 2, "grpo": {"group_size": 3}, "warmup": {"batch_size": 8}}
    config = sweep_config(others=others, space=space, trials=8)
    runner = FakeRunner()
    states = _run(config, runner)
    assert set(states) == {"failed", "complete"}
    with open_study(config) as study:
        failed = [trial for trial in study.trials() if trial.result.state == "failed"]
    assert all("cannot be shared out to 2 processes" in trial.result.reason for trial in failed)
    assert not {trial.number for trial in failed} & set(runner.started)
