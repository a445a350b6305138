"""Which trial is chosen: the best reader among those that the gate's floors on form and figures let through."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medgrpo.config import GateConfig
from medgrpo.errors import InputError
from medgrpo.sweep.trials import LABELS, OBJECTIVES, Trial


@dataclass(frozen=True)
class Choice:
    """The chosen trial, and why it is this one."""

    trial: Trial
    sentence: str


def dominates(one: Trial, other: Trial) -> bool:
    """Whether a complete trial is at least as good as another by every objective, and better by one."""
    signs = [1 if direction == "maximize" else -1 for direction in OBJECTIVES.values()]
    gains = [
        sign * (mine - theirs) for sign, mine, theirs in zip(signs, one.result.values, other.result.values, strict=True)
    ]
    return min(gains) >= 0 and max(gains) > 0


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The complete trials that no other dominates."""
    complete = [trial for trial in trials if trial.complete]
    return [trial for trial in complete if not any(dominates(other, trial) for other in complete)]


def choose(trials: Sequence[Trial], gate: GateConfig, labels: Mapping[str, str] = LABELS) -> Choice:
    """The Pareto trial with the highest macro-F1 on dev among those that keep to the gate's thresholds there.

    Where none does, among all Pareto trials: the gate will have its say. Of equals the one with fewer unsupported
    figures, then more answers in strict form, then the earlier one. Point estimates decide here, as dev is small; the
    gate, on the profile's own split, judges by intervals.

    Args:
        trials: all trials.
        gate: the thresholds.
        labels: what people call the objectives.

    Raises:
        InputError: no trial is complete.
    """
    front = pareto(trials)
    if not front:
        raise InputError(_none_complete(trials))
    within = [trial for trial in front if _keeps_to(trial, gate)]
    best = min(within or front, key=_rank)
    said = ", ".join(f"{labels[name]} {value:.3f}" for name, value in best.measured.items())
    floors = f"strict form ({gate.strict_form:g}) and unsupported figures ({gate.unsupported_figures:g})"
    return Choice(
        best,
        f"Trial {best.number} is chosen, with {said} on dev. Of {len(front)} Pareto trials {len(within) or 'none'} "
        f"keep to the gate's thresholds on {floors}; of {'these' if within else 'all'} it has the highest "
        f"{labels['macro_f1']}.",
    )


def _keeps_to(trial: Trial, gate: GateConfig) -> bool:
    measured = trial.measured
    return measured["strict_form"] >= gate.strict_form and measured["unsupported_figures"] <= gate.unsupported_figures


def _rank(trial: Trial) -> tuple[float, ...]:
    measured = trial.measured
    return -measured["macro_f1"], measured["unsupported_figures"], -measured["strict_form"], trial.number


def _none_complete(trials: Sequence[Trial]) -> str:
    reasons = dict.fromkeys(trial.result.reason for trial in trials if trial.result.reason)
    told = " ".join(f"- {reason}" for reason in list(reasons)[:3])
    return (
        f"none of the {len(trials)} trials was completed, so none can be chosen. {told} Correct what stopped them, and "
        "set another name: these trials are counted."
    )
