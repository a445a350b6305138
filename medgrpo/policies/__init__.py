"""Load and save the policy: the embedded model, a Hugging Face id, or a local directory; with or without adapter."""

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.config import EMBEDDED_MODEL, PolicyConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import describe
from medgrpo.policies.embedded import align_special_tokens, materialize_embedded
from medgrpo.policies.precision import attention_for
from medgrpo.policies.precision import precision_for as precision_for

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END_OF_TURN = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>")


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


def hub_unreachable(source: str, error: Exception) -> ServiceUnreachable:
    """What to raise where a model of the Hub cannot be had."""
    first_line = str(error).strip().split("\n")[0]
    return ServiceUnreachable(
        f"the model {source!r} is neither cached nor reachable on the Hugging Face Hub: {first_line} Check the "
        "name and the network (gated models need `hf auth login`), or give a local directory."
    )


def base_identity(config: PolicyConfig) -> str:
    """What tells the configured base from another: its name and revision, and of a local directory its content."""
    base = describe_base(config)
    return f"{base['name']}@{base['revision']}#{base['digest'] or ''}"


def describe_base(config: PolicyConfig) -> dict[str, str | None]:
    """The same in parts: `name`, `revision`, and `digest`, which only a local directory has."""
    directory = Path(config.base).expanduser()
    local = config.base != EMBEDDED_MODEL and directory.is_dir()
    return {
        "name": config.base,
        "revision": config.revision,
        "digest": directory_digest(directory) if local else None,
    }


@cache
def directory_digest(directory: Path) -> str:
    """sha256 of a directory's files, computed once in a process."""
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
    source: str | Path, adapter: Path | None = None, revision: str | None = None, device: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A float32 causal language model in evaluation mode, on the GPU where there is one, with its tokenizer.

    Args:
        source: directory or Hugging Face id of a whole model.
        adapter: directory of a LoRA adapter to fold into the weights.
        revision: revision of a Hugging Face id.
        device: where it goes; unset, the GPU where there is one.

    Raises:
        InputError: not a model, or an adapter that does not fit.
        ServiceUnreachable: a Hugging Face id whose files are neither cached nor reachable.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(source, revision)
    model = _from_pretrained(AutoModelForCausalLM, source, revision=revision, dtype=torch.float32)
    if attention_for(model.config.model_type) == "eager":
        model.set_attn_implementation("eager")
    align_special_tokens(model, tokenizer)
    if adapter:
        model = _with_adapter(model, adapter).merge_and_unload()
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def load_trainable(
    config: PolicyConfig, adapter: Path | None = None, device: str | None = None
) -> "tuple[Any, PreTrainedTokenizerBase]":
    """The base, in float32 with transformers, with a trainable LoRA adapter: a fresh one, or a saved one to go on with.

    Args:
        config: names the base and shapes a fresh adapter; its dropout is a saved one's too.
        adapter: directory of a saved one.
        device: where it goes; unset, the GPU where there is one.

    Raises:
        InputError: the base is not a model, or the adapter does not fit it.
    """
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_model(resolve_base(config), revision=config.revision, device=device)
    if adapter:
        with adapter_problems(adapter):
            saved = LoraConfig.from_pretrained(str(adapter))
        saved.lora_dropout = config.lora_dropout
        return _with_adapter(model, adapter, is_trainable=True, config=saved), tokenizer
    return get_peft_model(model, fresh_lora(config)), tokenizer


def fresh_lora(config: PolicyConfig) -> Any:
    """PEFT's settings of a fresh adapter."""
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def adapter_shapes(config: PolicyConfig) -> dict[str, tuple[int, ...]]:
    """Name, as in a saved adapter's file, and shape of each matrix of a fresh adapter; no weights are loaded.

    Raises:
        InputError: the base is not a model.
        ServiceUnreachable: a Hugging Face id whose files are neither cached nor reachable.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = _from_pretrained(AutoConfig, resolve_base(config), revision=config.revision)
    with torch.device("meta"):
        model = get_peft_model(AutoModelForCausalLM.from_config(settings), fresh_lora(config))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tuple(matrix.shape) for name, matrix in state.items()}


def _with_adapter(model: Any, adapter: Path, **options: Any) -> Any:
    from peft import PeftModel

    with adapter_problems(adapter):
        return PeftModel.from_pretrained(model, str(adapter), **options)


@contextlib.contextmanager
def adapter_problems(adapter: Path | None) -> Iterator[None]:
    """Turn what libraries raise for an adapter that they cannot load into a sentence.

    Raises:
        InputError: the files are damaged, or for another model.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError:
        # No fault of the adapter.
        raise
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
        raise hub_unreachable(str(source), error) from error
    finally:
        transformers_logging.enable_progress_bar()
