"""Per-token log-probabilities where TRL's Triton kernel cannot run.

TRL 1.15 computes every loss through a Triton kernel and has no other path: on a machine without Triton (any CPU
install, macOS, Windows) `SFTTrainer` and `GRPOTrainer` stop with an AttributeError. This is the same function in plain
PyTorch, on any device. Like TRL's, it sees only the positions that are predicted, never the prompt's.
"""

import torch

OUTPUTS = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
# Tokens whose logits are held at once: 512 x 49,152 float32 logits are 100 MB.
TOKENS_AT_ONCE = 512

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
            Five tensors of shape [N]: log-probabilities, then the four statistics (no gradient but for the entropy).
        """
        parts = []
        for rows, wanted in zip(hidden.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True):
            logits = torch.nn.functional.linear(rows, weight, bias).float() * logit_scale
            if final_logit_softcapping is not None:
                logits = final_logit_softcapping * torch.tanh(logits / final_logit_softcapping)
            parts.append(_statistics(logits / temperature, wanted, outputs))
        if not parts:
            empty = hidden.sum(-1).float()
            return (empty, *(empty.detach() if name in outputs else None for name in OUTPUTS))  # type: ignore[return-value]
        return tuple(None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))  # type: ignore[return-value]


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
