"""The policy as Unsloth loads it: its kernels on a GPU, plain transformers on a CPU.

Unsloth rewrites transformers, PEFT and TRL when it is imported, so it comes before them, and only into a process that
trains with it. What it trains is an adapter as any other: the transformers backend loads it, and it one of that.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.config import EMBEDDED_MODEL, PolicyConfig, RunConfig
from medgrpo.errors import InputError
from medgrpo.policies import adapter_problems, hub_unreachable, is_local, load_tokenizer, resolve_base
from medgrpo.policies.embedded import align_special_tokens, cache_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def start() -> Any:
    """Import Unsloth, the first time before transformers, PEFT and TRL; it keeps its files in medgrpo's cache.

    Raises:
        InputError: it is not installed, broken, or refuses this machine.
    """
    cache = cache_directory() / "unsloth"
    os.environ |= {
        # It would run a batch together as one row, in which verdicts of several completions could not be told apart.
        "UNSLOTH_DISABLE_AUTO_PADDING_FREE": "1",
        # It would count its users by a download.
        "UNSLOTH_DISABLE_STATISTICS": "1",
        # The modules that it writes and imports; by default in the directory that the process runs in.
        "UNSLOTH_COMPILE_LOCATION": str(cache / "modules"),
        "UNSLOTH_MEGA_CACHE_DIR": str(cache / "kernels"),
    }
    with _refusals("cannot be imported", AttributeError, RuntimeError):
        import unsloth
    return unsloth


def load_fast(config: RunConfig, adapter: Path | None = None) -> "tuple[Any, PreTrainedTokenizerBase]":
    """The base as `config.policy` says with a trainable LoRA adapter: a fresh one, or a saved one to go on with.

    Frozen weights are bfloat16 where training passes are, else float32, or 4 bits; the adapter is float32.

    Raises:
        InputError: Unsloth cannot load the base here, the adapter does not fit it, or a setting is not for Unsloth.
    """
    import torch
    from peft import LoraConfig

    unsloth = start()
    policy, base = config.policy, resolve_base(config.policy)
    _refuse_others(config)
    tokenizer = load_tokenizer(base, policy.revision)
    checkpointing = "unsloth" if config.grpo.gradient_checkpointing else False
    with adapter_problems(adapter):
        saved = LoraConfig.from_pretrained(str(adapter)) if adapter else None
    if policy.autocast == "none":
        # Where there is no bfloat16, some families would come in it all the same, and be computed in float16 in part.
        getattr(sys.modules.get("unsloth.models.loader"), "FORCE_FLOAT32", []).clear()
    with _refusals(f"cannot load {base}"), _unreachable(policy, base):
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            model_name=base,
            revision=policy.revision,
            max_seq_length=config.data.max_length,
            dtype=torch.bfloat16 if policy.autocast == "bfloat16" else torch.float32,
            load_in_4bit=policy.quantization == "4bit",
            use_gradient_checkpointing=checkpointing,
            # Not a copy under another name that was quantised by others.
            use_exact_model_name=True,
        )
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=saved.r if saved else policy.lora_rank,
            lora_alpha=saved.lora_alpha if saved else policy.lora_alpha,
            lora_dropout=policy.lora_dropout,
            target_modules=_linear_layers(model),
            use_gradient_checkpointing=checkpointing,
            random_state=config.seed,
        )
    if adapter:
        with adapter_problems(adapter):
            model.load_adapter(str(adapter), "default", is_trainable=True)
    align_special_tokens(model, tokenizer)
    if policy.autocast == "none":
        found = model.get_input_embeddings().weight.dtype
        if found != torch.float32:
            raise InputError(
                f"policy.autocast is 'none', but Unsloth loaded {base} in {found} on this machine. "
                "Use --set policy.backend=transformers."
            )
        # Else its trainers turn 16 bits on wherever they can; `medgrpo.training.fast` takes it back.
        model._unsloth_forced_float32 = True
    return model, tokenizer


@contextlib.contextmanager
def _unreachable(policy: PolicyConfig, base: str) -> Iterator[None]:
    """Turn a download that fails into the sentence of the transformers backend, which is worth a retry."""
    try:
        yield
    except OSError as error:
        if is_local(policy.base) or policy.base == EMBEDDED_MODEL:
            raise
        raise hub_unreachable(base, error) from error


def _refuse_others(config: RunConfig) -> None:
    """Settings that would do nothing with Unsloth."""
    for setting, here, neutral in (
        ("grpo.rollout_dtype", config.grpo.rollout_dtype, "float32"),
        ("grpo.use_vllm", config.grpo.use_vllm, False),
    ):
        if here != neutral:
            raise InputError(
                f"{setting} is {here!r}, but the unsloth backend writes completions with what it trains. "
                f"Use --set {setting}={str(neutral).lower()} or --set policy.backend=transformers."
            )


def _linear_layers(model: Any) -> list[str]:
    """What PEFT's "all-linear" means for a model: the names of its linear layers, but that of its head.

    Unsloth reads a list of names as asking for its own kernels, and a single string as a pattern.
    """
    import torch

    head = model.get_output_embeddings()
    linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
    return sorted({name.rpartition(".")[2] for name in linear})


@contextlib.contextmanager
def _refusals(trouble: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what Unsloth raises where it will not go on into a sentence.

    A missing GPU is a NotImplementedError; a missing library, or one in a version that it knows not, an ImportError.
    Of a RuntimeError, which running out of memory is too, it must be said that it is meant.
    """
    refusals: tuple[type[Exception], ...] = (ImportError, NotImplementedError, OSError, ValueError, *more)
    try:
        yield
    except refusals as error:
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"policy.backend is 'unsloth', but it {trouble}: {type(error).__name__}: {lines[0]} Install it beside a "
            "torch built for CUDA (pip install 'medgrpo[gpu]'), or use --set policy.backend=transformers."
        ) from error
