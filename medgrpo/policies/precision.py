"""Which numbers a device can train a model in: a table, the function that reads it, and a check of settings against it.

Nothing here asks the machine; `medgrpo.policies.backends` does that. What the table rests on:

- bfloat16 is multiplied from compute capability 8.0 on and emulated below (`torch.cuda.is_bf16_supported`).
- PyTorch 2.13 is built for CUDA 12.9, 13.0 and 13.2 from 7.5 on; its build for CUDA 12.6 has 5.0, 6.0 and 7.0 too
  (`torch.cuda.PYTORCH_RELEASES_CODE_CC`) and ends with PyTorch 2.14 (pytorch issue 190385). Unsloth starts at 7.0.
- Activations of some architectures exceed float16's largest number, 65,504: vLLM refuses them in float16
  (`_FLOAT16_NOT_SUPPORTED_MODELS` in its config/model.py), Unsloth computes them in float32 (`FORCE_FLOAT32`).
- vLLM 0.31 needs 7.5; bitsandbytes 0.50 needs 6.0, for NF4 weights and for 8-bit optimisers.
- Gemma 3 trains with PyTorch's own attention (SDPA): its scores have no soft cap, and transformers took its advice to
  train it with eager attention back (pull request 40744). Gemma 2's have one, which transformers' SDPA leaves out.

Where bfloat16 is missing, training could run in float16 autocast for architectures that stay in its range, on the
tensor cores of a T4. It does not: gradients would have to be scaled, also those that `training.grouped` takes back
through a kept prompt by itself, and a step that overflows is skipped in silence. Float32 is slower and safe.
"""

from dataclasses import dataclass, replace

from medgrpo.config import RunConfig
from medgrpo.errors import InputError

Capability = tuple[int, int] | None
"""CUDA compute capability of the device; None is the processor."""


@dataclass(frozen=True)
class Precision:
    """What a model is trained in on a device.

    Attributes:
        weights: type of the weights that are not quantised, the adapter's among them.
        autocast: what `policy.autocast = "auto"` takes: "none", "bfloat16", or "auto" where it is tried.
        bf16: whether the trainers' flag of that name, and rollouts in bfloat16, are possible.
        fp16: whether the other flag is; it never is, see above.
        quantization: values of `policy.quantization` that are possible.
        attention: implementation that computes what the model means, "sdpa" or "eager".
        vllm: whether `grpo.use_vllm` is possible.
        reason: why, in words.
    """

    weights: str
    autocast: str
    bf16: bool
    fp16: bool
    quantization: tuple[str, ...]
    attention: str
    vllm: bool
    reason: str


_CPU = Precision(
    weights="float32",
    autocast="auto",
    bf16=True,
    fp16=False,
    quantization=("none",),
    attention="sdpa",
    vllm=False,
    reason="a processor computes in float32, and in bfloat16 where that is measured to be faster; 4-bit weights, "
    "8-bit AdamW and vLLM are for CUDA devices",
)
_AMPERE = Precision(
    weights="float32",
    autocast="bfloat16",
    bf16=True,
    fp16=False,
    quantization=("none", "4bit"),
    attention="sdpa",
    vllm=True,
    reason="{device} multiplies bfloat16, which has float32's range, faster than float32",
)
_TURING = replace(
    _AMPERE,
    autocast="none",
    bf16=False,
    vllm=False,
    reason="{device} has no bfloat16, and whether activations of {architecture} stay below float16's largest number, "
    "65,504, is not known: all is float32, and vLLM, which would write in float16, is off",
)
_TURING_OVERFLOW = replace(
    _TURING,
    reason="{device} has no bfloat16, and activations of {architecture} exceed float16's largest number, 65,504, which "
    "makes losses NaN and completions empty: all is float32, and vLLM, which refuses it in float16, is off",
)
_TURING_IN_RANGE = replace(
    _TURING, vllm=True, reason="{device} has no bfloat16: training is float32; vLLM, if asked for, writes in float16"
)
_VOLTA = replace(
    _TURING,
    reason="{device} has no bfloat16: all is float32, with PyTorch's build for CUDA 12.6, the last that has code for "
    "it; vLLM starts at sm_75",
)

_ANY = ("",)
# Beginnings of model types: "gemma3" stands for gemma3_text and gemma3n too.
_OVERFLOW = ("gemma2", "gemma3", "gemma4", "glm4", "gpt_oss", "plamo2", "qwen3_5", "qwen3_moe")
_IN_RANGE = ("llama", "mistral", "qwen2", "smollm3")
# Soft-capped scores, as Gemma 2 has them, and attention sinks are unknown to transformers' SDPA.
_EAGER = ("gemma2", "vaultgemma", "gpt_oss")

TABLE: tuple[tuple[Capability, tuple[str, ...], Precision], ...] = (
    (None, _ANY, _CPU),
    ((8, 0), _ANY, _AMPERE),
    ((7, 5), _OVERFLOW, _TURING_OVERFLOW),
    ((7, 5), _IN_RANGE, _TURING_IN_RANGE),
    ((7, 5), _ANY, _TURING),
    ((7, 0), _ANY, _VOLTA),
)
"""From which capability on, for which architectures, what. The first row that fits counts; where none does, nothing."""


def precision_for(capability: Capability, architecture: str) -> Precision:
    """What to train a model in.

    Args:
        capability: of the device; None is the processor.
        architecture: the model's `config.model_type`; an unknown one gets what is safe for every model.

    Raises:
        InputError: the device is too old.

    >>> row = precision_for((7, 5), "gemma3_text")
    >>> row.weights, row.bf16, row.fp16, row.vllm
    ('float32', False, False, False)
    """
    for since, architectures, row in TABLE:
        reached = capability == since if capability is None or since is None else capability >= since
        if reached and architecture.startswith(architectures):
            reason = row.reason.format(device=device_name(capability), architecture=architecture or "this model")
            return replace(row, attention=attention_for(architecture), reason=reason)
    raise InputError(
        f"the CUDA device is {device_name(capability)}, and training needs sm_70 or later: PyTorch's usual builds have "
        "no code for this one, and Unsloth and vLLM do not support it. Take a newer one (a T4 is sm_75), or hide it, "
        "to train on the processor: CUDA_VISIBLE_DEVICES=''."
    )


def attention_for(architecture: str) -> str:
    """Attention implementation of transformers that computes what the model means: "sdpa", else "eager"."""
    return "eager" if architecture.startswith(_EAGER) else "sdpa"


def device_name(capability: Capability) -> str:
    """Short name of a device.

    >>> device_name((7, 5)), device_name(None)
    ('sm_75', 'the processor')
    """
    return "the processor" if capability is None else f"sm_{capability[0]}{capability[1]}"


def check_precision(config: RunConfig, capability: Capability, architecture: str) -> None:
    """Compare what is set with what the device can do; "auto" always fits.

    Raises:
        InputError: the device is too old, or one sentence per setting that would end badly on it.
    """
    row, device = precision_for(capability, architecture), device_name(capability)
    policy, grpo = config.policy, config.grpo
    emulated = f"but {device} has no bfloat16: it would be emulated, which is slower than float32 and less exact"
    processor = "but there is no CUDA device, which bitsandbytes needs for it"
    checks = (
        (
            policy.autocast == "bfloat16" and not row.bf16,
            f"policy.autocast is 'bfloat16', {emulated}. Set policy.autocast=none, or auto.",
        ),
        (
            grpo.rollout_dtype == "bfloat16" and not row.bf16,
            f"grpo.rollout_dtype is 'bfloat16', {emulated}. Set grpo.rollout_dtype=float32, or auto.",
        ),
        (
            policy.quantization not in row.quantization,
            f"policy.quantization is {policy.quantization!r}, {processor}. Set policy.quantization=none.",
        ),
        (
            grpo.optimizer == "adamw_8bit" and capability is None,
            f"grpo.optimizer is 'adamw_8bit', {processor}. Set grpo.optimizer=adamw_torch.",
        ),
        (
            grpo.use_vllm and not row.vllm,
            f"grpo.use_vllm is true, but not for this model and device: {row.reason}. Set grpo.use_vllm=false.",
        ),
    )
    if sentences := [sentence for contradicts, sentence in checks if contradicts]:
        raise InputError("\n".join(sentences))
