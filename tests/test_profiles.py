"""The profiles for GPUs: what the original recipe was, and what no profile may mix up."""

import tomllib

import pytest

from medgrpo.config import PROFILES, GrpoConfig, PolicyConfig, WarmupConfig, load_config, profile_names
from medgrpo.sweep.space import own_values, read_space

GEMMA = ("t4", "t4-fast", "a10", "multi-gpu")


def test_the_profiles_for_gpus_are_these() -> None:
    """They train Gemma 3 1B Instruct on PubMedQA, and answer the whole official test split."""
    for name in GEMMA:
        config = load_config(name)
        assert (config.policy.base, config.data.domain) == ("google/gemma-3-1b-it", "pubmedqa")
        assert (config.evaluation.split, config.evaluation.cases) == ("test", "all")


def test_t4_is_the_original_recipe() -> None:
    """4 bits with Unsloth, groups of 4, 1,024 tokens, float32, no vLLM, and the public notebooks' optimisation."""
    config = load_config("t4")
    policy, grpo = config.policy, config.grpo
    assert (policy.backend, policy.quantization, policy.autocast) == ("unsloth", "4bit", "none")
    assert (config.data.max_length, grpo.group_size, grpo.steps) == (1024, 4, 250)
    assert (grpo.use_vllm, grpo.rollout_dtype) == (False, "float32")
    assert (grpo.loss_type, grpo.beta, grpo.learning_rate) == ("bnpo", 0.001, 5e-6)
    assert (grpo.schedule, grpo.warmup_ratio, grpo.optimizer) == ("cosine", 0.1, "adamw_8bit")
    assert (grpo.adam_beta1, grpo.adam_beta2, grpo.weight_decay, grpo.max_grad_norm) == (0.9, 0.99, 0.1, 0.1)
    assert grpo.gradient_checkpointing


@pytest.mark.parametrize(
    ("section", "settings"), [("policy", PolicyConfig), ("warmup", WarmupConfig), ("grpo", GrpoConfig)]
)
def test_t4_leaves_nothing_to_a_default(section: str, settings: type[PolicyConfig | WarmupConfig | GrpoConfig]) -> None:
    """Every setting of model, warm-up and GRPO stands in the file, but revision and start, which are unset here."""
    written = tomllib.loads((PROFILES / "t4.toml").read_text(encoding="utf-8"))[section]
    assert settings.model_fields.keys() - written.keys() <= {"revision", "start_from"}


def test_t4_says_why_it_departs() -> None:
    """Each setting that is not the original's has a comment right above it that says so."""
    lines = (PROFILES / "t4.toml").read_text(encoding="utf-8").splitlines()
    for setting in ("enabled = true", "max_completion_length = 256", "save_steps = 25", 'split = "test"'):
        block = lines[: lines.index(setting)]
        comment = [line for i, line in enumerate(block) if all(rest.startswith("#") for rest in block[i:])]
        assert comment[0].startswith("# Ours: "), setting


@pytest.mark.parametrize("name", ["demo", "t4"])
def test_a_shipped_sweep_can_be_started(name: str) -> None:
    """Every corner of its space is a valid run, and the profile itself is in it, so that it is tried too."""
    config = load_config(name)
    assert own_values(config, read_space(config))


@pytest.mark.parametrize("name", ["t4", "t4-fast"])
def test_a_t4_computes_in_float32(name: str) -> None:
    """Neither training nor rollouts of Gemma 3 use another type on a T4."""
    config = load_config(name)
    assert (config.policy.autocast, config.grpo.rollout_dtype) == ("none", "float32")


def test_several_processes_have_whole_groups_and_one_mean() -> None:
    """In multi-gpu no group is torn between two or four GPUs, and the loss does not depend on how many there are."""
    for processes, prompts in ((2, 8), (4, 16)):
        config = load_config("multi-gpu", [f"processes={processes}", f"grpo.prompts_per_step={prompts}"])
        assert config.grpo.prompts_per_step % processes == 0
        assert config.grpo.loss_type == "dapo"


def test_models_of_different_bases_have_different_names() -> None:
    """Versions are compared with the champion of their name, so profiles share a name only where they share a base."""
    bases: dict[str, set[str]] = {}
    for config in map(load_config, profile_names()):
        name = config.tracking.model_name + "-synthetic" * (config.data.domain == "synthetic")
        bases.setdefault(name, set()).add(config.policy.base)
    assert all(len(found) == 1 for found in bases.values()), bases
    assert len({load_config(name).tracking.model_name for name in GEMMA}) == 1
