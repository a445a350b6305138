"""Tests of medgrpo.training.lean: transformers' numbers with less kept, and its own way where ours does not apply."""

import pytest
import torch

from medgrpo.training import lean, lora
from tests.prefix.conftest import FAMILIES, tiny_model, with_lora

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def pair(family, adapt=with_lora):
    """The same model twice, the second lean."""
    stock, ours = adapt(tiny_model(family)), adapt(tiny_model(family))
    lora.install(ours)
    lean.install(ours)
    return stock, ours


def gradients(model):
    loss = model(input_ids=IDS).logits.sin().sum()
    return loss, torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)


@pytest.mark.parametrize("adapt", [with_lora, lambda model: model], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_transformers(family, adapt):
    """Loss and every gradient are the same to 1e-4, the norms' own weights included where they are trained."""
    (expected, wanted), (loss, got) = map(gradients, pair(family, adapt))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(got, wanted, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            assert (one - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_and_feed_forward_is_found(family):
    """Those on queries and keys too, with weights around one (Llama) or around zero (Gemma)."""
    _, ours = pair(family)
    fitting = [m for m in ours.modules() if type(m).__name__.endswith(("RMSNorm", "MLP"))]
    assert fitting
    assert all("forward" in vars(module) for module in fitting)


def test_what_only_looks_like_a_norm_is_left():
    """A norm that also centres, or scales by a factor of its own, keeps its own forward."""

    class Scaled(torch.nn.RMSNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    model = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.LayerNorm(8, bias=False), Scaled(8, eps=1e-6))
    lean.install(model)
    assert not any("forward" in vars(module) for module in model)


def test_less_is_kept_for_the_backward_pass():
    """Of a feed-forward two tensors of its width are kept instead of four, of a norm no copy of its input."""

    def kept(model):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t, lambda t: t
        ):
            loss = model(input_ids=IDS.repeat(8, 1)).logits.sum()
        assert loss.isfinite()
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in parameters)

    stock, ours = pair("llama")
    assert kept(ours) < 0.8 * kept(stock)


def test_half_precision_keeps_the_models_own_way(monkeypatch):
    """Under autocast the feed-forward is the model's, and the output finite and close."""
    stock, ours = pair("qwen2")
    monkeypatch.setattr(lean.GatedDown, "apply", lambda *_: pytest.fail("used"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        one, other = ours(input_ids=IDS).logits, stock(input_ids=IDS).logits
    torch.testing.assert_close(one, other, rtol=0.1, atol=0.1)
