"""Completions of prompts whose keys and values are computed once, however many completions each prompt gets.

A prompt is prefilled once. Its completions attend to that one copy, and keep only their own keys and values, in buffers
that are written in place. Rows that have ended leave the batch.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, LogitsProcessorList

from medgrpo.prefix.attention import Kernel, layout_inputs, soft_capped
from medgrpo.prefix.packing import Packing

# Tokens that a row's buffers hold at first; they double when they are full.
FIRST_CAPACITY = 32
# Rows that have ended are taken out once they are this share of the batch; each time the others are copied.
ENDED_SHARE = 0.2

OnRow = Callable[[int, list[int]], None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: cap on a completion.
        temperature: what logits are divided by; 0 takes the most probable token.
        top_k: most probable tokens kept; 0 keeps all.
        top_p: nucleus kept.
        repetition_penalty: penalty on tokens that the row already holds; 1 is none.
        first_greedy: take the most probable token in the first completion of each prompt, whatever the temperature.
        log_probs: keep each token's log-probability at this temperature, before any token is left out.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    first_greedy: bool = False
    log_probs: bool = False

    def processors(self) -> LogitsProcessorList:
        """Transformers' own processors, in the order in which its `generate` applies them."""
        from transformers import (
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        found = LogitsProcessorList()
        if self.repetition_penalty != 1:
            found.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature not in (0, 1):
            found.append(TemperatureLogitsWarper(self.temperature))
        if self.temperature and self.top_k:
            found.append(TopKLogitsWarper(self.top_k))
        if self.temperature and self.top_p < 1:
            found.append(TopPLogitsWarper(self.top_p))
        return found

    def log_probabilities(self, logits: Tensor, tokens: Tensor) -> list[float]:
        """Log-probability of each of the [rows] tokens under [rows, V] logits; empty if they are not kept."""
        if not self.log_probs:
            return []
        scores = (logits.float() / (self.temperature or 1)).log_softmax(-1)
        return scores.gather(-1, tokens[:, None])[:, 0].tolist()

    def pick(
        self, logits: Tensor, history: Tensor | None, processors: LogitsProcessorList, first: Tensor | None = None
    ) -> Tensor:
        """[rows] next tokens.

        Args:
            logits: [rows, V].
            history: [rows, L] tokens so far, given where a processor reads them.
            processors: what `processors()` returned.
            first: [rows], True where the most probable token is taken whatever the temperature; None: nowhere.
        """
        scores: Tensor = processors(history, logits.float())  # type: ignore[arg-type]
        if self.temperature == 0:
            return scores.argmax(-1)
        drawn = _draw(scores.softmax(-1))
        # The processors keep the most probable token where it was.
        return drawn if first is None else torch.where(first, scores.argmax(-1), drawn)


@dataclass
class Rollout:
    """One completion: token ids, a stop token included, and their log-probabilities where they are kept."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


def generate_completions(
    model: Any,
    prompts: Sequence[Sequence[int]],
    copies: Sequence[int],
    sampling: Sampling,
    stops: Sequence[int],
    on_row: OnRow = lambda row, tokens: None,
) -> list[Rollout]:
    """Complete each prompt as often as asked.

    Args:
        model: a causal language model that `attention.install` has prepared.
        prompts: token ids of the distinct prompts.
        copies: completions wanted of each.
        sampling: how tokens are drawn.
        stops: token ids that end a completion.
        on_row: called with (row, tokens) when a completion has ended.

    Returns:
        The completions, prompt by prompt.
    """
    with evaluation_mode(model), torch.no_grad():
        return _complete(Batch(model, prompts, copies, sampling), sampling, stops, on_row)


@contextlib.contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Without dropout, and with a cache even where training recomputes layers; the mode is restored after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _complete(batch: "Batch", sampling: Sampling, stops: Sequence[int], on_row: OnRow) -> list[Rollout]:
    ending = torch.tensor(list(stops), device=batch.first_logits.device)
    processors = sampling.processors()
    completions = [Rollout() for _ in batch.rows]
    logits = batch.first_logits
    for step in range(sampling.max_new_tokens):
        history = batch.history(completions) if sampling.repetition_penalty != 1 else None
        tokens = sampling.pick(logits, history, processors, batch.first if sampling.first_greedy else None)
        over = torch.isin(tokens, ending) | (step + 1 == sampling.max_new_tokens)
        batch.write(completions, tokens, sampling.log_probabilities(logits, tokens))
        for row in batch.end(over):
            on_row(row, completions[row].tokens)
        if not any(batch.live):
            break
        if batch.live.count(False) >= ENDED_SHARE * len(batch.live):
            tokens = tokens[batch.compact()]
        logits = batch.advance(tokens)
    return completions


class Batch:
    """The rows that are being completed, in the order of their prompts."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], copies: Sequence[int], sampling: Sampling) -> None:
        self._model, self._prompts = model, prompts
        prompt_of = [prompt for prompt, count in enumerate(copies) for _ in range(count)]
        self.rows = list(range(len(prompt_of)))
        self.live = [True] * len(prompt_of)
        self._cache, logits = _prefill(model, prompts, prompt_of, sampling.max_new_tokens)
        self.first_logits = logits[torch.tensor(prompt_of, device=logits.device)]
        self._prompt_of_row = prompt_of

    @property
    def first(self) -> Tensor:
        """[rows], True in the first completion of each prompt."""
        firsts = {self._prompt_of_row.index(prompt) for prompt in range(len(self._prompts))}
        return torch.tensor([row in firsts for row in self.rows], device=self._model.device)

    def write(self, completions: Sequence[Rollout], tokens: Tensor, log_probs: Sequence[float]) -> None:
        """Append the [rows] tokens to the completions of the rows that have not ended."""
        for place, token in enumerate(tokens.tolist()):
            if self.live[place]:
                completion = completions[self.rows[place]]
                completion.tokens.append(token)
                completion.log_probs.extend(log_probs[place : place + 1])

    def end(self, over: Tensor) -> list[int]:
        """Mark the rows that are over; returns those that were not before."""
        ended = [place for place, last in enumerate(over.tolist()) if last and self.live[place]]
        for place in ended:
            self.live[place] = False
        return [self.rows[place] for place in ended]

    def history(self, completions: Sequence[Rollout]) -> Tensor:
        """[rows, L] all tokens of each row, filled up on the left with one that it holds."""
        held = [[*self._prompts[self._prompt_of_row[row]], *completions[row].tokens] for row in self.rows]
        longest = max(map(len, held))
        return torch.tensor([[ids[0]] * (longest - len(ids)) + ids for ids in held], device=self._model.device)

    def compact(self) -> Tensor:
        """Take out the rows that have ended; returns the places of those that stay."""
        keep = [place for place, alive in enumerate(self.live) if alive]
        self.rows, self.live = [self.rows[place] for place in keep], [True] * len(keep)
        places = torch.tensor(keep, device=self._model.device)
        self._cache.keep(places)
        return places

    def advance(self, tokens: Tensor) -> Tensor:
        """Feed the [rows] tokens; [rows, V] logits of what comes next."""
        cache = self._cache
        cache.begin_step()
        output = self._model(
            input_ids=tokens[:, None],
            past_key_values=cache,
            use_cache=True,
            **layout_inputs(cache, cache.positions[:, None]),
        )
        return output.logits[:, -1]


def _prefill(
    model: Any, prompts: Sequence[Sequence[int]], prompt_of: Sequence[int], max_new_tokens: int
) -> "tuple[_PrefixCache, Tensor]":
    """Keys and values of all prompts, packed into one row so that nothing is padded; and [prompts, V] logits."""
    lengths = [len(prompt) for prompt in prompts]
    packing = Packing(tuple(lengths), ((),) * len(lengths), model.device)
    ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=model.device)
    cache = DynamicCache()
    ends = torch.tensor(lengths, device=model.device).cumsum(0) - 1
    output = model(
        input_ids=ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=ends,
        **layout_inputs(packing, packing.positions()),
    )
    return _PrefixCache(cache.layers, lengths, prompt_of, max_new_tokens), output.logits[0]


class _PrefixCache(Cache):
    """Keys and values of the prompts, once each, and of each row's own tokens; the layout of a decoding step.

    Shapes: n prompts of at most P tokens, R rows, t own tokens so far, K key heads of width D. Rows of one prompt stand
    side by side in `slots` [n, g], g the most rows that a prompt has left.
    """

    def __init__(
        self,
        packed: list[Any],
        lengths: Sequence[int],
        prompt_of: Sequence[int],
        max_new_tokens: int,
    ) -> None:
        super().__init__(layers=[])
        device = packed[0].keys.device
        self._limit = max_new_tokens
        self._lengths = torch.tensor(lengths, device=device)
        self._prompt_of = torch.tensor(prompt_of, device=device)
        self._own = 0
        self._prefix: list[tuple[Tensor, Tensor]] = []
        self._suffix: list[tuple[Tensor, Tensor]] = []
        capacity = min(FIRST_CAPACITY, max_new_tokens)
        while packed:
            # The packed original of a layer is freed as soon as it has been spread out.
            layer = packed.pop(0)
            keys, values = layer.keys, layer.values
            spread = [_spread(states, lengths) for states in (keys, values)]
            self._prefix.append((spread[0].transpose(2, 3).contiguous(), spread[1]))
            shape = (len(prompt_of), keys.shape[1], capacity, keys.shape[3])
            self._suffix.append((keys.new_empty(shape), keys.new_empty(shape)))
        self._lay_out()

    @property
    def positions(self) -> Tensor:
        """[R] position of the token that each row feeds now."""
        return self._lengths[self._prompt_of] + self._own - 1

    def begin_step(self) -> None:
        """Make room for one more token of each row."""
        self._own += 1
        self._masks: dict[int | None, tuple[Tensor, Tensor | None]] = {}
        capacity = self._suffix[0][0].shape[2]
        if self._own > capacity:
            longer = min(2 * capacity, self._limit) - capacity
            self._suffix = [tuple(_lengthen(states, longer) for states in pair) for pair in self._suffix]  # type: ignore[misc]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Write the new token's keys and values in place; returns views of all own ones, [R, K, t, D]."""
        keys, values = self._suffix[layer_idx]
        keys[:, :, self._own - 1] = key_states[:, :, 0]
        values[:, :, self._own - 1] = value_states[:, :, 0]
        return keys[:, :, : self._own], values[:, :, : self._own]

    def keep(self, places: Tensor) -> None:
        """Keep the rows at `places`, and the prompts that still have rows."""
        self._suffix = [tuple(_select(states, places, self._own) for states in pair) for pair in self._suffix]  # type: ignore[misc]
        prompts, self._prompt_of = self._prompt_of[places].unique(return_inverse=True)
        if len(prompts) < len(self._lengths):
            self._lengths = self._lengths[prompts]
            longest = int(self._lengths.max())
            self._prefix = [(k[prompts][..., :longest], v[prompts][:, :, :longest]) for k, v in self._prefix]
        self._lay_out()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        """See `Layout`; one query per row, over its prompt and its own tokens: one softmax over both."""
        prefix_keys, prefix_values = self._prefix[layer]
        prefix_mask, own_mask = self._visible(kernel.window)
        rows, heads, _, width = query.shape
        query = query.reshape(rows, key.shape[1], heads // key.shape[1], width) * kernel.scale
        prefix = self._in_rows(self._in_slots(query) @ prefix_keys)
        scores = soft_capped(torch.cat([prefix, query @ key.transpose(2, 3)], dim=-1), kernel)
        longest = prefix.shape[-1]
        scores[..., :longest] += prefix_mask
        if own_mask is not None:
            scores[..., longest:] += own_mask
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        output = self._in_rows(self._in_slots(weights[..., :longest]) @ prefix_values) + weights[..., longest:] @ value
        return output.reshape(rows, heads, 1, width)

    def _lay_out(self) -> None:
        counts = torch.bincount(self._prompt_of, minlength=len(self._lengths))
        self._side_by_side = int(counts.max())
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(self._prompt_of), device=counts.device) - first[self._prompt_of]
        self._slot_of_row = self._prompt_of * self._side_by_side + rank
        self._full = bool((counts == self._side_by_side).all())
        self._row_of_slot = torch.zeros(len(counts) * self._side_by_side, dtype=torch.long, device=counts.device)
        self._row_of_slot[self._slot_of_row] = torch.arange(len(rank), device=counts.device)

    def _in_slots(self, rows: Tensor) -> Tensor:
        """[R, K, s, X] -> [n, K, g·s, X]; a prompt with fewer rows than g repeats one, and nobody reads it."""
        if self._side_by_side == 1:
            return rows
        slots = rows if self._full else rows[self._row_of_slot]
        return slots.unflatten(0, (len(self._lengths), self._side_by_side)).transpose(1, 2).flatten(2, 3)

    def _in_rows(self, slots: Tensor) -> Tensor:
        """[n, K, g·s, X] -> [R, K, s, X]."""
        if self._side_by_side == 1:
            return slots
        rows = slots.unflatten(2, (self._side_by_side, -1)).transpose(1, 2).flatten(0, 1)
        return rows if self._full else rows[self._slot_of_row]

    def _visible(self, window: int | None) -> tuple[Tensor, Tensor | None]:
        """What is added to scores: [R, 1, 1, P] over the prompt, [t] over own tokens (None where all are seen)."""
        if window not in self._masks:
            device = self._lengths.device
            longest = self._prefix[0][1].shape[2]
            lengths = self._lengths[self._prompt_of][:, None]
            at = torch.arange(longest, device=device)
            seen = at < lengths
            own = None
            if window is not None:
                seen = seen & (at > lengths + self._own - 1 - window)
                own = _additive(torch.arange(self._own, device=device) > self._own - 1 - window)
            self._masks[window] = (_additive(seen)[:, None, None], own)
        return self._masks[window]


def _draw(probabilities: Tensor) -> Tensor:
    """[R] tokens from [R, V] probabilities, by one uniform number each.

    `torch.multinomial` draws a number for every entry of the vocabulary: an eighth of decoding's time.
    """
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[:, -1:]
    # Below the total even after rounding, so that no token without probability is drawn.
    at = torch.minimum(torch.rand_like(total) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, at, right=True)[:, 0]


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))


def _spread(packed: Tensor, lengths: Sequence[int]) -> Tensor:
    """[1, K, sum of lengths, D] -> [n, K, longest, D], zeros behind the shorter ones."""
    spread = packed.new_zeros(len(lengths), packed.shape[1], max(lengths), packed.shape[3])
    for prompt, states in enumerate(packed[0].split(list(lengths), dim=1)):
        spread[prompt, :, : states.shape[1]] = states
    return spread


def _lengthen(states: Tensor, tokens: int) -> Tensor:
    return torch.cat([states, states.new_empty(*states.shape[:2], tokens, states.shape[3])], dim=2)


def _select(states: Tensor, places: Tensor, tokens: int) -> Tensor:
    kept = states.new_empty(len(places), *states.shape[1:])
    kept[:, :, :tokens] = states[places, :, :tokens]
    return kept
