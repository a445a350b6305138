"""A sweep in MLflow: a run of its own, and under it one for each trial, from which the trial's results are read.

MLflow is what all workers reach, whatever disks they have, so results travel through it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.registry.connection import CALL_SECONDS, connect, http_timeout, plain_errors
from medgrpo.registry.runs import FAILURE_TAG, create_run, experiment_id, set_tags
from medgrpo.registry.trials import trial_query
from medgrpo.sweep.pruning import PAID, grades
from medgrpo.sweep.settings import TrialConfig
from medgrpo.sweep.trials import OBJECTIVES, Result

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SWEEP_TAG = "medgrpo.sweep"
METRICS = {
    "macro_f1": "eval/tuned/macro_f1",
    "unsupported_figures": "eval/tuned/faithfulness_unsupported_figures",
    "strict_form": "eval/tuned/strict_form",
}
"""Objective -> its metric in the trial's MLflow run."""
OPEN = "eval/tuned/accuracy"
"""Stands for macro-F1 where answers are open (`medgrpo.sweep.trials.OPEN_LABEL`)."""


def open_sweep(config: RunConfig, study: str, known: str, tags: Mapping[str, str]) -> str:
    """Id of the MLflow run of a sweep, RUNNING from now on: the known one, one of an earlier try, or a new one.

    Args:
        config: settings of the sweep.
        study: identity of its study.
        known: the run that the study names; empty where it names none.
        tags: further tags.

    Raises:
        ServiceUnreachable: MLflow does not answer.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)), http_timeout(CALL_SECONDS):
        experiment = experiment_id(client, config)
        found = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{study}'")
        run_id = next((run.info.run_id for run in found if known in ("", run.info.run_id)), None)
        if run_id is None:
            run_id = create_run(client, config, experiment, {SWEEP_TAG: study, **tags})
        else:
            client.update_run(run_id, status="RUNNING")
            if FAILURE_TAG in client.get_run(run_id).data.tags:
                client.delete_tag(run_id, FAILURE_TAG)
            set_tags(client, run_id, tags)
        return str(run_id)


def close_sweep(config: RunConfig, run_id: str, summary: Mapping[str, Any], files: Path) -> None:
    """End the sweep's run, with its plots, its table and what was chosen.

    Args:
        config: settings of the sweep.
        run_id: its run.
        summary: content of sweep.json.
        files: directory with the plots.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        for path in sorted(files.iterdir()):
            client.log_artifact(run_id, str(path), "plots")
        client.log_text(run_id, json.dumps(summary, indent=2, ensure_ascii=False, default=str), "sweep.json")
        set_tags(client, run_id, {"medgrpo.chosen_trial": str(summary["chosen"]["trial"])})
        client.set_terminated(run_id, status="FINISHED")


def read_result(config: RunConfig, trial: TrialConfig) -> Result:
    """What a completed run of a trial found on dev.

    Args:
        config: the trial's settings.
        trial: which one it is.

    Raises:
        ServiceUnreachable: MLflow does not answer.
    """
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)), http_timeout(CALL_SECONDS):
        runs = client.search_runs([experiment_id(client, config)], trial_query(trial))
        evaluated = [run for run in runs if METRICS["strict_form"] in run.data.metrics]
        if not evaluated:
            return Result("failed", reason="its run was completed, but MLflow holds no evaluation of it.")
        return _result(client, config, evaluated[0])


def _result(client: "MlflowClient", config: RunConfig, run: "Run") -> Result:
    run_id, metrics = str(run.info.run_id), dict(run.data.metrics)
    if OPEN in metrics:
        metrics.setdefault(METRICS["macro_f1"], metrics[OPEN])
    missing = [name for name in OBJECTIVES if METRICS[name] not in metrics]
    if missing:
        return Result("failed", reason=f"its evaluation measured no {' and no '.join(missing)}.", run_id=run_id)
    paid = {point.step: point.value for point in client.get_metric_history(run_id, f"grpo/{PAID}")}
    values = tuple(metrics[METRICS[name]] for name in OBJECTIVES)
    return Result("complete", values, curve=grades(paid, config.rewards.correctness), run_id=run_id)
