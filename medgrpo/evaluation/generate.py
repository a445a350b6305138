"""Greedy answers to many prompts, batched by length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Generation:
    """One completion: its text, and its length in tokens (the end-of-turn token included)."""

    text: str
    tokens: int


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[dict[str, str]]],
    max_new_tokens: int,
    batch_tokens: int,
    on_answer: Callable[[int, Generation], None] | None = None,
) -> list[Generation]:
    """Answer each prompt greedily, in float32.

    Prompts of like length share a batch, so that little is padded; a batch holds at most `batch_tokens` tokens of
    prompt and completion.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer, padding on the left.
        prompts: chat messages, one list per prompt.
        max_new_tokens: cap on a completion.
        batch_tokens: bound on prompt plus completion tokens in a batch.
        on_answer: called with (index, generation) as answers arrive.

    Returns:
        One generation per prompt, in the order of `prompts`.
    """
    import torch

    from medgrpo.evaluation.attention import grouped_decoding

    encoded = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        for messages in prompts
    ]
    answers: list[Generation | None] = [None] * len(prompts)
    for batch in length_batches([len(ids) for ids in encoded], max_new_tokens, batch_tokens):
        inputs = tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt").to(model.device)
        with torch.inference_mode(), grouped_decoding(model):
            output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for i, row in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            answers[i] = _generation(row, tokenizer)
            if on_answer:
                on_answer(i, answers[i])  # type: ignore[arg-type]
    return [answer for answer in answers if answer is not None]


def length_batches(lengths: Sequence[int], max_new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts in batches, longest first so that the largest memory need comes at once.

    >>> list(length_batches([5, 50, 6, 48], max_new_tokens=10, batch_tokens=120))
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // (lengths[order[0]] + max_new_tokens))
        yield order[:size]
        order = order[size:]


def _generation(row: list[int], tokenizer: Any) -> Generation:
    end = tokenizer.eos_token_id
    tokens = row.index(end) + 1 if end in row else len(row)
    return Generation(tokenizer.decode(row[:tokens], skip_special_tokens=True), tokens)
