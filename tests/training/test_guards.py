"""What is broken ends a real training at its first step, with the remedy; what is not broken is left alone."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from medgrpo.errors import InputError, TrainingAlarm
from medgrpo.testing import tiny_config, tiny_rows
from medgrpo.training import guards, logprobs
from medgrpo.training.grpo import train_grpo
from medgrpo.training.guards import Guards, check_first_row
from medgrpo.training.warmup import train_warmup

pytestmark = pytest.mark.slow
SECONDS = 60
PHASES = {"warmup": train_warmup, "grpo": train_grpo}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run that fits the tiny policy; with it, completions differ in length, so that groups have spread."""
    logprobs.install()
    directory = tmp_path_factory.mktemp("guards")
    grpo = {"steps": 2, "max_completion_length": 12, "group_size": 4, "learning_rate": 1e-3}
    return tiny_config(directory, grpo=grpo, warmup={"epochs": 1, "batch_size": 4, "micro_batch": 2})


@pytest.fixture
def training(base, tmp_path, monkeypatch):
    """Trains a phase on the tiny policy after something was done to it; says how long it took and which steps ran."""
    from medgrpo.policies import load_trainable
    from medgrpo.training import grpo

    def pay(completions, record_id, **_):
        return [float(sum(map(ord, text[-1]["content"])) % 7) for text in completions]

    monkeypatch.setattr(grpo, "reward_functions", lambda *_: [pay])

    def train(phase, hurt=lambda model, tokenizer: None, directory="work"):
        torch.manual_seed(0)
        model, tokenizer = load_trainable(base.policy)
        hurt(model, tokenizer)
        metrics = tmp_path / directory / "metrics.jsonl"
        rows, started = tiny_rows(["yes"] * 3 + ["no"] * 3 + ["maybe"] * 2), time.monotonic()
        done = SimpleNamespace(model=model, steps=[], rows=[], seconds=0.0, error=None)
        try:
            PHASES[phase](model, tokenizer, rows, base, tmp_path / directory / phase, metrics)
        except (InputError, TrainingAlarm) as error:
            done.error = error
        done.seconds = time.monotonic() - started
        if metrics.is_file():
            done.rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        done.steps = [row["step"] for row in done.rows]
        return done

    return train


def numbers(rows):
    """What training found, without what a clock found."""
    timed = ("time", "seconds_left", "step_time", "train_runtime", "profiling")
    return [{key: value for key, value in row.items() if not key.startswith(timed)} for row in rows]


@pytest.mark.parametrize("phase", PHASES)
def test_a_healthy_training_passes_undisturbed(training, phase, monkeypatch, caplog):
    """With the guards a training has the numbers that it has without them, and one line says that they passed."""
    with caplog.at_level("INFO", "medgrpo.training.guards"):
        with_guards = training(phase, directory="with")
    assert with_guards.error is None
    assert [record.message for record in caplog.records if "guards passed" in record.message] == [
        "guards passed: tokens, trained weights, logits, gradients and completions are as they must be; "
        "the adapter moved"
    ]
    for event in ("on_train_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_log"):
        monkeypatch.delattr(Guards, event)
    without = training(phase, directory="without")
    assert numbers(with_guards.rows) == numbers(without.rows)


def poison(value):
    """Put a number into the weights of a norm, as an overflow or a damaged file would."""

    def hurt(model, tokenizer):
        with torch.no_grad():
            model.base_model.model.model.norm.weight[0] = value

    return hurt


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(training, phase, value):
    """NaN or infinity in the logits ends the training before its first step, and the sentence names float32."""
    done = training(phase, poison(value))
    assert isinstance(done.error, TrainingAlarm)
    assert "logits of a prompt are not finite in generation, before the first step" in str(done.error)
    assert "policy.autocast = 'none'" in str(done.error)
    assert done.steps == []
    assert done.seconds < SECONDS


def test_logits_that_overflow_only_in_training(training):
    """A number that is only there in training mode is found in that mode."""

    def hurt(model, tokenizer):
        norm = model.base_model.model.model.norm
        norm.register_forward_hook(lambda module, _, out: out * float("inf") if module.training else out)

    assert "not finite in training, before the first step" in str(training("grpo", hurt).error)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(training, phase, value):
    """A gradient with NaN or infinity ends the training before it reaches the weights."""

    def hurt(model, tokenizer):
        parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)
        parameter.register_hook(lambda gradient: gradient * value)

    done = training(phase, hurt)
    assert isinstance(done.error, TrainingAlarm)
    assert "lora_" in str(done.error)
    assert "is not finite at step 1" in str(done.error)
    assert done.steps == []
    assert all(torch.isfinite(parameter).all() for parameter in done.model.parameters())
    assert done.seconds < SECONDS


def test_a_loss_that_is_not_finite(training, monkeypatch):
    """A loss of NaN ends the training at its first step."""
    from medgrpo.training.grouped import GroupedGRPOTrainer

    compute = GroupedGRPOTrainer.compute_loss
    monkeypatch.setattr(GroupedGRPOTrainer, "compute_loss", lambda *given, **more: compute(*given, **more) * torch.nan)
    done = training("grpo")
    assert isinstance(done.error, TrainingAlarm)
    assert "not finite" in str(done.error)
    assert max(done.steps, default=0) <= 1


def test_empty_completions(training):
    """A policy that ends its turn at once is stopped after its first step, not after the watch's patience."""

    def hurt(model, tokenizer):
        head = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
        torch.nn.init.zeros_(head.weight)
        head.bias.data.fill_(0.0)[tokenizer.eos_token_id] = 50.0
        model.base_model.model.lm_head = head.requires_grad_(False)

    done = training("grpo", hurt)
    assert isinstance(done.error, TrainingAlarm)
    assert "every completion of step 1 is empty" in str(done.error)
    assert "warm up longer" in str(done.error)
    assert done.steps == [1]
    assert done.seconds < SECONDS


@pytest.mark.parametrize("phase", PHASES)
def test_an_end_of_turn_that_is_not_the_eos_token(training, phase):
    """Where answers end with another token than the tokenizer's eos, the sentence names both."""

    def hurt(model, tokenizer):
        tokenizer.eos_token = "<|endoftext|>"

    done = training(phase, hurt)
    assert isinstance(done.error, InputError)
    assert "ends an answer with '<|im_end|>', while the tokenizer's eos token is '<|endoftext|>'" in str(done.error)
    assert done.steps == []


def test_a_template_that_does_not_end_a_turn(training):
    """A chat template that writes nothing behind an answer is named as such."""

    def hurt(model, tokenizer):
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

    assert "ends an answer with nothing" in str(training("warmup", hurt).error)


@pytest.mark.parametrize("settings", ["config", "generation_config"])
def test_a_model_that_stops_at_another_token(training, settings):
    """Where the model's own settings name another end of a turn, the trainer brings them in line with the tokenizer."""
    ends = []

    def hurt(model, tokenizer):
        ends.append(tokenizer.eos_token_id)
        getattr(model, settings).eos_token_id = 0

    done = training("grpo", hurt)
    assert done.error is None
    stops = getattr(done.model, settings).eos_token_id
    assert ends[0] in (stops if isinstance(stops, list) else [stops])


def test_two_beginnings_of_text(training):
    """A prompt that begins with the beginning-of-text token twice is refused."""

    def hurt(model, tokenizer):
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.chat_template = "<|endoftext|><|endoftext|>" + tokenizer.chat_template

    done = training("warmup", hurt)
    assert isinstance(done.error, InputError)
    assert "begins with '<|endoftext|>' twice" in str(done.error)


@pytest.mark.parametrize("phase", PHASES)
def test_a_frozen_adapter(training, phase):
    """An adapter loaded without its gradients is found before the first step."""
    done = training(phase, lambda model, tokenizer: model.requires_grad_(False))
    assert isinstance(done.error, TrainingAlarm)
    assert "no weight of the adapter is trainable" in str(done.error)
    assert done.steps == []


def test_a_base_that_is_trained_too(training):
    """Trainable weights of the base, which nobody would save, are found and named."""
    done = training("warmup", lambda model, tokenizer: model.base_model.model.model.norm.requires_grad_(True))
    assert "weights of the base are trainable (base_model.model.model.norm.weight" in str(done.error)


@pytest.mark.parametrize("phase", PHASES)
def test_a_detached_adapter(training, phase):
    """An adapter that is there and trainable, but takes no part in the forward pass, is found before the first step."""

    def hurt(model, tokenizer):
        for module in model.modules():
            if hasattr(module, "_disable_adapters"):
                module._disable_adapters = True

    done = training(phase, hurt)
    assert isinstance(done.error, TrainingAlarm)
    assert "do not depend on the adapter" in str(done.error)
    assert done.steps == []


@pytest.mark.parametrize("phase", PHASES)
def test_an_adapter_that_does_not_move(training, phase, monkeypatch):
    """Gradients without a change of the weights are found at the first step."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: None)
    done = training(phase)
    assert isinstance(done.error, TrainingAlarm)
    assert "the adapter did not move in step 1" in str(done.error)
    assert done.steps == []


def test_the_first_steps_of_a_rising_rate_need_not_move(training, monkeypatch):
    """At a learning rate of 0 nothing is due to move; the guard waits for the first step above it."""
    waited = []
    moved = Guards.on_optimizer_step

    def look(self, *given, **more):
        moved(self, *given, **more)
        waited.append(self._moved)

    monkeypatch.setattr(guards.Guards, "on_optimizer_step", look)
    monkeypatch.setattr("medgrpo.training.warmup._arguments", _with(warmup_steps=1))
    assert training("warmup").error is None
    assert waited[:2] == [False, True]


def _with(**changes):
    from medgrpo.training import warmup

    arguments = warmup._arguments

    def changed(config, directory):
        made = arguments(config, directory)
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    return changed


@pytest.mark.parametrize(
    ("row", "masked", "wrong"),
    [
        ({"loss": 0.0, "grad_norm": 0.0}, False, True),
        ({"loss": 0.0, "grad_norm": 0.1}, False, False),
        ({"loss": 0.0, "grad_norm": 0.0, "reward": 0.2, "watch/no_spread": 0.5}, False, True),
        ({"loss": 0.0, "grad_norm": 0.0, "reward": 0.2, "watch/no_spread": 1.0}, False, False),
        ({"loss": 0.0, "grad_norm": 0.0, "reward": 0.2, "watch/no_spread": 0.5}, True, False),
        ({"loss": 0.0, "grad_norm": 0.0, "reward": 0.2}, False, False),
    ],
)
def test_a_gradient_of_zero_is_wrong_where_there_is_something_to_learn(row, masked, wrong):
    """Zero is right where all groups earned the same, where cut-off completions are left out, and in a second pass."""
    if wrong:
        with pytest.raises(TrainingAlarm, match="the gradient is 0 at step 3"):
            check_first_row(row, 3, masked)
    else:
        check_first_row(row, 3, masked)
