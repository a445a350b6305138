"""The search space of a sweep: settings and what they may be, as Optuna's distributions and as a run's settings."""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medgrpo.config import RunConfig, parse_config
from medgrpo.errors import InputError
from medgrpo.settings import nearest
from medgrpo.sweep.settings import Range

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.distributions import BaseDistribution

SECTIONS = ("policy", "warmup", "grpo", "rewards")
"""Sections whose settings a sweep may vary: other data, other cases or another gate would make trials incomparable."""
MAX_CORNERS = 4096
Value = bool | int | float | str
Values = Mapping[str, Value]
Choices = Range | tuple[Value, ...]


def read_space(config: RunConfig) -> dict[str, Choices]:
    """What a sweep varies, checked: every setting exists, and runs at the corners of the space are valid.

    Raises:
        InputError: there is no space, a setting is unknown (with the nearest names) or cannot be varied, or a run at a
            corner of the space would not be valid.
    """
    space = config.sweep.space
    if not space:
        raise InputError(
            f"profile {config.profile} has no sweep.space, so there is nothing to try. Add a section [sweep.space] "
            "with lines such as grpo.beta = [0, 0.04], or --set 'sweep.space.grpo.learning_rate={low=1e-6, high=1e-4, "
            "log=true}'."
        )
    for name, choices in space.items():
        _check(config, name, choices)
    modes = space.get("rewards.mode", ())
    if config.audit == "fail" and isinstance(modes, tuple) and "weighted" in modes:
        raise InputError(
            "sweep.space: rewards.mode may be 'weighted', whose holes the audit finds, so that each such trial would "
            "fail. Set audit=warn to try it all the same; the gate lets none of them pass."
        )
    _check_corners(config, space)
    return dict(space)


def with_values(config: RunConfig, values: Values) -> RunConfig:
    """The same run with other values of some settings, given by dotted names.

    Raises:
        InputError: they do not fit together.
    """
    changed = config.model_dump()
    for name, value in values.items():
        section, setting = name.split(".")
        changed[section][setting] = value
    said = ", ".join(f"{name} = {value!r}" for name, value in values.items())
    return parse_config(changed, source=f"sweep.space, at {said}")


def own_values(config: RunConfig, space: Mapping[str, Choices]) -> dict[str, Value] | None:
    """The profile's own values of what is varied; None where one of them is outside of the space."""
    own = {name: _own(config, name) for name in space}
    return own if all(_holds(space[name], value) for name, value in own.items()) else None


def distributions(config: RunConfig, space: Mapping[str, Choices]) -> "dict[str, BaseDistribution]":
    """The space as Optuna's distributions: a range of a setting that is a whole number holds whole numbers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def one(name: str, choices: Choices) -> "BaseDistribution":
        if not isinstance(choices, Range):
            return CategoricalDistribution(choices)
        if _is_whole(config, name):
            return IntDistribution(int(choices.low), int(choices.high), choices.log, int(choices.step or 1))
        return FloatDistribution(choices.low, choices.high, choices.log, choices.step)

    return {name: one(name, choices) for name, choices in space.items()}


def suggest(trial: "Trial", drawn: "Mapping[str, BaseDistribution]") -> dict[str, Value]:
    """A value for each setting; one that the trial has already stays."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values: dict[str, Value] = {}
    for name, each in drawn.items():
        if isinstance(each, CategoricalDistribution):
            choice = trial.suggest_categorical(name, each.choices)
            assert choice is not None
            values[name] = choice
        elif isinstance(each, IntDistribution):
            values[name] = trial.suggest_int(name, each.low, each.high, step=each.step, log=each.log)
        elif isinstance(each, FloatDistribution):
            values[name] = trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)
    return values


def _check(config: RunConfig, name: str, choices: Choices) -> None:
    section = name.partition(".")[0]
    known = [f"{part}.{each}" for part in SECTIONS for each in type(getattr(config, part)).model_fields]
    if section in RunConfig.model_fields and section not in SECTIONS:
        raise InputError(
            f"sweep.space: {name} cannot be varied, only settings of {', '.join(SECTIONS)}: trials must answer "
            "the same cases of the same data, and be judged alike."
        )
    if name not in known:
        beside = [each for each in known if each.startswith(f"{section}.")]
        raise InputError(f"sweep.space: unknown setting {name!r}{nearest(name, beside or known)}")
    if not isinstance(choices, Range):
        return
    own = _own(config, name)
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise InputError(f"sweep.space: {name} is {own!r}, which is no number; give a list of choices, not a range.")
    bounds = (choices.low, choices.high, choices.step or 1)
    if _is_whole(config, name) and not all(float(bound).is_integer() for bound in bounds):
        raise InputError(f"sweep.space: {name} is a whole number; give whole low, high and step.")


def _check_corners(config: RunConfig, space: Mapping[str, Choices]) -> None:
    """Make every setting that a corner of the space stands for; of a large space each setting's ends by themselves."""
    ends = {
        name: (choices.low, choices.high) if isinstance(choices, Range) else choices for name, choices in space.items()
    }
    if math.prod(map(len, ends.values())) <= MAX_CORNERS:
        for corner in itertools.product(*ends.values()):
            with_values(config, dict(zip(ends, corner, strict=True)))
    else:
        for name, values in ends.items():
            for value in values:
                with_values(config, {name: value})


def _own(config: RunConfig, name: str) -> Any:
    section, setting = name.split(".")
    return getattr(getattr(config, section), setting)


def _is_whole(config: RunConfig, name: str) -> bool:
    own = _own(config, name)
    return isinstance(own, int) and not isinstance(own, bool)


def _holds(choices: Choices, value: Any) -> bool:
    if not isinstance(choices, Range):
        return value in choices
    steps = (value - choices.low) / choices.step if choices.step else 0.0
    return choices.low <= value <= choices.high and abs(steps - round(steps)) < 1e-9
