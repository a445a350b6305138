"""Tests of medgrpo.training.lora: PEFT's numbers, and PEFT's own way wherever ours does not apply."""

import pytest
import torch

from medgrpo.prefix.adapters import folded_adapters
from medgrpo.training import lora
from tests.prefix.conftest import tiny_model, with_lora

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def pair(family="qwen2", **changes):
    """The same model twice, the second with our layers; qwen2's attention has biases."""
    stock, ours = with_lora(tiny_model(family, **changes)), with_lora(tiny_model(family, **changes))
    ours.load_state_dict(stock.state_dict())
    lora.install(ours)
    return stock, ours


def gradients(model):
    loss = model(input_ids=IDS).logits.sin().sum()
    return loss, torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_outputs_and_gradients_are_pefts(family):
    """The loss and the gradient of every A and B are PEFT's, with and without biases."""
    (expected, wanted), (loss, got) = map(gradients, pair(family))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("state", ["folded", "disabled", "autocast", "two adapters"])
def test_other_states_of_a_layer_take_pefts_way(state, monkeypatch):
    """Folded or disabled adapters, half precision and several adapters at once: our function is not used."""
    stock, ours = pair()
    monkeypatch.setattr(lora.LoraLinear, "apply", lambda *_: pytest.fail("used"))
    if state == "two adapters":
        for model in (stock, ours):
            model.add_adapter("other", model.peft_config["default"])
            model.base_model.set_adapter(["default", "other"])
        ours.load_state_dict(stock.state_dict())

    def run(model):
        with torch.no_grad():
            if state == "folded":
                with folded_adapters(model):
                    return model(input_ids=IDS).logits
            if state == "disabled":
                with model.disable_adapter():
                    return model(input_ids=IDS).logits
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=state == "autocast"):
                return model(input_ids=IDS).logits

    torch.testing.assert_close(run(ours), run(stock))


def test_dropout_takes_pefts_way(monkeypatch):
    """An adapter with dropout drops as PEFT does."""
    model = with_lora(tiny_model("llama"))
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(0.5)
    lora.install(model)
    monkeypatch.setattr(lora.LoraLinear, "apply", lambda *_: pytest.fail("used"))
    one, other = (model.train()(input_ids=IDS).logits for _ in range(2))
    assert not torch.equal(one, other)


def test_installing_twice_changes_nothing():
    """The second installation finds our layers and leaves them."""
    _, ours = pair()
    before = [module.forward for module in ours.modules() if hasattr(module, "lora_A")]
    lora.install(ours)
    assert [module.forward for module in ours.modules() if hasattr(module, "lora_A")] == before
