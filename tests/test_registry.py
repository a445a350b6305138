"""The MLflow side of a run: runs that survive kills, metrics that survive outages, versions that are never doubled."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from medgrpo import registry, serving
from medgrpo.config import EvaluationConfig, GrpoConfig, RunConfig, TrackingConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.evaluation import generate
from medgrpo.manifests import describe, write_json
from medgrpo.rewards.audit import audit
from medgrpo.testing import tiny_record

# Emitted by third parties while MLflow is imported and its store is opened, whoever imports it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*``noload`` loader strategy is deprecated:DeprecationWarning"),
]

RESULT = {"value": 0.62, "low": 0.55, "high": 0.69, "n": 200}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables; creating them takes longer than a test."""
    runs = tmp_path_factory.mktemp("template")
    registry.connect(RunConfig(runs_dir=runs))
    return runs / "mlflow.db"


@pytest.fixture
def config(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(empty_store, runs / "mlflow.db")
    return RunConfig(name="night", profile="demo", runs_dir=runs)


@pytest.fixture
def candidate(config: RunConfig, tmp_path: Path) -> registry.Candidate:
    """Small stand-ins for every directory; registering never loads the model."""
    train, model, data, evaluation = (tmp_path / name for name in ("train", "model", "data", "evaluation"))
    write_json(train / "x.json", {})
    write_json(model / "config.json", {"model_type": "llama"})
    counts = {split: {"yes": 3, "no": 2, "maybe": 1} for split in ("train", "dev", "test")}
    digests = {split: split[0] * 64 for split in counts}
    write_json(data / "data.json", {"digests": digests, "domain": "synthetic", "synthetic": True, "counts": counts})
    write_json(evaluation / "metrics.json", {"models": {"base": {"accuracy": RESULT}, "tuned": {"accuracy": RESULT}}})
    write_json(evaluation / "predictions.json", {"1": "yes"})
    (evaluation / "report.html").write_text("<p>report</p>")
    (evaluation / "plots").mkdir()
    (evaluation / "plots" / "reward.png").write_bytes(b"png")
    (train / "metrics.jsonl").write_text(_row(1) + _row(2))
    records = [tiny_record(), tiny_record("2")]
    write_json(tmp_path / "audit" / "audit.json", asdict(audit(records, config.rewards)))
    return registry.Candidate(
        config=config,
        train_dir=train,
        model_dir=model,
        data_dir=data,
        evaluation_dir=evaluation,
        audit_dir=tmp_path / "audit",
        model_digest="d" * 64,
        git_commit="c" * 40,
        tags={"medgrpo.flow_run": "flow-1"},
    )


def _row(step: int, **values: object) -> str:
    return json.dumps({"phase": "grpo", "step": step, "time": 1000.0 + step, "reward": step / 10, **values}) + "\n"


def _alarmed(step: int, *names: str) -> str:
    return _row(step, alarms={name: f"{name} rings." for name in names}, **{"watch/alarms": len(names)})


def _history(config: RunConfig, run_id: str, key: str) -> list[tuple[int, float]]:
    points = registry.connect(config).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def test_importing_it_does_not_import_mlflow_or_torch() -> None:
    """Importing registry and serving costs neither MLflow nor torch."""
    code = "import sys, medgrpo.registry, medgrpo.serving; print({'mlflow', 'torch', 'pandas'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


# --- connection


def test_a_server_that_is_down_is_a_sentence_within_seconds() -> None:
    """A refused connection raises ServiceUnreachable quickly, names the server, and puts the environment back."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_HTTP")}
    config = RunConfig(tracking=TrackingConfig(uri="http://me:secret@127.0.0.1:9"))
    start = time.monotonic()
    with pytest.raises(ServiceUnreachable, match=r"MLflow at http://127.0.0.1:9 did not answer \(Connection refused\)"):
        registry.connect(config)
    assert time.monotonic() - start < 10
    assert {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_HTTP")} == before


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_is_given_up() -> None:
    """A server that hangs is given up after about ten seconds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = RunConfig(tracking=TrackingConfig(uri=f"http://127.0.0.1:{server.getsockname()[1]}"))
        start = time.monotonic()
        with pytest.raises(ServiceUnreachable, match="timed out"):
            registry.connect(config)
        assert time.monotonic() - start < 12


def test_a_database_server_that_is_down_is_found_before_mlflow_waits_for_it() -> None:
    """MLflow would retry an unreachable database for minutes; the port is tried first."""
    config = RunConfig(tracking=TrackingConfig(uri="postgresql://me:secret@127.0.0.1:9/mlflow"))
    with pytest.raises(ServiceUnreachable, match=r"postgresql://127.0.0.1:9/mlflow did not answer"):
        registry.connect(config)


def test_a_file_that_is_no_database_is_an_input_error(tmp_path: Path) -> None:
    """A tracking.uri that names a file of another kind is refused at once."""
    (tmp_path / "notes.db").write_text("no database at all, only a long enough line of text")
    config = RunConfig(tracking=TrackingConfig(uri=f"sqlite:///{tmp_path / 'notes.db'}"))
    with pytest.raises(InputError, match=r"notes\.db cannot be used as an SQLite database"):
        registry.connect(config)


def test_a_file_store_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """MLflow's retired file store gives MLflow's own advice, not a traceback."""
    with pytest.raises(InputError, match="maintenance mode"):
        registry.connect(RunConfig(tracking=TrackingConfig(uri=str(tmp_path / "mlruns"))))


# --- runs


def test_a_killed_training_goes_on_in_the_same_run(config: RunConfig, tmp_path: Path) -> None:
    """A second open_run on the same training directory continues the run, even after it was marked failed."""
    run_id = registry.open_run(config, tmp_path, {"medgrpo.flow_run": "a"})
    registry.fail_run(config, run_id, "out of memory")
    client = registry.connect(config)
    failed = client.get_run(run_id)
    assert (failed.info.status, failed.data.tags["medgrpo.failure"]) == ("FAILED", "out of memory")
    assert registry.open_run(config, tmp_path, {"medgrpo.flow_run": "b"}) == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name, run.data.tags["medgrpo.flow_run"]) == ("RUNNING", "night", "b")
    assert run.data.params["grpo.steps"] == str(config.grpo.steps)
    assert run.info.artifact_uri.startswith((config.runs_dir / "mlartifacts").as_uri())


def test_a_cached_training_whose_run_has_a_version_gets_one_new_run(config: RunConfig, tmp_path: Path) -> None:
    """The new run names the training's run in a tag, and a retry finds it again."""
    first = registry.open_run(config, tmp_path, {})
    registry.connect(config).set_tag(first, registry.VERSION_TAG, "1")
    second = registry.open_run(config, tmp_path, {})
    assert second != first
    assert registry.connect(config).get_run(second).data.tags[registry.TRAINING_RUN_TAG] == first
    assert registry.open_run(config, tmp_path, {}) == second
    assert json.loads((tmp_path / registry.RUN_FILE).read_text())["run_id"] == first


def test_a_run_of_another_store_is_not_continued(config: RunConfig, tmp_path: Path) -> None:
    """A training directory copied from elsewhere opens a run here."""
    write_json(tmp_path / registry.RUN_FILE, {"run_id": "abc", "uri": "http://elsewhere"})
    run_id = registry.open_run(config, tmp_path, {})
    assert registry.connect(config).get_run(run_id).data.tags[registry.TRAINING_RUN_TAG] == "abc"


def test_a_published_directory_is_left_as_it_is(config: RunConfig, tmp_path: Path) -> None:
    """Nothing is added to a directory with a manifest; a retry still finds the same run."""
    train = tmp_path / "train"
    write_json(train / "weights.json", {})
    write_json(train / "manifest.json", describe(train).model_dump())
    run_id = registry.open_run(config, train, {})
    assert not (train / registry.RUN_FILE).exists()
    assert registry.open_run(config, train, {}) == run_id


def test_a_deleted_experiment_is_named(config: RunConfig, tmp_path: Path) -> None:
    """A deleted experiment gives the command that restores it."""
    registry.open_run(config, tmp_path, {})
    client = registry.connect(config)
    client.delete_experiment(client.get_experiment_by_name("medgrpo").experiment_id)
    with pytest.raises(InputError, match="mlflow experiments restore"):
        registry.open_run(config, tmp_path, {})


# --- metrics


def test_only_finite_numbers_become_points(config: RunConfig, tmp_path: Path) -> None:
    """Texts, booleans, NaN and infinities are left out; the rest is filed under phase/key at its step."""
    run_id = registry.open_run(config, tmp_path, {})
    row = {"phase": "grpo", "step": 3, "time": 7.5, "loss": 0, "nan": math.nan, "inf": math.inf, "on": True, "why": "x"}
    registry.log_metric_rows(config, run_id, [row, {**row, "step": 4, "a(b)": 1.5}])
    run = registry.connect(config).get_run(run_id)
    assert run.data.metrics == {"grpo/loss": 0.0, "grpo/a_b_": 1.5}
    assert _history(config, run_id, "grpo/loss") == [(3, 0.0), (4, 0.0)]


def test_more_points_than_one_batch_holds_are_logged(config: RunConfig, tmp_path: Path) -> None:
    """MLflow's limit of 1000 metrics per call does not lose any."""
    run_id = registry.open_run(config, tmp_path, {})
    registry.log_metric_rows(config, run_id, [json.loads(_row(step, other=1)) for step in range(600)])
    assert len(_history(config, run_id, "grpo/reward")) == 600


def test_syncing_sends_each_row_once_and_waits_for_half_a_line(config: RunConfig, tmp_path: Path) -> None:
    """Rows go out once, a line still being written waits, and a torn line does not stop what follows it."""
    metrics, state = tmp_path / "metrics.jsonl", tmp_path / "state.json"
    run_id = registry.open_run(config, tmp_path, {})
    metrics.write_text(_row(1) + _row(2) + _row(3)[:20])
    assert registry.sync_metrics(config, run_id, metrics, state) == 2
    assert registry.sync_metrics(config, run_id, metrics, state) == 0
    with metrics.open("a") as stream:
        stream.write("\n" + _row(3))
    assert registry.sync_metrics(config, run_id, metrics, state) == 1
    assert _history(config, run_id, "grpo/reward") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_syncing_starts_over_for_another_run_or_a_file_cut_back(config: RunConfig, tmp_path: Path) -> None:
    """The state of another run does not count, and a file that was cut back is read from its start."""
    metrics, state = tmp_path / "metrics.jsonl", tmp_path / "state.json"
    first, second = (registry.open_run(config, tmp_path / name, {}) for name in ("a", "b"))
    metrics.write_text(_row(1) + _row(2))
    assert registry.sync_metrics(config, first, metrics, state) == 2
    assert registry.sync_metrics(config, second, metrics, state) == 2
    metrics.write_text(_row(1))
    assert registry.sync_metrics(config, second, metrics, state) == 1
    assert _history(config, second, "grpo/reward") == [(1, 0.1), (2, 0.2)]


def test_an_outage_loses_no_row(config: RunConfig, tmp_path: Path) -> None:
    """While MLflow is away, syncing raises and keeps its place; afterwards it catches up."""
    metrics, state = tmp_path / "metrics.jsonl", tmp_path / "state.json"
    run_id = registry.open_run(config, tmp_path, {})
    metrics.write_text(_row(1))
    assert registry.sync_metrics(config, run_id, metrics, state) == 1
    metrics.write_text(_row(1) + _row(2))
    away = config.model_copy(update={"tracking": TrackingConfig(uri="http://127.0.0.1:9")})
    with pytest.raises(ServiceUnreachable):
        registry.sync_metrics(away, run_id, metrics, state)
    assert registry.sync_metrics(config, run_id, metrics, state) == 1


# --- registration


def test_registering_leaves_a_complete_version(candidate: registry.Candidate) -> None:
    """The version has card, tags and alias; the run has metrics, inputs, artifacts, and is finished."""
    config = candidate.config
    run_id = registry.open_run(config, candidate.train_dir, {})
    done = registry.register(candidate)
    assert done == registry.Registration(
        "medgrpo-synthetic", 1, run_id, "models:/medgrpo-synthetic/1", "d" * 64, ("candidate",)
    )
    client = registry.connect(config)
    version = client.get_model_version("medgrpo-synthetic", "1")
    assert version.tags["medgrpo.synthetic"] == "true"
    assert version.tags["medgrpo.flow_run"] == "flow-1"
    assert version.tags["medgrpo.git_commit"] == "c" * 40
    assert version.tags["medgrpo.alarms"] == "none"
    for phrase in ("Not medical advice", "**synthetic**", "| tuned | accuracy | 0.620 | 0.550 to 0.690 | 200 |"):
        assert phrase in version.description
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[registry.VERSION_TAG] == "1"
    assert run.data.metrics["grpo/reward"] == 0.2
    assert run.data.metrics["eval/tuned/accuracy_low"] == 0.55
    inputs = {
        item.dataset.name: {tag.key: tag.value for tag in item.tags} | {"digest": item.dataset.digest}
        for item in run.inputs.dataset_inputs
    }
    assert inputs == {
        f"synthetic-{split}": {"mlflow.data.context": context, "medgrpo.sha256": "t" * 64, "digest": "t" * 32}
        for split, context in (("train", "training"), ("test", "evaluation"))
    }
    names = {item.path for item in client.list_artifacts(run_id)}
    assert names >= {"config.json", "report.html", "predictions.json", "metrics.json", "audit.json", "plots"}
    attacks = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert attacks == [{"path": "audit.json", "type": "table"}]


def test_alarms_of_the_training_reach_the_registry(candidate: registry.Candidate) -> None:
    """Run and version are tagged with the alarms' names, what they said is an artifact, their number a curve."""
    run_id = registry.open_run(candidate.config, candidate.train_dir, {})
    with (candidate.train_dir / "metrics.jsonl").open("a") as stream:
        stream.write(_alarmed(3, "kl") + _alarmed(4, "kl", "length"))
    done = registry.register(candidate)
    client = registry.connect(candidate.config)
    run = client.get_run(run_id)
    assert client.get_model_version(done.name, str(done.version)).tags["medgrpo.alarms"] == "kl, length"
    assert run.data.tags["medgrpo.alarms"] == "kl, length"
    assert _history(candidate.config, run_id, "grpo/watch/alarms") == [(3, 1.0), (4, 2.0)]
    said = json.loads(Path(client.download_artifacts(run_id, "alarms.json")).read_text())
    assert [(alarm["name"], alarm["first"], alarm["last"]) for alarm in said] == [("kl", 3, 4), ("length", 4, 4)]


def test_registering_again_returns_the_same_version(candidate: registry.Candidate) -> None:
    """Neither a retry nor a second training that came to the same model makes another version or moves the alias."""
    first = registry.register(candidate)
    client = registry.connect(candidate.config)
    client.set_registered_model_alias(first.name, "champion", "1")
    client.delete_registered_model_alias(first.name, "candidate")
    second_training = candidate.train_dir.with_name("train-2")
    second_training.mkdir()
    run_id = registry.open_run(candidate.config, second_training, {})
    again = registry.register(replace(candidate, train_dir=second_training))
    assert again == replace(first, aliases=("champion",))
    assert len(client.search_model_versions(f"name = '{first.name}'")) == 1
    repeated = client.get_run(run_id)
    assert (repeated.info.status, repeated.data.tags[registry.VERSION_TAG]) == ("FINISHED", "1")


def test_a_new_evaluation_of_a_cached_training_is_a_new_version(candidate: registry.Candidate) -> None:
    """The same model with other results is version 2 in a run of its own, and the alias moves to it."""
    first = registry.register(candidate)
    write_json(candidate.evaluation_dir / "metrics.json", {"models": {"tuned": {"accuracy": RESULT}}})
    second = registry.register(candidate)
    assert (second.version, second.aliases) == (2, ("candidate",))
    client = registry.connect(candidate.config)
    assert client.get_run(second.run_id).data.tags[registry.TRAINING_RUN_TAG] == first.run_id
    assert list(client.get_model_version(first.name, "1").aliases) == []


@pytest.mark.parametrize(
    "step", ["log_model_artifacts", "create_model_version", "set_registered_model_alias", "set_tag"]
)
def test_a_registration_cut_short_is_completed(
    candidate: registry.Candidate, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever call a crash comes in, the retry ends with one version, one uploaded model and a tagged run."""
    from mlflow import MlflowClient

    class Killed(BaseException):
        pass

    real = getattr(MlflowClient, step)

    def die(self: MlflowClient, *args: object, **kwargs: object) -> object:
        if step == "set_tag" and registry.VERSION_TAG not in args:
            return real(self, *args, **kwargs)
        if step == "create_model_version":
            real(self, *args, **kwargs)
        raise Killed

    run_id = registry.open_run(candidate.config, candidate.train_dir, {})
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, die)
        with pytest.raises(Killed):
            registry.register(candidate)
    done = registry.register(candidate)
    assert (done.version, done.run_id, done.aliases) == (1, run_id, ("candidate",))
    client = registry.connect(candidate.config)
    experiment = client.get_experiment_by_name("medgrpo").experiment_id
    assert len(client.search_logged_models([experiment])) == 1
    assert len(client.search_model_versions()) == 1
    assert client.get_run(run_id).info.status == "FINISHED"


def test_real_data_keeps_the_plain_name(candidate: registry.Candidate) -> None:
    """Only synthetic runs get the suffix, and their card says so."""
    write_json(
        candidate.data_dir / "data.json",
        {"digests": {"train": "a" * 64, "dev": "b" * 64}, "domain": "pubmedqa", "synthetic": False}
        | {"counts": {"train": 450, "dev": 50}},
    )
    config = candidate.config.model_copy(update={"evaluation": EvaluationConfig(split="dev")})
    done = registry.register(replace(candidate, config=config, git_commit=None))
    version = registry.connect(config).get_model_version(done.name, "1")
    assert done.name == "medgrpo"
    assert "synthetic" not in version.description
    assert "medgrpo.git_commit" not in version.tags


@pytest.mark.parametrize("alias", ["latest", "v2"])
def test_a_reserved_alias_is_refused_before_anything_is_uploaded(candidate: registry.Candidate, alias: str) -> None:
    """MLflow refuses some aliases, which would come after the upload."""
    config = candidate.config.model_copy(update={"tracking": TrackingConfig(alias=alias)})
    with pytest.raises(InputError, match=r"tracking\.alias"):
        registry.register(replace(candidate, config=config))


@pytest.mark.parametrize("name", ["metrics.json", "report.html", "predictions.json"])
def test_a_missing_result_is_named(candidate: registry.Candidate, name: str) -> None:
    """A model is not registered without its evaluation."""
    (candidate.evaluation_dir / name).unlink()
    with pytest.raises(InputError, match=name):
        registry.register(candidate)


# --- serving


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"contexts": ["a"]}, "'question' is None"),
        ({"question": " ", "contexts": ["a"]}, "'question' is ' '"),
        ({"question": "q", "contexts": []}, r"'contexts' is \[\]"),
        ({"question": "q", "contexts": "one string"}, "'contexts' is 'one string'"),
        ({"question": "q", "contexts": ["a", None]}, "'contexts' is"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, object], found: str) -> None:
    """A row that is no question with an abstract is refused with its number."""
    with pytest.raises(InputError, match=f"^row 2: {found}"):
        serving.answer(None, None, [serving.INPUT_EXAMPLE[0], row], max_new_tokens=4)


def test_answers_are_parsed_as_in_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdict and thought come from the shared parser, and an unreadable answer has no verdict."""
    texts = ["<thought>Fell.</thought><answer>yes</answer>", "mumble"]
    monkeypatch.setattr(
        generate, "generate", lambda *arguments: [generate.Generation(text, 1) for text in texts[: len(arguments[2])]]
    )
    assert serving.answer(None, None, serving.INPUT_EXAMPLE * 2, max_new_tokens=4) == [
        {"verdict": "yes", "thought": "Fell."},
        {"verdict": None, "thought": ""},
    ]


SERVE = """
import json, sys
import mlflow
sys.path[:] = [entry for entry in sys.path if entry != sys.argv[3]]
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import medgrpo
from mlflow.pyfunc.scoring_server import invocations
rows = json.loads(sys.stdin.read())
request = json.dumps({"inputs": rows})
served = invocations(request, "application/json", model, model.metadata.get_input_schema())
try:
    model.predict([{"question": "q", "contexts": []}])
except mlflow.MlflowException as error:
    refusal = [error.error_code, error.message]
else:
    refusal = []
result = {"code": medgrpo.__file__, "predicted": model.predict(rows), "served": json.loads(served.response)}
print(json.dumps({**result, "refusal": refusal}))
"""


@pytest.mark.slow
def test_a_version_answers_where_medgrpo_is_not_installed(
    candidate: registry.Candidate, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Loaded in another directory from its own copy of the code, a version answers what the library answers."""
    from medgrpo.policies import load_model

    model_dir = _tiny_policy(tmp_path / "policy")
    config = candidate.config.model_copy(update={"grpo": GrpoConfig(max_completion_length=6)})
    done = registry.register(replace(candidate, config=config, model_dir=model_dir))
    rows = [*serving.INPUT_EXAMPLE, {"question": "Is it so?", "contexts": ["It fell (p=0.01)."]}]
    project = str(Path(serving.__file__).parents[1])
    command = [sys.executable, "-P", "-c", SERVE, f"sqlite:///{config.runs_dir}/mlflow.db", done.uri, project]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command,
        input=json.dumps(rows),
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["code"].startswith(str(config.runs_dir / "mlartifacts"))
    model, tokenizer = load_model(model_dir)
    expected = serving.answer(model, tokenizer, rows, max_new_tokens=6)
    assert result["predicted"] == expected
    assert result["served"] == {"predictions": expected}
    assert result["refusal"][0] == "INVALID_PARAMETER_VALUE"
    assert "row 1: 'contexts'" in result["refusal"][1]


# --- a real server


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator["_Server"]:
    shutil.copy(empty_store, tmp_path / "server.db")
    running = _Server(tmp_path)
    yield running
    running.stop()


class _Server:
    """An MLflow server with its own database and artifact store, which can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.directory}/server.db"]
        artifacts = ["--artifacts-destination", str(self.directory / "served")]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *address]
        with (self.directory / "server.log").open("ab") as log:
            # A session of its own: the server starts workers, and all of them have to go.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(120):
            try:
                registry.connect(RunConfig(tracking=TrackingConfig(uri=self.uri)))
            except ServiceUnreachable:
                time.sleep(0.5)
            else:
                return
        pytest.fail((self.directory / "server.log").read_text())

    def stop(self) -> None:
        if self.process:
            os.killpg(self.process.pid, 15)
            self.process.wait(timeout=30)
            self.process = None


@pytest.mark.slow
def test_a_server_that_comes_back_gets_what_it_missed(
    candidate: registry.Candidate, server: _Server, tmp_path: Path
) -> None:
    """Rows written while the server is down arrive once it is up, and a candidate can be registered through it."""
    config = candidate.config.model_copy(update={"tracking": TrackingConfig(uri=server.uri)})
    metrics, state = candidate.train_dir / "metrics.jsonl", candidate.train_dir / "mlflow_sync.json"
    server.start()
    run_id = registry.open_run(config, candidate.train_dir, {})
    assert registry.sync_metrics(config, run_id, metrics, state) == 2
    server.stop()
    with metrics.open("a") as stream:
        stream.write(_row(3))
    with pytest.raises(ServiceUnreachable):
        registry.sync_metrics(config, run_id, metrics, state)
    server.start()
    assert registry.open_run(config, candidate.train_dir, {}) == run_id
    assert registry.sync_metrics(config, run_id, metrics, state) == 1
    assert _history(config, run_id, "grpo/reward") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    done = registry.register(replace(candidate, config=config))
    assert (done.version, done.run_id) == (1, run_id)
    assert registry.register(replace(candidate, config=config)) == done
    assert list((tmp_path / "served").rglob("MLmodel"))


def _tiny_policy(directory: Path) -> Path:
    """A random Llama of a few thousand weights with a word-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<|im_end|>", "<unk>", "<answer>yes</answer>", "<answer>no</answer>", "fell", "rose", "the", "p"]
    words += [chr(code) for code in range(33, 127)]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} <|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(core.get_vocab()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(settings).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
