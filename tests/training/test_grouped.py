"""Tests of medgrpo.training.grouped: TRL's loss, gradients and rollouts, with every prompt computed once."""

import logging
from types import SimpleNamespace

import pytest
import torch

from medgrpo.policies import load_tokenizer
from medgrpo.testing import tiny_policy
from medgrpo.training import logprobs
from medgrpo.training.grouped import _by_prompt, _plan
from tests.prefix.conftest import FAMILIES, tiny_model, with_lora

GROUP, LENGTHS = 4, [7, 3, 9, 1, 5, 5, 2, 8, 6, 4, 9, 3]
# The second group's rewards are equal; one completion of the third is masked out, as truncated ones may be.
ADVANTAGES = [1.2, -0.7, 0.3, -0.8, 0.0, 0.0, 0.0, 0.0, 1.5, -0.5, -0.5, -0.5]
MASKED = 10


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tokenizer, and rows to build a trainer with."""
    import datasets

    logprobs.install()
    directory = tmp_path_factory.mktemp("grouped")
    rows = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": f"Question {i}?"}]} for i in range(6)])
    return SimpleNamespace(tokenizer=load_tokenizer(tiny_policy(directory / "policy")), rows=rows, directory=directory)


def build(setting, model, budget=None, rollout_dtype=None, **changes):
    """Our trainer with a budget of tokens, or TRL's without one, for one step of three groups of four."""
    import trl

    from medgrpo.training.grouped import GroupedGRPOTrainer

    arguments = {
        "output_dir": str(setting.directory / "out"),
        "per_device_train_batch_size": len(LENGTHS),
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_generations": GROUP,
        "max_completion_length": 9,
        "temperature": 0.9,
        "beta": 0.0,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "seed": 3,
    }
    given = {
        "model": model,
        "reward_funcs": lambda completions, **_: [float(len(c[0]["content"])) for c in completions],
        "args": trl.GRPOConfig(**(arguments | changes)),
        "train_dataset": setting.rows,
        "processing_class": setting.tokenizer,
    }
    sharing = {"micro_batch_tokens": budget, "rollout_dtype": rollout_dtype}
    trainer = trl.GRPOTrainer(**given) if budget is None else GroupedGRPOTrainer(**sharing, **given)
    # The training loop sets these.
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def rollouts(trainer):
    """Three groups as TRL hands them to the loss: shuffled, padded on both sides, old log-probabilities drifted."""
    generator = torch.Generator().manual_seed(3)
    width, prompt_width = max(LENGTHS), 20
    prompts = [torch.randint(3, 400, (length,), generator=generator) for length in (20, 4, 11)]
    ids = torch.zeros(len(LENGTHS), prompt_width, dtype=torch.long)
    for row in range(len(LENGTHS)):
        prompt = prompts[row // GROUP]
        ids[row, prompt_width - len(prompt) :] = prompt
    mask = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    mask[MASKED] = False
    batch = {
        "prompt_ids": ids,
        "prompt_mask": (ids != 0).long(),
        "completion_ids": torch.randint(3, 400, mask.shape, generator=generator) * mask,
        "completion_mask": mask.int(),
        "advantages": torch.tensor(ADVANTAGES),
    }
    drift = 0.3 * torch.randn(mask.shape, generator=generator)
    with torch.no_grad():
        everything = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, everything, seen, width)
    if trainer.num_iterations > 1:
        batch["old_per_token_logps"] = logps + drift
    if trainer.beta:
        batch["ref_per_token_logps"] = logps - drift
    order = torch.randperm(len(LENGTHS), generator=generator)
    return {name: value[order] for name, value in batch.items()} | {"num_items_in_batch": mask.sum()}


def step(trainer, batch):
    """Loss and gradients of one training step on the batch."""
    trainer._prepare_inputs = lambda inputs: dict(batch)
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, None, None)
    return loss, {name: p.grad for name, p in trainer.model.named_parameters() if p.requires_grad}


def difference(setting, make, budget, **changes):
    """Largest relative difference from TRL's: of the loss, and of any parameter's gradient; and the largest gradient.

    Differences that float32 cannot resolve (1e-6 in a loss, 1e-8 in a gradient) count as none.
    """
    stock, ours = build(setting, make(), **changes), build(setting, make(), budget, **changes)
    assert ours._shares, "the trainer took TRL's own path"
    batch = rollouts(stock)
    (expected, wanted), (loss, got) = step(stock, batch), step(ours, batch)

    def relative(one, other, resolution):
        apart = float((one - other).norm())
        return apart / float(other.norm()) if apart > resolution else 0.0

    return SimpleNamespace(
        loss=relative(loss, expected, 1e-6),
        gradients=max(relative(got[name], gradient, 1e-8) for name, gradient in wanted.items()),
        largest_gradient=max(float(gradient.norm()) for gradient in wanted.values()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 40, 10_000], ids=["row by row", "in parts", "at once"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_trls_loss_and_gradients(setting, family, lora, budget):
    """Whatever the architecture, what is trained, and how the step is cut up."""
    found = difference(setting, lambda: with_lora(tiny_model(family)) if lora else tiny_model(family), budget)
    assert max(found.loss, found.gradients) <= 1e-4
    assert found.largest_gradient > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_every_loss_is_trls(setting, loss_type, iterations, beta, level):
    """Each way to average, on and off policy, with and without a reference, per token and per sequence."""
    changes = {"num_iterations": iterations, "beta": beta, "importance_sampling_level": level}
    found = difference(setting, lambda: with_lora(tiny_model("llama")), 40, loss_type=loss_type, **changes)
    assert max(found.loss, found.gradients) <= 1e-4
    assert found.largest_gradient > 1e-6


@pytest.mark.slow
def test_recomputed_layers_have_the_same_gradients(setting):
    """With gradient checkpointing the layers see the layout a second time."""
    found = difference(setting, lambda: with_lora(tiny_model("gemma3")), 40, gradient_checkpointing=True)
    assert max(found.loss, found.gradients) <= 1e-4
    assert found.largest_gradient > 1e-6


@pytest.mark.slow
def test_completions_that_teach_nothing_are_not_computed(setting, monkeypatch):
    """Rows of advantage 0 never enter a forward when beta is 0; with a reference they do."""
    seen = []
    for beta in (0.0, 0.1):
        ours = build(setting, with_lora(tiny_model("llama")), 10_000, beta=beta)
        batch = rollouts(ours)
        forward = type(ours)._packed_forward
        monkeypatch.setattr(
            type(ours), "_packed_forward", lambda s, m, r, c, d, f=forward: seen.append(len(c)) or f(s, m, r, c, d)
        )
        step(ours, batch)
        monkeypatch.undo()
    assert seen == [7, 11]


@pytest.mark.slow
def test_a_step_that_teaches_nothing_leaves_gradients_of_zero(setting):
    """As with TRL the optimiser still takes its step, so that momentum and weight decay go on."""
    ours = build(setting, with_lora(tiny_model("llama")), 10_000)
    batch = rollouts(ours)
    loss, gradients = step(ours, batch | {"advantages": torch.zeros(len(LENGTHS))})
    assert loss.item() == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients.values())


@pytest.mark.slow
def test_log_probabilities_and_entropies_are_trls(setting):
    """For the policy and for the base under it, at every completion token; padding is 0."""
    stock, ours = (build(setting, with_lora(tiny_model("qwen3")), budget) for budget in (None, 30))
    batch = rollouts(stock)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)

    def both(trainer):
        with torch.no_grad():
            policy = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 9, compute_entropy=True)[:2]
            with trainer.model.disable_adapter():
                return *policy, trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, 9)[0]

    for got, wanted in zip(both(ours), both(stock), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rollouts_belong_to_their_prompts_and_prefill_each_once(setting, monkeypatch):
    """Greedy completions come back in the rows of their prompts, though equal prompts are computed once."""
    from medgrpo.training import grouped

    asked = []
    generate = grouped.generate_completions
    monkeypatch.setattr(grouped, "generate_completions", lambda m, p, c, *a: asked.append(c) or generate(m, p, c, *a))
    ours = build(setting, with_lora(tiny_model("llama")), 10_000, temperature=1e-4)
    prompts = [[5, 6, 7], [9, 8], [5, 6, 7], [9, 8], [11], [5, 6, 7]]
    completions, logps = ours._generate_single_turn(prompts, None, {}, 2)
    assert asked == [[3, 2, 1]]
    assert logps is None
    stock = build(setting, with_lora(tiny_model("llama")), temperature=1e-4)
    assert completions == stock._generate_single_turn(prompts, None, {}, 2)[0]


@pytest.mark.slow
def test_rollouts_in_another_type_are_weighed_by_their_own_log_probabilities(setting):
    """Written in bfloat16, a token's ratio is the policy's probability over the writer's; stock PPO's from there on."""
    model = with_lora(tiny_model("llama", vocab_size=len(setting.tokenizer)))
    ours = build(setting, model, 10_000, rollout_dtype=torch.bfloat16)
    ours.model.train()
    torch.manual_seed(0)
    rows = [{"prompt": row["prompt"]} for row in setting.rows.select(range(3)) for _ in range(GROUP)]
    batch = ours._generate_and_score_completions(rows)
    assert ours._shares
    written = batch["sampling_per_token_logps"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        policy, _, _ = ours._get_per_token_logps_and_entropies(ours.model, ids, mask, written.shape[1])
    difference = ((policy - written) * batch["completion_mask"]).abs()
    assert difference.max() > 1e-4
    assert difference.mean() < 0.1
    seen = {}
    compute = ours._compute_loss
    ours._compute_loss = lambda model, inputs: seen.update(inputs) or compute(model, inputs)
    step(ours, batch)
    rows = [written.tolist().index(row) for row in seen["old_per_token_logps"].tolist()]
    assert torch.equal(seen["completion_ids"], batch["completion_ids"][rows])
    assert {parameter.dtype for parameter in ours.model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["dropout", "the model's own dropout", "attention"])
def test_what_cannot_be_shared_exactly_takes_trls_path(setting, reason, caplog):
    """With dropout in the adapter, or another attention, loss and gradients are TRL's because TRL computes them."""

    def make():
        changes = {
            "attention": {"attn_implementation": "eager"},
            "the model's own dropout": {"attention_dropout": 1e-9},
        }
        model = with_lora(tiny_model("llama", **changes.get(reason, {})))
        if reason == "dropout":
            model.peft_config["default"].lora_dropout = 0.1
        return model

    with caplog.at_level(logging.WARNING):
        stock, ours = build(setting, make()), build(setting, make(), 60)
    assert not ours._shares
    assert sum("prompts are not shared" in record.message for record in caplog.records) == 1
    batch = rollouts(stock)
    (expected, wanted), (loss, got) = step(stock, batch), step(ours, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_rollouts_are_not_in_trainings_autocast(setting):
    """With training in bfloat16 autocast, completions are written by the float32 policy."""
    model = with_lora(tiny_model("llama"))
    ours = build(setting, model, 10_000, bf16=True)
    ours.model = ours.accelerator.prepare_model(ours.model)
    seen = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    ours._generate_single_turn([[5, 6, 7], [5, 6, 7]], None, {}, 2)
    hook.remove()
    assert set(seen) == {torch.float32}
    assert step(ours, rollouts(ours))[0].isfinite()


@pytest.mark.slow
def test_terms_of_a_whole_batch_are_not_cut(setting):
    """Where TRL exchanges or computes over a whole batch, its own step runs, on shared prompts, with its gradients."""
    stock, ours = (build(setting, with_lora(tiny_model("llama")), b, top_entropy_quantile=0.5) for b in (None, 40))
    batch = rollouts(stock)
    (expected, wanted), (loss, got) = step(stock, batch), step(ours, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-8, name


def test_plans_hold_every_row_once_within_the_budget():
    """No passes hold more than the budget, but for a single row, or a prompt and a quarter of it; no group is torn."""
    generator = torch.Generator().manual_seed(0)
    prompts = [list(range(n)) for n in (9, 5, 14, 1)]
    rows = [(prompts[i % 4], [0] * int(torch.randint(0, 12, (), generator=generator))) for i in range(24)]
    for budget in (1, 20, 45, 1000):
        plan = _plan(rows, budget)
        assert sorted(row for pieces in plan for piece in pieces for row in piece) == [
            i for i, row in enumerate(rows) if row[1]
        ]
        for pieces in plan:
            shared = _by_prompt([rows[row][0] for piece in pieces for row in piece])
            assert len(pieces) == 1 or len(shared) == 1
            for piece in pieces:
                used = sum(len(prompt) - 1 for prompt in shared) + sum(len(rows[row][1]) for row in piece)
                quarter = max(len(prompt) - 1 for prompt in shared) + budget // 4
                assert used <= max(budget, quarter if len(shared) == 1 else 0) or len(piece) == 1
        for prompt in prompts:
            places = [i for i, pieces in enumerate(plan) for piece in pieces for row in piece if rows[row][0] == prompt]
            assert len(set(places)) == 1 or len(prompt) == 1
    assert len(_plan(rows, 1000)) == 1


@pytest.mark.slow
def test_a_group_in_pieces_computes_its_prompt_once(setting, monkeypatch):
    """However small the budget, each prompt and each completion token enters one forward pass of the loss."""
    tokens = []
    ours = build(setting, with_lora(tiny_model("llama")), 1)
    batch = rollouts(ours)
    embedding = ours.model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel()))
    step(ours, batch)
    hook.remove()
    taught = [(ADVANTAGES[i] != 0 and i != MASKED) * length for i, length in enumerate(LENGTHS)]
    assert sum(tokens) == sum(taught) + 19 + 10
    assert len(tokens) == 7 + 2


def test_gradients_under_autocast_are_those_of_float32_but_for_rounding(setting):
    """In training's bfloat16 autocast the packed row's gradients point where float32's do."""
    found = []
    for half in (False, True):
        ours = build(setting, with_lora(tiny_model("llama", initializer_range=0.05)), 10_000, bf16=half)
        ours.model = ours.accelerator.prepare_model(ours.model)
        _, gradients = step(ours, rollouts(ours))
        found.append(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    assert torch.cosine_similarity(*found, dim=0) > 0.98
