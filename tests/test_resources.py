"""What a training and a run used: measured on real processes and on the files that the kernel would show."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import psutil
import pytest

from medgrpo import resources
from medgrpo.manifests import write_json
from medgrpo.resources import LEDGER, Counters, Meter, Use, gpu_energy, package_energy, read_ledger, report, sentence

BUSY = (
    "import time\nheap = bytearray(60_000_000)\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
)
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}], check=True)"


def rapl(root: Path, domain: str, name: str, energy: int, wrap: int = 1_000_000_000) -> Path:
    """A domain as Linux shows it, in microjoules."""
    directory = root / domain
    directory.mkdir(parents=True, exist_ok=True)
    for file, value in (("name", name), ("energy_uj", energy), ("max_energy_range_uj", wrap)):
        (directory / file).write_text(f"{value}\n")
    return directory


def test_a_process_is_measured_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger holds wall time, processor time and peak memory of a process and of what it started."""
    monkeypatch.setattr(resources, "LOOK_SECONDS", 0.02)
    process = subprocess.Popen([sys.executable, "-c", PARENT])
    with Meter(process.pid, tmp_path / LEDGER):
        process.wait()
    [used] = read_ledger(tmp_path / LEDGER)
    assert used.seconds >= 0.2
    assert 0.2 <= used.cpu_seconds <= 2 * used.seconds + 0.1
    assert used.peak_memory_bytes > 60_000_000


def test_this_process_is_measured_from_now_on() -> None:
    """Without a process the meter measures this one, and nothing from before it began."""
    meter = Meter()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    used = meter.stop()
    assert 0.1 <= used.cpu_seconds < 5
    assert used.peak_memory_bytes > 10_000_000


def test_attempts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that a SIGKILL ended is in the ledger as last written, and the next one is added to it."""
    monkeypatch.setattr(resources, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(resources, "WRITE_SECONDS", 0)
    code = (
        "import os, signal, sys, time\nfrom pathlib import Path\nfrom medgrpo import resources\n"
        "resources.LOOK_SECONDS, resources.WRITE_SECONDS = 0.01, 0\npath = Path(sys.argv[1])\n"
        "resources.Meter(ledger=path)\nwhile not path.exists(): time.sleep(0.01)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / LEDGER)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [first] = read_ledger(tmp_path / LEDGER)
    Meter(os.getpid(), tmp_path / LEDGER).stop()
    assert read_ledger(tmp_path / LEDGER)[0] == first
    write_json(tmp_path / "training.json", {"device": "cpu"})
    used = resources.of_training(tmp_path, processes=1)
    assert used["attempts"] == 2
    assert used["wall_hours"] == pytest.approx(
        sum(use.seconds for use in read_ledger(tmp_path / LEDGER)) / 3600, abs=1e-4
    )


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": 1}', "3"])
def test_a_damaged_ledger_is_begun_anew(tmp_path: Path, content: str) -> None:
    """A ledger that cannot be read counts as none, and what is not known says so."""
    (tmp_path / LEDGER).write_text(content)
    assert read_ledger(tmp_path / LEDGER) == []
    used = resources.of_training(tmp_path, processes=1)
    assert used["wall_hours"] is None
    assert used["unknown"]["wall_hours"] == "there is no resources.json that can be read"


def test_energy_adds_packages_and_memory_and_survives_a_wrap(tmp_path: Path) -> None:
    """Packages and their memory count, their cores and the whole platform would count twice; counters may wrap."""
    package = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    memory = rapl(tmp_path, "intel-rapl:0:1", "dram", 0)
    for domain, name in (("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys")):
        rapl(tmp_path, domain, name, 0)
    meter = package_energy(tmp_path)
    assert meter.joules == 0
    (package / "energy_uj").write_text("100000000")
    (memory / "energy_uj").write_text("50000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("999")
    meter.look()
    assert meter.joules == pytest.approx(200 + 50)


def test_energy_that_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    """Without meters, or with one that is closed to this user, the energy is unknown and the reason is said."""
    assert package_energy(tmp_path).reason == f"this machine shows no RAPL meter in {tmp_path}"
    closed = rapl(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj"
    closed.unlink()
    closed.mkdir()
    meter = package_energy(tmp_path)
    assert (meter.joules, meter.reason) == (None, f"{closed} cannot be read (Is a directory)")


def nvml(energies: dict[str, list[int]]) -> types.ModuleType:
    """A stand-in for NVIDIA's library, which needs its driver: millijoules by index or UUID."""
    module: Any = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = str
    module.nvmlDeviceGetHandleByUUID = str

    def energy(handle: str) -> int:
        if not energies[handle]:
            raise module.NVMLError("Not Supported")
        return energies[handle].pop(0)

    module.nvmlDeviceGetTotalEnergyConsumption = energy
    return module


@pytest.mark.parametrize(
    ("visible", "joules"), [(None, 5.0), ("1", 2.0), ("GPU-a", 7.0), ("", None), ("-1", None)], ids=str
)
def test_energy_of_the_gpus_that_are_used(monkeypatch: pytest.MonkeyPatch, visible: str | None, joules: float) -> None:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves count, by index or UUID; unset, all do."""
    energies = {"0": [1000, 4000], "1": [0, 2000], "GPU-a": [0, 7000]}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(energies))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = gpu_energy()
    meter.look()
    assert meter.joules == joules
    meter.look()
    assert meter.reason == ("NVML: Not Supported" if joules else "no CUDA device was used")
    assert meter.joules is None


def test_without_nvml_the_energy_of_gpus_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where NVIDIA's package is not installed that is the reason."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_energy().reason == "the package nvidia-ml-py is not installed"


def test_a_counter_that_began_anew_counts_from_nothing() -> None:
    """A counter that a reloaded driver set back never takes energy away."""
    values = iter([10.0, 15.0, 2.0, 4.0])
    meter = Counters(lambda: [("0", next(values), 0.0)])
    for _ in range(3):
        meter.look()
    assert meter.joules == 5.0 + 2.0 + 2.0


def test_a_training_on_gpus(tmp_path: Path) -> None:
    """GPU hours are processes times wall time; memory is the most that any row of metrics.jsonl has."""
    write_json(tmp_path / "training.json", {"device": "cuda"})
    uses = [Use(seconds=3600, cpu_seconds=1800, gpu_joules=1.8e6), Use(seconds=1800, gpu_joules=1.8e6)]
    write_json(tmp_path / LEDGER, [use.model_dump() for use in uses])
    rows = [{"gpu_memory_allocated": 5, "gpu_memory_reserved": 9}, {"gpu_memory_allocated": 7}, {"loss": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    stages = [
        {"name": "train", "seconds": 1900, "cached": False},
        {"name": "evaluate", "seconds": 1700, "cached": True},
    ]
    found = report(Use(seconds=2000), stages, 2, tmp_path)
    training, run = found["training"], found["run"]
    assert (training["attempts"], training["wall_hours"], training["gpu_hours"]) == (2, 1.5, 3.0)
    assert (training["peak_gpu_memory_bytes"], training["peak_gpu_reserved_bytes"]) == (7, 9)
    assert training["gpu_energy_kwh"] == 1.0
    assert run["gpu_hours"] == pytest.approx(2 * 1900 / 3600, abs=1e-3)
    assert run["peak_gpu_memory_bytes"] == 7
    assert training["unknown"] == {"cpu_energy_kwh": "it was not written down"}
    assert sentence(training) == "1.50 hours, 0.50 CPU hours, 3.00 GPU hours, 0.0 GB of memory at most, " + (
        "0.0 GB of GPU memory at most, 1.000 kWh"
    )


def test_a_cached_training_costs_the_run_nothing(tmp_path: Path) -> None:
    """A run that found its training finished has no GPU hours of it, and the training keeps its own."""
    write_json(tmp_path / "training.json", {"device": "cuda"})
    write_json(tmp_path / LEDGER, [Use(seconds=3600).model_dump()])
    found = report(Use(seconds=20), [{"name": "train", "seconds": 0.1, "cached": True}], 1, tmp_path)
    assert (found["run"]["gpu_hours"], found["training"]["gpu_hours"]) == (0.0, 1.0)
    assert json.loads(json.dumps(found)) == found


def test_a_full_disk_does_not_end_the_work(tmp_path: Path) -> None:
    """A ledger that cannot be written is left out; the work that is measured goes on."""
    (tmp_path / "file").write_text("")
    assert Meter(ledger=tmp_path / "file" / LEDGER).stop().seconds >= 0


# --- What is free ------------------------------------------------------------------------------------------------


def group(directory: Path, limit: str, used: int, files: int, version: int = 2) -> None:
    """A control group with some memory in use, as the kernel shows it."""
    limit_file, used_file, files_row = resources.CGROUP_FILES["memory" if version == 1 else ""]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / limit_file).write_text(f"{limit}\n")
    (directory / used_file).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 5\n{files_row} {files}\n")


def test_a_limit_of_a_control_group_counts(tmp_path: Path) -> None:
    """Each group up to the top gives what its limit leaves, files not counted; one without a limit nothing."""
    own = write_lines(tmp_path / "own", "0::/pod/main")
    root = tmp_path / "cgroup"
    group(root, "max", 900, 0)
    group(root / "pod", "1000", 700, 100)
    group(root / "pod" / "main", "2000", 500, 0)
    assert sorted(resources._cgroup_room(root, own)) == [400, 1500]


def test_the_older_control_groups_count_too(tmp_path: Path) -> None:
    """With version 1, memory has a tree of its own; a container may see its own group at the top of it."""
    own = write_lines(tmp_path / "own", "5:cpu,cpuacct:/box", "4:memory:/docker/77aa", "0::/")
    group(tmp_path / "cgroup" / "memory", "3000", 1000, 500, version=1)
    assert list(resources._cgroup_room(tmp_path / "cgroup", own)) == [2500]
    assert list(resources._cgroup_room(tmp_path / "cgroup", tmp_path / "none")) == []


def test_what_is_free_is_no_more_than_the_machine_has() -> None:
    """Whatever the limits are, some memory is free here, and less than all of it."""
    assert 10_000_000 < resources.available_memory() < psutil.virtual_memory().total


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
