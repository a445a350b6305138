"""Tests of medgrpo.prefix.support: models that would compute something else are found out and left alone."""

import logging

import pytest
import torch

from medgrpo.prefix import attention
from medgrpo.prefix.attention import NAME
from medgrpo.prefix.support import prepare
from tests.prefix.conftest import tiny_model, with_lora


def test_the_known_families_are_prepared(family, caplog):
    """Llama, Qwen, Mistral and Gemma 3 pass the probe, once, without a word."""
    model = tiny_model(family)
    assert prepare(model)
    assert prepare(model)
    assert not caplog.records


def test_a_model_with_adapters_is_prepared_and_keeps_its_mode():
    """The probe runs through the adapters, and a model in training stays in training."""
    model = with_lora(tiny_model("llama")).train()
    assert prepare(model)
    assert model.training


@pytest.mark.parametrize("change", ["scale", "window"])
def test_a_difference_in_the_numbers_is_found(family, change, monkeypatch, caplog):
    """If our attention scaled differently, or saw past a window, the model keeps transformers' own attention."""
    if change == "window" and family not in ("mistral", "gemma3"):
        pytest.skip("this family has no window")
    kernel = attention.Kernel
    wrong = {"scale": lambda s, c, w: kernel(1.5 * s, c, w), "window": lambda s, c, w: kernel(s, c, None)}[change]
    monkeypatch.setattr(attention, "Kernel", wrong)
    model = tiny_model(family)
    assert not prepare(model)
    assert model.config._attn_implementation == "sdpa"
    assert "its logits would differ by" in caplog.text


def test_logits_that_are_not_numbers_are_a_difference(monkeypatch, caplog):
    """A decoding that overflows is found out, though no comparison with NaN is ever true."""
    from medgrpo.prefix import support

    decoded = support._decoded
    monkeypatch.setattr(support, "_decoded", lambda *args: decoded(*args) * float("nan"))
    assert not prepare(tiny_model("llama"))
    assert "differ by nan" in caplog.text


def test_soft_capped_scores_are_told_from_sdpa(caplog):
    """Gemma 2 caps its scores, which transformers' SDPA leaves out; the two differ, so nothing is shared."""
    model = tiny_model("llama")
    layer = model.model.layers[0].self_attn
    forward = layer.forward
    layer.forward = lambda *args, **options: forward(*args, softcap=0.5, **options)
    assert not prepare(model)
    assert "differ" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: model.set_attn_implementation("eager"), "'eager', not 'sdpa'"),
        (lambda model: setattr(model.config, "layer_types", ["linear_attention"]), "linear_attention"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_tried(change, words, caplog):
    """Another attention or another kind of layer is named in one log line."""
    model = tiny_model("llama")
    change(model)
    with caplog.at_level(logging.WARNING):
        assert not prepare(model)
    assert words in caplog.text
    assert len(caplog.records) == 1


def test_an_architecture_that_does_not_pass_the_layout_on_falls_back(caplog):
    """A model whose layers never hear of the layout is found out by the probe and left as it was."""

    class Deaf(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.config, self.device = model, model.config, model.device
            self.set_attn_implementation = model.set_attn_implementation

        def forward(self, input_ids, **options):
            options.pop("prefix_layout", None)
            return self.model(input_ids=input_ids, **options)

    model = tiny_model("llama")
    assert not prepare(Deaf(model))
    assert model.config._attn_implementation != NAME
    assert "prompts are not shared" in caplog.text
