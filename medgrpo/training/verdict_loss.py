"""Supervised loss that counts the verdict more than the other tokens of a completion."""

from typing import Any, get_args

import torch
from trl import SFTTrainer

from medgrpo.completions import render_completion
from medgrpo.errors import InputError
from medgrpo.records import Verdict
from medgrpo.training.resumable import Resumable


class VerdictWeightedTrainer(Resumable, SFTTrainer):
    """TRL's loss, with the verdict's token counted `verdict_weight` times."""

    def __init__(self, *args: Any, verdict_weight: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._weight = verdict_weight
        self._verdicts = verdict_tokens(self.processing_class) if verdict_weight != 1 else []

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **options: Any) -> Any:
        """The loss of TRL's own method, given a model whose verdicts weigh more."""

        def weighted(**inputs: Any) -> Any:
            outputs = model(**inputs)
            predicted = inputs["labels"][:, 1:]
            outputs.log_probs = weigh_verdicts(outputs.log_probs, predicted, self._verdicts, self._weight)
            return outputs

        return super().compute_loss(weighted, inputs, *args, **options)


def verdict_tokens(tokenizer: Any) -> list[int]:
    """For each verdict, the token that first tells it from the others where it stands in an answer.

    Raises:
        InputError: the tokenizer does not give each verdict a token of its own.
    """
    answers = [
        tokenizer.encode(render_completion("", verdict), add_special_tokens=False) for verdict in get_args(Verdict)
    ]
    first = next(i for i, column in enumerate(zip(*answers, strict=False)) if len(set(column)) > 1)
    found = [ids[first] for ids in answers]
    if len(set(found)) < len(found):
        raise InputError(
            f"warmup.verdict_weight: the model's tokenizer starts the verdicts {', '.join(get_args(Verdict))} "
            f"with the tokens {found}, which do not tell them apart. Set it to 1."
        )
    return found


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
