"""Start the training process and follow it: progress, time limit, and what its end means."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medgrpo import errors
from medgrpo.config import RunConfig
from medgrpo.errors import TrainingCrashed
from medgrpo.logs import module_options
from medgrpo.manifests import friendly_disk_errors, require_space, write_json
from medgrpo.resources import LEDGER, Meter
from medgrpo.training.metrics import METRICS_FILE
from medgrpo.training.stopping import FAILURE_FILE, SAVE_SECONDS, only_writer

POLL_SECONDS = 0.5
LOG_LINES = 15
# What torch's launcher of several processes says when one of them failed, and in its report on each that did.
ONE_FAILED = re.compile(r"^.*failed \(exitcode: -?\d+\) local_rank: ", re.MULTILINE)
EXIT_CODE = re.compile(r"^ +exitcode +: (-?\d+) ", re.MULTILINE)

CHILD_ENVIRONMENT = {
    # Threads that spin while they wait make a shared machine many times slower, ones that sleep at once make decoding
    # nearly half as fast. GNU's threads spin for some 50 microseconds and then sleep; others sleep.
    "GOMP_SPINCOUNT": "4000",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    # TRL imports MLflow at its start otherwise, which takes a second, and nothing here logs through it.
    "DISABLE_MLFLOW_INTEGRATION": "TRUE",
    # Freed memory is kept for the next tensor: glibc would hand large blocks back to the system at once, and every step
    # would pay for fresh pages, a fifth of its time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
    "MALLOC_TOP_PAD_": str(2**26),
}

Progress = Callable[[Mapping[str, Any]], None]


def run(config: RunConfig, data: Path, directory: Path, on_progress: Progress = lambda row: None) -> dict[str, Any]:
    """Train in a process of its own, resuming what an earlier attempt left in `directory`.

    Args:
        config: the run's settings.
        data: directory of the prepared data.
        directory: work directory (see `medgrpo.training`).
        on_progress: called with each new row of metrics.jsonl.

    Returns:
        The content of training.json.

    Raises:
        TrainingCrashed: the process was stopped or killed, ran out of memory or of time; calling again resumes it.
        TrainingAlarm: it stopped itself, because going on was pointless.
        InputError: it cannot run with these settings.
    """
    with only_writer(directory):
        write_json(directory / "job.json", {"config": config.model_dump(mode="json"), "data": str(data.absolute())})
        (directory / FAILURE_FILE).unlink(missing_ok=True)
        _cut_torn_row(directory / METRICS_FILE)
    environment = {**CHILD_ENVIRONMENT, **_device(config), **os.environ, "MEDGRPO_PARENT": str(os.getpid())}
    with (directory / "train.log").open("a") as log:
        begun = log.tell()
        process = subprocess.Popen(
            _command(config, directory),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        try:
            with Meter(process.pid, directory / LEDGER, environment.get("CUDA_VISIBLE_DEVICES")):
                _follow(process, directory / METRICS_FILE, on_progress, config.training_timeout_minutes * 60)
        finally:
            _end(process)
    if process.returncode:
        raise _failure(process.returncode, directory, begun)
    return json.loads((directory / "training.json").read_text())


def _device(config: RunConfig) -> dict[str, str]:
    """GPUs by the numbers of nvidia-smi; one for one process, unless the user has chosen."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **({"CUDA_VISIBLE_DEVICES": "0"} if config.processes == 1 else {})}


def _command(config: RunConfig, directory: Path) -> list[str]:
    module = [*module_options("medgrpo.training"), str(directory)]
    if config.processes == 1:
        return [sys.executable, *module]
    return [*launcher(config.processes), *module]


def launcher(processes: int) -> list[str]:
    """The command before a module or script that runs it as several processes, which find each other.

    Without a GPU they are `--multi_gpu` too: with `--cpu` accelerate starts one. What it would take from the user's own
    settings is named. Where threads are not counted by OMP_NUM_THREADS, the processes share the cores.
    """
    options = {
        "num_processes": processes,
        "num_machines": 1,
        "gpu_ids": "all",
        # Any free port, so that two trainings can run at once.
        "main_process_port": 0,
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // processes),
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *words]


def _follow(process: subprocess.Popen[bytes], metrics: Path, on_progress: Progress, limit: float) -> None:
    """Report rows as they are written, until the process ends or its time is up."""
    deadline = time.monotonic() + limit
    position = metrics.stat().st_size if metrics.is_file() else 0
    while True:
        ended = process.poll() is not None
        position = _report(metrics, position, on_progress)
        if ended:
            return
        if time.monotonic() > deadline:
            raise TrainingCrashed(
                f"training was stopped after its limit of {limit / 60:g} minutes (training_timeout_minutes). "
                "Running it again resumes from the last checkpoint."
            )
        time.sleep(POLL_SECONDS)


def _cut_torn_row(metrics: Path) -> None:
    """Drop a last line that was cut short (a full disk, a power cut), so that the next row is a line of its own."""
    if metrics.is_file():
        with metrics.open("rb+") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)


def _report(metrics: Path, position: int, on_progress: Progress) -> int:
    if not metrics.is_file():
        return position
    with metrics.open("rb") as stream:
        stream.seek(position)
        # A line still being written is left for the next look.
        text = stream.read().rpartition(b"\n")
    for line in text[0].splitlines():
        on_progress(json.loads(line))
    return position + len(text[0]) + len(text[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop the process, which saves its last step first, and everything it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    # Of several processes the first may be gone and the others not.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _failure(code: int, directory: Path, begun: int) -> errors.MedgrpoError:
    """The error that a failed training process means; its log starts at a byte of train.log."""
    note = directory / FAILURE_FILE
    if note.is_file():
        failure = json.loads(note.read_text())
        return getattr(errors, failure["kind"])(failure["message"])
    with friendly_disk_errors(directory):
        # A full disk has no room for a note either.
        require_space(directory)
    log, which = (directory / "train.log").read_bytes()[begun:].decode(errors="replace"), ""
    # The launcher of several has an exit code of its own, ends the others with SIGTERM, and reports the first one last.
    if codes := [*map(int, EXIT_CODE.findall(log))]:
        killed = [code for code in codes if code < 0 and code != -signal.SIGTERM]
        code, which = [*codes, *killed][-1], "(one of several) "
        log = ONE_FAILED.split(log)[0]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (out of memory? lower grpo.micro_batch_tokens)" if code == -signal.SIGKILL else ""
    tail = "\n".join(log.splitlines()[-LOG_LINES:])
    how = f"{which}{how}{hint}"
    return TrainingCrashed(f"the training process {how}. Its last lines, from {directory / 'train.log'}:\n{tail}")
