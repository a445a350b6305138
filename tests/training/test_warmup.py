"""Tests of medgrpo.training.warmup: the settings, and a real warm-up of the tiny policy."""

import json
from types import SimpleNamespace

import pytest

from medgrpo.config import RunConfig, WarmupConfig
from medgrpo.manifests import COMPLETE, seal
from medgrpo.training import warmup
from medgrpo.training.callbacks import CompleteCheckpoints, MetricsFile, TrimmedHeap
from medgrpo.training.guards import Guards
from medgrpo.training.warmup import balanced_order

# field -> (a value that is not the default, the field of SFTConfig, what must stand there)
PASSED = {
    "epochs": (3.5, "num_train_epochs", 3.5),
    "learning_rate": (0.0123, "learning_rate", 0.0123),
    "batch_size": (12, "gradient_accumulation_steps", 3),
    "micro_batch": (2, "per_device_train_batch_size", 2),
    "warmup_ratio": (0.3, "warmup_steps", 0.3),
    "max_grad_norm": (0.77, "max_grad_norm", 0.77),
    "weight_decay": (0.07, "weight_decay", 0.07),
    "save_steps": (13, "save_steps", 13),
}
# `enabled` decides whether there is a warm-up at all (see test_main), `balance` shapes the order of the rows,
# `verdict_weight` the loss.
USED_ELSEWHERE = {"enabled", "balance", "verdict_weight"}


def test_every_setting_of_the_warmup_is_accounted_for():
    """A new field of WarmupConfig fails here until it is passed on to TRL, or listed with where else it is used."""
    assert PASSED.keys() | USED_ELSEWHERE == WarmupConfig.model_fields.keys()


@pytest.mark.parametrize("field", PASSED)
def test_each_setting_reaches_trls_config(tmp_path, field):
    """The value set in [warmup] is the value in the SFTConfig that trains, and differs from the default's."""
    value, name, expected = PASSED[field]
    changed = RunConfig(warmup=WarmupConfig(**{field: value}))
    assert getattr(warmup._arguments(changed, tmp_path), name) == expected
    assert getattr(warmup._arguments(RunConfig(), tmp_path), name) != expected


def test_settings_outside_the_section_reach_trls_config(tmp_path):
    """Seed, length limit, checkpointing and autocast come from their own sections."""
    values = {
        "seed": 99,
        "data": {"max_length": 777},
        "policy": {"autocast": "bfloat16"},
        "grpo": {"gradient_checkpointing": True},
    }
    arguments = warmup._arguments(RunConfig.model_validate(values), tmp_path)
    assert (arguments.seed, arguments.max_length, arguments.bf16, arguments.fp16) == (99, 777, True, False)
    assert arguments.gradient_checkpointing
    assert arguments.output_dir == str(tmp_path)


def test_no_default_of_trl_decides_what_is_learnt(tmp_path):
    """The loss counts completion tokens, nothing is packed, each step is logged, and NaN is not filtered out."""
    arguments = warmup._arguments(RunConfig(), tmp_path)
    assert arguments.completion_only_loss is True
    assert arguments.packing is False
    assert arguments.logging_steps == 1
    assert arguments.logging_nan_inf_filter is False
    assert not arguments.report_to


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"batch_size": 8, "micro_batch": 4}, 2),
        ({"batch_size": 8, "micro_batch": 8}, 1),
        ({"batch_size": 8, "micro_batch": 1}, 8),
    ],
)
def test_micro_batches_add_up_to_the_batch(tmp_path, settings, steps):
    """Completions per optimiser step are batch_size, however they are cut to fit into memory."""
    arguments = warmup._arguments(RunConfig(warmup=WarmupConfig(**settings)), tmp_path)
    assert arguments.gradient_accumulation_steps == steps
    assert arguments.per_device_train_batch_size * steps == settings["batch_size"]


class Recorder:
    """Stands in for the trainer and keeps what it was given."""

    def __init__(self, **given):
        self.given = given

    def train(self, resume_from_checkpoint=None):
        self.resumed_from = resume_from_checkpoint


@pytest.fixture
def rows():
    import datasets

    verdicts = ["yes"] * 6 + ["no"] * 3
    return datasets.Dataset.from_list(
        [
            {
                "record_id": str(i),
                "prompt": [{"role": "user", "content": f"question {i}"}],
                "completion": f"answer {i}",
                "verdict": verdict,
                "record": "{}",
            }
            for i, verdict in enumerate(verdicts)
        ]
    )


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that were built, none of which trains."""
    from medgrpo.training import verdict_loss

    built = []
    monkeypatch.setattr(
        verdict_loss, "VerdictWeightedTrainer", lambda **given: built.append(Recorder(**given)) or built[-1]
    )
    return built


def test_the_trainer_sees_the_balanced_order_as_conversations(tmp_path, rows, trainers):
    """Rows come in balanced order, as many as there are, with the completion as the assistant's turn and no more."""
    config = RunConfig(warmup=WarmupConfig(balance=1.0), seed=4)
    warmup.train_warmup(SimpleNamespace(), None, rows, config, tmp_path, tmp_path / "metrics.jsonl")
    dataset = trainers[0].given["train_dataset"]
    order = balanced_order(rows["verdict"], len(rows), 1.0, 4)
    assert dataset.column_names == ["prompt", "completion"]
    assert [row["prompt"][0]["content"] for row in dataset] == [f"question {i}" for i in order]
    assert dataset[0]["completion"] == [{"role": "assistant", "content": f"answer {order[0]}"}]


def test_the_trainer_gets_the_callbacks_and_the_last_complete_checkpoint(tmp_path, rows, trainers):
    """Watched metrics and marks are attached, and training resumes from the newest marked checkpoint."""
    for step, marked in ((20, True), (40, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if marked:
            seal(tmp_path / f"checkpoint-{step}")
    warmup.train_warmup(SimpleNamespace(), None, rows, RunConfig(), tmp_path, tmp_path / "metrics.jsonl")
    kinds = [type(callback) for callback in trainers[0].given["callbacks"]]
    assert kinds == [MetricsFile, Guards, CompleteCheckpoints, TrimmedHeap]
    assert trainers[0].resumed_from == str(tmp_path / "checkpoint-20")


def test_a_first_start_resumes_from_nothing(tmp_path, rows, trainers):
    """Without a complete checkpoint training starts at step 1."""
    warmup.train_warmup(SimpleNamespace(), None, rows, RunConfig(), tmp_path, tmp_path / "metrics.jsonl")
    assert trainers[0].resumed_from is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A real warm-up of the tiny policy whose last checkpoint is torn, then resumed; with its trainer."""
    import datasets

    from medgrpo.policies import load_trainable
    from medgrpo.preparation import prepare
    from medgrpo.testing import tiny_config
    from medgrpo.training import logprobs, verdict_loss

    directory = tmp_path_factory.mktemp("warmup")
    config = tiny_config(
        directory,
        data={"synthetic_pool": 24, "synthetic_test": 3},
        warmup={"epochs": 1.0, "learning_rate": 3e-2, "batch_size": 4, "micro_batch": 2, "save_steps": 2},
    )
    prepare(config, directory / "data")
    logprobs.install()
    rows = datasets.load_from_disk(str(directory / "data" / "train"))
    built = []

    class Kept(verdict_loss.VerdictWeightedTrainer):
        def __init__(self, **given):
            super().__init__(**given)
            built.append(self)

    work, metrics = directory / "warmup", directory / "metrics.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict_loss, "VerdictWeightedTrainer", Kept)
        for attempt in range(2):
            model, tokenizer = load_trainable(config.policy)
            warmup.train_warmup(model, tokenizer, rows, config, work, metrics)
            if attempt == 0:
                # As a kill while the last checkpoint is written would leave it.
                last = max(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
                (last / COMPLETE).unlink()
                (last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:100])
    written = [json.loads(line) for line in metrics.read_text().splitlines()]
    return SimpleNamespace(config=config, rows=rows, trainer=built[0], metrics=written, work=work)


@pytest.mark.slow
def test_the_warmup_lowers_the_loss(trained):
    """Each step at a high learning rate makes gold completions a little more likely, as far as a random head allows."""
    losses = [row["loss"] for row in trained.metrics if row["step"] < row["steps"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.slow
def test_only_the_completion_is_learnt(trained):
    """The labels are the gold completion and the token that ends its turn; no token of the prompt is among them."""
    trainer = trained.trainer
    tokenizer = trainer.processing_class
    gold = {row["completion"] for row in trained.rows}
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            learnt = [label for label in labels if label != -100]
            assert learnt == [i for i, label in zip(ids, labels, strict=True) if label != -100]
            text = tokenizer.decode(learnt)
            completion, end, rest = text.partition(tokenizer.eos_token)
            assert completion in gold
            assert end == tokenizer.eos_token
            assert not rest.strip()


@pytest.mark.slow
def test_a_torn_last_checkpoint_is_passed_over(trained):
    """The second attempt goes on from the checkpoint before, and repeats the lost step on the same rows."""
    steps = [row["step"] for row in trained.metrics]
    total = trained.metrics[0]["steps"]
    first, second = steps[:total], steps[total:]
    assert first == list(range(1, total + 1))
    assert second == list(range(second[0], total + 1))
    assert 1 < second[0] <= total
    repeated = trained.metrics[second[0] - 1]
    assert trained.metrics[total]["loss"] == pytest.approx(repeated["loss"], rel=1e-3)
    assert (trained.work / f"checkpoint-{total}" / COMPLETE).is_file()
