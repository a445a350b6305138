"""Tests of medgrpo.training.fast on TRL's own trainer, and of what a training process does with the setting."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.manifests import write_json
from medgrpo.testing import tiny_config, tiny_rows
from medgrpo.training import __main__ as process
from medgrpo.training import fast, grpo
from medgrpo.training.sampling import balanced_order


def config_of(processes=1, max_length=100, **settings):
    return RunConfig.model_validate(
        {"policy": {"backend": "unsloth"}, "data": {"max_length": max_length}, "grpo": settings, "processes": processes}
    )


@pytest.mark.parametrize(
    ("prompts", "group", "tokens", "processes", "rows", "passes"),
    [
        (4, 4, 100, 1, 4, 4),
        (4, 4, 799, 1, 4, 4),
        (4, 4, 800, 1, 8, 2),
        (4, 4, 1300, 1, 8, 2),
        (4, 4, 1600, 1, 16, 1),
        (6, 2, 700, 1, 6, 2),
        (4, 4, 1600, 2, 8, 1),
        (1, 4, 100, 1, 4, 1),
    ],
)
def test_a_step_is_cut_into_whole_groups(prompts, group, tokens, processes, rows, passes):
    """As many groups at once as the budget holds, one at least, and all of a step's together."""
    settings = {"prompts_per_step": prompts, "group_size": group, "micro_batch_tokens": tokens}
    cut = fast.batches(config_of(processes, **settings))
    assert cut == {
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "steps_per_generation": passes,
    }
    assert rows * passes * processes == prompts * group


@pytest.mark.parametrize(("tokens", "pieces"), [(99, 4), (100, 4), (200, 2), (300, 2), (400, 1), (800, 1)])
def test_a_group_beyond_the_budget_comes_in_pieces_on_a_gpu(monkeypatch, tokens, pieces):
    """Unsloth's own setting is the number of pieces of a batch, each within the budget if a single row is."""
    monkeypatch.setattr(fast, "GRPOConfig", SimpleNamespace(unsloth_grpo_mini_batch=None))
    cut = fast.batches(config_of(prompts_per_step=2, group_size=4, micro_batch_tokens=tokens))
    assert cut["unsloth_grpo_mini_batch"] == pieces


def test_groups_are_not_torn_between_processes():
    """Three groups on two processes are refused, with a number that goes."""
    with pytest.raises(InputError, match=r"3 groups cannot be shared out to 2 processes.*that 2 divides"):
        fast.batches(config_of(2, prompts_per_step=3, group_size=4))


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_the_settings_of_trl_hold_a_whole_step(tmp_path, backend):
    """However it is cut, a generation is the completions of one step."""
    config = config_of(prompts_per_step=3, group_size=4)
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"backend": backend})})
    arguments = grpo._arguments(config, tmp_path)
    assert arguments.generation_batch_size == 12
    assert arguments.gradient_accumulation_steps == arguments.steps_per_generation


@pytest.mark.parametrize(("bf16", "fp16", "found"), [(True, False, "bfloat16"), (False, True, "float16")])
def test_another_type_than_the_one_set_is_refused(bf16, fp16, found):
    """A trainer that turned 16 bits on by itself does not train."""
    with pytest.raises(InputError, match=f"policy.autocast is 'none', but Unsloth would train with '{found}'"):
        fast.require_autocast(SimpleNamespace(bf16=bf16, fp16=fp16), RunConfig())
    assert fast.require_autocast(SimpleNamespace(bf16=False, fp16=False), RunConfig()) is None


def test_whole_weights_are_asked_of_transformers():
    """4 bits with the transformers backend would do nothing, and are refused."""
    config = RunConfig.model_validate({"policy": {"quantization": "4bit"}})
    with pytest.raises(InputError, match=r"policy.quantization is '4bit', but the transformers backend needs whole"):
        process._trainers(config)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["balanced", "spread"])
def test_a_step_in_passes_sees_each_prompt_once(tmp_path, monkeypatch, sampling):
    """Cut into passes, a step still rewards its own prompts, all of them, in our order, with facts as ever."""
    from medgrpo.policies import load_trainable
    from medgrpo.training import logprobs

    seen = []

    def pay(completions, record_id, **_):
        seen.append(list(record_id))
        return [float(place % 2) for place in range(len(completions))]

    monkeypatch.setattr(grpo, "reward_functions", lambda *_: [pay])
    logprobs.install()
    changes = {"steps": 3, "max_completion_length": 6, "prompts_per_step": 2, "group_size": 2, "sampling": sampling}
    config = tiny_config(tmp_path, policy={"backend": "unsloth"}, grpo={**changes, "micro_batch_tokens": 10})
    torch.manual_seed(0)
    model, tokenizer = load_trainable(config.policy)
    rows = tiny_rows(["yes"] * 5 + ["no"] * 4 + ["maybe"] * 2)
    before = [parameter.clone() for parameter in model.parameters() if parameter.requires_grad]
    grpo.train_grpo(model, tokenizer, rows, config, tmp_path / "grpo", tmp_path / "metrics.jsonl")
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [1, 2, 3]
    assert all(row["watch/no_spread"] == 0 and row["loss"] == row["loss"] for row in written)
    assert [len(step) for step in seen] == [4, 4, 4]
    if sampling == "balanced":
        order = balanced_order(rows["verdict"], 6, config.grpo.balance, config.seed)
        assert [step[::2] for step in seen] == [[f"r{i}" for i in order[at : at + 2]] for at in (0, 2, 4)]
    else:
        assert len({record for step in seen for record in step}) == 6
    after = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert (tmp_path / "grpo" / "checkpoint-3").is_dir()


@pytest.mark.slow
def test_unsloth_comes_first_and_its_refusal_ends_the_process(tmp_path):
    """When a training process imports Unsloth none of the libraries that it rewrites is there yet; what it raises is
    the process's sentence."""
    from medgrpo import preparation

    (tmp_path / "unsloth.py").write_text(
        "import pathlib, sys\n"
        "found = sorted({'trl', 'transformers', 'peft'} & set(sys.modules))\n"
        f"pathlib.Path({str(tmp_path / 'found')!r}).write_text(repr(found))\n"
        "raise NotImplementedError('There is no GPU.')\n"
    )
    config = tiny_config(tmp_path, data={"synthetic_pool": 24, "synthetic_test": 3}, policy={"backend": "unsloth"})
    preparation.prepare(config, tmp_path / "data")
    work = tmp_path / "work"
    write_json(work / "job.json", {"config": config.model_dump(mode="json"), "data": str(tmp_path / "data")})
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{tmp_path}", "MEDGRPO_CACHE": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "medgrpo.training", str(work)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == InputError.exit_code, done.stderr
    assert (tmp_path / "found").read_text() == "[]"
    failure = json.loads((work / "failure.json").read_text())
    assert failure["kind"] == "InputError"
    assert "There is no GPU." in failure["message"]
