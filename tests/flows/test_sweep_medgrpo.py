"""A whole sweep on the tiny model, killed twice; and sweeps whose trials run on workers."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from services import Started, kill, start, stop, wait_for

from flows.sweep_medgrpo import sweep_medgrpo
from flows.train_medgrpo import train_medgrpo
from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError
from medgrpo.sweep.study import study_name
from medgrpo.sweep.trials import Proposal
from medgrpo.testing import tiny_config
from tasks.sweep import Deployed, InProcess

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 300
TRIALS = 6
SPACE: dict[str, Any] = {
    "grpo.learning_rate": {"low": 1e-6, "high": 1e-3, "log": True},
    "grpo.group_size": [2, 4],
    "rewards.correctness": [1.0, 2.0],
}
SLEEPS, SLEEP_SECONDS = 4, 12
MOST_OF_ONE = 0.65
"""Half, and thirty per cent of it."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    # MLflow opens its SQL store after Prefect's server has declared a type in SQLAlchemy's old way.
    pytest.mark.filterwarnings("ignore:.*does not refer to an OperatorClass:DeprecationWarning"),
    pytest.mark.usefixtures("prefect_server"),
]


def _client(config: RunConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=resolve_mlflow_uri(config), registry_uri=resolve_mlflow_uri(config))


def _runs(config: RunConfig) -> list[Any]:
    client = _client(config)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def _environment() -> dict[str, str]:
    from prefect.settings import PREFECT_API_URL

    # As in docker/compose.yaml: a worker's runs find the project by PYTHONPATH.
    return {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(ROOT)}


# --- killed twice


def _toml(values: dict[str, Any], prefix: str = "") -> str:
    """Settings as TOML with dotted keys; JSON's strings, numbers, lists and truth values are TOML's."""
    return "".join(
        _toml(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key} = {json.dumps(value)}\n"
        for key, value in values.items()
    )


def _states(config: RunConfig) -> list[str]:
    """States of the trials that were started, by number, as the database has them."""
    path = config.runs_dir / "sweeps.db"
    if not path.is_file():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute("SELECT state FROM trials WHERE state != 'WAITING' ORDER BY number").fetchall()
        except sqlite3.OperationalError:
            return []
    return [str(state) for (state,) in rows]


def _trains(config: RunConfig, number: int) -> bool:
    """Whether a trial is in the middle of its training."""
    if _states(config)[number:] != ["RUNNING"] or not list(config.runs_dir.glob(f"*-{number:03d}")):
        return False
    return any((path / "job.json").is_file() for path in config.runs_dir.glob(".artifacts/train-*.partial"))


@pytest.fixture(scope="module")
def killed(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> "Killed":
    """A sweep that was killed in its first training and in its third, and then went through; and its sweep.json."""
    directory = tmp_path_factory.mktemp("sweep")
    config = tiny_config(directory, sweep={"space": SPACE, "trials": TRIALS})
    profile = directory / "tiny.toml"
    profile.write_text(_toml(config.model_dump(mode="json", exclude_none=True)))
    command, log = [sys.executable, "-m", "flows.sweep_medgrpo", profile], directory / "log"
    for number in (0, 2):
        flow = start(command, log, _environment(), ROOT)
        try:
            wait_for(lambda flow=flow, number=number: _reached(config, flow, number), flow, WAIT_SECONDS)
        finally:
            # The flow alone: its training notices, and ends by itself.
            flow.process.send_signal(signal.SIGKILL)
            flow.process.wait()
    flow = start(command, log, _environment(), ROOT)
    try:
        flow.process.wait(2 * WAIT_SECONDS)
    finally:
        stop(flow)
    assert flow.process.returncode == 0, log.read_text()[-4000:]
    return config, json.loads((config.runs_dir / study_name(config) / "sweep.json").read_text())


def _reached(config: RunConfig, flow: Started, number: int) -> bool:
    assert flow.process.poll() is None, flow.log.read_text()[-4000:]
    return _trains(config, number)


Killed = tuple[RunConfig, dict[str, Any]]


def test_nothing_is_counted_twice(killed: Killed) -> None:
    """Six numbers, six MLflow runs nested under one, no trial open: as if nobody had killed anything."""
    config, summary = killed
    assert [row["trial"] for row in summary["trials"]] == list(range(TRIALS))
    assert Counter(row["state"] for row in summary["trials"]) == {"complete": TRIALS}
    assert _states(config) == ["COMPLETE"] * TRIALS
    runs = _runs(config)
    trials = [run for run in runs if "medgrpo.trial" in run.data.tags]
    numbers = sorted(int(run.data.tags["medgrpo.trial"].rpartition("/")[2]) for run in trials)
    assert numbers == list(range(TRIALS))
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {summary["mlflow_run_id"]}
    assert [run.info.run_id for run in runs if "medgrpo.sweep" in run.data.tags] == [summary["mlflow_run_id"]]
    assert {run.info.run_id for run in trials} == {row["mlflow_run_id"] for row in summary["trials"]}


def test_trials_share_preparation_and_warmup(killed: Killed) -> None:
    """Rewards, learning rates and group sizes differ, and the data is prepared once and warmed up on once."""
    config, _ = killed
    made = Counter(path.name.partition("-")[0] for path in config.runs_dir.glob(".artifacts/*[!k]") if path.is_dir())
    assert (made["data"], made["warmup"]) == (1, 1)
    assert made["train"] == TRIALS
    loss = {
        json.dumps(
            next(row for row in map(json.loads, path.read_text().splitlines()) if row["phase"] == "warmup")["loss"]
        )
        for path in config.runs_dir.glob("*-00?/train/metrics.jsonl")
    }
    assert len(loss) == 1


def test_only_the_chosen_one_sees_the_test_split(killed: Killed) -> None:
    """Trials answer dev cases; one version, of the chosen trial's training, was evaluated on test by the gate."""
    config, summary = killed
    judged = {run.info.run_name: run.inputs.dataset_inputs for run in _runs(config)}
    splits = {
        name: {each.dataset.name for each in inputs if "evaluation" in [tag.value for tag in each.tags]}
        for name, inputs in judged.items()
        if inputs
    }
    study = summary["study"]
    assert splits.pop(f"{study}-chosen") == {"synthetic-test"}
    assert splits == {f"{study}-{number:03d}": {"synthetic-dev"} for number in range(TRIALS)}
    [version] = _client(config).search_model_versions()
    assert version.tags["medgrpo.reason"] == f"Sweep {study}: {summary['chosen']['sentence']}"
    assert summary["result"]["model"]["version"] == int(version.version) == 1
    stages = json.loads((config.runs_dir / f"{study}-chosen" / "summary.json").read_text())["stages"]
    cached = {stage["name"]: stage["cached"] for stage in stages}
    assert cached == {"prepare": True, "audit": True, "train": True, "evaluate": False, "register": False}


def test_a_sweep_leaves_its_figures(killed: Killed) -> None:
    """The directory and the MLflow run hold the Pareto plot and sweep.json."""
    config, summary = killed
    directory = config.runs_dir / summary["study"]
    assert {"config.json", "sweep.json", "plots"} <= {path.name for path in directory.iterdir()}
    client = _client(config)
    logged = {file.path for file in client.list_artifacts(summary["mlflow_run_id"], "plots")}
    assert {"plots/pareto.png", "plots/pareto.svg"} <= logged
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"


# --- on workers

SLEEPING = f'''
"""A stand-in for train-medgrpo whose trials sleep instead of computing."""

import time
from pathlib import Path

from prefect import flow

from medgrpo.config import RunConfig
from medgrpo.registry import log_metric_rows, open_run, trial_tags


@flow(name="sleeping")
def sleeping(config: RunConfig, reason: str = "") -> None:
    """Find something, and sleep on until the trial's time is over."""
    if config.trial is None:
        return
    over = time.monotonic() + {SLEEP_SECONDS}
    if config.trial.number == 1:
        time.sleep({SLEEP_SECONDS})
        raise ValueError("trial 1 always fails")
    found = {{"macro_f1": config.grpo.beta, "faithfulness_unsupported_figures": 0.1, "strict_form": 0.9}}
    run_id = open_run(config, Path("none"), trial_tags(config))
    log_metric_rows(config, run_id, [{{"phase": "eval/tuned", "step": 0, "time": time.time(), **found}}])
    time.sleep(max(0, over - time.monotonic()))
'''


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """Makes a work pool with so many process workers, each taking one run at a time; returns its deployment's name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    (tmp_path / "sleeping.py").write_text(SLEEPING)
    environment = _environment() | {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    with get_client(sync_client=True) as client, ExitStack() as after:

        def make(workers: int) -> str:
            name = f"sleepers-{workers}"
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            after.callback(client.delete_work_pool, name)
            made = client.create_deployment(
                flow_id=client.create_flow_from_name("sleeping"),
                name=name,
                entrypoint="sleeping.py:sleeping",
                work_pool_name=name,
                # Where the two are one place, a run starts in it and copies nothing. With a command of its own it is
                # one process; otherwise Prefect has another one prepare it, and cores that start processes don't sleep.
                path=str(tmp_path),
                job_variables={"working_dir": str(tmp_path), "command": f"{sys.executable} -m prefect.engine"},
            )
            after.callback(client.delete_deployment, made)
            for number in range(workers):
                command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", name, "--limit", "1"]
                log = tmp_path / f"{name}-{number}.log"
                worker = start(command, log, environment, tmp_path)
                # Its runs are over by then, and told to stop it can take its time.
                after.callback(kill, worker)
                wait_for(lambda log=log: "started!" in log.read_text(), worker)
            return f"sleeping/{name}"

        yield make


def _span(prefix: str) -> float:
    """Seconds from the first start to the last end of the flow runs whose names begin so."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=prefix)))
    assert len(runs) == SLEEPS
    return (max(run.end_time for run in runs) - min(run.start_time for run in runs)).total_seconds()


def test_two_workers_halve_the_time(tmp_path: Path, pool: Callable[[int], str]) -> None:
    """Trials that sleep take half as long on two process workers as on one, to within 30 %; a failed one is counted.

    It is the time from the first trial's start to the last one's end: what comes before and after is not shared out.
    """
    seconds = {}
    for workers in (1, 2):
        settings = {
            "space": {"grpo.beta": [0.0, 0.1, 0.2]},
            "trials": SLEEPS,
            "parallel": 2,
            "deployment": pool(workers),
        }
        config = tiny_config(tmp_path, name=f"sleep-{workers}", sweep=settings)
        summary = sweep_medgrpo(config)
        seconds[workers] = _span(f"sleep-{workers}-0")
        assert Counter(row["state"] for row in summary["trials"]) == {"complete": SLEEPS - 1, "failed": 1}
        assert summary["trials"][1]["reason"] == "ValueError: trial 1 always fails"
        assert _flow_runs(f"sleep-{workers}-") == SLEEPS + 1
    assert seconds[2] <= MOST_OF_ONE * seconds[1], seconds


def test_a_trial_is_started_once_on_workers(tmp_path: Path, pool: Callable[[int], str]) -> None:
    """A resumed sweep finds the run of a trial that it had started; other values, or another study, are another run."""
    config = tiny_config(tmp_path, name="once-000")
    name = pool(0)
    first, again, other = (Deployed(name, study, 1) for study in ("s", "s", "t"))
    for runner in (first, again):
        runner.start(Proposal(0, {"grpo.beta": 0.0}, config))
    assert _flow_runs("once-") == 1
    assert first.ended(Proposal(0, {}, config)) is None
    again.start(Proposal(0, {"grpo.beta": 0.1}, config))
    assert _flow_runs("once-") == 2
    other.start(Proposal(0, {"grpo.beta": 0.1}, config))
    assert _flow_runs("once-") == 3
    with pytest.raises(InputError, match="has no deployment sleeping/awake"):
        Deployed("sleeping/awake", "s", 1).start(Proposal(0, {}, config))
    _delete_flow_runs("once-")


def test_a_sweep_in_which_all_trials_fail_has_failed(tmp_path: Path) -> None:
    """The sentence says why, and the sweep's MLflow run says it too."""
    space = {"rewards.grounding": [0.0, 0.5]}
    sweep, grpo = {"space": space, "trials": 2}, {"max_completion_length": 1024}
    config = tiny_config(tmp_path, name="lost", grpo=grpo, sweep=sweep)
    with pytest.raises(InputError, match=r"none of the 2 trials was completed.*leaves no room for a prompt"):
        sweep_medgrpo(config)
    [run] = _runs(config)
    assert run.info.status == "FAILED"
    assert "leaves no room" in run.data.tags["medgrpo.failure"]


def test_a_trial_below_the_bar_is_ended(tmp_path: Path) -> None:
    """Its training is stopped and not retried, its MLflow run says why, and the trial is pruned."""
    config = tiny_config(
        tmp_path, name="low-000", trial={"sweep": "low", "study": "low", "number": 0, "parent": "p", "bar": {1: 1.5}}
    )
    runner, proposal = InProcess(train_medgrpo), Proposal(0, {}, config)
    runner.start(proposal)
    result = runner.ended(proposal)
    assert result
    assert (result.state, result.values) == ("pruned", ())
    assert "the median of the completed trials 1.500" in result.reason
    [run] = _runs(config)
    assert run.info.status == "FAILED"
    assert "up to step 1" in run.data.tags["medgrpo.failure"]


def _delete_flow_runs(prefix: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs():
            if run.name.startswith(prefix):
                client.delete_flow_run(run.id)


def _flow_runs(prefix: str) -> int:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return sum(run.name.startswith(prefix) for run in client.read_flow_runs())


def test_by_hand_a_bad_space_is_a_sentence() -> None:
    """The command ends with a sentence and no trial."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.sweep_medgrpo", "smoke", "--set", "sweep.space.grpo.bta=[0, 1]"],
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "unknown setting 'grpo.bta'; did you mean 'grpo.beta'" in done.stderr
