"""A sweep's MLflow run, and what is read from those of its trials."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from medgrpo.config import RunConfig
from medgrpo.registry import RUN_FILE, Candidate, connect, log_metric_rows, open_run, record_trial, trial_tags
from medgrpo.sweep.settings import TrialConfig
from medgrpo.sweep.tracking import METRICS, close_sweep, open_sweep, read_result

pytestmark = pytest.mark.slow

VALUES = {"macro_f1": 0.4, "faithfulness_unsupported_figures": 0.1, "strict_form": 0.9}


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> RunConfig:
    """Settings with an MLflow store of their own."""
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(empty_store, runs / "mlflow.db")
    return RunConfig(name="night", runs_dir=runs)


def _trial(config: RunConfig, number: int, parent: str = "p") -> RunConfig:
    return config.model_copy(update={"trial": TrialConfig(sweep="night", study="night", number=number, parent=parent)})


def _log(config: RunConfig, directory: Path, values: dict[str, float]) -> str:
    run_id = open_run(config, directory, trial_tags(config))
    rows = [{"phase": "grpo", "step": step, "time": 1.0, "rewards/correctness/mean": 0.1 * step} for step in (1, 2)]
    log_metric_rows(config, run_id, [*rows, {"phase": "eval/tuned", "step": 0, "time": time.time(), **values}])
    return run_id


def test_a_sweep_is_one_run(store: RunConfig) -> None:
    """Opened again it is the same run, known or not; another study has one of its own."""
    first = open_sweep(store, "night", "", {"medgrpo.flow_run": "1"})
    assert open_sweep(store, "night", first, {"medgrpo.flow_run": "2"}) == first
    assert open_sweep(store, "night", "", {}) == first
    assert open_sweep(store, "day", "", {}) != first
    assert connect(store).get_run(first).data.tags["medgrpo.flow_run"] == "2"


def test_results_are_read_from_the_trials_run(tmp_path: Path, store: RunConfig) -> None:
    """Objectives in their order, and the mean correctness grade so far by step; the run is nested under the sweep's."""
    config = _trial(store, 3, parent=open_sweep(store, "night", "", {}))
    run_id = _log(config, tmp_path / "train", VALUES)
    _log(_trial(store, 4), tmp_path / "other", dict.fromkeys(VALUES, 0.5))
    assert config.trial
    result = read_result(config, config.trial)
    assert (result.state, result.run_id) == ("complete", run_id)
    assert result.values == (0.4, 0.1, 0.9)
    assert result.curve == pytest.approx({1: 0.1, 2: 0.15})
    assert connect(store).get_run(run_id).data.tags["mlflow.parentRunId"] == config.trial.parent


def test_open_answers_are_judged_by_accuracy(tmp_path: Path, store: RunConfig) -> None:
    """Numbers have no macro-F1; what share of them is right stands in for it, and never where there is one."""
    others = {"accuracy": 0.3, "strict_form": 0.9, "faithfulness_unsupported_figures": 0.1}
    for number, values, expected in ((5, others, 0.3), (6, {**others, "macro_f1": 0.2}, 0.2)):
        config = _trial(store, number)
        _log(config, tmp_path / str(number), values)
        assert config.trial
        assert read_result(config, config.trial).values == (expected, 0.1, 0.9)


def test_a_trial_that_measured_nothing_has_failed(tmp_path: Path, store: RunConfig) -> None:
    """Without an evaluation, or without one of the objectives, there is a reason and no value."""
    config = _trial(store, 0)
    assert config.trial
    assert "holds no evaluation" in read_result(config, config.trial).reason
    _log(config, tmp_path / "train", {"macro_f1": 0.4, "strict_form": 0.9})
    result = read_result(config, config.trial)
    assert (result.state, result.reason) == ("failed", "its evaluation measured no unsupported_figures.")


def test_a_closed_sweep_has_its_plots_and_its_table(tmp_path: Path, store: RunConfig) -> None:
    """The run ends with the figures, sweep.json and the number of the chosen trial."""
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "pareto.svg").write_text("<svg/>")
    run_id = open_sweep(store, "night", "", {})
    close_sweep(store, run_id, {"chosen": {"trial": 2}}, tmp_path / "plots")
    client = connect(store)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["medgrpo.chosen_trial"]) == ("FINISHED", "2")
    assert {file.path for file in client.list_artifacts(run_id)} == {"plots", "sweep.json"}
    assert {file.path for file in client.list_artifacts(run_id, "plots")} == {"plots/pareto.svg"}


def test_a_recorded_trial_is_no_version(candidate: Candidate) -> None:
    """Its evaluation is in its run; no model is registered, no alias moves, and recording it again changes nothing."""
    config = _trial(candidate.config, 1)
    trial = replace(candidate, config=config, tags=trial_tags(config))
    recorded = record_trial(trial)
    assert record_trial(trial) == recorded
    assert (recorded["version"], recorded["aliases"]) == (None, ())
    client = connect(config)
    run = client.get_run(recorded["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/tuned/accuracy"] == 0.62
    assert list(client.search_model_versions()) == []
    assert list(client.search_registered_models()) == []


def test_the_chosen_ones_training_has_a_run_of_its_own(candidate: Candidate) -> None:
    """An ordinary run that finds a trial's training finished does not write its evaluation into the trial's run."""
    config = _trial(candidate.config, 1)
    recorded = record_trial(replace(candidate, config=config, tags=trial_tags(config)))
    run_id = open_run(candidate.config, candidate.train_dir, {})
    assert run_id != recorded["run_id"]
    tags = connect(config).get_run(run_id).data.tags
    assert tags["medgrpo.training_run"] == recorded["run_id"]
    assert "mlflow.parentRunId" not in tags


def test_what_a_pruned_trial_left_is_taken_up_in_another_run(tmp_path: Path, store: RunConfig) -> None:
    """Its half-done training names its run; the next trial with these settings, and an ordinary run, open their own."""
    pruned = _log(_trial(store, 1), tmp_path, VALUES)
    assert json.loads((tmp_path / RUN_FILE).read_text())["run_id"] == pruned
    again = open_run(_trial(store, 1), tmp_path, trial_tags(_trial(store, 1)))
    assert again == pruned
    others = [_trial(store, 2), store]
    ids = [open_run(config, tmp_path, trial_tags(config)) for config in others]
    assert len({pruned, *ids}) == 3
    assert [open_run(config, tmp_path, trial_tags(config)) for config in others] == ids


def test_every_objective_has_a_metric() -> None:
    """What is judged is what is read."""
    from medgrpo.sweep.trials import LABELS, OBJECTIVES

    assert METRICS.keys() == OBJECTIVES.keys() == LABELS.keys()
