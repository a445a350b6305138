"""The directory a run leaves, and its summary."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from medgrpo import domains
from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.manifests import Manifest, friendly_disk_errors, hold, write_json
from medgrpo.provenance import environment, git_commit
from medgrpo.resources import sentence

RESOURCES = {"run": "This run took", "training": "Its training, all attempts, took"}
CONFIG_FILE, SUMMARY_FILE, LATEST = "config.json", "summary.json", "latest"
MAIN_METRICS = {"accuracy": "accuracy", "macro-F1": "macro_f1", "strict form": "strict_form", "grounding": "grounding"}
"""What short tables show of an evaluation, and under which name metrics.json has it."""


def open_run_directory(config: RunConfig, prefix: str = "") -> tuple[RunConfig, Path]:
    """Name the run, make `runs/<name>/` with its resolved config.json.

    Args:
        config: the run's settings.
        prefix: begins the name of a run that has none of its own.

    Raises:
        InputError: the name is not a plain directory name, or the disk not writable.
        DiskFull: there is no room.
    """
    runs = config.runs_dir.absolute()
    with friendly_disk_errors(runs):
        name = config.name or _new_name(runs, f"{prefix}{config.profile}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    check_name(name)
    config, directory = config.model_copy(update={"name": name}), runs / name
    with friendly_disk_errors(directory):
        # An earlier run of this name may be cleaned away just now.
        hold(directory / CONFIG_FILE)
        write_json(directory / CONFIG_FILE, config.model_dump(mode="json"))
        hold(directory / CONFIG_FILE)
    return config, directory


def _new_name(runs: Path, wanted: str) -> str:
    """A name that no run has: of two that start in the same second, the later one's ends in a number."""
    runs.mkdir(parents=True, exist_ok=True)
    for name in chain([wanted], (f"{wanted}-{number}" for number in count(2))):
        with suppress(FileExistsError):
            (runs / name).mkdir()
            return name
    raise AssertionError


def check_name(name: str) -> None:
    """Whether a run can have this name.

    Raises:
        InputError: it is not a plain directory name.
    """
    if Path(name).name != name or name.startswith(".") or name == LATEST:
        raise InputError(
            f"name {name!r}: expected a plain directory name, other than 'latest' and not starting with '.'."
        )


def link(path: Path, target: Path) -> None:
    """A relative symbolic link from `path` to `target`, replacing an older one in one step."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, path.parent))
    fresh.replace(path)


def show_result(directory: Path, name: str, manifest: Manifest) -> None:
    """Link a stage's artifact into the run's directory, its report beside it.

    `runs/latest` points to the run as soon as it holds a trained model.
    """
    link(directory / name, manifest.path)
    report = manifest.path / "report.html"
    if report.is_file():
        link(directory / report.name, report)
    if (directory / "train").is_dir():
        link(directory.parent / LATEST, directory)


def summarize(
    config: RunConfig,
    stages: Sequence[Mapping[str, Any]],
    evaluated: Manifest,
    trained: Manifest,
    registration: Mapping[str, Any],
    flow_run: str,
) -> dict[str, Any]:
    """The content of summary.json after a training."""
    training = json.loads((trained.path / "training.json").read_text())
    return {
        **summarize_evaluation(config, stages, evaluated, flow_run),
        "mlflow_run_id": registration["run_id"],
        "model": {key: registration[key] for key in ("name", "version", "aliases", "digest")},
        "started_from": training.get("started_from"),
        "flags": training["flags"],
    }


def summarize_evaluation(
    config: RunConfig, stages: Sequence[Mapping[str, Any]], evaluated: Manifest, flow_run: str
) -> dict[str, Any]:
    """The content of summary.json after an evaluation; each model's metrics stand under its name."""
    metrics = json.loads((evaluated.path / "metrics.json").read_text())
    gate = json.loads((evaluated.path / "gate.json").read_text())
    return {
        "name": config.name,
        "profile": config.profile,
        "domain": metrics["domain"],
        "synthetic": metrics["synthetic"],
        "flow_run": flow_run,
        "models": list(metrics["models"]),
        **metrics["models"],
        "comparison": metrics["comparisons"],
        "references": metrics["references"],
        "gate": {"outcome": gate["outcome"], "reasons": gate_reasons(gate)},
        "stages": list(stages),
        "git_commit": git_commit(),
        "environment": environment(),
    }


def gate_reasons(gate: Mapping[str, Any]) -> list[str]:
    """Why the gate is not passed; where it is, why each check is. `gate` is the content of gate.json."""
    passed = gate["outcome"] == "pass"
    return [f"{check['name']}: {check['reason']}" for check in gate["checks"] if passed or check["outcome"] != "pass"]


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """A table of the models, the gate's outcome and a sentence per comparison, for people."""
    models = summary["models"]
    lines = [f"| | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for label, key in MAIN_METRICS.items():
        if all(key in summary[model] for model in models):
            lines.append(f"| {label} | {' | '.join(_percent(summary[model][key]) for model in models)} |")
    kind = "synthetic" if summary["synthetic"] else summary["domain"]
    count = summary[models[-1]]["accuracy"]["n"]
    caution = domains.get(summary["domain"]).caution
    notes = [f"{count} held-out {kind} cases; 95 % intervals in brackets. {caution}".strip()]
    notes += [pair_sentence(pair) for pair in summary["comparison"]]
    reasons = "\n".join(f"- {reason}" for reason in summary["gate"]["reasons"])
    notes.append(f"**Gate: {summary['gate']['outcome']}.**\n\n{reasons}")
    if (model := summary.get("model")) and model["version"] is None:
        notes.append("A trial of a sweep: no version is registered.")
    elif model:
        alias = ", ".join(model["aliases"]) or "no alias"
        notes.append(f"Registered as {model['name']} version {model['version']} ({alias}).")
    if start := summary.get("started_from"):
        notes.append(f"Its training went on from the adapter of {start['source']} (sha256 {start['digest'][:12]}).")
    for kind, used in summary.get("resources", {}).items():
        notes.append(f"{RESOURCES[kind]} {sentence(used)}.")
    notes += [f"**Flag:** {flag}" for flag in summary.get("flags", [])]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"


def pair_sentence(pair: Mapping[str, Any]) -> str:
    """What two models got right apart from each other, and how surprising that is."""
    return (
        f"{pair['first']} against {pair['second']}: {pair['only_first']} cases only the first has right, "
        f"{pair['only_second']} only the second; exact McNemar p = {pair['p_value']:.2g}."
    )


def _percent(interval: Mapping[str, Any]) -> str:
    return f"{interval['value']:.1%} ({interval['low']:.1%} to {interval['high']:.1%})"
