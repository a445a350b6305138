"""Whether a device has the memory that a training is planned to take, and what would fit."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, TrainingCrashed
from medgrpo.policies.backends import read_model_config
from medgrpo.policies.memory import GB, RUNTIME_CUDA, MemoryPlan, Shape, plan_memory
from medgrpo.resources import available_memory
from medgrpo.training.reductions import halved

MOST = 1024
"""Largest group that is looked for."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """Where a training runs.

    Attributes:
        cuda: whether it is a CUDA device; else it is the processor with the machine's memory.
        free: bytes.
        whole: bytes that would be free if nothing else ran on it; unset, what is free.
    """

    cuda: bool
    free: int
    whole: int = 0

    def sentence(self) -> str:
        """What is free, in words.

        >>> Device(cuda=False, free=8_000_000_000).sentence()
        'This machine has 8.0 GB free.'
        """
        return f"{'The CUDA device' if self.cuda else 'This machine'} has {self.free / GB:.1f} GB free."


@dataclass(frozen=True)
class Fit:
    """The largest settings that a device has memory for, the others left as they are; None where not even the least.

    Attributes:
        group_size: of `grpo.group_size`.
        max_length: of `data.max_length`.
    """

    group_size: int | None
    max_length: int | None

    def sentence(self) -> str:
        """What fits, in words.

        >>> Fit(group_size=16, max_length=None).sentence()
        'The largest grpo.group_size that fits is 16; no data.max_length does.'
        """
        groups, length = self.group_size, self.max_length
        first = f"The largest grpo.group_size that fits is {groups}" if groups else "No grpo.group_size fits"
        return f"{first}; {f'the largest data.max_length is {length}' if length else 'no data.max_length does'}."


def check_memory(config: RunConfig) -> MemoryPlan | None:
    """Plan a training, say so in the log, and stop one that its CUDA device has no memory for.

    On a CPU, where swap or a neighbour that ends may make room, too little memory is a warning. A model that cannot be
    planned for trains without a plan.

    Raises:
        InputError: the plan exceeds what the CUDA device has, or the base is not a model.
        TrainingCrashed: it exceeds what is free there now; others may be gone at the next attempt.
        ServiceUnreachable: the base is a Hugging Face id, neither cached nor reachable.
    """
    model_config, device = read_model_config(config.policy), present_device(config.processes)
    try:
        plan = plan_memory(config, model_config, device.cuda)
    except InputError as error:
        logger.warning("no memory plan: %s", error)
        return None
    logger.info("memory plan: %s. %s", plan.sentence(), device.sentence())
    if plan.peak > device.free:
        sentence = shortage(config, model_config, device)
        if device.cuda and plan.peak <= device.whole:
            raise TrainingCrashed(f"{sentence} Of its {device.whole / GB:.1f} GB others hold the rest now: nvidia-smi.")
        if device.cuda:
            raise InputError(sentence)
        logger.warning("%s", sentence)
    return plan


def as_prepared(config: RunConfig, data: Path) -> RunConfig:
    """The settings with `data.max_length` no longer than the longest row of training that is prepared in `data`."""
    longest = int(json.loads((data / "data.json").read_bytes())["max_training_tokens"])
    return _with(config, "data", max_length=min(config.data.max_length, longest))


def present_device(processes: int = 1) -> Device:
    """What this process of a training has: its CUDA device, or, without one, its share of the machine's memory."""
    import torch

    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))
        # Asking makes this process's context, which is planned with.
        return Device(cuda=True, free=int(free) + RUNTIME_CUDA, whole=int(whole))
    return Device(cuda=False, free=available_memory() // processes)


def shortage(config: RunConfig, model_config: Mapping[str, Any], device: Device) -> str:
    """Why a training does not fit, what would, and what to set."""
    return (
        f"the training needs about {plan_memory(config, model_config, device.cuda).sentence()}. {device.sentence()} "
        f"{largest_fit(config, model_config, device).sentence()} {remedy(config, model_config, device)}"
    )


def remedy(config: RunConfig, model_config: Mapping[str, Any], device: Device) -> str:
    """What to set for a training that does not fit: the largest micro-batches that do, recomputing if need be."""
    larger, smaller = None, config
    while smaller != larger:
        for checkpointing in sorted({config.grpo.gradient_checkpointing, True}):
            changed = _with(smaller, "grpo", gradient_checkpointing=checkpointing)
            if plan_memory(changed, model_config, device.cuda).peak <= device.free:
                return f"It fits with {' '.join(_changes(config, changed))}."
        larger, smaller = smaller, halved(smaller)
    four_bits = "" if config.policy.quantization == "4bit" else ", or policy.quantization=4bit"
    return f"No micro-batch is small enough: free memory, or take a smaller policy.base{four_bits}."


def _changes(config: RunConfig, other: RunConfig) -> list[str]:
    """What to set to get from one to the other."""
    found = []
    for section, name in (
        ("grpo", "micro_batch_tokens"),
        ("warmup", "micro_batch"),
        ("grpo", "gradient_checkpointing"),
    ):
        before, value = (getattr(getattr(one, section), name) for one in (config, other))
        if value != before:
            found.append(f"--set {section}.{name}={str(value).lower()}")
    return found


def largest_fit(config: RunConfig, model_config: Mapping[str, Any], device: Device) -> Fit:
    """The largest `grpo.group_size` and the largest `data.max_length` whose plans fit, each with the rest as it is."""

    def fits(section: str, name: str, value: int) -> bool:
        return plan_memory(_with(config, section, **{name: value}), model_config, device.cuda).peak <= device.free

    shortest, longest = config.grpo.max_completion_length + 1, Shape.of(model_config).longest
    return Fit(
        group_size=_largest(2, MOST, lambda size: fits("grpo", "group_size", size)),
        max_length=_largest(shortest, longest, lambda length: fits("data", "max_length", length)),
    )


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number that fits, where each smaller one does too.

    >>> _largest(2, 100, lambda n: n <= 37), _largest(2, 100, lambda n: False)
    (37, None)
    """
    if not fits(least):
        return None
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def _with(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
