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
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import machine, run
from benchmarks.gpu_curve import curve
from benchmarks.gpu_page import write_page
from benchmarks.gpu_parts import (
    Failed,
    Found,
    NotPossible,
    Plan,
    backends,
    environment,
    evaluation,
    exchange,
    guards,
    resume,
)
from benchmarks.step_worker import Case
from medgrpo.config import EMBEDDED_MODEL, load_config
from medgrpo.errors import InputError, MedgrpoError
from medgrpo.manifests import write_json

RESULT = "gpu_check.json"
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
