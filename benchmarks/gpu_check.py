"""What the owner of a CUDA machine wants to know before a long training, in under eight minutes and without a network.

    python -m benchmarks.gpu_check --out results --pubmedqa DIRECTORY
    python -m benchmarks.gpu_check --out results --pubmedqa DIRECTORY --parts curve --minutes 60
    python -m benchmarks.gpu_check --out dry --dry-run

Writes gpu_check.json and the page gpu_check.md with curve.png. Each part is ok, failed, or not possible here, and says
why; what earlier calls with the same --out found stays, so that a machine that allows few minutes a command takes one
part after another. The part `curve` goes on where the call before it stopped. --dry-run does all of it with a model of
two layers, on any machine.
"""

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import machine, run
from benchmarks.gpu_page import write_page
from benchmarks.step_worker import OURS, OURS_BFLOAT16, STOCK, UNSLOTH, Case, Setup, Worker, received, write_to
from medgrpo.config import EMBEDDED_MODEL, RunConfig, load_config
from medgrpo.errors import InputError, MedgrpoError, TrainingCrashed
from medgrpo.manifests import write_json
from medgrpo.policies.precision import Precision

RESULT = "gpu_check.json"
SIDE_SECONDS, FEWEST_STEPS = 45.0, 5
"""A slow device stops counting steps of a backend after so long, but not before so many."""
TOLERANCE = 1e-3
"""Largest difference of a float32 logit between backends."""
COMPARED = ("loss", "completions/mean_length")
"""What should be the same in each step of a resumed training."""
PROBED_CASES, FEWEST_CASES, MOST_POINTS, SAVING_SECONDS = 64, 20, 10, 10.0
SHORT = (
    "policy.autocast=none",
    "grpo.rollout_dtype=float32",
    "warmup.epochs=0.2",
    "grpo.steps=4",
    "grpo.group_size=4",
    "grpo.save_steps=1",
    "grpo.max_completion_length=96",
)
"""What differs from the profile in the short trainings."""
LONG = (
    "policy.autocast=auto",
    "grpo.rollout_dtype=auto",
    # More than a night has time for: its time ends it.
    "grpo.steps=20000",
    "grpo.prompts_per_step=8",
    "grpo.group_size=8",
    "grpo.learning_rate=3e-5",
    "grpo.max_completion_length=160",
    "grpo.save_steps=10",
    'evaluation.cases="all"',
)
"""And in the part `curve`: a constant learning rate, since its end is not known before."""
TEXT = "We randomised 120 adults. Mean pain fell by 2.4 points with treatment and by 0.9 points with placebo."

Found = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is run, and how much of it.

    Attributes:
        short: settings of the short trainings, in float32 with transformers.
        long: settings of the part `curve`.
        work: where models and checkpoints are left.
        case: sizes of a step of which the backends are compared.
        steps: counted steps of each backend.
        cases: answered in the part `evaluation`.
        minutes: what the part `curve` may take.
        earlier: what an earlier call found in the part `curve`; empty without.
        keep: saves what the part `curve` has found so far.
    """

    short: RunConfig
    long: RunConfig
    work: Path
    case: Case
    steps: int
    cases: int
    minutes: float
    earlier: Found
    keep: Callable[[Found], None]

    def precision(self) -> Precision:
        """What the policy allows for this device and model."""
        from medgrpo.policies.backends import architecture_of, present_capability
        from medgrpo.policies.precision import precision_for

        return precision_for(present_capability(), architecture_of(self.short.policy))

    def with_policy(self, **changes: Any) -> RunConfig:
        """The short training's settings with others of the model."""
        return self.short.model_copy(update={"policy": self.short.policy.model_copy(update=changes)})


class NotPossible(MedgrpoError):
    """A part cannot be done on this machine, which is no fault of anything."""


class Failed(MedgrpoError):
    """Some of a part failed; what it found all the same is kept."""

    def __init__(self, why: str, found: Found) -> None:
        super().__init__(why)
        self.found = found


class _Enough(Exception):
    """A training has done what it was to do."""


def main() -> None:
    """Run the parts that are asked for; save and print each as it ends."""
    options = _options()
    # One device is looked at; trainers would take all that they see for one process's.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    import torch

    if not (options.dry_run or torch.cuda.is_available()):
        raise InputError(
            "there is no CUDA device that PyTorch sees (nvidia-smi? a torch built for CUDA? CUDA_VISIBLE_DEVICES?), "
            "and what is asked here is about one. --dry-run tries the script itself with a tiny model on any machine."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    report = _earlier(options.out / RESULT, options.dry_run)
    for name in options.parts:
        print(f"{name}: …", flush=True)
        _run_part(name, options, report)
        entry = report["parts"][name]
        print(f"{name}: {entry['state']} after {entry['seconds']:.0f} s. {entry['why']}", flush=True)
    print(f"{options.out / RESULT} and {write_page(report, options.out)} are written.")


def _earlier(path: Path, dry_run: bool) -> Found:
    """What earlier calls found.

    Raises:
        InputError: one of them was a dry run, and this is none, or the other way round.
    """
    report: Found = json.loads(path.read_text()) if path.is_file() else {"dry_run": dry_run, "parts": {}}
    if report["dry_run"] != dry_run:
        kind = "a dry run" if report["dry_run"] else "a real one"
        raise InputError(f"{path} has results of {kind}, which do not belong on one page. Choose another --out.")
    return report


def _run_part(name: str, options: argparse.Namespace, report: Found) -> None:
    """Do one part, whatever comes of it, and save."""
    from medgrpo.provenance import git_commit

    started = time.monotonic()
    earlier = report["parts"].get(name, {}).get("found", {})

    def save(state: str, found: Found, why: str = "") -> None:
        report["parts"][name] = {
            "state": state,
            "why": why,
            "seconds": round(time.monotonic() - started, 1),
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": machine(),
            "commit": git_commit(),
            "found": found,
        }
        write_json(options.out / RESULT, report)
        write_page(report, options.out)

    unfinished = "it was interrupted, or is still running; calling again goes on."
    try:
        plan = _plan(options, earlier, lambda found: save("unfinished", found, unfinished))
        save("ok", PARTS[name](plan))
    except NotPossible as error:
        save("not possible here", {}, str(error))
    except Failed as error:
        save("failed", error.found, str(error))
    except (MedgrpoError, subprocess.SubprocessError) as error:
        save("failed", report["parts"].get(name, {}).get("found", {}) if name == "curve" else {}, str(error))


def environment(plan: Plan) -> Found:
    """Device, libraries, what models are trained in here, and the backend that `auto` takes."""
    import torch

    from medgrpo import provenance
    from medgrpo.doctor import GIGABYTE, examine
    from medgrpo.policies.backends import choose_backend, installed_packages, present_capability
    from medgrpo.policies.precision import device_name

    capability, packages = present_capability(), installed_packages()
    backend, reason = choose_backend("auto", capability is not None, "unsloth" in packages)
    memory = torch.cuda.get_device_properties(0).total_memory / GIGABYTE if capability else None
    return {
        "device": machine(),
        "capability": device_name(capability),
        "memory_gb": memory,
        "cuda": torch.version.cuda,
        "versions": provenance.environment(),
        "optional": sorted(packages),
        "precision": asdict(plan.precision()),
        "backend": {"auto": backend, "reason": reason},
        "doctor": [asdict(finding) for finding in examine()],
    }


def guards(plan: Plan) -> Found:
    """A short training in each precision that the policy allows; its process has the guards."""
    found: Found = {}
    row = plan.precision()
    for autocast, allowed in (("none", True), ("bfloat16", row.bf16)):
        if not allowed:
            found[autocast] = {"state": "not possible here", "why": row.reason}
            continue
        try:
            found[autocast] = {
                "state": "ok",
                **_train_short(plan, f"guards-{autocast}", plan.with_policy(autocast=autocast)),
            }
        except MedgrpoError as error:
            found[autocast] = {"state": "failed", "why": str(error)}
    return _unless_failed(found)


def _unless_failed(found: Found) -> Found:
    if troubles := [f"{name}: {one['why']}" for name, one in found.items() if one.get("state") == "failed"]:
        raise Failed("\n".join(troubles), found)
    return found


def _train_short(plan: Plan, name: str, config: RunConfig) -> Found:
    """Train anew in a directory of this name, and what came of it.

    Raises:
        TrainingAlarm: a number is not finite, or the guards did not pass.
        MedgrpoError: see `medgrpo.training.launch.run`.
    """
    from medgrpo.errors import TrainingAlarm
    from medgrpo.training.launch import run as train

    directory = plan.work / name
    shutil.rmtree(directory, ignore_errors=True)
    started = time.monotonic()
    summary = train(config, _data(config), directory, lambda row: _say(name, row))
    rows = _rows(directory)
    if not all(math.isfinite(row[key]) for row in rows for key in ("loss", "grad_norm")):
        raise TrainingAlarm(f"a loss or gradient in {directory / 'metrics.jsonl'} is not finite.")
    passed = (directory / "train.log").read_text(errors="replace").count("guards passed")
    if passed < len({row["phase"] for row in rows}):
        raise TrainingAlarm(f"the guards passed {passed} times, not once in each phase; see {directory / 'train.log'}.")
    return {
        **summary,
        "seconds": round(time.monotonic() - started, 1),
        "steps": [row["step"] for row in rows if row["phase"] == "grpo"],
        "losses": {phase: [row["loss"] for row in rows if row["phase"] == phase] for phase in ("warmup", "grpo")},
        "gradient_norms": [row["grad_norm"] for row in rows],
        "peak_memory_gb": max((row.get("gpu_memory_allocated", 0) for row in rows), default=0) / 1e9 or None,
    }


def _data(config: RunConfig) -> Path:
    from medgrpo import stages

    return stages.prepare(config).path


def _rows(directory: Path) -> list[Found]:
    from medgrpo.training.metrics import METRICS_FILE, read_metrics

    return read_metrics(directory / METRICS_FILE)


def _say(name: str, row: Mapping[str, Any]) -> None:
    reward = f", reward {row['reward']:.2f}" if "reward" in row else ""
    if row["phase"] == "grpo" or row["step"] % 20 == 0:
        print(f"  {name}: {row['phase']} step {row['step']}, loss {row['loss']:.4f}{reward}", flush=True)


def backends(plan: Plan) -> Found:
    """Steps of plain TRL, of ours, and of Unsloth's, one after another, in the precision that the policy takes."""
    from medgrpo.policies import resolve_base
    from medgrpo.policies.backends import installed_packages

    row = plan.precision()
    autocast = "bfloat16" if row.autocast == "bfloat16" else "none"
    config, folder = plan.short, plan.work / "sides"
    folder.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        base=resolve_base(config.policy),
        records=config.data.path,
        budget=config.grpo.micro_batch_tokens,
        micro_batch=4,
        folder=str(folder),
        autocast=autocast,
    )
    # What writes completions is what auto would take.
    wanted = [STOCK, OURS_BFLOAT16 if autocast == "bfloat16" else OURS, UNSLOTH]
    found: Found = {}
    for side in wanted:
        if side == UNSLOTH and UNSLOTH not in installed_packages():
            found[side] = {"state": "not possible here", "why": "the package unsloth is not installed."}
            continue
        try:
            found[side] = {"state": "ok", "autocast": autocast, **_step(setup, plan, side)}
        except MedgrpoError as error:
            found[side] = {"state": "failed", "why": str(error)}
    return _unless_failed(found)


def _step(setup: Setup, plan: Plan, side: str) -> Found:
    """Counted steps of one side."""
    case = plan.case
    with Worker(setup, case, side) as worker:
        worker.ask("warm_up")
        seconds: list[float] = []
        while len(seconds) < plan.steps and (sum(seconds) < SIDE_SECONDS or len(seconds) < FEWEST_STEPS):
            seconds.append(worker.ask("step")["step"])
        memory = worker.ask("peak_memory")
    median = statistics.median(seconds)
    print(f"  {side}: {median:.2f} s a step, {memory:.2f} GB", flush=True)
    return {
        "case": asdict(case),
        "steps": len(seconds),
        "step_seconds": {"median": median, "min": min(seconds), "max": max(seconds)},
        "tokens_per_second": case.prompts * case.group * case.completion / median,
        "peak_memory_gb": memory,
    }


def resume(plan: Plan) -> Found:
    """A training that is killed after a checkpoint, and run again."""
    from medgrpo.training.launch import run as train

    directory, whole = plan.work / "resumed", plan.work / "guards-none"
    shutil.rmtree(directory, ignore_errors=True)
    if (whole / "warmup" / "adapter").is_dir():
        # The same settings, so the same warm-up.
        shutil.copytree(whole / "warmup" / "adapter", directory / "warmup" / "adapter")

    def kill(row: Mapping[str, Any]) -> None:
        _say("killed", row)
        if row["phase"] == "grpo" and row["step"] >= 2:
            _kill_training(directory)

    try:
        train(plan.short, _data(plan.short), directory, kill)
    except TrainingCrashed as error:
        if "SIGKILL" not in str(error):
            raise
    else:
        raise Failed("the training was at its end before it could be killed; nothing is known of resuming.", {})
    before = max(row["step"] for row in _rows(directory) if row["phase"] == "grpo")
    again: list[int] = []

    def note(row: Mapping[str, Any]) -> None:
        _say("resumed", row)
        again.append(row["step"])

    train(plan.short, _data(plan.short), directory, note)
    if not again:
        raise Failed("the training was at its last step when it was killed; nothing is known of resuming.", {})
    rows = {row["step"]: row for row in _rows(directory) if row["phase"] == "grpo"}
    other = {row["step"]: row for row in _rows(whole) if row["phase"] == "grpo"}
    shared = rows.keys() & other.keys()
    differences = {key: max(abs(rows[step][key] - other[step][key]) for step in shared) for key in COMPARED if shared}
    found = {
        "killed_after_step": before,
        "resumed_at_step": again[0],
        "steps": sorted(rows),
        "largest_differences": differences,
    }
    if sorted(rows) != list(range(1, plan.short.grpo.steps + 1)) or again[0] == 1:
        raise Failed(f"the resumed training has steps {sorted(rows)}, and began again at step {again[0]}.", found)
    return found


def _kill_training(directory: Path) -> None:
    """Kill the training process that works in a directory, as a machine that has run out of memory would."""
    import psutil

    for child in psutil.Process().children():
        try:
            if str(directory) in child.cmdline():
                child.kill()
        except psutil.NoSuchProcess:
            continue


def evaluation(plan: Plan) -> Found:
    """Greedy answers of a model that was trained here."""
    models = [plan.work / name / "model" for name in ("resumed", "guards-none", "guards-bfloat16")]
    model = next((path for path in models if (path / "config.json").is_file()), None)
    if not model:
        raise NotPossible(f"there is no trained model in {plan.work}: run the part guards or resume first.")
    return apart(plan.work / "evaluation.log", answer_cases, plan.long, model, _data(plan.long), plan.cases)


def answer_cases(config: RunConfig, model: Path, data: Path, cases: int) -> Found:
    """How fast a model answers, in a process of its own."""
    import torch

    from medgrpo.completions import parse_completion
    from medgrpo.evaluation.generate import generate
    from medgrpo.policies import load_model
    from medgrpo.preparation import load_records
    from medgrpo.prompts import render_prompt

    loaded, tokenizer = load_model(model)
    records = load_records(data, "test")[:cases]
    prompts, cap = [render_prompt(record) for record in records], config.grpo.max_completion_length
    # The first answer pays for what a device sets up once.
    generate(loaded, tokenizer, prompts[:1], 8, config.evaluation.batch_tokens)
    started = time.perf_counter()
    answers = generate(loaded, tokenizer, prompts, cap, config.evaluation.batch_tokens)
    seconds, tokens = time.perf_counter() - started, sum(answer.tokens for answer in answers)
    verdicts = [parse_completion(answer.text).verdict for answer in answers]
    return {
        "model": model.parent.name,
        "cases": len(records),
        "seconds": seconds,
        "seconds_a_case": seconds / len(records),
        "tokens_per_second": tokens / seconds,
        "mean_tokens": tokens / len(records),
        "readable": sum(verdict is not None for verdict in verdicts),
        "right": sum(verdict == record.verdict for verdict, record in zip(verdicts, records, strict=True)),
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }


def exchange(plan: Plan) -> Found:
    """Logits of adapters that either backend trained, as each backend computes them, in float32."""
    from medgrpo.policies.backends import installed_packages

    if UNSLOTH not in installed_packages():
        raise NotPossible("the package unsloth is not installed.")
    config = plan.with_policy(backend="unsloth", autocast="none")
    trained = _train_short(plan, "unsloth", config)
    adapters = [plan.work / name / "grpo" / "adapter" for name in ("unsloth", "guards-none")]
    adapters = [adapter for adapter in adapters if adapter.is_dir()]
    files = {}
    for one in (plan.short, config):
        files[one.policy.backend] = plan.work / f"logits-{one.policy.backend}.pt"
        apart(plan.work / f"logits-{one.policy.backend}.log", write_logits, one, adapters, files[one.policy.backend])
    import torch

    ours, theirs = (torch.load(path) for path in files.values())
    names = [adapter.parents[1].name for adapter in adapters]
    differences = {name: float((a - b).abs().max()) for name, a, b in zip(names, ours, theirs, strict=True)}
    found = {"trained": trained, "largest_logit_difference": differences}
    if not max(differences.values()) <= TOLERANCE:
        raise Failed(f"logits differ by {max(differences.values()):.1e}; at most {TOLERANCE} is rounding.", found)
    return found


def write_logits(config: RunConfig, adapters: Sequence[Path], target: Path) -> None:
    """[1, T, V] logits of a text under each adapter, with the backend that the settings name."""
    if config.policy.backend == "unsloth":
        from medgrpo.policies.fast import load_fast, start

        # Before anything imports transformers.
        start()
    import torch

    from medgrpo.policies import load_trainable

    logits = []
    for adapter in adapters:
        if config.policy.backend == "unsloth":
            model, tokenizer = load_fast(config, adapter)
            model.for_inference()
        else:
            model, tokenizer = load_trainable(config.policy, adapter)
        with torch.no_grad():
            inputs = tokenizer(TEXT, return_tensors="pt").to(model.device)
            logits.append(model.eval()(**inputs).logits.float().cpu())
    torch.save(logits, target)


def apart(log: Path, function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process of its own, which leaves the device as it found it.

    Raises:
        MedgrpoError: the function raised it, or its process ended without a word.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    log.parent.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=_answer, args=(there, log, function, args), daemon=True)
    process.start()
    there.close()
    try:
        return received(here, process, log)
    finally:
        process.join()


def _answer(pipe: Any, log: Path, function: Callable[..., Any], args: Sequence[Any]) -> None:
    write_to(log)
    try:
        pipe.send(function(*args))
    except MedgrpoError as error:
        pipe.send(error)


def curve(plan: Plan) -> Found:
    """Base, warm-up, then GRPO for as long as there is time, its checkpoints answered on the test cases.

    Training and answers take turns, so that what is known is saved when the time, or the machine, ends early.
    """
    from medgrpo import stages

    config, deadline = plan.long, time.monotonic() + plan.minutes * 60
    data = stages.prepare(config)
    key = stages.train_key(config, data)
    found: Found = plan.earlier if plan.earlier.get("key") == key else {"key": key, "points": [], "minutes": 0}
    found |= {"config": config.model_dump(mode="json"), "minutes": found["minutes"] + plan.minutes}
    race = _Race(plan, data.path, plan.work / key, found, deadline)
    race.start()
    rounds = race.rounds()
    while rounds > 0 and race.has_time():
        finished = race.train_until(race.end_of_round(rounds))
        race.evaluate("GRPO")
        rounds = 0 if finished else rounds - 1
    if not any(point["step"] for point in found["points"]):
        raise Failed("the time was over before GRPO's first point: give more --minutes, or call again to go on.", found)
    return found


@dataclass
class _Race:
    """A training against the clock.

    Attributes:
        plan: what is run.
        data: prepared records.
        directory: the training's.
        found: what is saved.
        deadline: on the monotonic clock.
        evaluation: seconds that the last evaluation took.
        launch: seconds from a launch to its first row.
    """

    plan: Plan
    data: Path
    directory: Path
    found: Found
    deadline: float
    evaluation: float = 0.0
    launch: float = 0.0

    def start(self) -> None:
        """Answer the cases with base and warm-up."""
        config = self.plan.long
        if "cases" not in self.found:
            self.found["cases"] = self._affordable()
        self.evaluate("base")
        if self._has("warm-up"):
            self.evaluation = self.evaluation or max(point["seconds"] for point in self.found["points"])
        else:
            self.train_until(0.0)
            if config.warmup.enabled:
                self.evaluate("warm-up")

    def _affordable(self) -> int | str:
        """How many cases base, warm-up and one checkpoint can answer in half of the time; "all" if all."""
        wanted = self.plan.long.evaluation.cases
        from medgrpo.preparation import load_records

        there = len(load_records(self.data, "test"))
        total = there if wanted == "all" else min(wanted, there)
        if total <= PROBED_CASES:
            return wanted
        probe = self._ask("base", None, PROBED_CASES)
        fit = int(self.plan.minutes * 60 / 2 / 3 / (probe["seconds"] / PROBED_CASES))
        return wanted if fit >= total else max(FEWEST_CASES, fit)

    def rounds(self) -> int:
        """How many checkpoints are answered, so that at most a third of the time goes there."""
        remaining = self.deadline - time.monotonic()
        return max(1, min(MOST_POINTS, int(remaining / (3 * (self.evaluation + self.launch)))))

    def has_time(self) -> bool:
        """Whether a round with at least a step or two can end in time."""
        needed = self.launch + self.evaluation + 2 * self.found.get("step_seconds", 0) + SAVING_SECONDS
        return time.monotonic() + needed < self.deadline

    def end_of_round(self, rounds: int) -> float:
        """When training has to stop, so that this and the rounds after it end in time."""
        now = time.monotonic()
        return now + (self.deadline - now) / rounds - 1.1 * self.evaluation - SAVING_SECONDS

    def train_until(self, moment: float) -> bool:
        """Train until a moment, but one step of GRPO at least, which is saved; whether it is at its end."""
        from medgrpo.training.launch import run as train

        started = time.monotonic()
        seen: list[Mapping[str, Any]] = []

        def follow(row: Mapping[str, Any]) -> None:
            self.launch = self.launch if seen else max(self.launch, time.monotonic() - started)
            seen.append(row)
            _say("curve", row)
            if row["phase"] == "grpo" and time.monotonic() > moment:
                raise _Enough

        try:
            train(self.plan.long, self.data, self.directory, follow)
        except _Enough:
            return False
        finally:
            self._note_training()
        return True

    def _note_training(self) -> None:
        rows = [row for row in _rows(self.directory) if row["phase"] == "grpo"]
        # A pause between two rows is a round's end.
        pauses = [b["time"] - a["time"] for a, b in pairwise(rows)]
        if pauses:
            self.found["step_seconds"] = statistics.median(pauses)
        self.found["rewards"] = [[row["step"], row.get("reward")] for row in rows]

    def _has(self, label: str) -> bool:
        return any(point["label"] == label for point in self.found["points"])

    def evaluate(self, label: str) -> None:
        """Answer the cases with a model, unless that is known, and save the point."""
        from medgrpo.training.callbacks import last_complete_checkpoint

        adapter, step = {"base": None, "warm-up": self.directory / "warmup" / "adapter"}.get(label), 0
        if label == "GRPO":
            adapter = last_complete_checkpoint(self.directory / "grpo")
            step = int(adapter.name.rpartition("-")[2]) if adapter else 0
        if (label == "GRPO" and not step) or any(
            (p["label"], p["step"]) == (label, step) for p in self.found["points"]
        ):
            return
        point = {"label": label, "step": step, **self._ask(label, adapter, self.found["cases"])}
        self.evaluation = point["seconds"]
        self.found["points"].append(point)
        accuracy, macro = point["accuracy"]["value"], point["macro_f1"]["value"]
        print(f"  {label}, step {step}: accuracy {accuracy:.3f}, macro-F1 {macro:.3f}, n = {point['n']}", flush=True)
        self.plan.keep(self.found)

    def _ask(self, label: str, adapter: Path | None, cases: int | str) -> Found:
        started, log = time.monotonic(), self.plan.work / "answers.log"
        point = apart(log, score_model, self.plan.long, adapter, self.data, cases, self.plan.work / "answers")
        return {**point, "seconds": round(time.monotonic() - started, 1)}


def score_model(config: RunConfig, adapter: Path | None, data: Path, cases: int | str, cache: Path) -> Found:
    """Greedy answers of the base with an adapter, and what they score, in a process of its own."""
    from medgrpo.evaluation.asking import Contestant, ask
    from medgrpo.evaluation.compare import draw_cases
    from medgrpo.evaluation.scoring import answer_row, model_metrics
    from medgrpo.policies import resolve_base
    from medgrpo.preparation import load_records

    asked = config.evaluation.model_copy(update={"cases": cases})
    records = draw_cases(load_records(data, "test"), asked)
    model = Contestant("model", resolve_base(config.policy), adapter, config.policy.revision)
    answered = ask([model], records, config, cache, lambda name, done, total: None)
    answers = [
        answer_row(record, given, config.rewards)
        for record, given in zip(records, answered.generations["model"], strict=True)
    ]
    metrics = model_metrics([record.verdict for record in records], answers, config.evaluation)
    kept = ("accuracy", "macro_f1", "strict_form", "parsed", "mean_length")
    return {"n": len(records), **{name: metrics[name] for name in kept}}


PARTS: Mapping[str, Callable[[Plan], Found]] = {
    part.__name__: part for part in (environment, guards, backends, resume, evaluation, exchange, curve)
}


def _plan(options: argparse.Namespace, earlier: Found, keep: Callable[[Found], None]) -> Plan:
    work = options.work or options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    if options.dry_run:
        from medgrpo.testing import tiny_config

        short = tiny_config(work, grpo={"steps": 6, "micro_batch_tokens": 1000}, evaluation={"probes": False})
        long = short.model_copy(update={"grpo": short.grpo.model_copy(update={"steps": 3})})
        return Plan(short, long, work, Case(2, 40, 4, 2), 3, 4, options.minutes or 2, earlier, keep)
    shared = [
        f"runs_dir={json.dumps(str(work))}",
        f"policy.base={json.dumps(str(options.base))}",
        "policy.backend=transformers",
        f"grpo.micro_batch_tokens={_budget()}",
        "evaluation.probes=false",
        "evaluation.batch_tokens=65536",
    ]
    if options.pubmedqa:
        names = {"path": "ori_pqal.json", "ground_truth": "test_ground_truth.json"}
        shared += [f"data.{key}={json.dumps(str(options.pubmedqa / name))}" for key, name in names.items()]
    profile = "cpu" if options.pubmedqa else "demo"
    short = load_config(profile, [*shared, *SHORT])
    return Plan(
        short, load_config(profile, [*shared, *LONG]), work, Case(), 20, 32, options.minutes or 0, earlier, keep
    )


def _budget() -> int:
    """Tokens of a micro-batch: about a megabyte of activations each, for a model of 135 million weights."""
    import torch

    return 4096 if torch.cuda.get_device_properties(0).total_memory < 20e9 else 16384


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the results, kept and added to")
    parser.add_argument("--work", type=Path, help="directory of models and checkpoints; default OUT/work")
    parser.add_argument("--base", default=EMBEDDED_MODEL, help="directory of the model; default the embedded one")
    parser.add_argument(
        "--pubmedqa", type=Path, help="directory with ori_pqal.json and test_ground_truth.json; else synthetic records"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default all; curve only with --minutes")
    parser.add_argument("--minutes", type=float, help="time of the part curve")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model and few steps, on any machine")
    options = parser.parse_args()
    timed = options.minutes or options.dry_run
    options.parts = options.parts or [name for name in PARTS if name != "curve" or timed]
    if "curve" in options.parts and not timed:
        parser.error("the part curve needs --minutes N")
    return options


if __name__ == "__main__":
    run(main)
