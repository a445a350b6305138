"""What a process and all its children use: time, memory, energy.

A thread looks at the processes every few seconds. A training's use is kept in its directory, attempt by attempt, and
written every minute, so that a training that is killed and resumed knows what all of it took.

Energy is what the machine's meters count meanwhile, other work on it included: RAPL for processors and memory
(https://docs.kernel.org/power/powercap/powercap.html), NVML for NVIDIA GPUs, where `nvidia-ml-py` is installed.
"""

import contextlib
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from medgrpo.manifests import write_json
from medgrpo.training.metrics import METRICS_FILE, gpu_memory, parse_rows

LEDGER = "resources.json"
"""The use of a training, in its directory."""
LOOK_SECONDS, WRITE_SECONDS = 5, 60
POWERCAP = Path("/sys/class/powercap")
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CGROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""What the two versions of control groups call the limit of memory, its use, and the files in it that may go."""
GPU_PEAKS = {"peak_gpu_memory_bytes": "gpu_memory_allocated", "peak_gpu_reserved_bytes": "gpu_memory_reserved"}
"""Peaks of GPU memory, and the names under which metrics.jsonl has them."""
NO_CUDA = "no CUDA device was used"


class Use(BaseModel):
    """What processes used while they were watched."""

    model_config = ConfigDict(frozen=True)

    seconds: float = 0
    """Wall time."""
    cpu_seconds: float = 0
    """Time of all processors, summed over processes."""
    peak_memory_bytes: int = 0
    """Resident memory of the processes together: the sum of what each had at its own peak."""
    cpu_joules: float | None = None
    """Energy of the machine's processors and memory meanwhile; None where it cannot be read."""
    gpu_joules: float | None = None
    """The same of its visible NVIDIA GPUs."""
    unknown: Mapping[str, str] = {}
    """Why an energy cannot be read."""


class Meter:
    """Watches a process and its children from now on, in a thread of its own.

    Args:
        process: id of the process; unset, this one.
        ledger: file that keeps the attempts of one piece of work; this one is added to those it has.
        gpus: the process's CUDA_VISIBLE_DEVICES; unset, this one's, or all GPUs.
    """

    def __init__(self, process: int | None = None, ledger: Path | None = None, gpus: str | None = None) -> None:
        self._process, self._ledger = process or os.getpid(), ledger
        self._earlier = read_ledger(ledger) if ledger else []
        self._began, self._children = time.monotonic(), _children_seconds()
        self._cpu_before = 0.0 if process else _look(os.getpid())[0]
        self._cpu, self._peak = 0.0, 0
        self._meters = {"cpu_joules": package_energy(POWERCAP), "gpu_joules": gpu_energy(gpus)}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Use:
        """Look a last time, stop watching, and say what was used."""
        self._stopped.set()
        self._thread.join()
        self._look()
        if self._process != os.getpid():
            # What was used since the last look is known once the process has been waited for.
            self._cpu = max(self._cpu, _children_seconds() - self._children)
        return self._write()

    def _watch(self) -> None:
        written = time.monotonic()
        while not self._stopped.wait(LOOK_SECONDS):
            self._look()
            if time.monotonic() - written >= WRITE_SECONDS:
                self._write()
                written = time.monotonic()

    def _look(self) -> None:
        cpu, memory = _look(self._process)
        self._cpu = max(self._cpu, cpu - self._cpu_before)
        self._peak = max(self._peak, memory)
        for meter in self._meters.values():
            meter.look()

    def _write(self) -> Use:
        used = Use(
            seconds=round(time.monotonic() - self._began, 1),
            cpu_seconds=round(self._cpu, 1),
            peak_memory_bytes=self._peak,
            **{name: meter.joules for name, meter in self._meters.items()},
            unknown={name: meter.reason for name, meter in self._meters.items() if meter.reason},
        )
        if self._ledger:
            # A full disk ends the work itself, with its own sentence.
            with contextlib.suppress(OSError):
                write_json(self._ledger, [attempt.model_dump() for attempt in (*self._earlier, used)])
        return used


class Counters:
    """The sum of what energy counters went up by since the first look.

    Args:
        read: gives each counter's name, its joules now, and at how many it starts again from 0 (0: at none).
        reason: why there is nothing to read; empty where there is.
    """

    def __init__(self, read: Callable[[], Iterable[tuple[str, float, float]]] = tuple, reason: str = "") -> None:
        self._read, self.reason = read, reason
        self.joules: float | None = None
        self._last: dict[str, float] = {}
        self.look()

    def look(self) -> None:
        """Add what the counters went up by since the last look; one that cannot be read leaves nothing known."""
        if self.reason:
            return
        try:
            for name, now, wrap in self._read():
                before = self._last.get(name, now)
                self.joules = (self.joules or 0.0) + now - before + (0 if now >= before else wrap or before)
                self._last[name] = now
        except OSError as error:
            why = f"{error.filename} cannot be read ({error.strerror})" if error.filename else str(error)
            self.joules, self.reason = None, why


def package_energy(root: Path) -> Counters:
    """RAPL's counters of processor packages and of memory, which is not part of them; `root` is /sys/class/powercap."""
    domains = [path for path in sorted(root.glob("intel-rapl:*")) if _rapl_name(path).startswith(("package", "dram"))]

    def read() -> Iterator[tuple[str, float, float]]:
        for path in domains:
            now, wrap = (int((path / name).read_text()) / 1e6 for name in ("energy_uj", "max_energy_range_uj"))
            yield path.name, now, wrap

    return Counters(read, "" if domains else f"this machine shows no RAPL meter in {root}")


def gpu_energy(gpus: str | None = None) -> Counters:
    """NVML's counters of some GPUs; unset, of those that CUDA_VISIBLE_DEVICES leaves, or of all."""
    try:
        import pynvml
    except ImportError:
        return Counters(reason="the package nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
        handles = [_gpu(pynvml, name) for name in _visible_gpus(pynvml.nvmlDeviceGetCount(), gpus)]
    except pynvml.NVMLError as error:
        return Counters(reason=f"NVML: {error}")

    def read() -> Iterator[tuple[str, float, float]]:
        for index, handle in enumerate(handles):
            try:
                # Millijoules since the driver was loaded; loaded again, it starts from 0.
                joules = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
            except pynvml.NVMLError as error:
                raise OSError(f"NVML: {error}") from error
            yield str(index), joules, 0

    return Counters(read, "" if handles else NO_CUDA)


def _visible_gpus(count: int, gpus: str | None) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") if gpus is None else gpus
    if visible is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


def _gpu(nvml: Any, name: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def _rapl_name(domain: Path) -> str:
    with contextlib.suppress(OSError):
        return (domain / "name").read_text().strip()
    return ""


def _look(process: int) -> tuple[float, int]:
    """Processor seconds of a process and its children, those that have ended included, and bytes of their memory."""
    cpu, memory = 0.0, 0
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process)
        for each in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = each.cpu_times()
                cpu += times.user + times.system + times.children_user + times.children_system
                memory += _peak_memory(each)
    return cpu, memory


def _peak_memory(process: psutil.Process) -> int:
    """Most resident memory that a process has had, in bytes: what Linux keeps of it, elsewhere what it has now."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def available_memory() -> int:
    """Bytes that this machine can still give, or, where that is less, the control groups that this process is in."""
    return min([psutil.virtual_memory().available, *_cgroup_room(CGROUPS, OWN_CGROUPS)])


def _cgroup_room(root: Path, own: Path) -> Iterator[int]:
    """What each control group with a limit has left; files that it keeps in memory count as free.

    Args:
        root: /sys/fs/cgroup; a container may see its own group at the top.
        own: /proc/self/cgroup, lines of `number:controllers:path`, without controllers in version 2.
    """
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in CGROUP_FILES:
            continue
        limit, used, files = CGROUP_FILES[controllers]
        top = root / controllers
        place = top / path.strip("/")
        for group in (place, *(parent for parent in place.parents if parent.is_relative_to(top))):
            # A group without a limit says "max", which is no number.
            with contextlib.suppress(OSError, ValueError, KeyError):
                kept = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())[files]
                yield int((group / limit).read_text()) - int((group / used).read_text()) + int(kept)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_ledger(path: Path) -> list[Use]:
    """The attempts that a ledger has, oldest first; none where there is no such file, or none that can be read."""
    try:
        return [Use.model_validate(attempt) for attempt in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, ValidationError):
        return []


def of_training(train_dir: Path, processes: int) -> dict[str, Any]:
    """What a finished training used, all its attempts together (see `totals`).

    Args:
        train_dir: its directory.
        processes: number of training processes, each with a GPU where CUDA is used.
    """
    attempts = read_ledger(train_dir / LEDGER)
    path = train_dir / METRICS_FILE
    rows = list(parse_rows(path.read_text(encoding="utf-8"))) if path.is_file() else []
    peaks = {name: max((row[key] for row in rows if key in row), default=None) for name, key in GPU_PEAKS.items()}
    training = train_dir / "training.json"
    cuda = training.is_file() and json.loads(training.read_text()).get("device") == "cuda"
    hours = sum(attempt.seconds for attempt in attempts) / 3600 * processes if cuda else None
    return {"attempts": len(attempts), **totals(attempts, hours, peaks)}


def of_run(
    used: Use, training: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], processes: int
) -> dict[str, Any]:
    """What the process of a run used, with all that it started (see `totals`); what was cached cost nothing.

    Args:
        used: what its meter says.
        training: what the training used; empty where the run has none.
        stages: rows of summary.json's `stages`.
        processes: number of training processes.
    """
    names = {row["name"] for row in stages if not row["cached"]}
    here = gpu_memory()
    peaks: dict[str, int | None] = {}
    for name, key in GPU_PEAKS.items():
        known = [here.get(key), training.get(name) if "train" in names else None]
        peaks[name] = max((peak for peak in known if peak is not None), default=None)
    weights = {"train": processes, "evaluate": 1, "compare": 1}
    seconds = sum(weights.get(row["name"], 0) * row["seconds"] for row in stages if row["name"] in names)
    cuda = here or training.get("gpu_hours") is not None
    return totals([used], seconds / 3600 if cuda else None, peaks)


def report(
    used: Use, stages: Sequence[Mapping[str, Any]], processes: int = 1, train_dir: Path | None = None
) -> dict[str, Any]:
    """What summary.json says of a run's resources: `run`, and `training` where there was one (arguments as above)."""
    training = of_training(train_dir, processes) if train_dir else None
    run = of_run(used, training or {}, stages, processes)
    return {"run": run, "training": training} if training else {"run": run}


def totals(attempts: Sequence[Use], gpu_hours: float | None, peaks: Mapping[str, int | None]) -> dict[str, Any]:
    """Attempts together: hours, peaks in bytes, energy in kWh; what is not known is None, and `unknown` says why.

    >>> found = totals([Use(seconds=1800, cpu_seconds=3600, peak_memory_bytes=7, cpu_joules=3.6e6)] * 2, None, {})
    >>> found["wall_hours"], found["cpu_hours"], found["peak_memory_bytes"], found["cpu_energy_kwh"]
    (1.0, 2.0, 7, 2.0)
    >>> found["gpu_hours"], found["unknown"]["gpu_hours"]
    (None, 'no CUDA device was used')
    """
    gpu = {
        "gpu_hours": None if gpu_hours is None else round(gpu_hours, 4),
        **{name: peaks.get(name) for name in GPU_PEAKS},
        "gpu_energy_kwh": None if gpu_hours is None else _sum([use.gpu_joules for use in attempts], 3.6e6, 6),
    }
    values: dict[str, Any] = {
        "wall_hours": _sum([use.seconds for use in attempts], 3600),
        "cpu_hours": _sum([use.cpu_seconds for use in attempts], 3600),
        "peak_memory_bytes": max((use.peak_memory_bytes for use in attempts), default=None),
        "cpu_energy_kwh": _sum([use.cpu_joules for use in attempts], 3.6e6, 6),
        **gpu,
    }
    reasons = {name: why for use in attempts for name, why in use.unknown.items()}
    why = {"cpu_energy_kwh": reasons.get("cpu_joules"), "gpu_energy_kwh": reasons.get("gpu_joules")}
    without_cuda = dict.fromkeys(gpu if gpu_hours is None else (), NO_CUDA)
    missing = "it was not written down" if attempts else f"there is no {LEDGER} that can be read"
    unknown = {name: without_cuda.get(name) or why.get(name) or missing for name in values if values[name] is None}
    return {**values, "unknown": unknown}


def _sum(parts: Sequence[float | None], unit: float, digits: int = 4) -> float | None:
    """A sum in a larger unit; None where there is nothing to sum, or a part is not known."""
    known = [part for part in parts if part is not None]
    return round(sum(known) / unit, digits) if known and len(known) == len(parts) else None


def sentence(used: Mapping[str, Any]) -> str:
    """What was used, in words.

    >>> sentence(totals([Use(seconds=360, cpu_seconds=720, peak_memory_bytes=3_000_000_000)], None, {}))
    '0.10 hours, 0.20 CPU hours, 3.0 GB of memory at most'
    """
    parts = []
    for name, words in (("wall_hours", "hours"), ("cpu_hours", "CPU hours"), ("gpu_hours", "GPU hours")):
        if used[name] is not None:
            parts.append(f"{used[name]:.2f} {words}")
    for name, words in (("peak_memory_bytes", "memory"), ("peak_gpu_memory_bytes", "GPU memory")):
        if used[name] is not None:
            parts.append(f"{used[name] / 1e9:.1f} GB of {words} at most")
    energy = [used[name] for name in ("cpu_energy_kwh", "gpu_energy_kwh") if used[name] is not None]
    return ", ".join([*parts, f"{sum(energy):.3f} kWh"] if energy else parts)
