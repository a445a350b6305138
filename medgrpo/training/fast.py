"""GRPO with Unsloth's trainer.

Unsloth puts it where TRL's is, on a GPU, so this module comes after `medgrpo.policies.fast.start`. On a CPU it keeps
TRL's, and changes what that calls.
"""

import math
from typing import Any

from trl import GRPOConfig

from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.training.grpo import Watched


class FastGRPOTrainer(Watched):
    """What trains with the unsloth backend.

    Args:
        config: the run's settings.
    """

    def __init__(self, *args: Any, config: RunConfig, **options: Any) -> None:
        super().__init__(*args, **options)
        require_autocast(self.args, config)
        # The mark has kept 16 bits out of the settings; left on the model, it would put float16 into rollout and loss.
        model: Any = self.model
        for module in model.modules():
            if "_unsloth_forced_float32" in vars(module):
                module._unsloth_forced_float32 = False


def require_autocast(args: Any, config: RunConfig) -> None:
    """Make sure that a trainer computes in the type that is set: Unsloth's may choose another.

    Args:
        args: of the trainer, when it is made.
        config: the run's settings.

    Raises:
        InputError: it computes in another type.
    """
    found = "bfloat16" if args.bf16 else "float16" if args.fp16 else "none"
    if found != config.policy.autocast:
        raise InputError(
            f"policy.autocast is {config.policy.autocast!r}, but Unsloth would train with {found!r} on this machine. "
            "Set what it would train with, or use --set policy.backend=transformers."
        )


def batches(config: RunConfig) -> dict[str, int]:
    """How a step is cut, for TRL's settings: as many whole groups at once as `grpo.micro_batch_tokens` allows, one at
    least, each completion with its prompt and as long as `data.max_length`.

    A single group may be more tokens than allowed. On a GPU Unsloth computes it in pieces that are not, and its setting
    counts them; on a CPU there is no such setting.

    Raises:
        InputError: the groups of a step cannot be shared out to the processes.
    """
    grpo = config.grpo
    groups, rest = divmod(grpo.prompts_per_step, config.processes)
    if rest:
        raise InputError(
            f"grpo.prompts_per_step = {grpo.prompts_per_step} groups cannot be shared out to {config.processes} "
            f"processes, and unsloth cuts none. Choose a number that {config.processes} divides."
        )
    rows = max(1, grpo.micro_batch_tokens // config.data.max_length)
    fitting = [n for n in range(1, groups + 1) if groups % n == 0 and n * grpo.group_size <= rows]
    together = max(fitting, default=1)
    cut = {
        "per_device_train_batch_size": together * grpo.group_size,
        "gradient_accumulation_steps": groups // together,
        "steps_per_generation": groups // together,
    }
    if hasattr(GRPOConfig, "unsloth_grpo_mini_batch"):
        cut["unsloth_grpo_mini_batch"] = math.ceil(together * grpo.group_size / rows)
    return cut
