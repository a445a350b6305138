"""What tests of sweeps share: settings with a space, and trials as a study remembers them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgrpo.config import RunConfig
from medgrpo.sweep.trials import Result, Trial
from medgrpo.testing import tiny_config

SPACE: dict[str, Any] = {
    "grpo.learning_rate": {"low": 1e-6, "high": 1e-3, "log": True},
    "grpo.group_size": [2, 4],
    "rewards.correctness": {"low": 1.0, "high": 2.0},
}


@pytest.fixture
def sweep_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes settings of a sweep; arguments change its section, `others` those of the run."""

    def make(others: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
        settings = {"space": SPACE, "trials": 6, **changes}
        return tiny_config(tmp_path, sweep=settings, **(others or {}))

    return make


@pytest.fixture
def complete() -> Callable[..., Trial]:
    """Makes a complete trial from its number, macro-F1, unsupported figures and strict form."""

    def make(number: int, *values: float) -> Trial:
        return Trial(number, {"grpo.group_size": 4}, Result("complete", values))

    return make
