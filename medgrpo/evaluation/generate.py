"""Answers to many prompts, batched by length; each prompt is computed once however many answers it gets."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgrpo.prefix.generation import Sampling


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
    """Answer each prompt greedily; see `sample` for the arguments."""
    from medgrpo.prefix.generation import Sampling

    def hand_on(index: int, answers: list[Generation]) -> None:
        if on_answer:
            on_answer(index, answers[0])

    answers = sample(model, tokenizer, prompts, 1, Sampling(max_new_tokens), batch_tokens, hand_on)
    return [answer for (answer,) in answers]


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[dict[str, str]]],
    copies: int,
    sampling: "Sampling",
    batch_tokens: int,
    on_answers: Callable[[int, list[Generation]], None] = lambda index, answers: None,
) -> list[list[Generation]]:
    """Answer each prompt `copies` times.

    Prompts of like length share a batch, so that little is padded; a batch holds at most `batch_tokens` tokens of
    prompts and completions.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer, padding on the left.
        prompts: chat messages, one list per prompt.
        copies: answers wanted of each prompt.
        sampling: how tokens are drawn, and the cap on a completion.
        batch_tokens: bound on tokens in a batch.
        on_answers: called with (index, generations) when a prompt has all its answers.

    Returns:
        The generations of each prompt, in the order of `prompts`; with `sampling.first_greedy` the greedy one first.
    """
    if not prompts:
        return []
    from medgrpo.prefix.linear import reordered_weights
    from medgrpo.prefix.support import prepare

    shared = prepare(model)
    complete = _complete_shared if shared else _complete_padded
    encoded = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        for messages in prompts
    ]
    answers: list[dict[int, Generation]] = [{} for _ in prompts]
    # Where prompts are shared, a prompt is there once, however many answers it gets.
    lengths = [len(ids) * (1 if shared else copies) for ids in encoded]
    with reordered_weights(model) if shared else contextlib.nullcontext():
        for batch in length_batches(lengths, copies * sampling.max_new_tokens, batch_tokens):

            def keep(row: int, ids: list[int], batch: list[int] = batch) -> None:
                index = batch[row // copies]
                answers[index][row % copies] = _generation(ids, tokenizer)
                if len(answers[index]) == copies:
                    on_answers(index, _in_order(answers[index]))

            complete(model, tokenizer, [encoded[i] for i in batch], copies, sampling, keep)
    return [_in_order(of_prompt) for of_prompt in answers]


def length_batches(lengths: Sequence[int], new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts in batches, longest first so that the largest memory need comes at once.

    >>> list(length_batches([5, 50, 6, 48], new_tokens=10, batch_tokens=120))
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // (lengths[order[0]] + new_tokens))
        yield order[:size]
        order = order[size:]


_OnRow = Callable[[int, list[int]], None]


def _complete_shared(
    model: Any, tokenizer: Any, prompts: list[list[int]], copies: int, sampling: "Sampling", on_row: _OnRow
) -> None:
    from medgrpo.prefix.generation import generate_completions

    generate_completions(model, prompts, [copies] * len(prompts), sampling, [tokenizer.eos_token_id], on_row)


def _complete_padded(
    model: Any, tokenizer: Any, prompts: list[list[int]], copies: int, sampling: "Sampling", on_row: _OnRow
) -> None:
    """Transformers' own generation, for models whose prompts cannot be shared."""
    greedy = copies if sampling.temperature == 0 else int(sampling.first_greedy)
    drawn: dict[str, Any] = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    passes = [(greedy, {"do_sample": False}), (copies - greedy, {"do_sample": True} | drawn)]
    first = 0
    for wanted, options in passes:
        if wanted:
            inputs = tokenizer.pad({"input_ids": [p for p in prompts for _ in range(wanted)]}, return_tensors="pt")
            for place, ids in enumerate(_transformers_generate(model, inputs, sampling.max_new_tokens, options)):
                on_row(place // wanted * copies + first + place % wanted, ids)
        first += wanted


def _transformers_generate(model: Any, inputs: Any, max_new_tokens: int, options: dict[str, Any]) -> list[list[int]]:
    import torch

    inputs = inputs.to(model.device)
    with torch.inference_mode():
        # A model's own generation settings may penalise repetition, which would be another policy.
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, repetition_penalty=1.0, **options)
    completions: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
    return completions


def _in_order(answers: dict[int, Generation]) -> list[Generation]:
    return [answers[copy] for copy in sorted(answers)]


def _generation(row: list[int], tokenizer: Any) -> Generation:
    end = tokenizer.eos_token_id
    tokens = row.index(end) + 1 if end in row else len(row)
    return Generation(tokenizer.decode(row[:tokens], skip_special_tokens=True), tokens)
