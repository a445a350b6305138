"""The whole flow on the tiny model: what a run leaves, what is reused, and what it survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

import flows.train_medgrpo as module
from flows.train_medgrpo import train_medgrpo
from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import ServiceUnreachable
from medgrpo.testing import tiny_config
from medgrpo.training.metrics import parse_rows

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 180

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    # MLflow opens its SQL store after Prefect's server has declared a type in SQLAlchemy's old way.
    pytest.mark.filterwarnings("ignore:.*does not refer to an OperatorClass:DeprecationWarning"),
    pytest.mark.usefixtures("prefect_server"),
]

Summary = dict[str, Any]


def _client(config: RunConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=resolve_mlflow_uri(config), registry_uri=resolve_mlflow_uri(config))


def _versions(config: RunConfig) -> list[int]:
    return sorted(int(version.version) for version in _client(config).search_model_versions())


def _runs(config: RunConfig) -> list[Any]:
    client = _client(config)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def _cached(summary: Summary) -> dict[str, bool]:
    return {stage["name"]: stage["cached"] for stage in summary["stages"]}


def _metrics(directory: Path) -> list[dict[str, Any]]:
    path = directory / "metrics.jsonl"
    return list(parse_rows(path.read_text())) if path.is_file() else []


# --- one story, told once: each chapter is a run, and what it left


@dataclass
class Chapter:
    """A run of the flow, with the registry as it stood afterwards."""

    config: RunConfig
    summary: Summary
    versions: list[int]
    runs: list[str]
    aliases: dict[int, list[str]]
    files: set[str] = field(default_factory=set)

    @property
    def directory(self) -> Path:
        return self.config.runs_dir / str(self.config.name)


def _chapter(config: RunConfig) -> Chapter:
    summary = train_medgrpo(config)
    client, versions = _client(config), _versions(config)
    return Chapter(
        config=config,
        summary=summary,
        versions=versions,
        runs=[run.info.run_id for run in _runs(config)],
        aliases={v: list(client.get_model_version("medgrpo-synthetic", str(v)).aliases) for v in versions},
        files={path.name for path in (config.runs_dir / str(config.name)).iterdir()},
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tiny policy, made once."""
    directory = tmp_path_factory.mktemp("tiny")
    tiny_config(directory)
    return directory


@pytest.fixture(scope="module")
def story(prefect_server: None, tiny: Path) -> dict[str, Chapter]:
    """A first run; the same again; more cases; the evaluation lost; the model version deleted; a champion to beat."""
    more = tiny_config(tiny, name="more", evaluation={"cases": 20})
    chapters = {
        "first": _chapter(tiny_config(tiny, name="first")),
        "again": _chapter(tiny_config(tiny, name="again")),
        "more": _chapter(more),
    }
    shutil.rmtree((chapters["more"].directory / "evaluation").resolve())
    chapters["lost"] = _chapter(more)
    model = chapters["lost"].summary["model"]
    _client(more).delete_model_version(model["name"], str(model["version"]))
    chapters["deleted"] = _chapter(more)
    _client(more).set_registered_model_alias(model["name"], "champion", "1")
    chapters["rival"] = _chapter(tiny_config(tiny, name="rival"))
    return chapters


def test_a_run_leaves_its_directory(story: dict[str, Chapter]) -> None:
    """A run leaves its settings, data, training, evaluation, report and summary, and `latest` points to the newest."""
    first = story["first"]
    assert first.files == {"config.json", "data", "audit", "train", "evaluation", "report.html", "summary.json"}
    evaluation = {path.name for path in (first.directory / "evaluation").iterdir()}
    assert {"predictions.jsonl", "predictions.json", "metrics.json", "gate.json", "report.html"} <= evaluation
    assert (first.directory / "train" / "metrics.jsonl").is_file()
    assert (first.directory / "report.html").read_text().lstrip().startswith("<!")
    assert (first.config.runs_dir / "latest").resolve() == story["rival"].directory.resolve()


def test_the_resolved_settings_are_kept(story: dict[str, Chapter]) -> None:
    """config.json holds every setting of the run, and makes the same run again."""
    first = story["first"]
    assert RunConfig.model_validate_json((first.directory / "config.json").read_text()) == first.config


def test_the_official_predictions_are_those_of_the_tuned_model(story: dict[str, Chapter]) -> None:
    """predictions.json maps each evaluated id to the tuned model's verdict, in the official form."""
    directory = story["first"].directory / "evaluation"
    rows = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    official = json.loads((directory / "predictions.json").read_text())
    assert official == {row["id"]: row["answers"]["tuned"]["verdict"] for row in rows}


def test_the_summary_keeps_its_contract(story: dict[str, Chapter]) -> None:
    """summary.json has the keys that other tools rely on, is what the flow returns, and names what it registered."""
    first = story["first"]
    summary = json.loads((first.directory / "summary.json").read_text())
    assert summary == json.loads(json.dumps(first.summary))
    contract = {"flow_run", "mlflow_run_id", "model", "base", "tuned", "comparison", "gate", "stages", "environment"}
    assert contract <= summary.keys()
    assert summary["model"].keys() == {"name", "version", "aliases", "digest"}
    assert summary["gate"].keys() == {"outcome", "reasons"}
    assert [stage.keys() for stage in summary["stages"]] == [{"name", "seconds", "cached"}] * 5
    assert [stage["name"] for stage in summary["stages"]] == ["prepare", "audit", "train", "evaluate", "register"]
    assert summary["tuned"]["accuracy"].keys() >= {"value", "low", "high", "n"}
    assert summary["synthetic"] is True
    assert summary["model"]["name"] == "medgrpo-synthetic"


def test_the_summary_names_its_flow_run(story: dict[str, Chapter]) -> None:
    """The flow run of the summary is the one Prefect knows, and each run of the flow is its own."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        known = {str(run.id) for run in client.read_flow_runs() if run.state and run.state.is_completed()}
    named = [chapter.summary["flow_run"] for chapter in story.values()]
    assert set(named) <= known
    assert len(set(named)) == len(named)


def test_the_first_run_computes_everything(story: dict[str, Chapter]) -> None:
    """Nothing is cached in an empty runs directory, and one version comes of one run."""
    first = story["first"]
    assert _cached(first.summary) == dict.fromkeys(("prepare", "audit", "train", "evaluate", "register"), False)
    assert first.versions == [1]
    assert first.runs == [first.summary["mlflow_run_id"]]


def test_the_same_again_is_all_cached(story: dict[str, Chapter]) -> None:
    """The same code, settings and data: four cache hits, the same MLflow run, no further version, equal numbers."""
    first, again = story["first"], story["again"]
    assert all(_cached(again.summary).values())
    assert (again.versions, again.runs) == (first.versions, first.runs)
    same = ("mlflow_run_id", "model", "base", "tuned", "comparison")
    assert {key: again.summary[key] for key in same} == {key: first.summary[key] for key in same}


def test_more_cases_do_not_retrain(story: dict[str, Chapter]) -> None:
    """Changing only evaluation.cases evaluates and registers; the evaluated model is a new version with a new run."""
    first, more = story["first"], story["more"]
    assert _cached(more.summary) == {
        "prepare": True,
        "audit": True,
        "train": True,
        "evaluate": False,
        "register": False,
    }
    assert more.versions == [1, 2]
    assert more.summary["model"]["version"] == 2
    assert more.summary["model"]["digest"] == first.summary["model"]["digest"]
    assert more.summary["tuned"]["accuracy"]["n"] == 20
    assert more.summary["mlflow_run_id"] != first.summary["mlflow_run_id"]
    assert len(more.runs) == 2


def test_a_lost_evaluation_is_made_again(story: dict[str, Chapter]) -> None:
    """A deleted evaluation is made again with the same numbers, and does not make another version."""
    more, lost = story["more"], story["lost"]
    assert _cached(lost.summary) == {
        "prepare": True,
        "audit": True,
        "train": True,
        "evaluate": False,
        "register": False,
    }
    assert (lost.directory / "evaluation" / "predictions.jsonl").is_file()
    assert (lost.versions, lost.runs) == (more.versions, more.runs)
    assert lost.summary["tuned"] == more.summary["tuned"]
    assert lost.summary["model"] == more.summary["model"]


def test_a_deleted_version_is_registered_again(story: dict[str, Chapter]) -> None:
    """A version deleted from MLflow is registered again; everything before it stays cached."""
    lost, deleted = story["lost"], story["deleted"]
    assert _cached(deleted.summary) == {
        "prepare": True,
        "audit": True,
        "train": True,
        "evaluate": True,
        "register": False,
    }
    assert len(deleted.versions) == len(lost.versions)
    assert deleted.summary["model"]["version"] in deleted.versions
    assert deleted.summary["model"]["digest"] == lost.summary["model"]["digest"]


def test_only_what_passes_the_gate_is_a_candidate(story: dict[str, Chapter]) -> None:
    """A policy of random weights passes no gate, so none of its versions is offered for review."""
    for name, chapter in story.items():
        assert chapter.summary["gate"]["outcome"] == "fail"
        assert not any("candidate" in aliases for aliases in chapter.aliases.values()), name


def test_the_champion_is_what_a_candidate_must_not_fall_behind(story: dict[str, Chapter]) -> None:
    """Once the registry has a champion, it answers the same cases, from verified files, and training stays cached."""
    first, rival = story["first"].summary, story["rival"].summary
    assert "champion" not in first["models"]
    assert rival["models"][0] == "base"
    assert rival["models"][-1] == "tuned"
    assert "champion" in rival["models"]
    # Version 1 holds the very weights that were trained again.
    assert rival["champion"] == rival["tuned"]
    client = _client(story["rival"].config)
    compared = [
        client.get_model_version(model["name"], str(model["version"])).tags["medgrpo.compared_with"]
        for model in (first["model"], rival["model"])
    ]
    assert compared == ["none", first["model"]["digest"]]
    assert _cached(rival)["train"]
    assert not _cached(rival)["evaluate"]


def test_the_training_metrics_are_in_mlflow(story: dict[str, Chapter]) -> None:
    """Every step of metrics.jsonl is a point in MLflow, and so is the evaluation with its interval."""
    first = story["first"]
    client, run = _client(first.config), first.summary["mlflow_run_id"]
    rows = _metrics(first.directory / "train")
    for phase in ("warmup", "grpo"):
        steps = [row["step"] for row in rows if row["phase"] == phase]
        assert steps
        assert [point.step for point in client.get_metric_history(run, f"{phase}/loss")] == steps
    logged = client.get_run(run).data.metrics
    accuracy = first.summary["tuned"]["accuracy"]
    assert logged["eval/tuned/accuracy"] == accuracy["value"]
    assert logged["eval/tuned/accuracy_low"] == accuracy["low"]


def test_the_registered_model_gives_the_evaluated_answers(
    story: dict[str, Chapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version loaded from the registry answers 20 cases with the verdicts and thoughts of predictions.jsonl."""
    import mlflow.pyfunc

    newest = story["deleted"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", resolve_mlflow_uri(newest.config))
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = newest.summary["model"]
    reader = mlflow.pyfunc.load_model(f"models:/{model['name']}/{model['version']}")
    lines = (newest.directory / "evaluation" / "predictions.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    served = reader.predict([{"question": case["question"], "contexts": case["contexts"]} for case in cases])
    evaluated = [{key: case["answers"]["tuned"][key] for key in ("verdict", "thought")} for case in cases]
    assert len(evaluated) == 20
    assert [{key: row[key] for key in ("verdict", "thought")} for row in served] == evaluated


# --- MLflow is away


@dataclass
class Outage:
    """A run while MLflow is away, and the same run after it is back."""

    away: RunConfig
    back: RunConfig
    error: ServiceUnreachable
    files: set[str]
    gate: str
    answers: dict[str, bytes]
    summary: Summary


def _answers(config: RunConfig) -> dict[str, bytes]:
    """The kept answers, file by file."""
    return {path.name: path.read_bytes() for path in config.runs_dir.glob(".artifacts/answers-*/*.jsonl")}


@pytest.fixture(scope="module")
def outage(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Outage:
    """Training and evaluation without MLflow; then the same settings with a store that works."""
    directory = tmp_path_factory.mktemp("outage")
    away = tiny_config(directory, name="night", tracking={"uri": "http://127.0.0.1:9"})
    back = tiny_config(directory, name="night")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fetch_champion", "register"):
            patch.setattr(module, name, getattr(module, name).with_options(retry_delay_seconds=0))
        with pytest.raises(ServiceUnreachable) as caught:
            train_medgrpo(away)
    directory = away.runs_dir / "night"
    files, gate = {path.name for path in directory.iterdir()}, (directory / "evaluation" / "gate.json").read_text()
    return Outage(away, back, caught.value, files, gate, _answers(away), train_medgrpo(back))


def test_an_outage_is_a_sentence(outage: Outage) -> None:
    """The run ends with where MLflow was expected, why it is not there, and what to do."""
    text = str(outage.error)
    assert "MLflow at http://127.0.0.1:9 did not answer (Connection refused)" in text
    assert "then run again: finished stages are reused and metrics catch up" in text


def test_an_outage_costs_no_results(outage: Outage) -> None:
    """Training, evaluation and report are there although nothing could be registered."""
    assert outage.files == {"config.json", "data", "audit", "train", "evaluation", "report.html"}


def test_during_an_outage_the_champion_is_not_known(outage: Outage) -> None:
    """What was evaluated without asking for a champion says so, and claims nothing about it."""
    gate = json.loads(outage.gate)
    [check] = [check for check in gate["checks"] if check["name"] == "not worse than champion"]
    assert check["outcome"] == "not enough evidence"
    assert "MLflow at http://127.0.0.1:9 did not answer" in check["reason"]


def test_after_an_outage_nothing_is_trained_or_asked_again(outage: Outage) -> None:
    """With MLflow back, the run reuses training and answers, judges with the champion known, and registers once."""
    assert _cached(outage.summary) == {
        "prepare": True,
        "audit": True,
        "train": True,
        "evaluate": False,
        "register": False,
    }
    assert _answers(outage.back) == outage.answers
    assert _versions(outage.back) == [1]
    assert [run.info.run_id for run in _runs(outage.back)] == [outage.summary["mlflow_run_id"]]


def test_after_an_outage_the_metrics_catch_up(outage: Outage) -> None:
    """Every step that was trained during the outage is in MLflow afterwards."""
    rows = _metrics(outage.back.runs_dir / "night" / "train")
    steps = [row["step"] for row in rows if row["phase"] == "grpo"]
    history = _client(outage.back).get_metric_history(outage.summary["mlflow_run_id"], "grpo/reward")
    assert steps == [1, 2]
    assert [point.step for point in history] == steps


# --- SIGKILL

# Without its flow a training works for another second, about fifty of these steps.
KILLED_STEPS = 120


def _long_config(directory: Path) -> RunConfig:
    """A training long enough to be killed in its middle."""
    return tiny_config(directory, name="killed", grpo={"steps": KILLED_STEPS, "save_steps": 2})


def _trainings(runs: Path) -> list[psutil.Process]:
    """The training processes that work in a runs directory."""
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "medgrpo.training" in command and any(part.startswith(str(runs)) for part in command):
            found.append(process)
    return found


def _wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{what} did not come within {WAIT_SECONDS} s")


# --- a run that starts from another's adapter


@pytest.fixture(scope="module")
def line(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Summary]:
    """A run; one that goes on from its directory, without a warm-up; one that goes on from its registered version."""
    directory = tmp_path_factory.mktemp("line")
    first = train_medgrpo(tiny_config(directory, name="first"))
    version = f"models:/medgrpo-synthetic/{first['model']['version']}"
    grpo_alone, warmed = {"enabled": False}, {"enabled": True}
    return {"first": first} | {
        name: train_medgrpo(tiny_config(directory, name=name, policy={"start_from": source}, warmup=warmup))
        for name, source, warmup in (
            ("second", str(directory / "runs" / "first"), grpo_alone),
            ("again", str(directory / "runs" / "first"), grpo_alone),
            ("third", version, warmed),
        )
    }


def test_a_run_goes_on_from_another(line: dict[str, Summary]) -> None:
    """The summary, its page and the registry name where the adapter came from; the base is asked as ever."""
    from medgrpo.runs import summary_markdown

    [first, second, third] = (line[name] for name in ("first", "second", "third"))
    assert first["started_from"] is None
    assert second["started_from"]["source"] == "run first"
    assert third["started_from"]["source"] == "models:/medgrpo-synthetic/1"
    assert second["started_from"]["digest"] == third["started_from"]["digest"]
    assert "Its training went on from the adapter of models:/medgrpo-synthetic/1" in summary_markdown(third)
    assert first["base"] == second["base"] == third["base"]
    assert (second["models"], third["models"]) == (["base", "tuned"], ["base", "warmup", "tuned"])
    # This policy earns nothing, so GRPO alone leaves it where it started; a second warm-up moves it.
    assert second["model"]["digest"] == first["model"]["digest"] != third["model"]["digest"]


def test_the_same_start_is_a_cache_hit(line: dict[str, Summary]) -> None:
    """The same run from the same adapter finds the training that was made; from another it does not."""
    assert _cached(line["again"]) == dict.fromkeys(_cached(line["first"]), True)
    assert not _cached(line["second"])["train"]
    assert not _cached(line["third"])["train"]
    assert _cached(line["third"])["prepare"]


@dataclass
class Halfway:
    """What a training had done before it was killed."""

    rows: list[dict[str, Any]]
    checkpoint: int
    mlflow_run: str


def _stopped_halfway(runs: Path) -> psutil.Process:
    """Wait until a training has written a whole checkpoint of GRPO, and stop it there; returns its process."""
    _wait_for(lambda: list(runs.glob(".artifacts/train-*.partial/grpo/checkpoint-*/complete")), "a checkpoint")
    [process] = _trainings(runs)
    process.suspend()
    _wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "the stop")
    return process


def _halfway(runs: Path) -> Halfway:
    """What a training that is stopped or gone has done so far."""
    [directory] = runs.glob(".artifacts/train-*.partial")
    checkpoints = [int(path.parent.name.split("-")[1]) for path in directory.glob("grpo/checkpoint-*/complete")]
    run = json.loads((directory / "mlflow_run.json").read_text())["run_id"]
    return Halfway(_metrics(directory), max(checkpoints), run)


def _assert_resumed(config: RunConfig, summary: Summary, halfway: Halfway) -> None:
    """The finished training kept the steps it had, did each later one, and is one MLflow run and one version."""
    rows = _metrics(config.runs_dir / "killed" / "train")
    assert 0 < halfway.checkpoint < KILLED_STEPS, "the training was not killed in its middle"
    kept = [row for row in halfway.rows if row["phase"] == "warmup" or row["step"] <= halfway.checkpoint]
    assert rows[: len(kept)] == kept
    again = [row for row in rows if row["phase"] == "grpo" and row not in halfway.rows]
    assert [row["step"] for row in again] == list(range(halfway.checkpoint + 1, KILLED_STEPS + 1))
    assert sum(row["phase"] == "warmup" for row in rows) == sum(row["phase"] == "warmup" for row in kept)
    assert summary["mlflow_run_id"] == halfway.mlflow_run
    assert [run.info.run_id for run in _runs(config)] == [halfway.mlflow_run]
    assert _versions(config) == [1]
    history = _client(config).get_metric_history(halfway.mlflow_run, "grpo/loss")
    assert {point.step for point in history} == set(range(1, KILLED_STEPS + 1))


def test_a_killed_training_is_retried_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training process killed with SIGKILL is started again by Prefect's retry, from its last whole checkpoint."""
    config = _long_config(tmp_path)
    killed: list[Halfway] = []

    def kill() -> None:
        process = _stopped_halfway(config.runs_dir)
        killed.append(_halfway(config.runs_dir))
        process.kill()

    monkeypatch.setattr(module, "train", module.train.with_options(retry_delay_seconds=0))
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    summary = train_medgrpo(config)
    thread.join()
    _assert_resumed(config, summary, killed[0])


@pytest.fixture
def command(tmp_path: Path, prefect_server: None) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the flow in a process of its own, from a profile file; what is left of it is ended."""
    from prefect.settings import PREFECT_API_URL

    profile = tmp_path / "killed.toml"
    profile.write_text(_toml(_long_config(tmp_path).model_dump(mode="json", exclude_none=True)))
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.train_medgrpo", str(profile)],
            cwd=ROOT,
            env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _toml(values: dict[str, Any]) -> str:
    """Settings as TOML; JSON's strings, numbers and truth values are TOML's."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    tables = [f"\n[{key}]\n{_toml(value)}" for key, value in values.items() if isinstance(value, dict)]
    return "\n".join([*plain, *tables])


def test_a_killed_flow_goes_on_when_it_is_run_again(
    tmp_path: Path, command: Callable[[], subprocess.Popen[str]]
) -> None:
    """After SIGKILL of the whole flow, the same command finishes the same training in the same MLflow run."""
    config = _long_config(tmp_path)
    flow = command()
    process = _stopped_halfway(config.runs_dir)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    process.resume()
    gone, _ = psutil.wait_procs([process], timeout=30)
    assert gone == [process], "the training went on without the flow that follows it"
    assert not _trainings(config.runs_dir)
    halfway = _halfway(config.runs_dir)
    done = command()
    output, errors = done.communicate(timeout=2 * WAIT_SECONDS)
    assert done.returncode == 0, errors
    assert "Registered as medgrpo-synthetic version 1 (no alias)." in output
    summary = json.loads((config.runs_dir / "killed" / "summary.json").read_text())
    _assert_resumed(config, summary, halfway)
