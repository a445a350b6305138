"""Tests of medgrpo.training.grpo: the settings, the loss against one worked out by hand, and resuming."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medgrpo.completions import VERDICT_FORM
from medgrpo.config import GrpoConfig, RunConfig, WatchConfig
from medgrpo.errors import TrainingAlarm
from medgrpo.manifests import COMPLETE
from medgrpo.rewards import PILLARS
from medgrpo.testing import tiny_record, tiny_rows
from medgrpo.training import grpo
from medgrpo.training.callbacks import ORDER, CompleteCheckpoints, KeptOrder, MetricsFile, TrimmedHeap
from medgrpo.training.guards import Guards
from medgrpo.training.metrics import raised_alarms
from medgrpo.training.sampling import SpreadOrder, balanced_order
from medgrpo.training.watch import Watch, completion_facts, smoothed

# field -> (a value that is not the default, the field of TRL's GRPOConfig, what must stand there)
PASSED = {
    "steps": (33, "max_steps", 33),
    "prompts_per_step": (8, "per_device_train_batch_size", 32),
    "group_size": (8, "num_generations", 8),
    "learning_rate": (0.0123, "learning_rate", 0.0123),
    "schedule": ("cosine", "lr_scheduler_type", "cosine"),
    "warmup_ratio": (0.3, "warmup_steps", 0.3),
    "beta": (0.04, "beta", 0.04),
    "num_iterations": (2, "num_iterations", 2),
    "epsilon": (0.11, "epsilon", 0.11),
    "epsilon_high": (0.33, "epsilon_high", 0.33),
    "loss_type": ("dr_grpo", "loss_type", "dr_grpo"),
    "scale_rewards": ("none", "scale_rewards", "none"),
    "importance_sampling_level": ("sequence", "importance_sampling_level", "sequence"),
    "mask_truncated_completions": (True, "mask_truncated_completions", True),
    "max_completion_length": (77, "max_completion_length", 77),
    "temperature": (0.8, "temperature", 0.8),
    "top_p": (0.9, "top_p", 0.9),
    "top_k": (40, "top_k", 40),
    "repetition_penalty": (1.1, "repetition_penalty", 1.1),
    "use_vllm": (True, "use_vllm", True),
    "optimizer": ("adamw_8bit", "optim", "adamw_8bit"),
    "adam_beta1": (0.85, "adam_beta1", 0.85),
    "adam_beta2": (0.95, "adam_beta2", 0.95),
    "weight_decay": (0.07, "weight_decay", 0.07),
    "max_grad_norm": (0.77, "max_grad_norm", 0.77),
    "gradient_checkpointing": (True, "gradient_checkpointing", True),
    "save_steps": (13, "save_steps", 13),
}
# `balance` and `sampling` shape the order of the prompts, the others are the trainer's own; all are tested below.
USED_ELSEWHERE = {"balance", "sampling", "micro_batch_tokens", "rollout_dtype"}


def test_every_setting_of_grpo_is_accounted_for():
    """A new field of GrpoConfig fails here until it is passed on to TRL, or listed with where else it is used."""
    assert PASSED.keys() | USED_ELSEWHERE == GrpoConfig.model_fields.keys()


@pytest.mark.parametrize("field", PASSED)
def test_each_setting_reaches_trls_config(tmp_path, field):
    """The value set in [grpo] is the value in the GRPOConfig that trains, and differs from the default's."""
    value, name, expected = PASSED[field]
    arguments = grpo._arguments(RunConfig(grpo=GrpoConfig(**{field: value})), tmp_path)
    assert getattr(arguments, name) == expected
    assert getattr(grpo._arguments(RunConfig(), tmp_path), name) != expected


def test_settings_outside_the_section_reach_trls_config(tmp_path):
    """Seed and autocast come from their own sections; the prompts keep our order, and NaN is not filtered out."""
    values = {"seed": 99, "policy": {"autocast": "bfloat16"}}
    arguments = grpo._arguments(RunConfig.model_validate(values), tmp_path)
    assert (arguments.seed, arguments.bf16, arguments.fp16) == (99, True, False)
    assert arguments.shuffle_dataset is False
    assert arguments.logging_nan_inf_filter is False
    assert arguments.logging_steps == 1
    assert not arguments.report_to
    assert arguments.output_dir == str(tmp_path)


class Recorder:
    """Stands in for the trainer and keeps what it was given."""

    def __init__(self, **given):
        self.given = given

    def train(self, resume_from_checkpoint=None):
        self.resumed_from = resume_from_checkpoint


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that were built, none of which trains."""
    built = []
    monkeypatch.setattr(grpo, "WatchedGRPOTrainer", lambda **given: built.append(Recorder(**given)) or built[-1])
    return built


def test_the_trainer_sees_prompts_in_balanced_order_and_nothing_to_copy_from(tmp_path, trainers):
    """One prompt per step and slot, in balanced order; gold completions and verdicts never reach the trainer."""
    rows = tiny_rows(["yes"] * 6 + ["no"] * 3)
    config = RunConfig(seed=5, grpo=GrpoConfig(steps=3, prompts_per_step=4, balance=1.0))
    grpo.train_grpo(None, None, rows, config, tmp_path, tmp_path / "metrics.jsonl")
    given = trainers[0].given
    assert set(given["train_dataset"].column_names) == {"prompt", "record_id"}
    assert given["train_dataset"]["record_id"][:] == rows["record_id"][:]
    assert given["order"] == balanced_order(rows["verdict"], 12, 1.0, 5)


def test_the_rewards_are_the_three_pillars_of_the_rows_records(tmp_path, trainers):
    """Each pillar is a reward function of its own name, and scores by the record the row names."""
    rows = tiny_rows(["yes", "no"])
    grpo.train_grpo(None, None, rows, RunConfig(), tmp_path, tmp_path / "metrics.jsonl")
    functions = trainers[0].given["reward_funcs"]
    assert [function.__name__ for function in functions] == list(PILLARS)
    gold = [[{"role": "assistant", "content": text}] for text in rows["completion"]]
    totals = [sum(pay) for pay in zip(*(f(gold, record_id=["r0", "r1"]) for f in functions), strict=True)]
    swapped = [sum(pay) for pay in zip(*(f(gold, record_id=["r1", "r0"]) for f in functions), strict=True)]
    assert totals == pytest.approx([1.7, 1.7])
    assert max(swapped) < 0.5


def test_the_trainer_gets_its_callbacks_and_its_budget(tmp_path, trainers):
    """Metrics and marks share a watch; the budget of tokens and the records are those asked for."""
    config = RunConfig(grpo=GrpoConfig(micro_batch_tokens=333, rollout_dtype="bfloat16"))
    grpo.train_grpo(None, None, tiny_rows(["yes"]), config, tmp_path, tmp_path / "metrics.jsonl")
    metrics, guards, marks, heap = trainers[0].given["callbacks"]
    assert (type(metrics), type(guards), type(marks)) == (MetricsFile, Guards, CompleteCheckpoints)
    assert type(heap) is TrimmedHeap
    assert (metrics._phase, metrics._watch) == ("grpo", marks._watch)
    assert trainers[0].given["micro_batch_tokens"] == 333
    assert trainers[0].given["rollout_dtype"] == torch.bfloat16
    assert trainers[0].given["records"] == {"r0": tiny_record("r0")}


def test_an_order_that_follows_the_rewards_is_kept_with_the_checkpoints(tmp_path, trainers):
    """With sampling = "spread" the order is a SpreadOrder, written before the checkpoint is marked as whole."""
    config = RunConfig(seed=5, grpo=GrpoConfig(steps=3, prompts_per_step=4, balance=1.0, sampling="spread"))
    rows = tiny_rows(["yes"] * 6 + ["no"] * 3)
    grpo.train_grpo(None, None, rows, config, tmp_path, tmp_path / "metrics.jsonl")
    given = trainers[0].given
    kinds = [type(callback) for callback in given["callbacks"]]
    assert kinds == [MetricsFile, Guards, KeptOrder, CompleteCheckpoints, TrimmedHeap]
    assert given["order"][:4] == SpreadOrder(rows["verdict"], 3, 4, 1.0, 5)[:4]
    assert len(given["order"]) == 12


@pytest.mark.parametrize(("save_steps", "num_iterations", "expected"), [(5, 1, 5), (5, 2, 6), (6, 3, 6), (1, 4, 4)])
def test_checkpoints_lie_between_batches_of_completions(tmp_path, save_steps, num_iterations, expected):
    """Completions are not in a checkpoint, so none is written between two passes over the same ones."""
    settings = GrpoConfig(save_steps=save_steps, num_iterations=num_iterations)
    assert grpo._arguments(RunConfig(grpo=settings), tmp_path).save_steps == expected


# --- TRL's loss with our log-probabilities -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny trainable policy whose adapter is not zero, its tokenizer, and a run that fits it."""
    from medgrpo.policies import load_trainable
    from medgrpo.testing import tiny_config
    from medgrpo.training import logprobs

    logprobs.install()
    directory = tmp_path_factory.mktemp("grpo")
    config = tiny_config(directory, grpo={"temperature": 0.8})
    model, tokenizer = load_trainable(config.policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return SimpleNamespace(config=config, model=model, tokenizer=tokenizer, directory=directory)


def rollouts(tokenizer):
    """Four completions with paddings on both sides, old log-probabilities and advantages, as TRL hands them on."""
    generator = torch.Generator().manual_seed(3)
    prompt_lengths, completion_lengths = [9, 6, 9, 4], [5, 7, 2, 6]
    prompt_mask = torch.tensor([[0] * (9 - n) + [1] * n for n in prompt_lengths])
    completion_mask = torch.tensor([[1] * n + [0] * (7 - n) for n in completion_lengths])
    ids = torch.randint(3, len(tokenizer), (4, 16), generator=generator)
    pad = tokenizer.pad_token_id
    return {
        "prompt_ids": ids[:, :9].masked_fill(prompt_mask == 0, pad),
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, 9:].masked_fill(completion_mask == 0, pad),
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.2, -0.7, 0.3, -0.8]),
        "old_per_token_logps": -6.1 + 0.4 * torch.randn(4, 7, generator=generator),
        "num_items_in_batch": torch.tensor(sum(completion_lengths)),
    }


def loss_by_hand(model, inputs, config):
    """The clipped GRPO objective from the full [B, T, V] logits (Shao et al. 2024, eq. 3; DAPO, eq. 8; GSPO, eq. 7)."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=attention).logits / config.temperature
    log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][:, -7:]
    mask = inputs["completion_mask"].float()
    lengths = mask.sum(1)
    log_ratio = log_probs - inputs["old_per_token_logps"]
    if config.importance_sampling_level == "sequence":
        log_ratio = ((log_ratio * mask).sum(1) / lengths)[:, None].expand_as(mask)
    ratio, advantage = log_ratio.exp(), inputs["advantages"][:, None]
    clipped = ratio.clamp(1 - config.epsilon, 1 + config.epsilon_high)
    token_losses = -torch.minimum(ratio * advantage, clipped * advantage) * mask
    return {
        "grpo": (token_losses.sum(1) / lengths).mean(),
        "bnpo": token_losses.sum() / mask.sum(),
        "dapo": token_losses.sum() / inputs["num_items_in_batch"],
        "dr_grpo": token_losses.sum() / (len(mask) * config.max_completion_length),
    }[config.loss_type]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_trls_loss_with_our_log_probabilities_is_the_loss_by_hand(tiny, tmp_path, loss_type, level):
    """GRPOTrainer's loss, and its gradient on every adapter matrix, equal those worked out from the full logits."""
    import trl

    changes = {"loss_type": loss_type, "importance_sampling_level": level}
    config = tiny.config.model_copy(update={"grpo": tiny.config.grpo.model_copy(update=changes)})
    trainer = trl.GRPOTrainer(
        model=tiny.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=grpo._arguments(config, tmp_path),
        train_dataset=tiny_rows(["yes", "no"]).select_columns(["prompt", "record_id"]),
        processing_class=tiny.tokenizer,
    )
    # The trainer sets this in its loop; one micro-batch is one step here.
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = rollouts(tiny.tokenizer)
    parameters = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    loss = trainer.compute_loss(trainer.model, {**inputs, "num_items_in_batch": inputs["num_items_in_batch"] * 2})
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    # Only DAPO's normaliser is the number of tokens in the batch, here made twice this micro-batch's.
    expected = loss_by_hand(trainer.model, inputs, config.grpo) / (2 if loss_type == "dapo" else 1)
    wanted = torch.autograd.grad(expected, list(parameters.values()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(loss.item()) > 1e-4
    assert any(gradient.abs().max() > 1e-6 for gradient in gradients)
    assert parameters
    assert all("lora_" in name for name in parameters)
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


# --- Training and resuming ---------------------------------------------------------------------------------------

STEPS = 4


def pays_by_text(completions, record_id, **_):
    return [float(sum(map(ord, text[-1]["content"])) % 7) for text in completions]


def train(tiny, directory, monkeypatch, steps=STEPS, start=None, watch=None, earns=pays_by_text, **changes):
    """Train the tiny policy with rewards that depend on the text; the prompts of each step in order, and the model."""
    from medgrpo.policies import load_trainable

    seen = []

    def pay(completions, record_id, **_):
        seen.append(list(record_id))
        return earns(completions, record_id)

    monkeypatch.setattr(grpo, "reward_functions", lambda *_: [pay])
    settings = {"steps": steps, "max_completion_length": 6, "learning_rate": 1e-2, **changes}
    parts = {"grpo": tiny.config.grpo.model_copy(update=settings), "watch": WatchConfig(**(watch or {}))}
    config = tiny.config.model_copy(update=parts)
    torch.manual_seed(0)
    model, tokenizer = load_trainable(config.policy, start)
    rows = tiny_rows(["yes"] * 5 + ["no"] * 4 + ["maybe"] * 2)
    grpo.train_grpo(model, tokenizer, rows, config, directory / "grpo", directory / "metrics.jsonl")
    return seen, model


def rows_written(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def steps_written(directory, start=0):
    return [row["step"] for row in rows_written(directory)[start:]]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A training that nothing interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        prompts, model = train(tiny, directory, patch)
    return SimpleNamespace(directory=directory, prompts=prompts, model=model)


@pytest.mark.slow
def test_grpo_moves_the_adapter(whole):
    """Groups with different rewards change the policy: B, which starts at zero, is not zero any more."""
    moved = [p.detach().abs().max().item() for name, p in whole.model.named_parameters() if "lora_B" in name]
    assert max(moved) > 1e-4
    assert steps_written(whole.directory) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_each_step_samples_a_group_for_each_of_its_prompts(whole):
    """Every step scores prompts_per_step prompts, group_size completions each, in balanced order."""
    order = balanced_order(["yes"] * 5 + ["no"] * 4 + ["maybe"] * 2, STEPS * 2, 0.5, 11)
    expected = [[f"r{i}" for i in order[2 * step : 2 * step + 2] for _ in range(2)] for step in range(STEPS)]
    assert whole.prompts == expected


@pytest.mark.slow
def test_a_torn_last_checkpoint_is_passed_over_and_the_order_goes_on(tiny, whole, tmp_path, monkeypatch):
    """With the newest checkpoint cut short, training goes on after the one before it, with the prompts due then."""
    train(tiny, tmp_path, monkeypatch, steps=3)
    written = len(steps_written(tmp_path))
    torn = tmp_path / "grpo" / "checkpoint-3"
    (torn / COMPLETE).unlink()
    for path in torn.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    prompts, _ = train(tiny, tmp_path, monkeypatch)
    assert steps_written(tmp_path, written) == [3, 4]
    assert prompts == whole.prompts[2:]
    assert (torn / COMPLETE).is_file()


@pytest.mark.slow
def test_a_resumed_training_is_the_uninterrupted_one_to_the_value(tiny, whole, tmp_path, monkeypatch):
    """Stopped in the middle and resumed: the same prompts, rollouts, adapter, optimiser, schedule and random state."""
    train(tiny, tmp_path, monkeypatch, steps=STEPS // 2)
    prompts, model = train(tiny, tmp_path, monkeypatch)
    assert prompts == whole.prompts[STEPS // 2 :]
    for (name, got), wanted in zip(model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(got, wanted), name
    ours, theirs = (path / "grpo" / f"checkpoint-{STEPS}" for path in (tmp_path, whole.directory))
    for part in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        got, wanted = (torch.load(path / part, weights_only=False) for path in (ours, theirs))
        assert flat(got).keys() == flat(wanted).keys()
        for key, value in flat(wanted).items():
            assert torch.equal(torch.as_tensor(flat(got)[key]), torch.as_tensor(value)), (part, key)
    kept = [rows_written(path)[-1] for path in (tmp_path, whole.directory)]
    passing = ("time", "seconds_left", "step_time", "train_runtime")
    assert [{k: v for k, v in row.items() if k not in passing} for row in kept[:1]] == [
        {k: v for k, v in row.items() if k not in passing} for row in kept[1:]
    ]


def flat(state, path=()):
    """The numbers of a nested state, by path."""
    if isinstance(state, dict):
        return {k: v for key, value in state.items() for k, v in flat(value, (*path, key)).items()}
    if isinstance(state, list | tuple):
        return {k: v for place, value in enumerate(state) for k, v in flat(value, (*path, place)).items()}
    return {path: state} if isinstance(state, torch.Tensor | int | float) else {}


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_resuming_after_the_last_step_takes_no_further_one(tiny, tmp_path, monkeypatch, beta):
    """Killed between the last checkpoint and the saved adapter, the next attempt loads that state and adds no step."""
    _, first = train(tiny, tmp_path, monkeypatch, steps=2, beta=beta)
    prompts, again = train(tiny, tmp_path, monkeypatch, steps=2, beta=beta)
    assert prompts == []
    assert steps_written(tmp_path) == [1, 2]
    state = dict(again.named_parameters())
    for name, parameter in first.named_parameters():
        torch.testing.assert_close(state[name], parameter)


@pytest.mark.slow
def test_the_reference_of_the_kl_term_is_the_policy_grpo_started_from(tiny, tmp_path, monkeypatch):
    """With beta the divergence starts at 0 from the warm-up's adapter, not from the base, also across a resume."""
    tiny.model.save_pretrained(tmp_path / "start", selected_adapters=["default"])
    start = tmp_path / "start"
    train(tiny, tmp_path, monkeypatch, steps=2, start=start, beta=0.5)
    _, second = train(tiny, tmp_path, monkeypatch, steps=3, start=start, beta=0.5)
    divergence = [row["kl"] for row in rows_written(tmp_path)]
    assert len(divergence) == 3
    assert divergence[0] == pytest.approx(0, abs=1e-5)
    assert divergence[1] > 1e-4
    assert divergence[2] > 1e-4
    begun = dict(tiny.model.named_parameters())
    reference = {name: parameter for name, parameter in second.named_parameters() if ".ref." in name}
    assert reference
    for name, parameter in reference.items():
        torch.testing.assert_close(parameter, begun[name.replace(".ref.", ".default.")])


@pytest.mark.slow
def test_a_policy_that_falls_silent_raises_the_alarm(tiny, tmp_path, monkeypatch):
    """A policy that writes its end token and nothing else from the second step on is stopped after the patience."""
    said = iter([["A word."] * 4, *([[""] * 4] * 3)])
    facts = grpo.completion_facts
    monkeypatch.setattr(grpo, "completion_facts", lambda records, _: facts(records, next(said)))
    with pytest.raises(TrainingAlarm, match=r"empty for 2 steps \(at step 3\)"):
        train(tiny, tmp_path, monkeypatch, watch={"patience": 2})
    assert steps_written(tmp_path) == [1, 2, 3]


@pytest.mark.slow
def test_only_the_two_newest_checkpoints_are_kept(whole):
    """The disk holds two marked checkpoints, so that one is whole while the other is written."""
    kept = sorted(path.parent.name for path in (whole.directory / "grpo").glob(f"checkpoint-*/{COMPLETE}"))
    assert kept == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"]


# --- Watching ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_has_all_the_watched_numbers(whole):
    """Each row of a real training holds every number that is followed, with its moving average, but no KL at beta 0."""
    expected = set(smoothed(VERDICT_FORM)) - {"kl", *(f"rewards/{pillar}/mean" for pillar in PILLARS)}
    for row in rows_written(whole.directory):
        assert expected <= row.keys()
        assert {f"smooth/{name}" for name in expected} <= row.keys()
        assert sum(row[f"watch/verdict_{verdict}"] for verdict in ("yes", "no", "maybe", "none")) == pytest.approx(1)


@pytest.mark.slow
def test_a_real_training_rings_for_what_is_wrong_with_it_and_for_nothing_else(tiny, tmp_path, monkeypatch):
    """The random policy of a real training never ends its turn before the cap: that is all that rings in 25 steps."""
    train(tiny, tmp_path, monkeypatch, steps=25, learning_rate=1e-3, beta=0.01)
    rang = {alarm.name for alarm in raised_alarms(rows_written(tmp_path))}
    assert rang == {"length"}


@pytest.mark.slow
def test_the_watched_numbers_are_those_of_the_steps_completions(tiny, tmp_path, monkeypatch):
    """What is logged of a step equals what its completions, seen by the reward function, are like."""
    texts, groups = [], []

    def pay(completions, record_id, **_):
        texts.append([text[-1]["content"] for text in completions])
        paid = [float(len(text) % 2) for text in texts[-1]]
        groups.append([paid[:2], paid[2:]])
        return paid

    train(tiny, tmp_path, monkeypatch, earns=pay)
    for row, said, paid in zip(rows_written(tmp_path), texts, groups, strict=True):
        facts = completion_facts([tiny_record()] * 4, said)
        same = ("strict_form", "verdict_yes", "verdict_no", "verdict_maybe", "verdict_none", "empty")
        assert [row[f"watch/{name}"] for name in same] == [pytest.approx(facts[f"watch/{name}"]) for name in same]
        assert row["watch/no_spread"] == sum(first == second for first, second in paid) / 2


@pytest.mark.slow
def test_two_passes_over_the_same_completions_are_one_observation(tiny, tmp_path, monkeypatch):
    """With num_iterations 2, only the first of two steps tells of completions, and averages count each batch once."""
    train(tiny, tmp_path, monkeypatch, num_iterations=2, save_steps=2)
    rows = rows_written(tmp_path)
    assert ["watch/empty" in row for row in rows] == [True, False, True, False]
    assert all("smooth/entropy" in row for row in rows)
    first, second = rows[0]["completions/mean_length"], rows[2]["completions/mean_length"]
    assert rows[2]["smooth/completions/mean_length"] == pytest.approx((first * 9 / 11 + second) / (1 + 9 / 11))


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 2])
def test_a_resumed_training_draws_what_the_uninterrupted_one_draws(tiny, tmp_path, monkeypatch, passes):
    """With an order that follows the rewards, stopped half-way and resumed: the same prompts and the same weights."""
    settings = {"sampling": "spread", "num_iterations": passes, "save_steps": passes}
    whole, one = train(tiny, tmp_path / "whole", monkeypatch, steps=12 * passes, earns=pays_some, **settings)
    train(tiny, tmp_path / "cut", monkeypatch, steps=7 * passes, earns=pays_some, **settings)
    resumed, other = train(tiny, tmp_path / "cut", monkeypatch, steps=12 * passes, earns=pays_some, **settings)
    assert len(whole) == 12
    assert resumed == whole[7:]
    for (name, got), wanted in zip(other.named_parameters(), one.named_parameters(), strict=True):
        assert torch.equal(got, wanted[1]), name
    last = Path("grpo", f"checkpoint-{12 * passes}", ORDER)
    kept = json.loads((tmp_path / "cut" / last).read_text())
    assert kept == json.loads((tmp_path / "whole" / last).read_text())
    assert {0, 1} == {had for groups in kept["spread"] for had in groups}


def pays_some(completions, record_id, **_):
    """Spread for the records with an even number only."""
    return [float(place % 2 and int(record[1:]) % 2 == 0) for place, record in enumerate(record_id)]


@pytest.mark.slow
def test_an_alarm_that_stops_leaves_the_checkpoint_from_before(tiny, tmp_path, monkeypatch):
    """Completions that all run into the cap stop a real training; the last good checkpoint is there and is named, and
    with watch.action = "warn" the same directory goes on from its last checkpoint."""
    strict = {"span": 1, "patience": 2, "length": 0.1, "action": "stop"}
    with pytest.raises(TrainingAlarm, match="run into the cap of 6 tokens") as alarm:
        train(tiny, tmp_path, monkeypatch, watch=strict)
    assert "No checkpoint is from before." in str(alarm.value)
    assert steps_written(tmp_path) == [1, 2]
    assert (tmp_path / "grpo" / "checkpoint-1" / COMPLETE).is_file()
    train(tiny, tmp_path, monkeypatch, watch={**strict, "action": "warn"})
    assert steps_written(tmp_path) == [1, 2, 2, 3, 4]
    assert all("length" in row["alarms"] for row in rows_written(tmp_path)[1:])


@pytest.mark.slow
def test_the_trainer_keeps_the_last_good_checkpoint_through_the_trouble(tiny, tmp_path, monkeypatch):
    """In trouble from step 3 on, with two checkpoints kept: the one of step 2, and the newest."""
    drift = iter([0.0, 0.0, 9.0, 9.0, 9.0, 9.0])
    look = Watch.look
    monkeypatch.setattr(Watch, "look", lambda self, row: look(self, {**row, "kl": next(drift)}))
    train(tiny, tmp_path, monkeypatch, steps=6, watch={"span": 1, "length": 1, "no_spread": 1})
    kept = sorted(path.parent.name for path in (tmp_path / "grpo").glob(f"checkpoint-*/{COMPLETE}"))
    assert kept == ["checkpoint-2", "checkpoint-6"]
