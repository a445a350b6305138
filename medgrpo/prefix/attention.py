"""Attention that asks a layout who sees whom, so that completions can share their prompt.

A `Layout` knows which token belongs to whom: `packing.Packing` in a row that holds prompts and completions, the cache
of `generation` in decoding. It travels to every layer as the keyword `prefix_layout` of the model's forward, so that
recomputed layers (gradient checkpointing) see it too. Without one, a layer runs transformers' SDPA attention as before.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

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


def soft_capped(scores: Tensor, kernel: Kernel) -> Tensor:
    """c·tanh(score / c) where the layer has a soft cap c, else the scores."""
    return scores if kernel.softcap is None else kernel.softcap * torch.tanh(scores / kernel.softcap)
