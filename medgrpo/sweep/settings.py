"""Settings of sweeps: the section `[sweep]` of a profile, and which trial a run is. Imported by `medgrpo.config`."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from medgrpo.settings import Settings, explain_value


class Range(Settings):
    """Values of a number between two bounds, both included."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether values are drawn by their order of magnitude; `low` must be above 0, and there is no `step` then."""
    step: float | None = None
    """Distance between values; unset, whole numbers lie 1 apart and others as near as they like."""

    @model_validator(mode="after")
    def _holds_a_value(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; swap them")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"with log = true low ({self.low:g}) must be above 0, and step unset")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step is {self.step:g}, but must be above 0")
        return self


class SweepConfig(Settings):
    """What sweep-medgrpo tries: trials of this profile that differ in a few settings. An ordinary run ignores it.

    A sweep is found again by the run's `name`; unset, that is the profile with a digest of all that its trials depend
    on, so that other settings are another sweep.
    """

    space: dict[str, Range | tuple[bool | int | float | str, ...]] | None = None
    """Setting of `policy`, `warmup`, `grpo` or `rewards` -> what it may be: a range {low, high, log, step} or a list of
    choices; in a profile `[sweep.space]` with lines such as `grpo.beta = [0, 0.04]`."""
    trials: PositiveInt = 20
    """Trials in all, failed and pruned ones included."""
    parallel: PositiveInt = 1
    """Trials under way at the same time, where `deployment` spreads them over workers."""
    deployment: str = ""
    """Deployment, as FLOW/NAME, that each trial is a run of; empty, or without a Prefect server, trials run one after
    another in the sweep's own process."""
    storage: str | None = None
    """Database URL of the study; unset, MEDGRPO_SWEEP_STORAGE, else SQLite in the runs directory."""
    seed: int = 5
    """Seed of what is tried; with the number of a trial it decides the trial's own draw."""
    cases: PositiveInt | Literal["all"] = "all"
    """Cases of the dev split that trials are judged on; the test split is left alone until one is chosen."""
    prune_alarms: bool = True
    """Whether an alarm of the watch ends a trial, whatever `watch.action` says of the chosen one."""
    prune_after: PositiveInt = 4
    """Completed trials that it takes before a trial is held against their median; more than `trials` is never."""
    prune_from: float = Field(default=0.3, ge=0, lt=1)
    """Share of the GRPO steps that a trial has before it is held against the median."""

    @field_validator("deployment")
    @classmethod
    def _of_a_flow(cls, value: str) -> str:
        flow, slash, name = value.partition("/")
        if value and not (slash and flow and name and "/" not in name):
            raise ValueError(f"expected FLOW/NAME, for example train-medgrpo/{value.strip('/')}")
        return value

    @field_validator("space", mode="before")
    @classmethod
    def _by_dotted_names(cls, value: Any) -> Any:
        """Settings by their dotted names: TOML, and `--set`, nest them by section."""
        return _flat_space(value) if isinstance(value, Mapping) else value


class TrialConfig(Settings):
    """Which trial of a sweep a run is."""

    sweep: str
    """Identity of the sweep's study: a name may come again, with another database behind it."""
    study: str
    """The study's name."""
    number: NonNegativeInt
    """Number of the trial in it."""
    parent: str
    """MLflow run of the sweep, under which the trial's own is nested."""
    bar: dict[int, float] = Field(default_factory=dict)
    """GRPO step -> mean correctness grade of all steps so far, below which the trial is pruned there."""


def _flat_space(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and not value.keys() & Range.model_fields.keys():
            flat |= _flat_space(value, f"{name}.")
        elif isinstance(value, Mapping):
            flat[name] = _range(name, value)
        elif isinstance(value, Range) or (isinstance(value, list | tuple) and value):
            flat[name] = value
        else:
            raise ValueError(f"{name} is {value!r}; expected a range {{low, high}} or a list of choices")
    return flat


def _range(name: str, values: Mapping[str, Any]) -> Range:
    if unknown := values.keys() - Range.model_fields.keys():
        raise ValueError(
            f"{name} has {', '.join(sorted(unknown))}; a range has low, high and, if need be, log and step"
        )
    try:
        return Range.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        said = explain_value(".".join(map(str, problem["loc"])), problem)
        raise ValueError(f"{name}: {said}".rstrip(".")) from error
