"""Attention over a shared prompt: one row holds a prompt once and its completions side by side.

Each completion sees the prompt and its own past, never its neighbours; its positions go on where the prompt ends. The
numbers are those of separate rows (Prefix Grouper, arXiv 2506.05433, has the idea), but the prompt's keys, values and
everything else about it are computed once instead of once per completion.

A `Layout` knows which token belongs to whom. It travels to every layer as the keyword `prefix_layout` of the model's
forward, so that recomputed layers (gradient checkpointing) see it too. Without one, a layer runs transformers' SDPA
attention as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "medgrpo_prefix"


@dataclass(frozen=True)
class Kernel:
    """How a layer turns scores into weights.

    Attributes:
        scale: factor on the scores.
        softcap: c of c·tanh(score / c), or None.
        window: a key further back than window - 1 positions is not seen; None sees all.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None


class Layout(Protocol):
    """What an attention layer asks: who sees whom among the tokens of this forward."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> Tensor:
        """Attention of [B, heads, T, D] queries over [B, key heads, T', D] keys; [B, heads, T, D]."""
        ...


def install(model: Any) -> None:
    """Let a model's layers ask for a layout; without one they attend as before."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)


def layout_inputs(layout: Layout, positions: Tensor) -> dict[str, Any]:
    """Keyword arguments of a forward with a layout; positions are [B, T]."""
    # A mask of four dimensions is taken as it is, so none is built; the layout says what is seen.
    unused_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=positions.device)
    return {"prefix_layout": layout, "position_ids": positions, "attention_mask": unused_mask}


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
        return torch.cat([part for group in self._groups for part in group.attend(query, key, value, kernel)], dim=2)


class _Group:
    """One prompt at tokens [start, start + prompt) of the row, its branches after it."""

    def __init__(self, start: int, prompt: int, branches: Sequence[int], device: torch.device) -> None:
        self.prompt = slice(start, start + prompt)
        self.tail = slice(start + prompt, start + prompt + sum(branches))
        self.rows, self.longest = len(branches), max(branches, default=0)
        self._device = device
        self._masks: dict[int | None, tuple[Tensor | None, Tensor]] = {}
        lengths = torch.tensor(branches, device=device)
        within = torch.arange(self.longest, device=device) < lengths[:, None]
        # Branches of unequal length are spread over a [rows, longest] grid; what pads it is never seen.
        self.ragged = not bool(within.all())
        self._from_grid = within.flatten().nonzero()[:, 0]
        self._to_grid = torch.zeros(within.numel(), dtype=torch.long, device=device)
        self._to_grid[self._from_grid] = torch.arange(len(self._from_grid), device=device)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel) -> list[Tensor]:
        """Outputs of the prompt and of the branches."""
        parts = []
        prompt_mask, branch_mask = self._visible(kernel.window)
        prompt_key, prompt_value = key[:, :, self.prompt], value[:, :, self.prompt]
        if prompt_key.shape[2]:
            parts.append(_attend(query[:, :, self.prompt], prompt_key, prompt_value, prompt_mask, kernel))
        if self.longest:
            keys = torch.cat([prompt_key.expand(self.rows, -1, -1, -1), self._grid(key)], dim=2)
            values = torch.cat([prompt_value.expand(self.rows, -1, -1, -1), self._grid(value)], dim=2)
            parts.append(self._flat(_attend(self._grid(query), keys, values, branch_mask, kernel)))
        return parts

    def _grid(self, states: Tensor) -> Tensor:
        """[1, heads, T, D] -> [rows, heads, longest, D] of the branches."""
        tail = states[0, :, self.tail]
        if self.ragged:
            tail = tail.index_select(1, self._to_grid)
        return tail.unflatten(1, (self.rows, self.longest)).transpose(0, 1)

    def _flat(self, states: Tensor) -> Tensor:
        """[rows, heads, longest, D] -> [1, heads, tokens, D]."""
        flat = states.transpose(0, 1).flatten(1, 2)
        return (flat.index_select(1, self._from_grid) if self.ragged else flat)[None]

    def _visible(self, window: int | None) -> tuple[Tensor | None, Tensor]:
        """Masks of the prompt (None: causal) and of a branch over prompt and itself, [queries, keys]."""
        if window not in self._masks:
            prompt = self.prompt.stop - self.prompt.start
            positions = torch.arange(prompt + self.longest, device=self._device)
            back = positions[:, None] - positions
            seen = back >= 0 if window is None else (back >= 0) & (back < window)
            banded = window is not None and window < prompt
            self._masks[window] = (seen[:prompt, :prompt] if banded else None, seen[prompt:])
        return self._masks[window]


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix_layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The form transformers' attention interface asks for; returns [B, T, heads, D], and None for the weights."""
    if prefix_layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kernel = Kernel(scale, options.get("softcap"), options.get("sliding_window"))
    output = prefix_layout.attend(module.layer_idx, query, key, value, kernel)  # type: ignore[arg-type]
    return output.transpose(1, 2).contiguous(), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kernel: Kernel) -> Tensor:
    """Attention with grouped key heads; a mask of None is the causal one, else it is [queries, keys]."""
    batch, heads, queries, width = query.shape
    sharing = heads // key.shape[1]
    if mask is None and kernel.softcap is None:
        return scaled_dot_product_attention(
            query, _repeat(key, sharing), _repeat(value, sharing), is_causal=True, scale=kernel.scale
        )
    if mask is None:
        mask = torch.ones(queries, queries, dtype=torch.bool, device=query.device).tril()
    # The query heads that share a key head become rows of one longer query, so that no key is copied.
    folded = query.reshape(batch, key.shape[1], sharing * queries, width)
    mask = mask.repeat(sharing, 1)
    if kernel.softcap is None:
        output = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=kernel.scale)
    else:
        scores = soft_capped(folded @ key.transpose(2, 3) * kernel.scale, kernel).masked_fill(~mask, float("-inf"))
        output = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return output.reshape(batch, heads, queries, width)


def soft_capped(scores: Tensor, kernel: Kernel) -> Tensor:
    """c·tanh(score / c) where the layer has a soft cap c, else the scores."""
    return scores if kernel.softcap is None else kernel.softcap * torch.tanh(scores / kernel.softcap)


def _repeat(states: Tensor, times: int) -> Tensor:
    return states if times == 1 else states.repeat_interleave(times, dim=1)
