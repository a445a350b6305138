"""Attention for decoding with grouped key/value heads."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from medgrpo.evaluation.attention import grouped_attention, grouped_decoding
from medgrpo.policies import load_model
from medgrpo.testing import tiny_policy


class Layer(torch.nn.Module):
    """What transformers' attention asks a layer for."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("mask", ["none", "boolean", "additive"])
@pytest.mark.parametrize("queries", [1, 5])
def test_equals_transformers_attention(heads: tuple[int, int], mask: str, queries: int) -> None:
    """The result is transformers' own, with and without a mask, for one query position and for many."""
    torch.manual_seed(0)
    query = torch.randn(2, heads[0], queries, 8)
    key, value = torch.randn(2, 2, heads[1], 9, 8)
    seen = torch.ones(2, 1, queries, 9, dtype=torch.bool)
    seen[0, ..., :3] = False
    masks = {"none": None, "boolean": seen, "additive": torch.zeros(seen.shape).masked_fill(~seen, -1e9)}
    layer = Layer(heads[0] // heads[1]).eval()
    expected, _ = sdpa_attention_forward(layer, query, key, value, masks[mask], is_causal=False)
    actual, _ = grouped_attention(layer, query, key, value, masks[mask], is_causal=False)
    torch.testing.assert_close(actual, expected)


@pytest.mark.slow
def test_the_model_is_left_as_it_was(tmp_path) -> None:
    """Decoding switches the attention, gives the same logits, and switches back."""
    model, tokenizer = load_model(tiny_policy(tmp_path / "policy"))
    inputs = tokenizer(["One trial.", "A much longer sentence about one trial."], padding=True, return_tensors="pt")
    usual = model.config._attn_implementation
    with torch.inference_mode():
        expected = model(**inputs).logits
        with grouped_decoding(model):
            assert model.config._attn_implementation != usual
            actual = model(**inputs).logits
    torch.testing.assert_close(actual, expected)
    assert model.config._attn_implementation == usual
