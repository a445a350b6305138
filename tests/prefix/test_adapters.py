"""Tests of medgrpo.prefix.adapters: folded weights compute the same and leave no trace."""

import pytest
import torch

from medgrpo.prefix.adapters import cast_weights, folded_adapters
from tests.prefix.conftest import tiny_model, with_lora

IDS = torch.tensor([[5, 6, 7, 8]])


def test_folded_adapters_compute_the_same():
    """W + BA gives the logits of W beside BA, and the adapter's own products are no longer computed."""
    model = with_lora(tiny_model("llama")).eval()
    products = []
    for name, module in model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda *_: products.append(1))
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        counted = len(products)
        with folded_adapters(model):
            folded = model(input_ids=IDS).logits
    assert counted == len(products) == 21
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)


def test_the_weights_are_the_same_tensors_afterwards():
    """Not a bit of any weight changes, also when generation fails half-way."""
    model = with_lora(tiny_model("llama"))
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with pytest.raises(KeyError), folded_adapters(model):
        raise KeyError
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(getattr(module, "merged", False) for module in model.modules())


def test_weights_that_rounding_would_move_stay_unfolded():
    """In bfloat16 the adapter is computed beside the weight, as in training."""
    model = with_lora(tiny_model("llama")).to(torch.bfloat16)
    with folded_adapters(model):
        assert not any(getattr(module, "merged", False) for module in model.modules())


def test_a_disabled_adapter_stays_out():
    """Where the base model is wanted, folding adds nothing."""
    model = with_lora(tiny_model("llama")).eval()
    with torch.no_grad(), model.disable_adapter():
        expected = model(input_ids=IDS).logits
        with folded_adapters(model):
            assert torch.equal(model(input_ids=IDS).logits, expected)


def test_a_model_without_adapters_is_left_alone():
    """Folding nothing is no error."""
    with folded_adapters(tiny_model("llama")) as nothing:
        assert nothing is None


def test_cast_weights_come_back_bit_by_bit():
    """Inside, frozen weights have the other type and the model computes in it; the same tensors are back after."""
    model = with_lora(tiny_model("gemma3"))
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    with folded_adapters(model), cast_weights(model, torch.bfloat16), torch.no_grad():
        assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
        assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
