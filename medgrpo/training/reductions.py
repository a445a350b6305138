"""A training that runs out of memory goes on with less at once at its next attempt: the same steps, in more parts.

What is lowered stays in the training's directory, so that each attempt goes on from what the one before it found.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, TrainingCrashed
from medgrpo.manifests import write_json
from medgrpo.policies.memory import loss_tokens

REDUCTIONS_FILE = "reductions.json"
WORTH = 0.75
"""Share of what was held that smaller micro-batches may hold to be worth an attempt by themselves."""
FEWEST_TOKENS = 64
"""Smallest `grpo.micro_batch_tokens` that is tried: weights and one layer's numbers are most of the memory by then."""
EXHAUSTED = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
"""What PyTorch's errors say where there is no memory; not all of them are `torch.OutOfMemoryError`."""

logger = logging.getLogger(__name__)


class Reductions(BaseModel):
    """Most that a micro-batch of this training may hold."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    micro_batch_tokens: PositiveInt
    """Of `grpo.micro_batch_tokens`."""
    micro_batch: PositiveInt
    """Of `warmup.micro_batch`."""
    gradient_checkpointing: bool
    """Whether activations are recomputed, whatever is set."""


def apply_reductions(config: RunConfig, directory: Path) -> RunConfig:
    """The settings with micro-batches no larger than what earlier attempts of the training in `directory` found."""
    kept = _kept(directory / REDUCTIONS_FILE)
    if kept is None:
        return config
    tokens = min(config.grpo.micro_batch_tokens, kept.micro_batch_tokens)
    reduced = _with_micro_batches(config, tokens, min(config.warmup.micro_batch, kept.micro_batch))
    if kept.gradient_checkpointing:
        reduced = _recomputing(reduced)
    logger.info("an earlier attempt ran out of memory: this one has %s", micro_batches(reduced))
    return reduced


def halved(config: RunConfig) -> RunConfig:
    """The same steps in micro-batches half as large; as they are, where they are as small as they get.

    >>> smaller = halved(RunConfig())
    >>> smaller.grpo.micro_batch_tokens, smaller.warmup.micro_batch, smaller.warmup.batch_size
    (512, 2, 8)
    """
    tokens = config.grpo.micro_batch_tokens
    return _with_micro_batches(
        config, min(tokens, max(FEWEST_TOKENS, tokens // 2)), max(1, config.warmup.micro_batch // 2)
    )


def smaller(config: RunConfig, warming_up: bool) -> RunConfig | None:
    """The same steps with less in memory at once, in the phase that ran out of it; None where there is nothing left.

    Micro-batches half as large. Where they hold hardly less all the same, because a single row or a prompt with one
    completion is longer, activations are recomputed as well.
    """

    def held(one: RunConfig) -> int:
        return one.warmup.micro_batch if warming_up else loss_tokens(one)

    reduced = halved(config)
    if held(reduced) <= WORTH * held(config):
        return reduced
    if not config.grpo.gradient_checkpointing:
        return _recomputing(reduced)
    return reduced if held(reduced) < held(config) else None


def micro_batches(config: RunConfig) -> str:
    """The settings that are lowered, as one would set them.

    >>> micro_batches(RunConfig())
    'grpo.micro_batch_tokens=1024, warmup.micro_batch=4, grpo.gradient_checkpointing=false'
    """
    values = {
        "grpo.micro_batch_tokens": config.grpo.micro_batch_tokens,
        "warmup.micro_batch": config.warmup.micro_batch,
        "grpo.gradient_checkpointing": str(config.grpo.gradient_checkpointing).lower(),
    }
    return ", ".join(f"{name}={value}" for name, value in values.items())


@contextlib.contextmanager
def retried_smaller(config: RunConfig, directory: Path) -> Iterator[None]:
    """Where what is done here runs out of memory, leave a note that the next attempt's micro-batches are half as large.

    Args:
        config: the settings of this attempt.
        directory: the training's.

    Raises:
        TrainingCrashed: no memory; the next attempt takes less.
        InputError: no memory, and micro-batches are as small as they get.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhaustion(error):
            raise
        raise _with_note(error, config, directory) from error


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that there is no memory left.

    >>> is_exhaustion(RuntimeError("CUDA out of memory. Tried to")), is_exhaustion(RuntimeError("sizes must match"))
    (True, False)
    """
    import torch

    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in EXHAUSTED)


def _with_note(error: BaseException, config: RunConfig, directory: Path) -> TrainingCrashed | InputError:
    phase = _phase(config, directory)
    said = str(error).strip().split("\n")[0] or type(error).__name__
    what = f"the training ran out of memory in {phase} ({said})"
    if phase == "the merge":
        return TrainingCrashed(f"{what}. What was trained is kept: running it again goes on with the merge.")
    less = smaller(config, phase == "the warm-up")
    if less is None:
        return InputError(
            f"{what}, with as little at once as it goes ({micro_batches(config)}). Lower data.max_length, "
            "grpo.prompts_per_step or grpo.group_size, or take a smaller policy.base or a device with more memory; "
            "`medgrpo memory` says what fits."
        )
    kept = Reductions(
        micro_batch_tokens=less.grpo.micro_batch_tokens,
        micro_batch=less.warmup.micro_batch,
        gradient_checkpointing=less.grpo.gradient_checkpointing,
    )
    write_json(directory / REDUCTIONS_FILE, kept.model_dump())
    return TrainingCrashed(
        f"{what}. Running it again goes on from the last checkpoint with less in memory at once, the steps stay as "
        f"they are: {micro_batches(less)}."
    )


def _recomputing(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"grpo": config.grpo.model_copy(update={"gradient_checkpointing": True})})


def _phase(config: RunConfig, directory: Path) -> str:
    """What the training was at: the first thing that is not finished."""
    if config.warmup.enabled and not (directory / "warmup" / "adapter").is_dir():
        return "the warm-up"
    return "the merge" if (directory / "grpo" / "adapter").is_dir() else "GRPO"


def _kept(path: Path) -> Reductions | None:
    """What earlier attempts found; None where nothing was, or where the file is damaged."""
    try:
        return Reductions.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, ValidationError):
        logger.warning("%s cannot be read, so micro-batches are as they are set", path)
        return None


def _with_micro_batches(config: RunConfig, tokens: int, rows: int) -> RunConfig:
    """The settings with other micro-batches; a warm-up's step must still be whole ones on each process."""
    share = config.warmup.batch_size // config.processes
    rows = max(size for size in range(1, rows + 1) if share % size == 0)
    warmup = config.warmup.model_copy(update={"micro_batch": rows})
    grpo = config.grpo.model_copy(update={"micro_batch_tokens": tokens})
    return config.model_copy(update={"warmup": warmup, "grpo": grpo})
