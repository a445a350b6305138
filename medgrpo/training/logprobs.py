"""Per-token log-probabilities where TRL's Triton kernel cannot run.

TRL 1.15 computes every loss through a Triton kernel and has no other path: on a machine without Triton (any CPU
install, macOS, Windows) `SFTTrainer` and `GRPOTrainer` stop with an AttributeError. This is the same function in plain
PyTorch, on any device. Like TRL's, it sees only the positions that are predicted, never the prompt's.
"""

from dataclasses import dataclass
from typing import Any

import torch

from medgrpo.prefix.linear import linear

OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
# Tokens whose logits are held at once: 128 x 49,152 float32 logits are 25 MB, and more at once are not faster.
TOKENS_AT_ONCE = 128

PerToken = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


class LogProbabilities:
    """Stands in for `trl.kernels.ChunkedLogProbFunction`; autograd differentiates it."""

    @staticmethod
    def apply(
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        final_logit_softcapping: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = OUTPUTS,
    ) -> PerToken:
        """Log-probability of each target, and the statistics asked for.

        Args:
            hidden: [N, H] hidden states of the predicted positions.
            weight: [V, H] of the language-model head.
            bias: [V], or None.
            targets: [N] token ids.
            temperature: what the logits are divided by.
            chunk_size: vocabulary tile of TRL's kernel; not needed here.
            final_logit_softcapping: c of c·tanh(x/c), or None.
            logit_scale: factor on the raw logits.
            outputs: which of entropy, log_sum_sq_probs, mean_logits, is_top1 to compute; the others are None.

        Returns:
            Five tensors of shape [N]: log-probabilities, then the four statistics, which have no gradient; but the
            entropy has one where the head is trained too.
        """
        head = _Head(weight, bias, temperature, final_logit_softcapping, logit_scale)
        parts = []
        for rows, wanted in zip(hidden.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True):
            if weight.requires_grad or (bias is not None and bias.requires_grad):
                parts.append(_statistics(head.logits(rows), wanted, outputs))
            else:
                parts.append(_FrozenHead.apply(rows, wanted, head, outputs))
        if not parts:
            empty = hidden.sum(-1).float()
            return (empty, *(empty.detach() if name in outputs else None for name in OUTPUTS))  # type: ignore[return-value]
        return tuple(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Head:
    """From hidden states to logits: W·h + b, scaled, capped, divided by the temperature."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    temperature: float
    softcap: float | None
    scale: float

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, V] from [N, H]."""
        product = torch.nn.functional.linear if torch.is_grad_enabled() else linear
        logits = product(hidden, self.weight, self.bias).float()
        # Multiplying by one is a pass over N x V numbers too.
        logits = logits if self.scale == 1 else logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.temperature == 1 else logits / self.temperature

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Derivative of a logit with respect to W·h."""
        if self.softcap is None:
            return self.scale / self.temperature
        capped = logits * self.temperature / self.softcap
        return (1 - capped.square()) * (self.scale / self.temperature)


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under a head that is not trained.

    The gradient of a log-probability with respect to its hidden state, (e_t - p)·W, is computed at once while the
    probabilities are there: N x H numbers are kept for the backward pass instead of several times N x V. The logits
    are overwritten on the way, because at this size every pass over them costs as much as a matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, head: _Head, outputs: tuple[str, ...]
    ) -> PerToken:
        """Log-probabilities and statistics, and the direction of the gradient."""
        logits = head.logits(hidden)
        mean = logits.mean(-1) if "mean_logits" in outputs else None
        top = logits.argmax(-1) == targets if "is_top1" in outputs else None
        slope = head.slope(logits) if ctx.needs_input_grad[0] else 1.0
        log_probs = logits.sub_(logits.logsumexp(-1, keepdim=True))
        chosen = log_probs.gather(-1, targets[:, None])[:, 0]
        collision = (2 * log_probs).logsumexp(-1) if "log_sum_sq_probs" in outputs else None
        probabilities = log_probs.exp()
        entropy = -torch.linalg.vecdot(probabilities, log_probs) if "entropy" in outputs else None
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_direction(probabilities, targets, slope, head.weight).to(hidden.dtype))
        statistics = (entropy, collision, mean, top)
        ctx.mark_non_differentiable(*(column for column in statistics if column is not None))
        return chosen, *statistics

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor, None, None, None]:
        """The direction, as far as the loss wants to go."""
        (direction,) = ctx.saved_tensors
        return (grad[:, None] * direction).to(direction.dtype), None, None, None


def _direction(
    probabilities: torch.Tensor, targets: torch.Tensor, slope: torch.Tensor | float, weight: torch.Tensor
) -> torch.Tensor:
    """[N, H] gradient of each target's log-probability with respect to its hidden state; overwrites probabilities."""
    if isinstance(slope, float):
        return slope * (weight[targets] - linear(probabilities.to(weight.dtype), weight.T))
    difference = probabilities.neg_()
    difference[torch.arange(len(targets), device=targets.device), targets] += 1
    return linear(difference.mul_(slope).to(weight.dtype), weight.T)


def install() -> bool:
    """Give TRL the plain function where it has no Triton kernel, or a kernel without a device to run on.

    Returns:
        Whether it was needed.
    """
    import trl.trainer.utils as trl_utils

    if trl_utils._ChunkedLogProbFunction is not None and torch.cuda.is_available():
        return False
    vars(trl_utils)["_ChunkedLogProbFunction"] = LogProbabilities
    return True


def _statistics(logits: torch.Tensor, targets: torch.Tensor, outputs: tuple[str, ...]) -> PerToken:
    log_probs = logits.log_softmax(-1)
    chosen = log_probs.gather(-1, targets[:, None])[:, 0]
    entropy = -(log_probs.exp() * log_probs).sum(-1) if "entropy" in outputs else None
    with torch.no_grad():
        return (
            chosen,
            entropy,
            (2 * log_probs).logsumexp(-1) if "log_sum_sq_probs" in outputs else None,
            logits.mean(-1) if "mean_logits" in outputs else None,
            logits.argmax(-1) == targets if "is_top1" in outputs else None,
        )
