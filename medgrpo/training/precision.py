"""What a training computes in, and which backend runs it, where the settings leave that to the machine."""

import logging
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from medgrpo.config import RunConfig
from medgrpo.manifests import write_json
from medgrpo.policies.backends import (
    Backend,
    architecture_of,
    check_packages,
    choose_backend,
    installed_packages,
    present_capability,
)
from medgrpo.policies.precision import Precision, check_precision, device_name, precision_for

DECISION_FILE = "settled.json"
"""What was decided for a training; a resumed one goes on with it."""
GAIN = 1.2
"""How many times as fast bfloat16 must be: what autocast converts back and forth costs something too."""
# A batch of tokens through a feed-forward layer of a small model.
SHAPE, REPEATS = (1024, 576, 1536), 8

logger = logging.getLogger(__name__)


class Decisions(BaseModel):
    """What the machine decided."""

    model_config = ConfigDict(frozen=True, strict=True)

    backend: Backend
    """What loads and trains the model."""
    bfloat16: bool
    """Whether `auto` stands for bfloat16."""


def settle(config: RunConfig, directory: Path) -> RunConfig:
    """The settings with every "auto" decided, and checked against what this machine can do.

    Unsloth is still to be imported when this is called, so it imports neither transformers nor TRL nor PEFT. The
    decisions stay in the training's directory.

    Raises:
        InputError: settings that would end badly here, a device that is too old, or a base that is not a model.
        ServiceUnreachable: the base is a Hugging Face id, neither cached nor reachable.
    """
    capability, architecture = present_capability(config.processes), architecture_of(config.policy)
    packages = installed_packages()
    check_precision(config, capability, architecture)
    check_packages(config, packages)
    precision = precision_for(capability, architecture)
    logger.info("%s, model type %r: %s", device_name(capability), architecture, precision.reason)
    kept = directory / DECISION_FILE
    decisions = _kept(kept, precision, packages)
    if decisions is None:
        backend, reason = choose_backend(
            config.policy.backend, capability is not None, "unsloth" in packages, config.processes
        )
        logger.info("policy.backend is %r: %s", backend, reason)
        decisions = Decisions(backend=backend, bfloat16=_takes_bfloat16(config, precision))
        # Several processes on like devices decide alike; the first one writes.
        if os.environ.get("RANK", "0") == "0":
            write_json(kept, decisions.model_dump())
    return _apply(config, decisions)


def _kept(path: Path, precision: Precision, packages: Collection[str]) -> Decisions | None:
    """What was decided before; None where nothing was, where the file is damaged, or where it cannot be done here."""
    try:
        before = Decisions.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        logger.warning("%s cannot be read, so it is decided anew", path)
        return None
    if (before.bfloat16 and not precision.bf16) or (before.backend == "unsloth" and "unsloth" not in packages):
        logger.warning("this training began with %s, which this machine cannot do: decided anew", before)
        return None
    logger.info("this training goes on as it began: %s", before)
    return before


def _takes_bfloat16(config: RunConfig, precision: Precision) -> bool:
    if "auto" not in (config.policy.autocast, config.grpo.rollout_dtype):
        return False
    if precision.autocast != "auto":
        return precision.autocast == "bfloat16"
    # Processes that measure at the same time measure each other.
    return config.processes == 1 and bfloat16_pays()


def _apply(config: RunConfig, decisions: Decisions) -> RunConfig:
    """The settings with the decisions in the place of "auto"; what is set stays."""
    policy: dict[str, str] = {"backend": decisions.backend}
    grpo: dict[str, str] = {}
    if config.policy.autocast == "auto":
        policy["autocast"] = "bfloat16" if decisions.bfloat16 else "none"
        logger.info("policy.autocast is %r on this machine", policy["autocast"])
    if config.grpo.rollout_dtype == "auto":
        # Unsloth writes completions with what it trains.
        half = decisions.bfloat16 and decisions.backend != "unsloth"
        grpo["rollout_dtype"] = "bfloat16" if half else "float32"
        logger.info("grpo.rollout_dtype is %r on this machine", grpo["rollout_dtype"])
    return config.model_copy(
        update={"policy": config.policy.model_copy(update=policy), "grpo": config.grpo.model_copy(update=grpo)}
    )


def bfloat16_pays() -> bool:
    """Whether this machine's processor multiplies bfloat16 matrices faster than float32 ones.

    Of processors that list AVX-512 BF16 some do and some take twice as long, so it is tried.
    """
    import torch

    return _seconds(torch.float32) > GAIN * _seconds(torch.bfloat16)


def _seconds(dtype: Any) -> float:
    """Shortest of several tries to multiply two matrices."""
    import torch

    rows, inner, columns = SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - started)
    return min(times)
