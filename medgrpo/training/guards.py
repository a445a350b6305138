"""What must hold at the first step: a training that is broken ends there, with the remedy, and not after a night.

The watch follows what a training becomes; the guards ask whether it works at all. They look once per training process,
cost two forward passes over one record, and leave weights, random state and metrics as they were.
"""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from medgrpo.errors import InputError, TrainingAlarm

# The end of a record: what overflows anywhere in it is seen there by way of attention. All positions of a large
# vocabulary would be a gigabyte.
POSITIONS = 16

Messages = Sequence[Mapping[str, str]]

logger = logging.getLogger(__name__)


class Guards(TrainerCallback):
    """Ends a training that cannot work: before its first step where that shows before, at the first step else.

    Goes behind `MetricsFile`, so that the step is written down first.

    Args:
        prompt: chat messages of one record.
        completion: a gold completion of it.
    """

    def __init__(self, prompt: Messages, completion: str) -> None:
        self._prompt, self._completion = prompt, completion
        self._before: dict[str, Tensor] = {}
        self._moved = self._looked = False

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_: Any
    ) -> None:
        """Look at the tokens, at what is trained, and at one forward pass in each mode.

        Raises:
            InputError: tokenizer and template do not fit together.
            TrainingAlarm: nothing, or the wrong thing, would be trained, or the logits are not finite.
        """
        ids = check_tokens(processing_class, self._prompt, self._completion)
        check_trained(model)
        check_logits(model, ids, bfloat16=args.bf16)

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> None:
        """Look at the gradients before they reach the weights, and remember the weights if they are due to move.

        Raises:
            TrainingAlarm: a gradient is not finite.
        """
        if self._moved:
            return
        check_gradients(model, state.global_step + 1)
        # While the learning rate rises from 0, and where all groups earned the same, nothing is due to move.
        if optimizer.param_groups[0]["lr"] > 0:
            self._before = {
                name: parameter.detach().clone()
                for name, parameter in _trained(model)
                if parameter.grad is not None and parameter.grad.any()
            }

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """See that what had a gradient moved.

        Raises:
            TrainingAlarm: none of it did.
        """
        if self._moved or not self._before:
            return
        now = dict(_trained(model))
        if all(torch.equal(now[name], before) for name, before in self._before.items()):
            raise TrainingAlarm(
                f"the adapter did not move in step {state.global_step + 1}, though it has gradients and the learning "
                "rate is above 0: its weights are not what the optimiser updates, or too coarse for so small a step. "
                "Keep them in float32 (policy.autocast may be bfloat16, the weights not), or raise the learning rate."
            )
        self._moved, self._before = True, {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Judge the first step that is logged.

        Raises:
            TrainingAlarm: all of its completions are empty, or it has no gradient where it should have one.
        """
        if self._looked or not logs or "loss" not in logs:
            return
        self._looked = True
        check_first_row(logs, state.global_step, masked=getattr(args, "mask_truncated_completions", False))
        logger.info(
            "guards passed: tokens, trained weights, logits, gradients and completions are as they must be; "
            "the adapter %s",
            "moved" if self._moved else "was not due to move yet",
        )


def check_tokens(tokenizer: Any, prompt: Messages, completion: str) -> list[int]:
    """See that an answer ends with the token that generation stops at, and that there is one beginning of text.

    Model and generation settings need no look: the trainers give them the tokenizer's tokens.

    Returns:
        Token ids of the prompt with the completion.

    Raises:
        InputError: they do not fit together.
    """
    turn = [*prompt, {"role": "assistant", "content": completion}]
    written = tokenizer.apply_chat_template(turn, tokenize=False)
    behind = written.rpartition(completion)[2] if completion in written else ""
    ending = tokenizer.encode(behind, add_special_tokens=False)[:1]
    if ending != [tokenizer.eos_token_id]:
        found = repr(tokenizer.decode(ending)) if ending else "nothing"
        raise InputError(
            f"the chat template ends an answer with {found}, while the tokenizer's eos token is "
            f"{tokenizer.eos_token!r}: answers would run to grpo.max_completion_length, and count as cut off. Set "
            "eos_token in the model's tokenizer_config.json to the token that ends a turn, or take a model whose "
            "template ends its turns."
        )
    ids: list[int] = tokenizer.apply_chat_template(turn, tokenize=True, return_dict=False)
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        raise InputError(
            f"a prompt begins with {tokenizer.bos_token!r} twice: the chat template writes it, and so does the "
            "tokenizer. Set add_bos_token to false in the model's tokenizer_config.json."
        )
    return ids


def check_trained(model: Any) -> None:
    """See that the adapter is trained, and nothing else.

    Raises:
        TrainingAlarm: it is not, or weights of the base would be.
    """
    names = [name for name, _ in _trained(model)]
    if not any("lora_" in name for name in names):
        raise TrainingAlarm(
            "no weight of the adapter is trainable: every step would leave the policy as it is. Load the adapter as "
            "trainable, or start without one."
        )
    base = [name for name in names if "lora_" not in name]
    if base:
        raise TrainingAlarm(
            f"{len(base)} weights of the base are trainable ({base[0]} is the first): their changes would be lost, for "
            "only the adapter is saved. Freeze them."
        )


def check_logits(model: Any, ids: Sequence[int], bfloat16: bool) -> None:
    """See that logits are finite, in training and in generation, and depend on what is trained.

    Args:
        model: a model with an adapter.
        ids: tokens of one record.
        bfloat16: whether training computes in bfloat16.

    Raises:
        TrainingAlarm: they are not, or do not.
    """
    was_training, device = model.training, model.device
    tokens = torch.tensor([ids], device=device)
    with _same_random_numbers(device):
        for mode in ("generation", "training"):
            model.train(mode == "training")
            autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16 and mode == "training")
            with torch.set_grad_enabled(mode == "training"), autocast:
                logits = model(
                    input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, logits_to_keep=POSITIONS
                ).logits
            if not torch.isfinite(logits).all():
                raise TrainingAlarm(
                    f"the logits of a prompt are not finite in {mode}, before the first step: the numbers overflow, or "
                    "the weights are damaged. Compute in float32 (policy.autocast = 'none', policy.quantization = "
                    "'none', grpo.rollout_dtype = 'float32'); if that is so already, fetch policy.base again."
                )
    model.train(was_training)
    if not logits.requires_grad:
        raise TrainingAlarm(
            "the logits do not depend on the adapter: it is disabled or detached, and would never have a gradient. "
            "Load it as trainable, or start without one."
        )


def check_gradients(model: Any, step: int) -> None:
    """See that a step's gradients are finite, before the optimiser puts them into the weights.

    Raises:
        TrainingAlarm: one is not.
    """
    for name, parameter in _trained(model):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            raise TrainingAlarm(
                f"the gradient of {name} is not finite at step {step}: the numbers overflowed. Compute in float32 "
                "(policy.autocast = 'none'); if that is so already, lower the learning rate."
            )


def check_first_row(row: Mapping[str, Any], step: int, masked: bool) -> None:
    """See that the first step wrote something, and has a gradient where its rewards give one.

    Args:
        row: what was logged of it.
        step: its number.
        masked: whether completions that hit the cap are left out.

    Raises:
        TrainingAlarm: it did not, or has none.
    """
    if row.get("watch/empty", 0) >= 1:
        raise TrainingAlarm(
            f"every completion of step {step} is empty: the policy ends its turn at once. Check the chat template and "
            "the end-of-turn token, warm up longer, or compute in float32 (policy.autocast = 'none', "
            "grpo.rollout_dtype = 'float32')."
        )
    # A warm-up always has something to learn; GRPO where completions of one prompt earned different rewards.
    due = row.get("watch/no_spread", 0 if "reward" not in row else 1) < 1 and not masked
    if due and math.isclose(row.get("grad_norm", 1), 0):
        raise TrainingAlarm(
            f"the gradient is 0 at step {step}, though there is something to learn: the adapter takes no part in the "
            "loss. Load it as trainable, or start without one."
        )


def _trained(model: Any) -> list[tuple[str, Tensor]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@contextlib.contextmanager
def _same_random_numbers(device: torch.device) -> Any:
    """Leave the random state as it was: dropout in the adapter would draw from it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
