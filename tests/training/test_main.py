"""Tests of medgrpo.training.__main__: the phases of the training process, run inside this one."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from safetensors.torch import save_file

from medgrpo import policies, preparation
from medgrpo.config import RunConfig
from medgrpo.errors import InputError, MedgrpoError, ServiceUnreachable, TrainingAlarm
from medgrpo.manifests import seal, write_json
from medgrpo.policies import fitting
from medgrpo.policies.memory import MemoryPlan
from medgrpo.prompts import render_prompt
from medgrpo.testing import tiny_config, tiny_record
from medgrpo.training import __main__ as process
from medgrpo.training.launch import CHILD_ENVIRONMENT


def adapter(directory, **tensors):
    directory.mkdir(parents=True)
    save_file({name: torch.tensor(values) for name, values in tensors.items()}, directory / "adapter_model.safetensors")
    return directory


def job(directory, config, data=Path("data")):
    write_json(directory / "job.json", {"config": config.model_dump(mode="json"), "data": str(data)})
    return directory


# --- How it starts ---------------------------------------------------------------------------------------------------

START = """
import gc, sys
from medgrpo.training import __main__ as process
from medgrpo.config import RunConfig
config = RunConfig(name="start")
with process._without_collector():
    # What the training does before.
    import datasets
    from medgrpo.policies import describe_base, fitting
    from medgrpo.preparation import check_leaks
    from medgrpo.training import precision, start
    process._meet(config)
    process._trainers(config)
    assert not gc.isenabled()
    process._settle_collector()
    assert gc.isenabled() and gc.get_freeze_count()
print(*sorted({"mlflow", "sklearn", "transformers", "trl"} & sys.modules.keys()))
"""


@pytest.fixture(autouse=True)
def collector(monkeypatch):
    """In this process the collector goes on: at its freezing, what other tests left would stay for ever."""
    monkeypatch.setattr(process, "_without_collector", contextlib.nullcontext)


@pytest.mark.slow
def test_it_imports_no_more_than_it_needs():
    """Neither MLflow nor scikit-learn is loaded, and what was is not walked by the garbage collector any more."""
    done = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, **CHILD_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.stdout.split() == ["transformers", "trl"], done.stderr


# --- What is measured --------------------------------------------------------------------------------------------


def test_the_adapter_change_is_the_norm_of_all_differences(tmp_path):
    """From one adapter to another: the Euclidean norm over every matrix."""
    before = adapter(tmp_path / "before", **{"q.lora_A": [1.0, 2.0], "q.lora_B": [0.0, 0.0]})
    after = adapter(tmp_path / "after", **{"q.lora_A": [1.0, 5.0], "q.lora_B": [4.0, 0.0]})
    assert process.adapter_change(before, after) == pytest.approx(5.0)
    assert process.adapter_change(after, after) == 0.0


def test_without_a_warmup_only_b_counts(tmp_path):
    """A fresh adapter's A is random and its B zero, so what GRPO learnt from nothing is the norm of B."""
    after = adapter(tmp_path / "after", **{"q.lora_A": [9.0], "q.lora_B": [3.0], "v.lora_B": [-4.0]})
    assert process.adapter_change(None, after) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("change", "difference", "words"),
    [
        (0.3, 1e-6, []),
        (0.0, 1e-6, ["did not move"]),
        (0.3, 0.5, ["moved a logit by 0.500"]),
        (0.0, 0.5, ["did not", "0.500"]),
    ],
)
def test_the_flags_tell_a_reviewer_what_went_wrong(change, difference, words):
    """An adapter that did not move, and a merge that did, are said in plain words; a good training has no flag."""
    flags = process._flags({"adapter_change": change, "merge_difference": difference})
    assert len(flags) == len(words)
    assert all(word in flag for word, flag in zip(words, flags, strict=True))


# --- What a failure leaves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InputError, TrainingAlarm, ServiceUnreachable])
def test_a_failure_made_on_purpose_leaves_its_sentence(tmp_path, monkeypatch, kind):
    """failure.json names the kind and the message, and the exit code is the error's."""

    def fail(*_):
        raise kind("The reason, in words.")

    monkeypatch.setattr(process, "train", fail)
    assert process.main(job(tmp_path, RunConfig())) == kind.exit_code
    assert json.loads((tmp_path / "failure.json").read_text()) == {
        "kind": kind.__name__,
        "message": "The reason, in words.",
    }


def test_a_mistake_in_the_code_is_no_sentence(tmp_path, monkeypatch):
    """An unforeseen exception is not dressed up: it ends the process with a traceback, and there is no failure.json."""
    monkeypatch.setattr(process, "train", lambda *_: [][0])
    with pytest.raises(IndexError):
        process.main(job(tmp_path, RunConfig()))
    assert not (tmp_path / "failure.json").exists()


def test_the_job_arrives_as_it_was_given(tmp_path, monkeypatch):
    """The settings survive the way through job.json unchanged, paths and None included."""
    given = []
    monkeypatch.setattr(process, "train", lambda *arguments: given.append(arguments))
    config = RunConfig.model_validate(
        {"seed": 3, "runs_dir": "/elsewhere", "data": {"path": "x.json"}, "evaluation": {"cases": "all"}}
    )
    assert process.main(job(tmp_path, config, Path("/prepared"))) == 0
    assert given == [(config, Path("/prepared"), tmp_path)]


# --- The phases --------------------------------------------------------------------------------------------------


class FakeModel:
    """Saves an adapter file that names itself."""

    def __init__(self, start):
        self.start = start

    def save_pretrained(self, directory, selected_adapters):
        assert selected_adapters == ["default"]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "adapter_model.safetensors").write_text(f"from {self.start and self.start.parent.name}")


@pytest.fixture
def loads(monkeypatch):
    """The adapters that models were loaded with."""
    started = []

    def load(config, start=None):
        started.append(start)
        return FakeModel(start), None

    monkeypatch.setattr(policies, "load_trainable", load)
    return started


def test_a_finished_phase_is_not_repeated(tmp_path, loads):
    """Where the adapter is, neither model nor trainer is started again."""
    seal(tmp_path / "warmup" / "adapter")
    found = process._phase(RunConfig(), None, tmp_path / "warmup", [], tmp_path / "metrics.jsonl", None)
    assert found == tmp_path / "warmup" / "adapter"
    assert loads == []


def test_an_adapter_that_a_kill_left_half_written_is_not_taken_for_one(tmp_path, loads):
    """Only a directory renamed into place counts; the remains of an earlier attempt are written over."""
    partial = tmp_path / "warmup" / "adapter.partial"
    partial.mkdir(parents=True)
    (partial / "adapter_model.safetensors").write_text("half")
    trained = []
    found = process._phase(
        RunConfig(), None, tmp_path / "warmup", [], tmp_path / "metrics.jsonl", lambda *given: trained.append(given)
    )
    assert len(trained) == 1
    assert (found / "adapter_model.safetensors").read_text() == "from None"
    assert not partial.exists()


@pytest.fixture
def stubbed(monkeypatch, tmp_path, loads):
    """`train` without models: the phases that ran, in order; data of two records."""
    from medgrpo.training import grpo, logprobs, warmup

    ran = []
    monkeypatch.setattr(warmup, "train_warmup", lambda *given: ran.append(given[4].name))
    monkeypatch.setattr(grpo, "train_grpo", lambda *given: ran.append(given[4].name))
    monkeypatch.setattr(logprobs, "install", lambda: False)
    monkeypatch.setattr(process, "adapter_change", lambda before, after: 1.0)
    monkeypatch.setattr(process, "_merge", lambda *_: {"merge_difference": 0.0})
    monkeypatch.setattr(fitting, "check_memory", lambda config: MemoryPlan({"loss": {"weights": 2_500_000_000}}))
    # `train` disables the caching of maps for the rest of the process.
    monkeypatch.setattr(datasets, "disable_caching", lambda: None)
    write_data(tmp_path / "data", train=[tiny_record("1")], test=[tiny_record("2", long_answer="It does.")])
    write_json(tmp_path / "data" / "data.json", {"max_training_tokens": 400})
    return SimpleNamespace(ran=ran, data=tmp_path / "data", work=tmp_path / "work")


def write_data(directory, **splits):
    for split, records in splits.items():
        rows = [
            {"record_id": record.id, "prompt": render_prompt(record), "record": record.model_dump_json()}
            for record in records
        ]
        datasets.Dataset.from_list(rows).save_to_disk(str(directory / split))


def test_grpo_goes_on_from_the_warmup(stubbed, loads):
    """First the warm-up from a fresh adapter, then GRPO from the warm-up's; training.json is written last."""
    process.train(RunConfig(), stubbed.data, stubbed.work)
    assert stubbed.ran == ["warmup", "grpo"]
    assert loads == [None, stubbed.work / "warmup" / "adapter"]
    summary = json.loads((stubbed.work / "training.json").read_text())
    assert summary.keys() == {
        *("adapter_change", "merge_difference", "seconds", "flags"),
        *("backend", "quantization", "autocast", "memory_plan_gb", "base", "started_from"),
    }
    assert summary["memory_plan_gb"] == {"peak": 2.5, "largest": "loss", "phases": {"loss": {"weights": 2.5}}}


def test_alarms_of_the_training_are_flags(stubbed):
    """What rang while the phases trained is said to whoever reads training.json, and so the run's summary."""
    stubbed.work.mkdir()
    row = {"phase": "grpo", "step": 3, "alarms": {"kl": "Far away."}}
    (stubbed.work / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    process.train(RunConfig(), stubbed.data, stubbed.work)
    assert json.loads((stubbed.work / "training.json").read_text())["flags"] == ["alarm kl (step 3): Far away."]


@pytest.mark.parametrize(
    ("gpus", "found"),
    [(0, "processes is 2, but 1 were started"), (1, r"processes is 2, but PyTorch sees 1 GPU\(s\) .* processes=1")],
)
def test_processes_that_are_not_there_are_missed(stubbed, monkeypatch, gpus, found):
    """One of two processes started alone, or two for one GPU, is refused before anything is trained on half a step."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    with pytest.raises(InputError, match=found):
        process.train(RunConfig(processes=2), stubbed.data, stubbed.work)
    assert stubbed.ran == []


def test_a_disabled_warmup_is_left_out(stubbed, loads):
    """With warmup.enabled = false GRPO starts from a fresh adapter."""
    process.train(RunConfig.model_validate({"warmup": {"enabled": False}}), stubbed.data, stubbed.work)
    assert stubbed.ran == ["grpo"]
    assert loads == [None]
    assert not (stubbed.work / "warmup").exists()


@pytest.mark.parametrize("warmup", [True, False])
def test_the_first_phase_goes_on_from_the_start(stubbed, loads, warmup):
    """With policy.start_from the warm-up starts from that adapter, and without a warm-up GRPO does."""
    start = stubbed.work / "start" / "adapter"
    start.mkdir(parents=True)
    config = RunConfig.model_validate({"policy": {"start_from": "runs/night"}, "warmup": {"enabled": warmup}})
    process.train(config, stubbed.data, stubbed.work)
    assert loads == ([start, stubbed.work / "warmup" / "adapter"] if warmup else [start])


@pytest.mark.slow
def test_a_finished_warmup_is_not_repeated_after_a_restart(stubbed):
    """A process killed in GRPO starts with GRPO the next time."""
    process.train(RunConfig(), stubbed.data, stubbed.work)
    shutil.rmtree(stubbed.work / "grpo" / "adapter")
    process.train(RunConfig(), stubbed.data, stubbed.work)
    assert stubbed.ran == ["warmup", "grpo", "grpo"]


def test_a_test_record_among_the_training_rows_stops_the_run(stubbed, tmp_path):
    """Data tampered with after preparation is found before any phase starts, and the sentence names the record."""
    write_data(tmp_path / "leaky", train=[tiny_record("1"), tiny_record("2")], test=[tiny_record("2")])
    with pytest.raises(InputError, match="record 2 of the test split is among the training prompts"):
        process.train(RunConfig(), tmp_path / "leaky", stubbed.work)
    assert stubbed.ran == []


def test_a_long_answer_in_a_prompt_stops_the_run(stubbed, tmp_path):
    """A record whose abstract gives its conclusion away is found before any phase starts."""
    leaky = tiny_record("1", contexts=("We asked. The treatment relieves pain better than placebo. Thanks.",))
    write_data(tmp_path / "leaky", train=[leaky], test=[tiny_record("2")])
    with pytest.raises(InputError, match="the prompt of record 1 contains its long_answer"):
        process.train(RunConfig(), tmp_path / "leaky", stubbed.work)
    assert stubbed.ran == []


@pytest.mark.slow
def test_numbers_that_overflow_end_in_an_alarm(tmp_path, monkeypatch):
    """A real training whose learning rate is absurd ends with a TrainingAlarm, and leaves no adapter behind."""
    monkeypatch.setattr(datasets, "disable_caching", lambda: None)
    config = tiny_config(
        tmp_path,
        data={"synthetic_pool": 24, "synthetic_test": 3},
        warmup={"learning_rate": 1e30, "epochs": 1.0, "max_grad_norm": 1e30},
    )
    preparation.prepare(config, tmp_path / "data")
    assert process.main(job(tmp_path / "work", config, tmp_path / "data")) == MedgrpoError.exit_code
    failure = json.loads((tmp_path / "work" / "failure.json").read_text())
    assert failure["kind"] == "TrainingAlarm"
    assert "Lower the learning rate" in failure["message"]
    assert not (tmp_path / "work" / "warmup" / "adapter").exists()


# --- The process that follows it ---------------------------------------------------------------------------------


def test_a_process_is_alive_until_it_was_waited_for():
    """A running process is alive, one that is gone is not."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process._alive(child.pid)
    child.communicate(b"\n")
    assert not process._alive(child.pid)
    assert process._alive(os.getpid())


def test_nothing_is_watched_without_a_parent(tmp_path, monkeypatch):
    """Started by hand, the process ends when it is done, not when a shell does."""
    followed = []
    monkeypatch.delenv("MEDGRPO_PARENT", raising=False)
    monkeypatch.setattr(process.threading, "Thread", lambda **_: pytest.fail("a watcher was started"))
    monkeypatch.setattr(process, "train", lambda *_: followed.append(os.environ.get("MEDGRPO_PARENT")))
    assert process.main(job(tmp_path, RunConfig(), tmp_path)) == 0
    assert followed == [None]
