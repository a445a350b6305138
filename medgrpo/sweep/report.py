"""What a sweep found: sweep.json, and the same for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig
from medgrpo.manifests import write_json
from medgrpo.provenance import environment, git_commit
from medgrpo.sweep.plots import save_plots
from medgrpo.sweep.selection import Choice, choose, pareto
from medgrpo.sweep.study import Study
from medgrpo.sweep.trials import OBJECTIVES, Trial, labels

SUMMARY_FILE, PLOTS = "sweep.json", "plots"
_OF_THE_CHOSEN = ("name", "flow_run", "mlflow_run_id", "model", "tuned", "gate")


def decide(study: Study, config: RunConfig) -> tuple[Choice, RunConfig]:
    """The chosen trial and the ordinary run that it becomes; the study remembers the choice.

    Raises:
        InputError: no trial was completed.
    """
    choice = choose(study.trials(), config.gate, labels(config))
    changes = {"name": f"{study.name}-chosen", "sweep": type(config.sweep)()}
    chosen = study.with_values(choice.trial.values).model_copy(update=changes)
    study.chosen = choice.trial.number
    return choice, chosen


def write_summary(
    directory: Path, study: Study, config: RunConfig, choice: Choice, result: Mapping[str, Any], flow_run: str
) -> dict[str, Any]:
    """Write the figures and sweep.json into the sweep's directory; returns the content of sweep.json."""
    trials, importances = study.trials(), study.importances()
    save_plots(directory / PLOTS, trials, choice.trial.number, config.gate, importances, labels(config))
    summary = {
        "study": study.name,
        "profile": config.profile,
        "flow_run": flow_run,
        "mlflow_run_id": study.parent,
        "objectives": OBJECTIVES,
        "labels": labels(config),
        "space": config.sweep.model_dump(mode="json")["space"],
        "trials": [trial.as_row() for trial in trials],
        "pareto": [trial.number for trial in pareto(trials)],
        "chosen": {"trial": choice.trial.number, "values": choice.trial.values, "sentence": choice.sentence},
        "importances": importances,
        "result": {key: result[key] for key in _OF_THE_CHOSEN if key in result},
        "git_commit": git_commit(),
        "environment": environment(),
    }
    write_json(directory / SUMMARY_FILE, summary)
    return summary


def markdown(summary: Mapping[str, Any]) -> str:
    """The trials as a table, the choice and what the gate made of it, for people."""
    rows = summary["trials"]
    counts = ", ".join(
        f"{sum(row['state'] == state for row in rows)} {state}" for state in dict.fromkeys(row["state"] for row in rows)
    )
    result, gate = summary["result"], summary["result"].get("gate", {})
    shown = table(rows, summary["space"], summary["labels"])
    lines = [shown, f"{len(rows)} trials: {counts}.", summary["chosen"]["sentence"]]
    if gate:
        reasons = "\n".join(f"- {reason}" for reason in gate["reasons"])
        lines.append(f"Run {result['name']}, on the profile's own cases: **gate {gate['outcome']}.**\n\n{reasons}")
    return "\n\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, Any]], space: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Rows of trials as a Markdown table, their objectives under the names that people have for them."""
    heads = ["trial", "state", *space, *(names[name] for name in OBJECTIVES), "reason"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [row["trial"], row["state"], *(_short(row.get(name, "")) for name in space)]
        cells += [f"{row[name]:.1%}" if name in row else "" for name in OBJECTIVES]
        cells.append(row["reason"].replace("\n", " ").replace("|", "\\|"))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def progress_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials as a table artifact lists them, newest first."""
    return [trial.as_row() for trial in reversed(trials)]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
