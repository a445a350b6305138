"""Tests of medgrpo.prefix.attention: without a layout nothing changes."""

import torch

from medgrpo.prefix.attention import NAME, install
from tests.prefix.conftest import tiny_model


def test_a_model_that_is_prepared_still_reads_padded_batches(family):
    """Without a layout an installed model attends as before: masks and padding are respected."""
    model = tiny_model(family)
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        install(model)
        assert model.config._attn_implementation == NAME
        torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, expected)
