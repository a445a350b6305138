"""Run the trials of a study, as many at a time as the runner takes, until there are enough."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from medgrpo.sweep.study import Study
from medgrpo.sweep.trials import Proposal, Result, Trial


class Runner(Protocol):
    """What trains and evaluates trials."""

    capacity: int
    """Trials at the same time."""

    def start(self, proposal: Proposal) -> None:
        """Begin a trial, or find it again where an earlier sweep has begun it."""

    def ended(self, proposal: Proposal) -> Result | None:
        """What came of a trial; None while it is under way."""


def run_trials(study: Study, runner: Runner, pause: Callable[[], None] = lambda: time.sleep(2)) -> Iterator[Trial]:
    """Take up what was interrupted, then ask for new trials; yields each trial as it ends.

    A trial that fails is told as failed, and the others go on.

    Args:
        study: what is asked and told.
        runner: what runs them.
        pause: called while all trials under way go on.
    """
    waiting, flying = study.interrupted(), list[Proposal]()
    while True:
        while len(flying) < runner.capacity and (proposal := waiting.pop(0) if waiting else study.ask()):
            if proposal.config is None:
                study.tell(proposal.number, Result("failed", reason=proposal.problem))
                yield study.trials()[proposal.number]
                continue
            runner.start(proposal)
            flying.append(proposal)
        if not flying:
            return
        ended = [(proposal, result) for proposal in flying if (result := runner.ended(proposal))]
        for proposal, result in ended:
            study.tell(proposal.number, result)
            flying.remove(proposal)
            yield study.trials()[proposal.number]
        if not ended:
            pause()
