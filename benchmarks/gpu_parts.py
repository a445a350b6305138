"""What `benchmarks.gpu_check` looks at, but the curve: each part is a function of the plan that says what it found."""

import math
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.step_worker import OURS, OURS_BFLOAT16, STOCK, UNSLOTH, Case, Setup, Worker, received, write_to
from medgrpo.config import RunConfig
from medgrpo.errors import MedgrpoError, TrainingCrashed
from medgrpo.policies.precision import Precision

SIDE_SECONDS, FEWEST_STEPS = 45.0, 5
"""A slow device stops counting steps of a backend after so long, but not before so many."""
TOLERANCE = 1e-3
"""Largest difference of a float32 logit between backends."""
COMPARED = ("loss", "completions/mean_length")
"""What should be the same in each step of a resumed training."""
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
    summary = train(config, data_of(config), directory, lambda row: say(name, row))
    rows = rows_of(directory)
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


def data_of(config: RunConfig) -> Path:
    """Directory of the records that are prepared for a training."""
    from medgrpo import stages

    return stages.prepare(config).path


def rows_of(directory: Path) -> list[Found]:
    """What a training has logged."""
    from medgrpo.training.metrics import METRICS_FILE, read_metrics

    return read_metrics(directory / METRICS_FILE)


def say(name: str, row: Mapping[str, Any]) -> None:
    """Print a row of a training, of the warm-up each twentieth."""
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
        say("killed", row)
        if row["phase"] == "grpo" and row["step"] >= 2:
            _kill_training(directory)

    try:
        train(plan.short, data_of(plan.short), directory, kill)
    except TrainingCrashed as error:
        if "SIGKILL" not in str(error):
            raise
    else:
        raise Failed("the training was at its end before it could be killed; nothing is known of resuming.", {})
    before = max(row["step"] for row in rows_of(directory) if row["phase"] == "grpo")
    again: list[int] = []

    def note(row: Mapping[str, Any]) -> None:
        say("resumed", row)
        again.append(row["step"])

    train(plan.short, data_of(plan.short), directory, note)
    if not again:
        raise Failed("the training was at its last step when it was killed; nothing is known of resuming.", {})
    rows = {row["step"]: row for row in rows_of(directory) if row["phase"] == "grpo"}
    other = {row["step"]: row for row in rows_of(whole) if row["phase"] == "grpo"}
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
    return apart(plan.work / "evaluation.log", answer_cases, plan.long, model, data_of(plan.long), plan.cases)


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
