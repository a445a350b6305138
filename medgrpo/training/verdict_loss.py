"""Supervised loss that counts the verdict more than the other tokens of a completion."""

from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTTrainer

from medgrpo.completions import render_completion
from medgrpo.errors import InputError
from medgrpo.training.resumable import Resumable


class VerdictWeightedTrainer(Resumable, SFTTrainer):
    """TRL's loss, with the verdict's token counted `verdict_weight` times; `labels` are the verdicts that there are."""

    def __init__(self, *args: Any, verdict_weight: float, labels: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._weight = verdict_weight
        self._verdicts = verdict_tokens(self.processing_class, labels) if verdict_weight != 1 else []

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The loss of TRL's own method, given a model whose verdicts weigh more."""
        if self._weight != 1:
            model = _Weighted(model, self._verdicts, self._weight)
        return super().compute_loss(model, inputs, *args, **options)


class _Weighted(torch.nn.Module):
    """A model with TRL's fused head, the log-probabilities of whose verdicts are multiplied by a weight."""

    def __init__(self, model: Any, verdicts: list[int], weight: float) -> None:
        super().__init__()
        self._model, self._verdicts, self._weight = model, verdicts, weight

    def forward(self, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        """What the model gives; TRL takes the log-probabilities, Unsloth's trainer on a GPU leaves the loss to it."""
        outputs = self._model(**{**inputs, "fused_lm_head": True})
        outputs.log_probs = weigh_verdicts(outputs.log_probs, inputs["labels"][:, 1:], self._verdicts, self._weight)
        count = outputs.label_mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        outputs.loss = -outputs.log_probs.sum() / count
        return outputs


def verdict_tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """For each verdict, the token of an answer that tells it from all others; it may hold a part of the tag too.

    Raises:
        InputError: the tokenizer does not give each verdict a token of its own, the last of these in its answer; or
            there are no labels, because answers are open.
    """
    if not labels:
        raise InputError("warmup.verdict_weight: answers are open here, so no token is a verdict. Set it to 1.")
    answers = [tokenizer.encode(render_completion("", verdict), add_special_tokens=False) for verdict in labels]
    places = [max(_agreeing(ids, other) for other in answers if other is not ids) for ids in answers]
    found = [ids[place] for ids, place in zip(answers, places, strict=True) if place < len(ids)]
    last = [max((i for i, token in enumerate(ids) if token in found), default=None) for ids in answers]
    if last != places:
        raise InputError(
            f"warmup.verdict_weight: the model's tokenizer starts the verdicts {', '.join(labels)} "
            f"with the tokens {found}, which do not tell them apart. Set it to 1."
        )
    return found


def _agreeing(ids: list[int], other: list[int]) -> int:
    """How many tokens two answers have in common before they differ."""
    return next((i for i, pair in enumerate(zip(ids, other, strict=False)) if len(set(pair)) > 1), len(ids))


def weigh_verdicts(log_probs: Any, labels: Any, tokens: list[int], weight: float) -> Any:
    """Multiply the log-probability of each row's verdict, the last of `tokens` in it, by `weight`.

    Args:
        log_probs: [rows, L] log-probability of each label.
        labels: [rows, L] token ids; -100 where nothing is predicted.
        tokens: what `verdict_tokens` found.
        weight: the factor.

    Returns:
        [rows, L].
    """
    verdicts = torch.isin(labels, torch.tensor(tokens, device=labels.device))
    following = verdicts.flip(1).cumsum(1).flip(1)
    return torch.where(verdicts & (following == 1), weight * log_probs, log_probs)
