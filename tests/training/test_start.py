"""Tests of medgrpo.training.start, and of trainings that go on from an adapter."""

import json
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file

from medgrpo.config import PolicyConfig, RunConfig
from medgrpo.errors import InputError, TrainingCrashed
from medgrpo.manifests import seal, write_json
from medgrpo.testing import talking_policy, tiny_config
from medgrpo.training import launch
from medgrpo.training.callbacks import last_complete_checkpoint
from medgrpo.training.metrics import read_metrics
from medgrpo.training.start import adapter_digest, hand_over, read_start, starting_adapter

SET = RunConfig(policy=PolicyConfig(start_from="runs/night"))


@pytest.fixture
def start(tmp_path):
    """A starting point as it is fetched: an adapter of one file, and what is known of it."""
    (tmp_path / "fetched" / "adapter").mkdir(parents=True)
    (tmp_path / "fetched" / "adapter" / "weights").write_text("1")
    write_json(tmp_path / "fetched" / "start.json", {"source": "run night", "digest": "d"})
    return tmp_path / "fetched"


def test_the_adapter_is_handed_over_once(tmp_path, start):
    """The training's own copy is whole or absent, and stays as it was handed over however often it is resumed."""
    work = tmp_path / "work"
    (work / "start.partial" / "rest").mkdir(parents=True)
    hand_over(start, work)
    (start / "adapter" / "weights").write_text("2")
    hand_over(start, work)
    assert [path.name for path in work.iterdir()] == ["start"]
    adapter = starting_adapter(SET, work)
    assert adapter == work / "start" / "adapter"
    assert [(path.name, path.read_text()) for path in adapter.iterdir()] == [("weights", "1")]
    assert read_start(work) == {"source": "run night", "digest": "d"}


def test_without_the_setting_a_fresh_adapter_is_meant(tmp_path, start):
    """What lies in the directory from elsewhere is not taken for a start."""
    hand_over(start, tmp_path / "work")
    assert starting_adapter(RunConfig(), tmp_path / "work") is None
    assert read_start(tmp_path) is None


def test_a_start_that_nobody_handed_over_is_missed(tmp_path):
    """The setting alone, without its adapter, is refused rather than ignored."""
    with pytest.raises(InputError, match=r"start_from is 'runs/night', but .* holds no adapter to go on from"):
        starting_adapter(SET, tmp_path)


def test_the_mark_of_a_whole_adapter_is_no_part_of_its_digest(start):
    """An adapter has the digest that its seal records, sealed or not; other weights have another."""
    adapter = start / "adapter"
    before = adapter_digest(adapter)
    seal(adapter)
    assert adapter_digest(adapter) == before == json.loads((adapter / "complete").read_text())["sha256"]
    (adapter / "weights").write_text("2")
    assert adapter_digest(adapter) != before


# --- Real trainings ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run without warm-up that goes on from an adapter which moves its model, and the starting point."""
    from medgrpo.policies import load_trainable
    from medgrpo.preparation import prepare

    directory = tmp_path_factory.mktemp("start")
    policy = talking_policy(directory / "talking", "yes", "no", "maybe")
    config = tiny_config(
        directory,
        data={"synthetic_pool": 24, "synthetic_test": 3},
        policy={"base": str(policy), "start_from": "runs/night"},
        warmup={"enabled": False},
        grpo={"steps": 5, "group_size": 4, "max_completion_length": 1, "learning_rate": 1e-2},
    )
    prepare(config, directory / "data")
    model, _ = load_trainable(config.policy)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    model.save_pretrained(directory / "start" / "adapter")
    write_json(directory / "start" / "start.json", {"source": "run night", "digest": "d"})
    return SimpleNamespace(config=config, data=directory / "data", start=directory / "start")


def weights(adapter):
    return load_file(adapter / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [False, True])
def test_the_first_step_is_taken_from_the_very_weights(prepared, tmp_path, monkeypatch, warmup):
    """Before the first step of the first phase, and only of that, A and B are those of the adapter to the bit."""
    import datasets
    from peft import get_peft_model_state_dict

    from medgrpo.training import __main__ as process
    from medgrpo.training import grpo
    from medgrpo.training import warmup as supervised

    begun = {}

    def keep(model, *given):
        begun[given[3].name] = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
        for parameter in model.parameters():
            parameter.data.add_(float(parameter.requires_grad))

    monkeypatch.setattr(datasets, "disable_caching", lambda: None)
    monkeypatch.setattr(supervised, "train_warmup", keep)
    monkeypatch.setattr(grpo, "train_grpo", keep)
    config = prepared.config.model_copy(
        update={"warmup": prepared.config.warmup.model_copy(update={"enabled": warmup})}
    )
    hand_over(prepared.start, tmp_path)
    process.train(config, prepared.data, tmp_path)
    wanted = weights(prepared.start / "adapter")
    first = begun["warmup" if warmup else "grpo"]
    assert begun.keys() == ({"warmup", "grpo"} if warmup else {"grpo"})
    assert first.keys() == wanted.keys()
    assert all(torch.equal(first[name], wanted[name]) for name in wanted)
    if warmup:
        assert all(torch.equal(begun["grpo"][name], wanted[name] + 1) for name in wanted)
    told = json.loads((tmp_path / "training.json").read_text())
    assert told["started_from"] == {"source": "run night", "digest": "d"}
    assert told["base"].keys() == {"name", "revision", "digest"}
    # What GRPO changed is counted from where it started.
    assert told["adapter_change"] == pytest.approx(sum(tensor.numel() for tensor in wanted.values()) ** 0.5)


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint_and_not_from_the_start(prepared, tmp_path, monkeypatch):
    """Killed and resumed, it takes only the steps that were left, and ends with an uninterrupted one's weights."""
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    hand_over(prepared.start, whole)
    launch.run(prepared.config, prepared.data, whole)
    hand_over(prepared.start, cut)

    def kill(row):
        if last_complete_checkpoint(cut / "grpo"):
            for child in psutil.Process().children():
                child.kill()

    with pytest.raises(TrainingCrashed, match="was killed by SIGKILL"):
        launch.run(prepared.config, prepared.data, cut, kill)
    checkpoint = int(last_complete_checkpoint(cut / "grpo").name.rpartition("-")[2])
    assert 1 <= checkpoint < prepared.config.grpo.steps
    hand_over(prepared.start, cut)
    resumed = []
    launch.run(prepared.config, prepared.data, cut, resumed.append)
    assert [row["step"] for row in resumed] == list(range(checkpoint + 1, prepared.config.grpo.steps + 1))
    assert [row["step"] for row in read_metrics(cut / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    ours, theirs = (weights(work / "grpo" / "adapter") for work in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(not torch.equal(tensor, weights(prepared.start / "adapter")[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_the_runs_dropout_is_set_whatever_the_adapter_was_trained_with(prepared):
    """Dropout is no part of an adapter's weights: the setting holds for a saved one too."""
    from medgrpo.policies import load_trainable

    policy = prepared.config.policy.model_copy(update={"lora_dropout": 0.25})
    model, _ = load_trainable(policy, prepared.start / "adapter")
    assert model.peft_config["default"].lora_dropout == 0.25
    rates = {module.p for name, module in model.named_modules() if "lora_dropout.default" in name}
    assert rates == {0.25}
