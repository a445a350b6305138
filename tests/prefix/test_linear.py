"""Tests of medgrpo.prefix.linear: the same products, and a model that is itself again afterwards."""

import pytest
import torch

from medgrpo.prefix import linear as module
from medgrpo.prefix.adapters import cast_weights, folded_adapters
from medgrpo.prefix.linear import linear, reordered_weights
from medgrpo.training import lora
from tests.prefix.conftest import tiny_model, with_lora

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(params=[True, False], ids=["with operators", "without"])
def operators(request, monkeypatch):
    """With oneDNN's operators where this build has them, on whatever processor, and as on one that has not."""
    monkeypatch.setattr(module, "_blas_is_at_home", lambda: False)
    if not request.param:
        monkeypatch.setattr(module, "_has_operators", lambda dtype: False)
    elif not module._has_operators(torch.float32):
        pytest.skip("this build of PyTorch has no oneDNN operators")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (0, 5), (1, 5)])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_is_torchs(operators, dtype, shape, transposed):
    """For any number of rows, types with and without an operator, bias or none, and a transposed weight."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape).to(dtype), torch.randn(4, 5).to(dtype), torch.randn(4).to(dtype)
    weight = weight.T.contiguous().T if transposed else weight
    for b in (bias, None):
        torch.testing.assert_close(linear(x, weight, b), torch.nn.functional.linear(x, weight, b))


def test_autocast_is_heeded(operators):
    """Where training computes in bfloat16, so does a product."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_reordered_weights_give_the_same_logits(operators, family, dtype):
    """With adapters folded in and weights cast, in every family."""
    model = with_lora(tiny_model(family)).eval()
    with torch.no_grad(), folded_adapters(model), cast_weights(model, dtype):
        expected = model(input_ids=IDS).logits
        with reordered_weights(model):
            got = model(input_ids=IDS).logits
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype is None else {"rtol": 0.1, "atol": 0.1 * float(expected.abs().max())}
    torch.testing.assert_close(got, expected, **near)


def test_every_linear_layer_is_replaced_once():
    """Adapted layers as one product, and the head; nothing inside an adapted layer."""
    if not module._has_operators(torch.float32):
        pytest.skip("this build of PyTorch has no oneDNN operators")
    model = with_lora(tiny_model("llama")).eval()
    with folded_adapters(model), reordered_weights(model):
        replaced = {name.split(".")[-1] for name, m in model.named_modules() if "forward" in vars(m)}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert projections | {"lm_head"} <= replaced
    assert "base_layer" not in replaced


def test_the_layers_are_themselves_again(operators):
    """Forwards that others have put there come back too, also when generation fails half-way."""
    model = with_lora(tiny_model("llama")).eval()
    lora.install(model)
    before = {name: vars(m).get("forward") for name, m in model.named_modules()}
    with pytest.raises(KeyError), folded_adapters(model), reordered_weights(model):
        raise KeyError
    assert {name: vars(m).get("forward") for name, m in model.named_modules()} == before


@pytest.mark.parametrize(("processor", "at_home"), [("GenuineIntel", True), ("AuthenticAMD", False), (None, False)])
def test_the_blas_is_left_where_it_is_at_home(processor, at_home, monkeypatch, tmp_path):
    """MKL multiplies float32 on Intel's processors; elsewhere, or where the processor is unknown, oneDNN does."""
    if processor:
        (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {processor}\n")
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    assert module._blas_is_at_home.__wrapped__() == (at_home and torch.backends.mkl.is_available())


def test_a_folded_weight_is_not_kept_beside_its_reordered_copy():
    """Generation holds one copy of the adapted weights beside the trained ones, which are back afterwards."""
    if not module._has_operators(torch.float32):
        pytest.skip("this build of PyTorch has no oneDNN operators")
    model = with_lora(tiny_model("llama")).eval()
    weights = [layer.base_layer.weight for layer in model.modules() if hasattr(layer, "base_layer")]
    before = [weight.data_ptr() for weight in weights]
    with folded_adapters(model), cast_weights(model, None), reordered_weights(model):
        assert not any(weight.numel() for weight in weights)
    assert [weight.data_ptr() for weight in weights] == before
