"""One row that holds a prompt once and its completions side by side.

Each completion sees the prompt and its own past, never its neighbours; its positions go on where the prompt ends. The
numbers are those of separate rows (Prefix Grouper, arXiv 2506.05433, has the idea), but the prompt's keys, values and
everything else about it are computed once instead of once per completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from medgrpo.prefix.attention import Kernel, soft_capped


@dataclass(frozen=True)
class Packing:
    """Groups in one row: a prompt, then its branches, then the next group.

    Attributes:
        prompts: tokens of each group's prompt.
        branches: tokens of each branch, per group.
        device: where the tokens are.
    """

    prompts: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    device: torch.device

    def positions(self) -> Tensor:
        """[1, T] position of each token: branches go on where their prompt ends."""
        parts: list[Tensor] = []
        for prompt, branches in zip(self.prompts, self.branches, strict=True):
            parts.append(torch.arange(prompt))
            parts.extend(torch.arange(prompt, prompt + length) for length in branches)
        return torch.cat(parts)[None].to(self.device)

    def branch_places(self) -> Tensor:
        """[tokens] where the branches' tokens stand in the row."""
        parts, start = [], 0
        for prompt, branches in zip(self.prompts, self.branches, strict=True):
            end = start + prompt + sum(branches)
            parts.append(torch.arange(start + prompt, end))
            start = end
        return torch.cat(parts).to(self.device)

    @cached_property
    def _groups(self) -> list["_Group"]:
        groups, start = [], 0
        for prompt, branches in zip(self.prompts, self.branches, strict=True):
            groups.append(_Group(start, prompt, branches, self.device))
            start += prompt + sum(branches)
        return groups

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        """See `Layout`."""
        parts = [part for group in self._groups for part in group.parts(kernel.window)]
        return attend_parts(parts, query, key, value, kernel)


def attend_parts(parts: "Sequence[Part]", query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
    """[1, heads, T, D] attention of all parts of a row to [1, key heads, T', D] keys and values."""
    if kernel.softcap is None and _has_flash(query.device.type):
        states = _in_training_type(query, key, value)
        output: Tensor = _FlashAttention.apply(*states, parts, kernel.scale)
        return output
    return torch.cat([p.output(_attend(*p.inputs(query, key, value), p.mask, kernel)) for p in parts], dim=2)


def branches_of(prompt: int, branches: Sequence[int], window: int | None, device: torch.device) -> "Part":
    """The attention of branches that are a row by themselves, to keys and values that have their prompt's first.

    Args:
        prompt: tokens of the prompt.
        branches: tokens of each branch.
        window: see `Kernel`.
        device: where the tokens are.
    """
    own = slice(prompt, prompt + sum(branches))
    seen = _seen(prompt + max(branches), window, device)
    return _Branches(slice(0, prompt), own, slice(0, sum(branches)), branches, seen[prompt:])


def _seen(tokens: int, window: int | None, device: torch.device) -> Tensor:
    """[tokens, tokens], True where a token (row) sees another (column) of its own sequence."""
    positions = torch.arange(tokens, device=device)
    back = positions[:, None] - positions
    return back >= 0 if window is None else (back >= 0) & (back < window)


class Part(Protocol):
    """A part of a row's attention that can be computed by itself; the parts follow one another in the row."""

    @property
    def queries(self) -> slice:
        """The tokens that ask."""
        ...

    @property
    def mask(self) -> Tensor | None:
        """[queries, keys], True where a key is seen, or None for a causal one."""
        ...

    def inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its queries, keys and values, [rows, heads, tokens, D], from those of the row, [1, heads, T, D]."""
        ...

    def queried(self, states: Tensor) -> Tensor:
        """What belongs to its queries: [1, heads, T, D] -> [rows, heads, tokens, D]."""
        ...

    def output(self, states: Tensor) -> Tensor:
        """[rows, heads, tokens, D] -> [1, heads, tokens, D] in the order of the row."""
        ...

    def output_gradient(self, grad: Tensor) -> Tensor:
        """The gradient of what `output` was given, from that of the row's output."""
        ...

    def add_gradient(self, total: Tensor, grad: Tensor) -> None:
        """Add the gradient of its keys or values to that of the row's, which holds those of the parts before."""
        ...


class _Group:
    """One prompt at tokens [start, start + prompt) of the row, its branches after it."""

    def __init__(self, start: int, prompt: int, branches: Sequence[int], device: torch.device) -> None:
        self._prompt = slice(start, start + prompt)
        self._branches, self._device = branches, device
        self._known: dict[int | None, list[Part]] = {}

    def parts(self, window: int | None) -> list[Part]:
        """The prompt's attention to itself, and the branches' to the prompt and to themselves."""
        if window not in self._known:
            prompt, longest = self._prompt.stop - self._prompt.start, max(self._branches, default=0)
            seen = _seen(prompt + longest, window, self._device)
            banded = window is not None and window < prompt
            found: list[Part] = []
            if prompt:
                found.append(_Prompt(self._prompt, seen[:prompt, :prompt] if banded else None))
            if longest:
                own = slice(self._prompt.stop, self._prompt.stop + sum(self._branches))
                found.append(_Branches(self._prompt, own, own, self._branches, seen[prompt:]))
            self._known[window] = found
        return self._known[window]


@dataclass(frozen=True)
class _Prompt:
    """See `Part`: the prompt's tokens ask about themselves."""

    queries: slice
    mask: Tensor | None

    def inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.queried(query), self.queried(key), self.queried(value)

    def queried(self, states: Tensor) -> Tensor:
        return states[:, :, self.queries]

    def output(self, states: Tensor) -> Tensor:
        return states

    def output_gradient(self, grad: Tensor) -> Tensor:
        return self.queried(grad)

    def add_gradient(self, total: Tensor, grad: Tensor) -> None:
        total[:, :, self.queries] += grad


class _Branches:
    """See `Part`: each branch asks about the prompt and itself, all on a [rows, longest] grid.

    Branches of unequal length are spread over the grid; what pads it is never seen.

    Args:
        prompt: the prompt among the keys.
        own: the branches' tokens among the keys.
        queries: the branches' tokens among the queries.
        branches: tokens of each branch.
        mask: [longest, prompt + longest] keys that a token of a branch sees.
    """

    def __init__(self, prompt: slice, own: slice, queries: slice, branches: Sequence[int], mask: Tensor) -> None:
        self._prompt, self._own, self.queries, self.mask = prompt, own, queries, mask
        self._rows, self._longest = len(branches), max(branches)
        within = torch.arange(self._longest, device=mask.device) < torch.tensor(branches, device=mask.device)[:, None]
        self._ragged = not bool(within.all())
        self._within = within[:, None, :, None]
        self._from_grid = within.flatten().nonzero()[:, 0]
        self._to_grid = torch.zeros(within.numel(), dtype=torch.long, device=mask.device)
        self._to_grid[self._from_grid] = torch.arange(len(self._from_grid), device=mask.device)

    def inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.queried(query), self._with_prompt(key), self._with_prompt(value)

    def queried(self, states: Tensor) -> Tensor:
        return self._on_grid(states[0, :, self.queries])

    def _on_grid(self, tail: Tensor) -> Tensor:
        if self._ragged:
            tail = tail.index_select(1, self._to_grid)
        return tail.unflatten(1, (self._rows, self._longest)).transpose(0, 1)

    def output(self, states: Tensor) -> Tensor:
        flat = states.transpose(0, 1).flatten(1, 2)
        return (flat.index_select(1, self._from_grid) if self._ragged else flat)[None]

    def output_gradient(self, grad: Tensor) -> Tensor:
        # What pads the grid copies a token, but its output is not read.
        return self.queried(grad) * self._within if self._ragged else self.queried(grad)

    def add_gradient(self, total: Tensor, grad: Tensor) -> None:
        prompt = self._prompt.stop - self._prompt.start
        total[:, :, self._prompt] += grad[:, :, :prompt].sum(0)
        total[:, :, self._own] += self.output(grad[:, :, prompt:])

    def _with_prompt(self, states: Tensor) -> Tensor:
        prompt = states[:, :, self._prompt].expand(self._rows, -1, -1, -1)
        return torch.cat([prompt, self._on_grid(states[0, :, self._own])], dim=2)


class _FlashAttention(torch.autograd.Function):
    """Attention of all parts of a row by PyTorch's kernel for CPUs, keeping nothing but the row's own tensors.

    Left to autograd, the copies of keys and values that the kernel needs would be kept until the backward pass, and
    gradients would be gathered in many passes; here the copies are made again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
        """[1, heads, T, D] of [1, heads, T, D] queries over [1, key heads, T, D] keys and values."""
        # Heads lie beside each other for each token, as the next product wants them.
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        sums = []
        for part in parts:
            inputs, options = _flash_inputs(part, query, key, value, scale)
            found, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *inputs, 0.0, part.mask is None, **options
            )
            output[:, :, part.queries] = part.output(_unfolded(found, query.shape[1]))
            sums.append(log_sums)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of queries, keys and values."""
        query, key, value, output, *sums = ctx.saved_tensors
        grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for part, log_sums in zip(ctx.parts, sums, strict=True):
            inputs, options = _flash_inputs(part, query, key, value, ctx.scale)
            shape, causal = inputs[0].shape, part.mask is None
            given, found = part.output_gradient(grad).reshape(shape), part.queried(output).reshape(shape)
            grad_query, *others = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                given, *inputs, found, log_sums, 0.0, causal, **options
            )
            grads[0][:, :, part.queries] = part.output(_unfolded(grad_query, query.shape[1]))
            for total, other in zip(grads[1:], others, strict=True):
                # Where keys were repeated, each copy has a gradient of its own.
                part.add_gradient(total, other.unflatten(1, (key.shape[1], -1)).sum(2) if causal else other)
        return *grads, None, None


def _flash_inputs(
    part: Part, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """Queries, keys and values as the kernel wants them, and its mask and scale."""
    sharing = query.shape[1] // key.shape[1]
    queries, keys, values = part.inputs(query, key, value)
    if part.mask is None:
        return (queries, _repeat(keys, sharing), _repeat(values, sharing)), {"attn_mask": None, "scale": scale}
    queries, mask = _folded(queries, keys, part.mask)
    seen = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, float("-inf"))
    return (queries, keys, values), {"attn_mask": seen, "scale": scale}


@cache
def _has_flash(kind: str) -> bool:
    """Whether PyTorch has the kernel under the name used here, for tensors on this kind of device."""
    names = ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
    return kind == "cpu" and all(hasattr(torch.ops.aten, name) for name in names)


def _in_training_type(*states: Tensor) -> list[Tensor]:
    """What autocast would do for PyTorch's own attention: rotary positions leave queries and keys in float32."""
    kind = states[0].device.type
    return [s.to(torch.get_autocast_dtype(kind)) for s in states] if torch.is_autocast_enabled(kind) else [*states]


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Kernel) -> Tensor:
    """Attention with grouped key heads; a mask of None is the causal one, else it is [queries, keys]."""
    heads, queries = query.shape[1:3]
    sharing = heads // key.shape[1]
    if mask is None and kernel.softcap is None:
        return scaled_dot_product_attention(
            query, _repeat(key, sharing), _repeat(value, sharing), is_causal=True, scale=kernel.scale
        )
    if mask is None:
        mask = torch.ones(queries, queries, dtype=torch.bool, device=query.device).tril()
    folded, mask = _folded(query, key, mask)
    if kernel.softcap is None:
        output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=kernel.scale)
    else:
        scores = soft_capped(folded @ key.transpose(2, 3) * kernel.scale, kernel).masked_fill(~mask, float("-inf"))
        output = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return _unfolded(output, heads)


def _folded(query: Tensor, key: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The query heads that share a key head as rows of one longer query, so that no key is copied; and their mask."""
    batch, heads, queries, width = query.shape
    sharing = heads // key.shape[1]
    return query.reshape(batch, key.shape[1], sharing * queries, width), mask.repeat(sharing, 1)


def _unfolded(states: Tensor, heads: int) -> Tensor:
    """[batch, key heads, sharing x queries, D] -> [batch, heads, queries, D]."""
    return states.reshape(states.shape[0], heads, -1, states.shape[3])


def _repeat(states: Tensor, times: int) -> Tensor:
    return states if times == 1 else states.repeat_interleave(times, dim=1)
