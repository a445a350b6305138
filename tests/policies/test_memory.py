"""Tests of medgrpo.policies.memory: what is reckoned, against numbers that are known."""

import json
import subprocess
import sys

import pytest

from medgrpo.config import RunConfig, load_config
from medgrpo.errors import InputError
from medgrpo.policies import memory
from medgrpo.policies.embedded import EMBEDDED_CONFIG
from medgrpo.policies.memory import MemoryPlan, Shape, plan_memory

GEMMA = {
    "model_type": "gemma3_text",
    "vocab_size": 262_144,
    "hidden_size": 1_152,
    "intermediate_size": 6_912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32_768,
}
"""What config.json of google/gemma-3-1b-it says of its sizes."""


def settings(**sections):
    return RunConfig.model_validate(sections)


def size(parts):
    return sum(parts.values())


# --- Sizes of a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_config", "parameters"), [(EMBEDDED_CONFIG, 134_515_008), (GEMMA, 999_885_952)], ids=["SmolLM2", "Gemma 3"]
)
def test_the_weights_of_known_models_are_counted(model_config, parameters):
    """SmolLM2-135M has 134,515,008 parameters and Gemma 3 1B 999,885,952, norms of queries and keys included."""
    shape = Shape.of(model_config)
    assert shape.matrices + shape.others == pytest.approx(parameters, rel=1e-4)


def test_the_adapter_has_the_size_that_peft_gives_it():
    """LoRA of rank 16 on all linear layers of SmolLM2-135M has 4,884,480 weights."""
    assert Shape.of(EMBEDDED_CONFIG).low_rank(16) == 4_884_480


def test_the_text_part_of_a_larger_model_is_read():
    """A model with pictures keeps the decoder's sizes under text_config."""
    assert Shape.of({"model_type": "gemma3", "text_config": GEMMA}) == Shape.of(GEMMA)


def test_what_a_config_leaves_out_is_as_transformers_has_it():
    """Without key heads each query head has its own, without a width heads share the hidden size; Llama is not tied."""
    known = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shape = Shape.of({name: EMBEDDED_CONFIG[name] for name in known})
    assert (shape.queries, shape.keys, shape.tied) == (576, 576, False)
    assert Shape.of(GEMMA).tied


@pytest.mark.parametrize("changes", [{"hidden_size": None}, {"num_hidden_layers": "many"}])
def test_a_model_of_unknown_size_is_refused(changes):
    """A config.json without sizes ends in a sentence that names the model type."""
    with pytest.raises(InputError, match=r"config\.json \(llama\) does not say how large it is"):
        Shape.of({**EMBEDDED_CONFIG, **changes})
    with pytest.raises(InputError, match="without a model_type"):
        Shape.of({})


def test_experts_are_not_planned_for():
    """A mixture of experts has more weights than its sizes say, so nothing is said of it."""
    with pytest.raises(InputError, match=r"\(llama\) is made of experts"):
        Shape.of({**EMBEDDED_CONFIG, "num_local_experts": 8})


# --- Parts -------------------------------------------------------------------------------------------------------


def test_numbers_kept_for_the_backward_pass_are_those_of_the_code():
    """Per token and layer of SmolLM2 in rows of 464: 7,000 by lean layers, and 11,359 that autograd was seen to keep;
    half of most of it with autocast."""
    shape, config = Shape.of(EMBEDDED_CONFIG), settings(data={"max_length": 464})
    assert memory.kept_by_lean(config, shape) / 4 == pytest.approx(7_000, rel=0.02)
    kept = memory.kept_by_autograd(config, shape)
    assert kept / 4 == pytest.approx(11_359, rel=0.005)
    half = memory.kept_by_autograd(settings(data={"max_length": 464}, policy={"autocast": "bfloat16"}), shape)
    assert 0.5 < half / kept < 0.7


def test_four_bits_take_an_eighth_of_the_matrices():
    """Only the matrices are quantised: embedding and norms stay as they are, the adapter too, and nothing is folded."""
    whole, small = (
        plan_memory(settings(policy={"quantization": kind}), GEMMA, cuda=True).phases["rollout"]
        for kind in ("none", "4bit")
    )
    shape = Shape.of(GEMMA)
    assert whole["weights"] - small["weights"] == pytest.approx(shape.matrices * 3.5, rel=0.01)
    assert whole["adapter"] == small["adapter"]
    assert small["weight copies"] == 0
    assert whole["weight copies"] == shape.matrices * 4


def test_eight_bit_moments_take_a_quarter():
    """AdamW keeps two numbers for each weight of the adapter, of four bytes or of one."""
    usual, small = (plan_memory(settings(grpo={"optimizer": name}), GEMMA) for name in ("adamw_torch", "adamw_8bit"))
    assert usual.phases["loss"]["optimiser"] == 4 * small.phases["loss"]["optimiser"]


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        # Four groups of 864 + 4 x 160 = 1,504 are more than the budget, which shorter ones can fill.
        ({"micro_batch_tokens": 2048}, 2048),
        # A group is longer than the budget: its prompt, and a piece of a quarter of the budget.
        ({"micro_batch_tokens": 1024}, 864 + 256),
        # A completion is longer than a quarter.
        ({"micro_batch_tokens": 256}, 864 + 160),
        # More than a step has.
        ({"micro_batch_tokens": 100_000}, 4 * (864 + 4 * 160)),
    ],
)
def test_a_micro_batch_holds_what_the_budget_allows(changes, tokens):
    """The budget where groups are shorter, else a prompt and a piece, and never more than a step has."""
    assert memory.loss_tokens(settings(grpo=changes)) == tokens


def test_completions_share_the_cache_of_their_prompt():
    """Twice as many completions do not take twice the cache, for their prompts are kept once."""
    small, large = (
        plan_memory(settings(grpo={"group_size": size}), EMBEDDED_CONFIG).phases["rollout"]["cache"] for size in (4, 8)
    )
    assert large < 1.6 * small
    prompts = 2 * 192 * 30 * 4 * 4 * 864
    assert large - prompts == 2 * (small - prompts)


def test_recomputed_activations_take_little():
    """With gradient checkpointing a layer's input is kept of each layer, and everything of one layer alone."""
    usual, less = (
        plan_memory(settings(grpo={"gradient_checkpointing": on}), EMBEDDED_CONFIG).phases for on in (False, True)
    )
    assert less["warm-up"]["activations"] < usual["warm-up"]["activations"] / 10
    assert less["loss"]["activations"] < usual["loss"]["activations"] / 5
    assert less["rollout"] == usual["rollout"]


def test_a_reference_is_planned_where_one_is_loaded():
    """With beta above 0 a second adapter lies beside the first; without, no such part exists."""
    assert "reference" in plan_memory(settings(grpo={"beta": 0.1}), EMBEDDED_CONFIG).phases["loss"]
    assert "reference" not in plan_memory(RunConfig(), EMBEDDED_CONFIG).phases["loss"]


def test_the_gaps_of_a_heap_are_a_cpus_and_stay_with_checkpointing():
    """A CUDA device has none; on a CPU they are as large whether activations are kept or recomputed."""
    usual, less = (
        plan_memory(settings(grpo={"gradient_checkpointing": on}), EMBEDDED_CONFIG).phases for on in (False, True)
    )
    assert usual["warm-up"]["heap gaps"] == less["warm-up"]["heap gaps"] > usual["loss"]["heap gaps"] > 0
    cuda = plan_memory(RunConfig(), EMBEDDED_CONFIG, cuda=True).phases
    assert not any("heap gaps" in parts for parts in cuda.values())


# --- The whole ---------------------------------------------------------------------------------------------------


def test_the_peak_is_that_of_the_largest_phase():
    """Phases follow one another, so their sizes are not added up; the largest one's parts are the plan's parts."""
    plan = plan_memory(RunConfig(), EMBEDDED_CONFIG)
    sizes = {phase: size(parts) for phase, parts in plan.phases.items()}
    assert plan.peak == max(sizes.values()) == size(plan.parts)
    assert sizes[plan.largest] == plan.peak
    assert plan.in_gb()["peak"] == round(plan.peak / 1e9, 3)
    assert json.loads(json.dumps(plan.in_gb()))["phases"].keys() == {"warm-up", "rollout", "loss", "merge"}


def test_a_training_without_a_warmup_has_no_such_phase():
    """With warmup.enabled = false its micro-batch counts for nothing."""
    plan = plan_memory(settings(warmup={"enabled": False}), EMBEDDED_CONFIG)
    assert list(plan.phases) == ["rollout", "loss", "merge"]


def test_the_sentence_names_the_parts_that_matter():
    """Parts below 50 MB are left out of the line, not of the sum."""
    plan = MemoryPlan({"loss": {"weights": 4_000_000_000, "adapter": 20_000_000, "activations": 2_000_000_000}})
    assert plan.sentence() == "6.0 GB in the loss: weights 4.0, activations 2.0"


@pytest.mark.parametrize(("profile", "memory"), [("t4", 15e9), ("t4-fast", 15e9), ("multi-gpu", 15e9), ("a10", 23e9)])
def test_the_profiles_fit_the_devices_they_are_for(profile, memory):
    """A T4 shows 15.6 GB and an A10 23.6, of which a context takes some."""
    assert plan_memory(load_config(profile), GEMMA, cuda=True).peak < memory


def test_the_merge_takes_nothing_of_a_cuda_device():
    """It is on the processor, so that what was trained in 4 bits need not fit twice in 32."""
    assert "merge" in plan_memory(RunConfig(), GEMMA).phases
    assert "merge" not in plan_memory(RunConfig(), GEMMA, cuda=True).phases


def test_planning_needs_no_torch():
    """The plan is reckoned before anything heavy is loaded."""
    code = "import sys, medgrpo.policies.fitting; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split() == [
        b"False",
        b"False",
    ]
