"""Tests of medgrpo.training.launch: what a training process leaves, and how its end is understood.

The slow tests train for real, in a process of its own, a policy made so that its rewards differ: it always writes a
thought, and then yes, no or maybe with equal chances.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from medgrpo.config import RunConfig
from medgrpo.errors import InputError, TrainingAlarm, TrainingCrashed
from medgrpo.manifests import COMPLETE, describe, write_json
from medgrpo.testing import tiny_config
from medgrpo.training import launch
from medgrpo.training.callbacks import last_complete_checkpoint
from medgrpo.training.metrics import read_metrics

OPENING = "<thought>Mean pain fell with the treatment, and more so than it did with placebo.</thought><answer>"
ENDINGS = ("yes</answer>", "no</answer>", "maybe</answer>")


def talking_policy(directory):
    """Make the tiny policy write OPENING, one of ENDINGS and the end of its turn, by setting a few directions."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([OPENING, *ENDINGS])
    model = AutoModelForCausalLM.from_pretrained(directory)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    steps = [[turn[-1]], [tokenizer.convert_tokens_to_ids(OPENING)], tokenizer.convert_tokens_to_ids(list(ENDINGS))]
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head.zero_()
        for direction, (tokens, following) in enumerate(
            zip(steps, [*steps[1:], [tokenizer.eos_token_id]], strict=True)
        ):
            embeddings[tokens] = torch.eye(embeddings.shape[1])[direction]
            head[following] = 3 * torch.eye(embeddings.shape[1])[direction]
        # A direction of its own for each verdict, not used yet, gives the adapter a way to prefer one.
        head[steps[2]] += torch.eye(embeddings.shape[1])[4:7]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared run of the talking policy, with its settings."""
    from medgrpo.preparation import prepare

    directory = tmp_path_factory.mktemp("launch")
    config = tiny_config(
        directory,
        data={"synthetic_pool": 24, "synthetic_test": 6},
        grpo={"steps": 4, "group_size": 4, "max_completion_length": 8, "learning_rate": 1e-2},
    )
    talking_policy(Path(config.policy.base))
    prepare(config, directory / "data")
    return SimpleNamespace(config=config, data=directory / "data", directory=directory)


@pytest.fixture
def impatient(monkeypatch):
    """Look at the training process often."""
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)


def changed(config, **sections):
    """The settings with some sections' values replaced."""
    values = config.model_dump()
    for section, settings in sections.items():
        values[section] = {**values[section], **settings} if isinstance(settings, dict) else settings
    return RunConfig.model_validate(values)


def processes(directory):
    """The running children of this process that were started to train in a directory."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE and str(directory) in child.cmdline():
                found.append(child)
    return found


def rows_in(directory, start=0):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()[start:]]


def numbered(rows):
    return [(row["phase"], row["step"]) for row in rows]


# --- A process that only seems to train: what run() makes of it --------------------------------------------------


@pytest.fixture
def instead(monkeypatch, impatient):
    """Run a piece of Python instead of the training; it finds its directory in `directory`."""

    def replace(code):
        program = (
            "import json, os, pathlib, signal, subprocess, sys, time\ndirectory = pathlib.Path(sys.argv[1])\n" + code
        )
        monkeypatch.setattr(launch, "_command", lambda config, directory: [sys.executable, "-c", program, directory])

    return replace


FINISH = "\n(directory / 'training.json').write_text('{\"seconds\": 1}')"


def test_the_job_is_written_before_the_process_starts(tmp_path, instead):
    """job.json holds the settings and the absolute path of the data; the result is the content of training.json."""
    instead("job = json.loads((directory / 'job.json').read_text())\nassert os.path.isabs(job['data'])" + FINISH)
    config = RunConfig(seed=5)
    assert launch.run(config, Path("data"), tmp_path) == {"seconds": 1}
    job = json.loads((tmp_path / "job.json").read_text())
    assert RunConfig.model_validate(job["config"]) == config
    assert job["data"] == str(Path("data").absolute())


def test_the_process_knows_whom_to_outlive_never(tmp_path, instead):
    """The process is told who follows it, leads a group of its own, and waits without spinning."""
    instead(
        "names = ('MEDGRPO_PARENT', 'OMP_WAIT_POLICY')\n"
        "found = {name: os.environ.get(name) for name in names} | {'leader': os.getpgrp() == os.getpid()}\n"
        "(directory / 'training.json').write_text(json.dumps(found))"
    )
    found = launch.run(RunConfig(), tmp_path, tmp_path)
    assert found == {"MEDGRPO_PARENT": str(os.getpid()), "OMP_WAIT_POLICY": "PASSIVE", "leader": True}


@pytest.mark.parametrize(("chosen", "seen"), [(None, "0"), ("1", "1"), ("", "")])
def test_one_process_sees_one_gpu(tmp_path, instead, monkeypatch, chosen, seen):
    """Of several GPUs the first, unless the user has chosen; the trainer would spread each batch over all it sees."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    instead("(directory / 'training.json').write_text(json.dumps(os.environ['CUDA_VISIBLE_DEVICES']))")
    assert launch.run(RunConfig(), tmp_path, tmp_path) == seen


def test_rows_are_reported_once_each_and_only_when_whole(tmp_path, instead):
    """A row written in two pieces is reported when its line ends; rows of earlier attempts are not reported again."""
    (tmp_path / "metrics.jsonl").write_text('{"phase": "warmup", "step": 1}\n')
    instead(
        "stream = (directory / 'metrics.jsonl').open('a')\n"
        'for piece in [\'{"phase": "grpo", \', \'"step": 1}\\n{"pha\', \'se": "grpo", "step": 2}\\n\']:\n'
        "    stream.write(piece); stream.flush(); time.sleep(0.1)" + FINISH
    )
    seen = []
    launch.run(RunConfig(), tmp_path, tmp_path, seen.append)
    assert numbered(seen) == [("grpo", 1), ("grpo", 2)]


def test_a_row_that_was_cut_short_does_not_spoil_the_next(tmp_path, instead):
    """What an earlier attempt left of a last line is dropped before the next row is appended."""
    (tmp_path / "metrics.jsonl").write_text('{"phase": "warmup", "step": 1}\n{"phase": "warm')
    instead("(directory / 'metrics.jsonl').open('a').write('{\"phase\": \"warmup\", \"step\": 2}\\n')" + FINISH)
    seen = []
    launch.run(RunConfig(), tmp_path, tmp_path, seen.append)
    assert numbered(seen) == [("warmup", 2)]
    assert numbered(read_metrics(tmp_path / "metrics.jsonl")) == [("warmup", 1), ("warmup", 2)]


def test_what_the_process_prints_is_kept(tmp_path, instead):
    """train.log holds both streams, of every attempt."""
    instead("print('to out'); print('to err', file=sys.stderr)" + FINISH)
    for _ in range(2):
        launch.run(RunConfig(), tmp_path, tmp_path)
    log = (tmp_path / "train.log").read_text()
    assert (log.count("to out"), log.count("to err")) == (2, 2)


@pytest.mark.parametrize("kind", [InputError, TrainingAlarm])
def test_a_failure_on_purpose_keeps_its_kind_and_sentence(tmp_path, instead, kind):
    """What the process wrote into failure.json is raised here as the same error."""
    write_json(tmp_path / "failure.json", {"kind": "InputError", "message": "of an earlier attempt"})
    failure = json.dumps({"kind": kind.__name__, "message": "The reason, in words."})
    instead(f"(directory / 'failure.json').write_text({failure!r}); sys.exit(1)")
    with pytest.raises(kind, match=r"^The reason, in words\.$"):
        launch.run(RunConfig(), tmp_path, tmp_path)


def test_the_reason_of_an_earlier_attempt_is_not_given_again(tmp_path, instead):
    """failure.json is removed at the start; a crash after it is a crash."""
    write_json(tmp_path / "failure.json", {"kind": "InputError", "message": "of an earlier attempt"})
    instead("sys.exit(3)")
    with pytest.raises(TrainingCrashed, match="ended with exit code 3"):
        launch.run(RunConfig(), tmp_path, tmp_path)


def test_a_crash_shows_the_last_lines_of_the_log(tmp_path, instead):
    """An exception nobody foresaw ends in a sentence with the exit code, where the log is, and its last lines."""
    instead("for i in range(50): print('line', i)\nraise RuntimeError('no such layer')")
    with pytest.raises(TrainingCrashed) as crash:
        launch.run(RunConfig(), tmp_path, tmp_path)
    text = str(crash.value)
    assert "ended with exit code 1" in text
    assert str(tmp_path / "train.log") in text
    assert "RuntimeError: no such layer" in text
    assert "line 10\n" not in text


@pytest.mark.parametrize(("name", "hint"), [("SIGKILL", True), ("SIGSEGV", False), ("SIGTERM", False)])
def test_a_signal_is_named(tmp_path, instead, name, hint):
    """A killed process is told by its signal; SIGKILL suggests memory."""
    instead(f"os.kill(os.getpid(), signal.{name})")
    with pytest.raises(TrainingCrashed, match=f"was killed by {name}") as crash:
        launch.run(RunConfig(), tmp_path, tmp_path)
    assert ("out of memory?" in str(crash.value)) == hint


START_HELPER = (
    "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "(directory / 'helper').write_text(str(helper.pid))\n"
)


@pytest.mark.parametrize("end", ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["timeout", "killed"])
def test_no_process_is_left(tmp_path, instead, end):
    """After a timeout or a kill neither the process nor what it started runs on."""
    instead(START_HELPER + end)
    config = RunConfig(training_timeout_minutes=1.5 / 60)
    with pytest.raises(TrainingCrashed):
        launch.run(config, tmp_path, tmp_path)
    assert processes(tmp_path) == []
    assert_gone(int((tmp_path / "helper").read_text()))


def assert_gone(process, seconds=5):
    """Wait until a process has ended; a zombie that its new parent has yet to bury has ended too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} still runs {seconds} seconds later")


@pytest.mark.slow
def test_a_process_that_ignores_sigterm_is_killed(tmp_path, instead, monkeypatch):
    """A training that does not stop when asked is stopped."""
    instead("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n(directory / 'ready').touch()\ntime.sleep(60)")
    waits = []
    wait = subprocess.Popen.wait

    def hurried(self, timeout=None):
        waits.append(timeout)
        return wait(self, timeout and timeout / 20)

    monkeypatch.setattr(subprocess.Popen, "wait", hurried)
    with pytest.raises(TrainingCrashed, match="training_timeout_minutes"):
        launch.run(RunConfig(training_timeout_minutes=1 / 60), tmp_path, tmp_path)
    assert (tmp_path / "ready").exists()
    assert waits == [launch.SAVE_SECONDS, None]
    assert processes(tmp_path) == []


@pytest.mark.slow
def test_a_running_training_is_seen(tmp_path, instead):
    """What the tests around take for "no process left" is true only when there is none: a running one is found."""
    instead('(directory / \'metrics.jsonl\').write_text(\'{"phase": "grpo", "step": 1}\\n\'); time.sleep(2)' + FINISH)
    seen = []
    launch.run(RunConfig(), tmp_path, tmp_path, lambda row: seen.extend(processes(tmp_path)))
    assert len(seen) == 1
    assert processes(tmp_path) == []


def test_an_error_in_the_callback_stops_the_training(tmp_path, instead):
    """Whatever ends the following ends the process too: nothing trains unseen."""
    instead('(directory / \'metrics.jsonl\').write_text(\'{"phase": "grpo", "step": 1}\\n\'); time.sleep(60)')

    def fail(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.run(RunConfig(), tmp_path, tmp_path, fail)
    assert processes(tmp_path) == []


def test_several_processes_start_through_accelerate(tmp_path):
    """With processes > 1 the command is `accelerate launch` with that many; with one it is plain Python."""
    assert launch._command(RunConfig(), tmp_path) == [sys.executable, "-m", "medgrpo.training", str(tmp_path)]
    command = launch._command(RunConfig(processes=2), tmp_path)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[-3:] == ["-m", "medgrpo.training", str(tmp_path)]


def test_the_launcher_names_what_it_would_take_from_the_user(monkeypatch):
    """Whatever stands in accelerate's own configuration, the processes start the same way, and share the cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launch.os, "cpu_count", lambda: 8)
    words = launch.launcher(2)
    named = dict(itertools.pairwise(words))
    assert named["--num_cpu_threads_per_process"] == "4"
    assert named["--main_process_port"] == "0"
    assert (named["--num_machines"], named["--mixed_precision"], named["--dynamo_backend"]) == ("1", "no", "no")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "3" in launch.launcher(2)


# --- Real trainings ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(prepared):
    """One whole training, its reported rows, and the digest of the data before it."""
    work, rows = prepared.directory / "whole", []
    before = describe(prepared.data)
    summary = launch.run(prepared.config, prepared.data, work, rows.append)
    return SimpleNamespace(work=work, rows=rows, summary=summary, data_before=before)


@pytest.mark.slow
def test_a_training_leaves_every_file_it_promises(finished):
    """Adapters of both phases, the merged model with its tokenizer, metrics, log and the closing summary are there."""
    for name in (
        "job.json",
        "metrics.jsonl",
        "train.log",
        "warmup/adapter/adapter_model.safetensors",
        "grpo/adapter/adapter_model.safetensors",
        "grpo/adapter/adapter_config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "training.json",
    ):
        assert (finished.work / name).stat().st_size > 0, name
    assert not list(finished.work.glob("**/*.partial"))
    assert not (finished.work / "failure.json").exists()
    assert finished.summary == json.loads((finished.work / "training.json").read_text())


@pytest.mark.slow
def test_every_row_is_reported_in_order(prepared, finished):
    """The callback gets each step of both phases once, in order, with its reward, exactly as the file holds it."""
    assert finished.rows == rows_in(finished.work)
    warmup = [row for row in finished.rows if row["phase"] == "warmup"]
    grpo = [row for row in finished.rows if row["phase"] == "grpo"]
    assert finished.rows == warmup + grpo
    assert [row["step"] for row in warmup] == list(range(1, warmup[0]["steps"] + 1))
    assert [row["step"] for row in grpo] == list(range(1, prepared.config.grpo.steps + 1))
    assert all(
        {"loss", "reward", "reward_std", "rewards/correctness/mean", "seconds_left"} <= row.keys() for row in grpo
    )
    assert grpo[-1]["seconds_left"] == 0


@pytest.mark.slow
def test_the_policy_is_paid_and_moves(finished):
    """Completions in strict form earn different rewards within a group, and both phases change the adapter."""
    import torch
    from safetensors.torch import load_file

    assert max(row.get("reward_std", 0) for row in finished.rows) > 0.1
    assert finished.summary["adapter_change"] > 1e-3
    assert finished.summary["flags"] == []
    warmup, grpo = (
        load_file(finished.work / phase / "adapter" / "adapter_model.safetensors") for phase in ("warmup", "grpo")
    )
    assert warmup.keys() == grpo.keys()
    assert any(tensor.abs().max() > 0 for name, tensor in warmup.items() if "lora_B" in name)
    change = torch.stack([(grpo[name] - tensor).square().sum() for name, tensor in warmup.items()]).sum().sqrt()
    assert change.item() == pytest.approx(finished.summary["adapter_change"], rel=1e-5)


@pytest.mark.slow
def test_the_merged_model_is_the_base_with_the_adapter(prepared, finished):
    """Merged once in float32, the saved model gives the logits of base plus adapter, and other ones than the base."""
    import torch

    from medgrpo.policies import load_model, load_trainable

    model, tokenizer = load_model(finished.work / "model")
    adapted, _ = load_trainable(prepared.config.policy, finished.work / "grpo" / "adapter")
    base, _ = load_model(prepared.config.policy.base)
    prompt = tokenizer("Abstract: pain fell by 2.4 points.\n", return_tensors="pt")
    with torch.inference_mode():
        merged, unmerged, before = (m.eval()(**prompt).logits for m in (model, adapted, base))
    assert model.dtype == torch.float32
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-4)
    assert (merged - before).abs().max() > 1e-3
    assert finished.summary["merge_difference"] < 1e-4


@pytest.mark.slow
def test_training_leaves_the_prepared_data_as_it_was(prepared, finished):
    """No cached map, no index: the data directory still has the digest it was verified by."""
    assert describe(prepared.data) == finished.data_before


@pytest.mark.slow
def test_a_finished_training_that_is_run_again_trains_nothing(prepared, finished, impatient):
    """With both adapters there, another attempt only merges: no row is added and the adapter stays."""
    adapter = finished.work / "grpo" / "adapter" / "adapter_model.safetensors"
    before, content = rows_in(finished.work), adapter.read_bytes()
    summary = launch.run(prepared.config, prepared.data, finished.work, lambda row: pytest.fail(f"trained {row}"))
    assert rows_in(finished.work) == before
    assert adapter.read_bytes() == content
    assert summary["adapter_change"] == finished.summary["adapter_change"]


@pytest.mark.slow
def test_a_training_killed_in_the_middle_resumes_from_its_last_checkpoint(prepared, tmp_path, impatient):
    """SIGKILL after the first GRPO checkpoint is a crash by name; the next attempt goes on from there and finishes."""
    config = changed(prepared.config, grpo={"steps": 8})
    grpo = tmp_path / "grpo"

    def kill(row):
        if row["phase"] == "grpo" and last_complete_checkpoint(grpo):
            for child in processes(tmp_path):
                child.kill()

    with pytest.raises(TrainingCrashed, match="was killed by SIGKILL"):
        launch.run(config, prepared.data, tmp_path, kill)
    assert processes(tmp_path) == []
    checkpoint = int(last_complete_checkpoint(grpo).name.rpartition("-")[2])
    assert 1 <= checkpoint < 8
    written = len(rows_in(tmp_path))
    assert not (tmp_path / "training.json").exists()

    resumed = []
    summary = launch.run(config, prepared.data, tmp_path, resumed.append)
    assert numbered(resumed) == [("grpo", step) for step in range(checkpoint + 1, 9)]
    assert resumed == rows_in(tmp_path, written)
    assert summary["adapter_change"] > 0
    steps = [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["phase"] == "grpo"]
    assert steps == list(range(1, 9))
    assert (grpo / "checkpoint-8" / COMPLETE).is_file()


@pytest.mark.slow
def test_a_leak_stops_the_process_with_its_sentence(prepared, tmp_path, impatient):
    """A test record that got into the training rows after preparation ends the process before it trains."""
    import datasets

    data = tmp_path / "data"
    test = datasets.load_from_disk(str(prepared.data / "test"))
    train = datasets.load_from_disk(str(prepared.data / "train"))
    leaked = test[0]["record_id"]
    datasets.concatenate_datasets([train, test.select([0])]).save_to_disk(str(data / "train"))
    test.save_to_disk(str(data / "test"))
    with pytest.raises(InputError, match=f"record {leaked} of the test split is among the training prompts"):
        launch.run(prepared.config, data, tmp_path / "work")
    assert not (tmp_path / "work" / "metrics.jsonl").exists()
    assert json.loads((tmp_path / "work" / "failure.json").read_text())["kind"] == "InputError"


@pytest.mark.slow
def test_a_training_that_runs_out_of_time_is_stopped(prepared, tmp_path, impatient):
    """After training_timeout_minutes the process is gone, and the sentence says that another attempt goes on."""
    config = changed(prepared.config, training_timeout_minutes=2 / 60)
    with pytest.raises(TrainingCrashed, match=r"training_timeout_minutes\)\. Running it again resumes"):
        launch.run(config, prepared.data, tmp_path)
    assert processes(tmp_path) == []


FOLLOWER = """
import json, sys
from pathlib import Path
from medgrpo.config import RunConfig
from medgrpo.training import launch
config, data, directory = json.loads(Path(sys.argv[1]).read_text())
launch.run(RunConfig.model_validate(config), Path(data), Path(directory))
"""


@pytest.mark.slow
def test_a_training_ends_with_the_process_that_follows_it(prepared, tmp_path):
    """SIGKILL of the parent ends the training within seconds, even while nobody has buried the parent."""
    job = tmp_path / "arguments.json"
    config = changed(prepared.config, grpo={"steps": 500})
    write_json(job, [config.model_dump(mode="json"), str(prepared.data), str(tmp_path / "work")])
    follower = subprocess.Popen([sys.executable, "-c", FOLLOWER, str(job)])
    try:
        child = wait_for(lambda: psutil.Process(follower.pid).children(), 60)[0]
        wait_for(lambda: (tmp_path / "work" / "metrics.jsonl").exists(), 120)
        follower.send_signal(signal.SIGKILL)
        # Until `wait` below the parent is a zombie, which still answers to its number.
        assert_gone(child.pid, seconds=10)
    finally:
        follower.kill()
        follower.wait()
    assert not (tmp_path / "work" / "training.json").exists()


def wait_for(condition, seconds):
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    return pytest.fail(f"nothing happened within {seconds} seconds")
