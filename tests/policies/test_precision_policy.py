"""Tests of medgrpo.policies.precision: every row of the table, and every setting that contradicts one."""

import re

import pytest

from medgrpo import policies
from medgrpo.config import RunConfig, load_config, profile_names
from medgrpo.errors import InputError
from medgrpo.policies.precision import TABLE, attention_for, check_precision, device_name, precision_for

T4, V100, A10, H100 = (7, 5), (7, 0), (8, 6), (9, 0)
BOTH = ("none", "4bit")

# device, architecture -> autocast, bf16, quantization, attention, vllm, words of the reason
ROWS = [
    (None, "llama", "auto", True, ("none",), "sdpa", False, "measured to be faster"),
    (None, "gemma3_text", "auto", True, ("none",), "sdpa", False, "4-bit weights, 8-bit AdamW and vLLM are for CUDA"),
    (None, "", "auto", True, ("none",), "sdpa", False, "a processor"),
    (V100, "llama", "none", False, BOTH, "sdpa", False, "PyTorch's build for CUDA 12.6"),
    (V100, "gemma3_text", "none", False, BOTH, "sdpa", False, "vLLM starts at sm_75"),
    (T4, "gemma3_text", "none", False, BOTH, "sdpa", False, "gemma3_text exceed float16's largest number, 65,504"),
    (T4, "gemma3", "none", False, BOTH, "sdpa", False, "losses NaN and completions empty"),
    (T4, "gemma3n_text", "none", False, BOTH, "sdpa", False, "exceed"),
    (T4, "gemma2", "none", False, BOTH, "eager", False, "exceed"),
    (T4, "gpt_oss", "none", False, BOTH, "eager", False, "exceed"),
    (T4, "glm4", "none", False, BOTH, "sdpa", False, "exceed"),
    (T4, "qwen3_5", "none", False, BOTH, "sdpa", False, "exceed"),
    (T4, "llama", "none", False, BOTH, "sdpa", True, "sm_75 has no bfloat16: training is float32"),
    (T4, "qwen2", "none", False, BOTH, "sdpa", True, "vLLM, if asked for, writes in float16"),
    (T4, "hopfield", "none", False, BOTH, "sdpa", False, "whether activations of hopfield stay below"),
    (T4, "", "none", False, BOTH, "sdpa", False, "activations of this model"),
    ((8, 0), "gemma3_text", "bfloat16", True, BOTH, "sdpa", True, "sm_80 multiplies bfloat16"),
    (A10, "gemma3_text", "bfloat16", True, BOTH, "sdpa", True, "float32's range"),
    (A10, "gemma2", "bfloat16", True, BOTH, "eager", True, "sm_86"),
    ((8, 9), "llama", "bfloat16", True, BOTH, "sdpa", True, "sm_89"),
    (H100, "llama", "bfloat16", True, BOTH, "sdpa", True, "sm_90"),
    ((12, 0), "hopfield", "bfloat16", True, BOTH, "sdpa", True, "sm_120"),
]


@pytest.mark.parametrize(
    ("capability", "architecture", "autocast", "bf16", "quantization", "attention", "vllm", "why"), ROWS
)
def test_rows(capability, architecture, autocast, bf16, quantization, attention, vllm, why):
    """Each device and architecture gets its types, flags, quantisation, attention and vLLM switch, with the reason."""
    row = precision_for(capability, architecture)
    assert (row.weights, row.autocast, row.bf16, row.fp16) == ("float32", autocast, bf16, False)
    assert (row.quantization, row.attention, row.vllm) == (quantization, attention, vllm)
    assert why in row.reason
    assert not re.search(r"[{}]", row.reason)


def test_every_row_of_the_table_is_among_the_tested():
    """No row is left untested, and none is hidden behind one above it."""
    templates = [row.reason for _, _, row in TABLE]
    reasons = {
        template.format(device=device_name(capability), architecture=architecture or "this model"): template
        for template in templates
        for capability, architecture, *_ in ROWS
    }
    assert {reasons[precision_for(capability, architecture).reason] for capability, architecture, *_ in ROWS} == set(
        templates
    )


@pytest.mark.parametrize("capability", [(3, 7), (5, 2), (6, 0), (6, 1)])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", ""])
def test_older_devices_are_refused(capability, architecture):
    """Below sm_70 nothing is trained, whatever the model; the sentence names the device and the two ways out."""
    with pytest.raises(InputError) as refused:
        precision_for(capability, architecture)
    sentence = str(refused.value)
    assert device_name(capability) in sentence
    assert all(words in sentence for words in ("sm_70 or later", "a T4 is sm_75", "CUDA_VISIBLE_DEVICES=''"))


def test_it_is_reached_from_policies():
    """The function is reached as `medgrpo.policies.precision_for`."""
    assert policies.precision_for is precision_for


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [("gemma3_text", "sdpa"), ("gemma2", "eager"), ("vaultgemma", "eager"), ("llama", "sdpa"), ("", "sdpa")],
)
def test_attention(architecture, attention):
    """Soft caps need eager attention; Gemma 3 has none."""
    assert attention_for(architecture) == attention


def _config(**settings):
    policy = {name: settings.pop(name) for name in ("autocast", "quantization", "backend") if name in settings}
    return RunConfig.model_validate({"policy": policy, "grpo": settings})


EMULATED = "sm_75 has no bfloat16: it would be emulated"
NO_CUDA = "there is no CUDA device, which bitsandbytes needs for it"
CONTRADICTIONS = [
    (T4, "gemma3_text", {"autocast": "bfloat16"}, "policy.autocast is 'bfloat16'", EMULATED, "policy.autocast=none"),
    (T4, "llama", {"autocast": "bfloat16"}, "policy.autocast is 'bfloat16'", EMULATED, "policy.autocast=none, or auto"),
    (V100, "llama", {"autocast": "bfloat16"}, "policy.autocast is", "sm_70 has no bfloat16", "policy.autocast=none"),
    (T4, "llama", {"rollout_dtype": "bfloat16"}, "grpo.rollout_dtype is", EMULATED, "grpo.rollout_dtype=float32"),
    (T4, "gemma3_text", {"use_vllm": True}, "grpo.use_vllm is true", "refuses it in float16", "grpo.use_vllm=false"),
    (T4, "hopfield", {"use_vllm": True}, "grpo.use_vllm is true", "is not known", "grpo.use_vllm=false"),
    (V100, "llama", {"use_vllm": True}, "grpo.use_vllm is true", "vLLM starts at sm_75", "grpo.use_vllm=false"),
    (None, "llama", {"use_vllm": True}, "grpo.use_vllm is true", "for CUDA devices", "grpo.use_vllm=false"),
    (None, "llama", {"quantization": "4bit"}, "policy.quantization is '4bit'", NO_CUDA, "policy.quantization=none"),
    (None, "llama", {"optimizer": "adamw_8bit"}, "grpo.optimizer is", NO_CUDA, "grpo.optimizer=adamw_torch"),
    ((6, 1), "llama", {}, "the CUDA device is sm_61", "PyTorch's usual builds", "Take a newer one"),
]


@pytest.mark.parametrize(("capability", "architecture", "settings", "found", "why", "remedy"), CONTRADICTIONS)
def test_a_contradiction_is_said(capability, architecture, settings, found, why, remedy):
    """One sentence: what is set, why it would end badly, and what to set instead."""
    with pytest.raises(InputError) as refused:
        check_precision(_config(**settings), capability, architecture)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.index(found) < sentence.index(why) < sentence.index(remedy)


@pytest.mark.parametrize(
    ("capability", "settings"),
    [
        (None, {"autocast": "bfloat16", "rollout_dtype": "bfloat16"}),
        (None, {"autocast": "auto", "rollout_dtype": "auto", "backend": "auto"}),
        (T4, {"autocast": "auto", "rollout_dtype": "auto", "backend": "auto"}),
        (T4, {"quantization": "4bit", "optimizer": "adamw_8bit"}),
        (T4, {"use_vllm": True}),
        (A10, {"autocast": "bfloat16", "quantization": "4bit", "rollout_dtype": "bfloat16", "use_vllm": True}),
    ],
)
def test_what_fits_is_let_through(capability, settings):
    """Settings that a Llama can be trained with on the device raise nothing; "auto" fits everywhere."""
    check_precision(_config(**settings), capability, "llama")


def test_all_contradictions_are_said_at_once():
    """Who set three things wrong need not start three times."""
    config = _config(autocast="bfloat16", rollout_dtype="bfloat16", use_vllm=True)
    with pytest.raises(InputError) as refused:
        check_precision(config, T4, "gemma3_text")
    assert [line.split(" ")[0] for line in str(refused.value).splitlines()] == [
        *("policy.autocast", "grpo.rollout_dtype", "grpo.use_vllm"),
    ]


@pytest.mark.parametrize("profile", profile_names())
def test_shipped_profiles_agree_with_the_policy(profile):
    """What runs anywhere runs on a T4 too, and so does what is made for it; a10 is for Ampere."""
    config = load_config(profile)
    check_precision(
        config, (8, 6) if profile == "a10" else T4, "gemma3_text" if "gemma" in config.policy.base else "llama"
    )
