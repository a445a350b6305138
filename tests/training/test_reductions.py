"""Tests of medgrpo.training.reductions: a training that runs out of memory goes on in smaller micro-batches."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from medgrpo.config import RunConfig, load_config
from medgrpo.errors import InputError, TrainingCrashed
from medgrpo.manifests import write_json
from medgrpo.policies.memory import loss_tokens
from medgrpo.testing import talking_policy, tiny_config
from medgrpo.training import __main__ as process
from medgrpo.training import launch
from medgrpo.training.metrics import read_metrics
from medgrpo.training.reductions import REDUCTIONS_FILE, apply_reductions, halved, retried_smaller, smaller


def settings(**sections):
    return RunConfig.model_validate(sections)


def exhausted(error=None):
    """Raise an error; unset, what PyTorch really raises where a CPU has no memory."""
    if error is not None:
        raise error
    torch.empty(2**50)


def micro_batches(config):
    return config.grpo.micro_batch_tokens, config.warmup.micro_batch


# --- What is lowered ---------------------------------------------------------------------------------------------


def test_micro_batches_are_halved_and_steps_are_not():
    """Half the tokens and half the rows at once; the batch of a step, and all else, stays as it was."""
    before = RunConfig()
    after = halved(before)
    assert micro_batches(after) == (512, 2)
    assert after.warmup.batch_size == before.warmup.batch_size
    assert after.grpo.model_copy(update={"micro_batch_tokens": 1024}) == before.grpo


@pytest.mark.parametrize(("batch", "micro", "processes", "rows"), [(9, 9, 1, 3), (12, 6, 2, 3), (8, 1, 1, 1)])
def test_a_warmup_step_is_still_whole_micro_batches(batch, micro, processes, rows):
    """At most half as many rows, and a number that divides each process's share of the batch."""
    config = settings(processes=processes, warmup={"batch_size": batch, "micro_batch": micro})
    after = halved(config)
    assert after.warmup.micro_batch == rows
    assert RunConfig.model_validate(after.model_dump()) == after


@pytest.mark.parametrize(("tokens", "fewer"), [(1024, 512), (100, 64), (64, 64), (10, 10)])
def test_tokens_are_not_halved_for_ever(tokens, fewer):
    """At 64 tokens the weights and one layer are most of the memory; what is set lower stays."""
    assert halved(settings(grpo={"micro_batch_tokens": tokens})).grpo.micro_batch_tokens == fewer


@pytest.mark.parametrize("profile", ["t4", "t4-fast", "a10", "multi-gpu", "cpu", "demo"])
@pytest.mark.parametrize("warming_up", [True, False])
def test_an_attempt_never_meets_the_same_crash(profile, warming_up):
    """With each shipped profile, every further attempt holds less at once than the one before, until none can; t4 is
    as small as it goes from the start."""
    attempts = [load_config(profile)]
    while less := smaller(attempts[-1], warming_up):
        attempts.append(less)
    assert len(attempts) <= 12
    for before, after in itertools.pairwise(attempts):
        held = [one.warmup.micro_batch if warming_up else loss_tokens(one) for one in (before, after)]
        recomputed = after.grpo.gradient_checkpointing and not before.grpo.gradient_checkpointing
        assert held[1] < held[0] or (held[1] == held[0] and recomputed)
        assert after.grpo.model_dump(
            exclude={"micro_batch_tokens", "gradient_checkpointing"}
        ) == before.grpo.model_dump(exclude={"micro_batch_tokens", "gradient_checkpointing"})


# --- The note ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
        None,
    ],
    ids=["torch", "CUDA", "cuBLAS", "Python", "a CPU's"],
)
def test_each_way_to_run_out_of_memory_is_retried_smaller(tmp_path, error):
    """The sentence says where, why and what comes next, and the next attempt reads smaller micro-batches."""
    with pytest.raises(TrainingCrashed) as crash, retried_smaller(RunConfig(), tmp_path):
        exhausted(error)
    said = str(crash.value)
    assert said.startswith("the training ran out of memory in the warm-up (")
    assert said.endswith("grpo.micro_batch_tokens=512, warmup.micro_batch=2, grpo.gradient_checkpointing=false.")
    assert "\n" not in said
    assert micro_batches(apply_reductions(RunConfig(), tmp_path)) == (512, 2)


def test_another_error_is_none_of_this(tmp_path):
    """What is no lack of memory passes through, and leaves no note."""
    with pytest.raises(RuntimeError, match="sizes"), retried_smaller(RunConfig(), tmp_path):
        raise RuntimeError("sizes of tensors must match")
    assert not (tmp_path / REDUCTIONS_FILE).exists()


def test_attempts_go_on_from_each_other(tmp_path):
    """Each failure halves what the attempt had; settings that are lower by themselves stay."""
    for expected in ((512, 2), (256, 1)):
        config = apply_reductions(RunConfig(), tmp_path)
        with pytest.raises(TrainingCrashed), retried_smaller(config, tmp_path):
            exhausted()
        assert micro_batches(apply_reductions(RunConfig(), tmp_path)) == expected
    lower = settings(grpo={"micro_batch_tokens": 100})
    assert micro_batches(apply_reductions(lower, tmp_path)) == (100, 1)


def test_at_the_floor_of_the_warmup_nobody_tries_again(tmp_path):
    """With one row at once and activations recomputed the sentence says what else there is."""
    config = settings(warmup={"micro_batch": 1}, grpo={"gradient_checkpointing": True})
    words = r"warm-up .* as little at once as it goes .*data\.max_length"
    with pytest.raises(InputError, match=words), retried_smaller(config, tmp_path):
        exhausted()
    assert not (tmp_path / REDUCTIONS_FILE).exists()


def test_at_the_floor_of_grpo_nobody_tries_again(tmp_path):
    """After the warm-up it is the tokens of GRPO that count."""
    (tmp_path / "warmup" / "adapter").mkdir(parents=True)
    config = settings(grpo={"micro_batch_tokens": 64, "gradient_checkpointing": True})
    with pytest.raises(InputError, match="out of memory in GRPO"), retried_smaller(config, tmp_path):
        exhausted()


def test_the_merge_is_tried_again_as_it_is(tmp_path):
    """It has no micro-batches, and what other processes hold may be free by then."""
    (tmp_path / "warmup" / "adapter").mkdir(parents=True)
    (tmp_path / "grpo" / "adapter").mkdir(parents=True)
    with pytest.raises(TrainingCrashed, match="goes on with the merge"), retried_smaller(RunConfig(), tmp_path):
        exhausted()
    assert not (tmp_path / REDUCTIONS_FILE).exists()


@pytest.mark.parametrize("text", ["", "[]", '{"micro_batch_tokens": 0, "micro_batch": 1}', '{"micro_batch": 2}'])
def test_a_damaged_note_is_passed_over(tmp_path, text, caplog):
    """Micro-batches are as they are set, and the log says so."""
    (tmp_path / REDUCTIONS_FILE).write_text(text)
    assert apply_reductions(RunConfig(), tmp_path) == RunConfig()
    assert "cannot be read" in caplog.text


def test_without_a_note_all_is_as_it_is_set(tmp_path):
    """A first attempt has the settings that it was given."""
    config = RunConfig()
    assert apply_reductions(config, tmp_path) is config


def test_the_process_leaves_sentence_and_note(tmp_path, monkeypatch):
    """main ends with a failure.json that is retried, and the attempt after it is given smaller micro-batches."""
    given = []

    def train(config, data, directory):
        given.append(micro_batches(config))
        exhausted()

    monkeypatch.setattr(process, "train", train)
    write_json(tmp_path / "job.json", {"config": RunConfig().model_dump(mode="json"), "data": "data"})
    assert process.main(tmp_path) == TrainingCrashed.exit_code
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["kind"] == "TrainingCrashed"
    assert "DefaultCPUAllocator" in failure["message"]
    assert process.main(tmp_path) == TrainingCrashed.exit_code
    assert process.main(tmp_path) == TrainingCrashed.exit_code
    assert process.main(tmp_path) == InputError.exit_code
    assert json.loads((tmp_path / "failure.json").read_text())["kind"] == "InputError"
    assert given == [(1024, 4), (512, 2), (256, 1), (128, 1)]


# --- A training --------------------------------------------------------------------------------------------------

FAILING = """
import sys
from pathlib import Path

import torch

from medgrpo.training import __main__ as process
from medgrpo.training import verdict_loss

directory, loss = Path(sys.argv[1]), verdict_loss.VerdictWeightedTrainer.compute_loss


def failing(trainer, *args, **options):
    if trainer.state.global_step == 1 and not (directory / "reductions.json").exists():
        torch.empty(2**50)
    return loss(trainer, *args, **options)


verdict_loss.VerdictWeightedTrainer.compute_loss = failing
sys.exit(process.main(directory))
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared run of three steps of warm-up and two of GRPO, whose rewards differ."""
    from medgrpo.preparation import prepare

    directory = tmp_path_factory.mktemp("reductions")
    policy = talking_policy(directory / "talking", "yes", "no", "maybe")
    config = tiny_config(
        directory,
        data={"synthetic_pool": 24, "synthetic_test": 6},
        policy={"base": str(policy)},
        warmup={"epochs": 0.6, "save_steps": 1},
        grpo={"group_size": 4, "max_completion_length": 1, "learning_rate": 1e-2},
    )
    prepare(config, directory / "data")
    return SimpleNamespace(config=config, data=directory / "data", directory=directory)


@pytest.mark.slow
def test_a_training_without_memory_goes_on_smaller_with_the_same_numbers(prepared, tmp_path, monkeypatch):
    """A real allocation fails after the first step: the next attempt has half the micro-batch, starts behind that step,
    finishes, and each step's loss, gradient norm and reward are those of an uninterrupted training to 1e-4."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)
    launch.run(prepared.config, prepared.data, whole)
    monkeypatch.setattr(launch, "_command", lambda config, directory: [sys.executable, "-c", FAILING, str(directory)])
    with pytest.raises(TrainingCrashed, match=r"out of memory in the warm-up .*DefaultCPUAllocator"):
        launch.run(prepared.config, prepared.data, cut)
    resumed = []
    summary = launch.run(prepared.config, prepared.data, cut, resumed.append)
    assert resumed[0]["phase"] == "warmup"
    assert resumed[0]["step"] == 2
    assert json.loads((cut / REDUCTIONS_FILE).read_text()) == {
        "micro_batch_tokens": 250,
        "micro_batch": 2,
        "gradient_checkpointing": False,
    }
    assert "an earlier attempt ran out of memory: this one has" in (cut / "train.log").read_text()
    expected, found = (read_metrics(directory / "metrics.jsonl") for directory in (whole, cut))
    assert len(expected) == len(found) >= 5
    for one, other in zip(expected, found, strict=True):
        names = [name for name in ("step", "loss", "grad_norm", "reward") if name in one]
        assert [other[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-4, abs=1e-6)
    assert max(row["grad_norm"] for row in found if row["phase"] == "grpo") > 0
    assert summary["memory_plan_gb"]["peak"] > 0
