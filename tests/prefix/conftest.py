"""Tiny random models of the families whose attention differs, with weights large enough for every token to matter."""

import pytest
import torch

from medgrpo.testing import GEMMA_LAYERS

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma3"]


def tiny_model(family, **changes):
    """A random model of three layers, grouped key heads, and for mistral and gemma3 a window of 12 positions."""
    import transformers

    sizes = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    config, model, extra = {
        "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
        "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
        "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 16}),
        "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 12, "head_dim": 16}),
        "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**GEMMA_LAYERS, "final_logit_softcapping": 5.0}),
    }[family]
    torch.manual_seed(0)
    settings = getattr(transformers, config)(**{**sizes, **extra, **changes})
    return getattr(transformers, model)(settings).eval()


def with_lora(model):
    """The model with an adapter on all linear layers that is not zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))


@pytest.fixture(params=FAMILIES)
def family(request):
    """Each family in turn."""
    return request.param


@pytest.fixture
def prompts():
    """Prompts of different lengths, one longer than the windows, one of a single token."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(3, 400, (length,), generator=generator).tolist() for length in (30, 7, 1, 18)]
