"""Attention for decoding one token at a time with grouped key/value heads, without copying the cache.

With a padding mask, transformers' SDPA path first copies every key/value head once per query head (`repeat_kv`): for a
model with three query heads per key head, that copy took a third of the decoding time on a CPU. Grouping the query
heads instead gives the same sums. Prompts (more than one query position) and models whose layers add soft caps or sinks
keep transformers' own path.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

NAME = "medgrpo_grouped"


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scaled dot-product attention, in the form transformers' attention interface asks for.

    Args:
        module: the attention layer.
        query: [batch, heads, queries, width].
        key: [batch, key heads, keys, width].
        value: [batch, key heads, keys, width].
        attention_mask: [batch, 1, queries, keys], True or 0 where a key may be seen; None where all may.
        scaling: factor on the scores; 1 / sqrt(width) by default.
        options: what other layers pass on.

    Returns:
        [batch, queries, heads, width], and None for the weights.
    """
    batch, heads, queries, width = query.shape
    if queries != 1 or module.training or any(options.get(name) is not None for name in ("softcap", "s_aux")):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    groups = key.shape[1]
    scores = query.view(batch, groups, heads // groups, width) @ key.transpose(2, 3)
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        seen = attention_mask[..., : key.shape[2]]
        scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).view(batch, 1, heads, width), None


@contextlib.contextmanager
def grouped_decoding(model: Any) -> Iterator[None]:
    """Let a model decode with `grouped_attention`, where it runs transformers' SDPA attention; restores it after."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    usual = getattr(model.config, "_attn_implementation", None)
    if usual != "sdpa":
        yield
        return
    AttentionInterface.register(NAME, grouped_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
