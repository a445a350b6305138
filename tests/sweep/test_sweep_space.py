"""A search space is typed and checked before anything is tried."""

from collections.abc import Callable
from typing import Any

import pytest

from medgrpo.config import RunConfig, load_config
from medgrpo.errors import InputError
from medgrpo.sweep.space import distributions, own_values, read_space, with_values


def test_a_space_is_written_as_settings_are(sweep_config: Callable[..., RunConfig]) -> None:
    """Nested by section as in TOML, or by dotted names, a space is the same, and survives JSON as Prefect sends it."""
    nested = {
        "grpo": {"learning_rate": {"low": 1e-6, "high": 1e-3, "log": True}, "group_size": [2, 4]},
        "rewards": {"correctness": {"low": 1.0, "high": 2.0}},
    }
    config = sweep_config(space=nested)
    assert config == sweep_config()
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    overrides = ["sweep.space.grpo.beta=[0, 0.04]", "sweep.space.grpo.steps={low=2, high=6, step=2}"]
    assert set(read_space(load_config("smoke", overrides))) == {"grpo.beta", "grpo.steps"}


def test_a_range_has_the_type_of_its_setting(sweep_config: Callable[..., RunConfig]) -> None:
    """A range of a whole number holds whole numbers, any other one real numbers, and choices stay what they are."""
    config = sweep_config(space={"grpo.steps": {"low": 2, "high": 6}, "grpo.beta": {"low": 0, "high": 1}, "seed": [1]})
    names = ("grpo.steps", "grpo.beta")
    space = {name: choices for name, choices in (config.sweep.space or {}).items() if name in names}
    kinds = {name: type(each).__name__ for name, each in distributions(config, space).items()}
    assert kinds == {"grpo.steps": "IntDistribution", "grpo.beta": "FloatDistribution"}


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"grpo.learning_rat": [1e-5]}, "unknown setting 'grpo.learning_rat'; did you mean 'grpo.learning_rate'"),
        ({"rewrads.mode": ["gated"]}, "did you mean 'rewards.mode'"),
        ({"evaluation.cases": [5]}, "evaluation.cases cannot be varied"),
        ({"data.fold": [0, 1]}, "data.fold cannot be varied"),
        ({"grpo.loss_type": {"low": 0, "high": 1}}, "is 'dapo', which is no number; give a list"),
        ({"grpo.steps": {"low": 1.5, "high": 3}}, "is a whole number"),
        ({"grpo.learning_rate": {"low": -1e-5, "high": 1e-3}}, "grpo.learning_rate = -1e-05"),
        ({"grpo.schedule": ["constant", "steep"]}, "grpo.schedule = 'steep'"),
        ({"rewards.structure": {"low": 0.1, "high": 0.9}}, "a wrong answer could earn"),
        ({"rewards.mode": ["gated", "weighted"]}, "Set audit=warn"),
        ({"grpo.group_size": [1, 4]}, "grpo.group_size = 1"),
    ],
)
def test_a_bad_space_is_a_sentence(
    space: dict[str, Any], sentence: str, sweep_config: Callable[..., RunConfig]
) -> None:
    """What cannot be tried, at any corner of the space, is said before any trial starts."""
    with pytest.raises(InputError) as caught:
        read_space(sweep_config(space=space))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sweep.space.grpo.beta=3", "grpo.beta is 3; expected a range"),
        ("sweep.space.grpo.beta=[]", "expected a range {low, high} or a list"),
        ("sweep.space.grpo.beta={low=3, high=2}", "low is 3 and high 2"),
        ("sweep.space.grpo.beta={low=0, high=2, log=true}", "must be above 0"),
        ("sweep.space.grpo.beta={low=0, high=2, stp=1}", "grpo.beta has stp"),
        ("sweep.space.grpo.beta={low='a', high=2}", "grpo.beta: setting 'low' is 'a'"),
        ("sweep.trails=3", "did you mean 'trials'"),
    ],
)
def test_a_bad_section_is_a_sentence(override: str, sentence: str) -> None:
    """A range that is none is said when the profile is read."""
    with pytest.raises(InputError) as caught:
        load_config("smoke", [override])
    assert sentence in str(caught.value)


def test_without_a_space_there_is_nothing_to_try() -> None:
    """A profile without a space says what to add."""
    with pytest.raises(InputError, match=r"no sweep\.space"):
        read_space(load_config("smoke"))


def test_a_large_space_is_checked_by_its_ends(sweep_config: Callable[..., RunConfig]) -> None:
    """Of a space with too many corners each setting's ends are checked by themselves."""
    many = {f"rewards.cost_{name}": {"low": 0.9, "high": 1.0} for name in ("yes_for_no", "no_for_yes")}
    choices = {"grpo.save_steps": list(range(1, 40)), "warmup.save_steps": list(range(1, 40))}
    config = sweep_config(space=many | choices | {"grpo.beta": [0, -1]})
    with pytest.raises(InputError, match=r"grpo\.beta = -1"):
        read_space(config)


def test_values_make_a_run(sweep_config: Callable[..., RunConfig]) -> None:
    """Values by dotted name replace the profile's, and no other setting moves."""
    config = sweep_config()
    changed = with_values(config, {"grpo.group_size": 4, "rewards.correctness": 2.0})
    assert (changed.grpo.group_size, changed.rewards.correctness) == (4, 2.0)
    assert with_values(changed, {"grpo.group_size": 2, "rewards.correctness": 1.0}) == config


def test_the_profile_is_tried_where_the_space_holds_it(sweep_config: Callable[..., RunConfig]) -> None:
    """The profile's own values are known where each lies in its range, on its grid, or among its choices."""
    config = sweep_config()
    assert own_values(config, read_space(config)) == {
        "grpo.learning_rate": 1e-5,
        "grpo.group_size": 2,
        "rewards.correctness": 1.0,
    }
    beside = sweep_config(space={"grpo.steps": {"low": 1, "high": 5, "step": 2}})
    assert own_values(beside, read_space(beside)) is None
