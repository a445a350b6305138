"""The trials of a sweep: what each tries, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medgrpo import domains
from medgrpo.config import RunConfig

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "macro_f1": "maximize",
    "unsupported_figures": "minimize",
    "strict_form": "maximize",
}
"""What a trial is judged by on dev, in the order in which values are kept, and which way is better."""
LABELS = {"macro_f1": "macro-F1", "unsupported_figures": "unsupported figures", "strict_form": "strict form"}
OPEN_LABEL = "accuracy"
"""What stands for macro-F1 where answers are open, as numbers are: there are no verdicts to average over."""

State = Literal["complete", "pruned", "failed", "running"]


def labels(config: RunConfig) -> dict[str, str]:
    """What people call each objective, of answers in the run's domain."""
    return LABELS if domains.get(config.data.domain).form.labels else {**LABELS, "macro_f1": OPEN_LABEL}


@dataclass(frozen=True)
class Result:
    """What came of a trial.

    Attributes:
        state: complete, pruned or failed.
        values: one per objective, of a complete trial.
        reason: why it is pruned or failed.
        curve: GRPO step -> mean correctness grade so far, of a complete trial.
        run_id: its MLflow run; empty where there is none.
    """

    state: State
    values: tuple[float, ...] = ()
    reason: str = ""
    curve: Mapping[int, float] = field(default_factory=dict)
    run_id: str = ""


@dataclass(frozen=True)
class Proposal:
    """A trial that is to be run.

    Attributes:
        number: its number in the study.
        values: what it tries, by setting.
        config: the settings of its run; None where the values do not fit together, though the space's corners do.
        problem: why they do not.
    """

    number: int
    values: Mapping[str, Any]
    config: RunConfig | None
    problem: str = ""


@dataclass(frozen=True)
class Trial:
    """A trial as the study remembers it."""

    number: int
    values: Mapping[str, Any]
    result: Result

    @property
    def complete(self) -> bool:
        """Whether it was evaluated."""
        return self.result.state == "complete"

    @property
    def measured(self) -> dict[str, float]:
        """Objective -> value; empty unless the trial is complete."""
        return dict(zip(OBJECTIVES, self.result.values, strict=True)) if self.complete else {}

    def as_row(self) -> dict[str, Any]:
        """The trial as sweep.json and tables list it."""
        result = self.result
        return {
            "trial": self.number,
            "state": result.state,
            **self.values,
            **self.measured,
            "reason": result.reason,
            "mlflow_run_id": result.run_id,
        }
