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
from dataclasses import replace
from pathlib import Path

import pytest
from services import MlflowServer

from medgrpo import registry
from medgrpo.config import EMBEDDED_MODEL, EvaluationConfig, PolicyConfig, RetrainConfig, RunConfig, TrackingConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import describe, write_json
from medgrpo.registry.candidate import read_evidence
from medgrpo.registry.card import hub_card
from medgrpo.registry.evidence import REASON_TAG, version_tags
from medgrpo.registry.facts import base_licence, data_digest, gather
from medgrpo.registry.lookup import trained_on

# Emitted by third parties while MLflow is imported and its store is opened, whoever imports it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*``noload`` loader strategy is deprecated:DeprecationWarning"),
]

RESULT = {"value": 0.62, "low": 0.55, "high": 0.69, "n": 200}
HOLDS = {"name": "no leaks", "outcome": "pass", "reason": "None was found."}
FAILED = {"name": "better than base", "outcome": "fail", "reason": "It is no better."}
LACKING = {**FAILED, "outcome": "not enough evidence", "reason": "50 cases show too little."}


@pytest.fixture
def config(candidate: registry.Candidate) -> RunConfig:
    """Settings that name an empty registry."""
    return candidate.config


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        "medgrpo-synthetic", 1, run_id, "models:/medgrpo-synthetic/1", candidate.model_digest, ("candidate",)
    )
    client = registry.connect(config)
    version = client.get_model_version("medgrpo-synthetic", "1")
    assert version.tags["medgrpo.synthetic"] == "true"
    assert version.tags["medgrpo.flow_run"] == "flow-1"
    assert version.tags["medgrpo.git_commit"] == "c" * 40
    assert version.tags["medgrpo.alarms"] == "none"
    assert version.tags["medgrpo.gate"] == "pass"
    assert version.tags["medgrpo.compared_with"] == "none"
    assert version.tags["medgrpo.gate_reasons"] == "better than base: It is better.\nno leaks: None was found."
    assert (version.tags["medgrpo.base"], version.tags["medgrpo.base_licence"]) == (EMBEDDED_MODEL, "apache-2.0")
    assert version.tags["medgrpo.cpu_hours"] == "1.5000"
    assert "medgrpo.gpu_hours" not in version.tags
    assert "medgrpo.cost" not in version.tags
    assert {len(version.tags[f"medgrpo.{name}_digest"]) for name in ("data", "config", "evaluation", "files")} == {64}
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
    assert names >= {"model_card.md", "gate.json", "adapter"}
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


@pytest.mark.parametrize(
    ("gate", "outcome", "reasons"),
    [
        (None, "not evaluated", None),
        ({"outcome": "fail", "checks": [FAILED, HOLDS]}, "fail", "better than base: It is no better."),
        (
            {"outcome": "not enough evidence", "checks": [LACKING, HOLDS]},
            "not enough evidence",
            "better than base: 50 cases show too little.",
        ),
    ],
)
def test_the_gates_judgement_is_tagged(
    candidate: registry.Candidate, gate: dict[str, object] | None, outcome: str, reasons: str | None
) -> None:
    """Tags and card name the outcome and the checks that decided it."""
    evidence = read_evidence(replace(candidate, gate=gate))
    tags, card = version_tags(evidence), registry.model_card(evidence)
    assert (tags["medgrpo.gate"], tags.get("medgrpo.gate_reasons")) == (outcome, reasons)
    assert f"**{outcome}**" in card
    assert (reasons or "no gate judged").rpartition(": ")[2] in card


@pytest.mark.slow
@pytest.mark.parametrize("gate", [None, {"outcome": "fail", "checks": [FAILED]}])
def test_only_what_passes_the_gate_becomes_the_candidate(
    candidate: registry.Candidate, gate: dict[str, object] | None
) -> None:
    """Any other outcome is a version without the alias, which stays with the version that passed before."""
    passed = registry.register(candidate)
    other = registry.register(replace(candidate, gate=gate))
    assert (other.version, other.aliases) == (2, ())
    client = registry.connect(candidate.config)
    assert int(client.get_model_version_by_alias(other.name, "candidate").version) == passed.version
    assert registry.register(replace(candidate, gate=gate)) == other


def test_a_configured_price_gives_a_cost(candidate: registry.Candidate) -> None:
    """The hours of every process are counted and priced, on a GPU as GPU hours."""
    write_json(candidate.train_dir / "training.json", {"seconds": 5400.0, "device": "cuda"})
    tracking = TrackingConfig(price_per_hour=0.4)
    config = candidate.config.model_copy(update={"tracking": tracking, "processes": 2})
    evidence = read_evidence(replace(candidate, config=config))
    tags = version_tags(evidence)
    assert (tags["medgrpo.gpu_hours"], tags["medgrpo.cost"]) == ("3.0000", "1.2000")
    assert "medgrpo.cpu_hours" not in tags
    assert "3.00 GPU hours, 1.20 at 0.4 an hour" in registry.model_card(evidence)


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


# --- what is known of a candidate


@pytest.mark.parametrize(
    ("front", "licence"),
    [
        ("license: mit", "mit"),
        ("license: other\nlicense_name: llama3.2", "llama3.2"),
        ("license: [mit, gpl]", "unknown"),
        ("license: 'see\nthe file'", "unknown"),
        ("tags: [x", "unknown"),
        ("tags: x", "unknown"),
    ],
)
def test_the_licence_is_read_from_the_base_models_card(tmp_path: Path, front: str, licence: str) -> None:
    """A local base says it in its README's front matter; what cannot be read is unknown."""
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n# Model\n")
    assert base_licence(PolicyConfig(base=str(tmp_path))) == licence


@pytest.mark.parametrize(
    ("base", "licence"),
    [
        ("google/gemma-3-1b-it", "gemma"),
        ("HuggingFaceTB/SmolLM2-360M", "apache-2.0"),
        ("no/such", "unknown"),
        ("./nowhere", "unknown"),
    ],
)
def test_known_bases_have_a_licence_without_their_card(base: str, licence: str) -> None:
    """Where no card is at hand, a few families are known by name, and others are unknown."""
    assert base_licence(PolicyConfig(base=base)) == licence


def test_a_training_without_its_device_has_no_hours(candidate: registry.Candidate) -> None:
    """Trainings that do not say what they ran on get neither hours nor a cost that would be guessed."""
    write_json(candidate.train_dir / "training.json", {"seconds": 5400.0})
    facts = gather(candidate.config, {"digests": {"train": "a"}}, candidate.train_dir)
    assert (facts.device, facts.hours, facts.cost) == (None, None, None)


def test_where_files_go_does_not_change_the_settings_digest(candidate: registry.Candidate) -> None:
    """Two runs of the same settings have one digest, whatever their names or reasons; another seed has another."""
    data = {"digests": {"train": "a"}}
    digests = [
        gather(candidate.config.model_copy(update=change), data, candidate.train_dir).config_digest
        for change in (
            {},
            {"name": "other", "runs_dir": Path("x"), "retrain": RetrainConfig(fresh_cases=99)},
            {"seed": 12},
        )
    ]
    assert digests[0] == digests[1] != digests[2]


# --- the model card


def test_a_card_says_what_a_reader_must_know(candidate: registry.Candidate) -> None:
    """Use, gate with its failed checks, comparisons, probes, duplicates, limits, training and data all stand there."""
    drop = {"value": 0.2, "low": 0.1, "high": 0.3, "n": 50}
    write_json(
        candidate.evaluation_dir / "metrics.json",
        {
            "models": {"tuned": {"accuracy": RESULT, "confusion": {"yes": {"yes": 3}}, "recall": {"no": RESULT}}},
            "comparisons": [{"first": "base", "second": "tuned", "p_value": 0.034, "accuracy_difference": drop}],
            "probes": {"tuned": {"no_abstract": {"drop": drop}}},
            "contamination": {"compared": {"train": 450, "cases": 50}, "pairs": [{}]},
        },
    )
    gate = {"outcome": "fail", "summary": "1 of 2 checks fails.", "checks": [FAILED, HOLDS]}
    card = registry.model_card(read_evidence(replace(candidate, gate=gate)))
    for line in (
        "**fail**: 1 of 2 checks fails.",
        "- better than base (fail): It is no better.",
        "| tuned | recall_no | 0.620 | 0.550 to 0.690 | 200 |",
        "- tuned minus base, accuracy: 20.0% (10.0% to 30.0%); exact McNemar p = 0.034",
        "- tuned, no abstract: accuracy falls by 20.0% (10.0% to 30.0%)",
        "- near-duplicates between 450 training records and 50 cases: 1",
        "- Training took 1.50 CPU hours",
    ):
        assert line in card.splitlines()
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    assert titles == [f"## {name}" for name in ("Intended use", "Gate", "Evaluation", "Limits", "Training", "Data")]
    assert "Not medical advice" in card
    assert "confusion" not in card
    assert "no leaks" not in card


def test_a_short_card_fits_and_says_where_the_rest_is(candidate: registry.Candidate) -> None:
    """However long reasons and results are, a description ends within the limit at a whole line; use stands first."""
    checks = [{**FAILED, "name": f"check {number}", "reason": "It is worse. " * 30} for number in range(40)]
    evidence = read_evidence(replace(candidate, gate={"outcome": "fail", "summary": "", "checks": checks}))
    card = registry.model_card(evidence, 5000)
    assert len(card) <= 5000
    assert card.splitlines()[-1] == "… The rest is in model_card.md among the run's artifacts."
    assert card.splitlines()[-2].endswith("It is worse. ")
    assert "Not medical advice" in card.partition("## Gate")[0]


def test_a_card_for_the_hub_has_front_matter_that_reads_back(candidate: registry.Candidate) -> None:
    """Licence, base model, data set and tags are what the Hub reads, and the card follows."""
    from huggingface_hub import ModelCard

    write_json(
        candidate.data_dir / "data.json",
        {"digests": {"train": "a" * 64}, "domain": "pubmedqa", "synthetic": False, "counts": {"train": 450}},
    )
    card = ModelCard(hub_card(read_evidence(candidate)))
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert card.data.datasets == ["qiaojin/PubMedQA"]
    assert {"medgrpo", "pubmedqa"} <= set(card.data.tags or [])
    assert card.text.lstrip().startswith("# medgrpo\n\n## Intended use")


@pytest.mark.parametrize("alias", ["latest", "v2", "champion", "previous-champion"])
def test_a_reserved_alias_is_refused_before_anything_is_uploaded(candidate: registry.Candidate, alias: str) -> None:
    """MLflow refuses some aliases, which would come after the upload; others are a review's to give."""
    config = candidate.config.model_copy(update={"tracking": TrackingConfig(alias=alias)})
    with pytest.raises(InputError, match=r"tracking\.alias"):
        registry.register(replace(candidate, config=config))


@pytest.mark.parametrize("name", ["metrics.json", "report.html", "predictions.json"])
def test_a_missing_result_is_named(candidate: registry.Candidate, name: str) -> None:
    """A model is not registered without its evaluation."""
    (candidate.evaluation_dir / name).unlink()
    with pytest.raises(InputError, match=name):
        registry.register(candidate)


# --- looking up, downloading, verifying


@pytest.mark.parametrize(
    "text", ["medgrpo", "models:/medgrpo", "models:/medgrpo/latest", "models:/a@b@c", "models:/a/1/x", "runs:/1/model"]
)
def test_what_names_no_version_is_refused(text: str) -> None:
    """A URI without exactly one version or alias gets a sentence with both forms."""
    with pytest.raises(InputError, match=r"models:/NAME/VERSION with a number, or models:/NAME@ALIAS"):
        registry.parse_model_uri(text)


@pytest.mark.slow
def test_the_champion_is_found_once_there_is_one(candidate: registry.Candidate) -> None:
    """No model and no alias both mean no champion; later it is the version that the alias points to."""
    assert registry.find_champion(candidate.config, "synthetic") is None
    done = registry.register(candidate)
    assert registry.find_champion(candidate.config, "synthetic") is None
    client = registry.connect(candidate.config)
    client.set_registered_model_alias(done.name, registry.CHAMPION, "1")
    champion = registry.find_champion(candidate.config, "synthetic")
    assert champion == replace(done, aliases=tuple(sorted({*done.aliases, "champion"})))
    assert registry.find_champion(candidate.config, "pubmedqa") is None


@pytest.mark.slow
def test_versions_are_found_by_their_data(candidate: registry.Candidate) -> None:
    """The versions of a data digest come newest first with their aliases; other data, and another model, have none."""
    config, data = candidate.config, read_evidence(candidate).data
    digest = data_digest(data)
    assert trained_on(config, "synthetic", digest) == []
    first = registry.register(candidate)
    again = registry.register(replace(candidate, champion="a" * 64))
    found = trained_on(config, "synthetic", digest)
    assert [version.version for version in found] == [again.version, first.version]
    assert found[0].aliases == (config.tracking.alias,)
    assert trained_on(config, "synthetic", data_digest({"digests": {**data["digests"], "train": "0" * 64}})) == []
    assert trained_on(config, "pubmedqa", digest) == []


@pytest.mark.slow
def test_the_reason_of_a_training_is_a_tag_of_run_and_version(candidate: registry.Candidate) -> None:
    """Whoever reviews a version reads why it was trained; without a reason there is no such tag."""
    reasoned = replace(candidate, tags={**candidate.tags, REASON_TAG: "The data is new."})
    client, done = registry.connect(candidate.config), registry.register(reasoned)
    assert client.get_model_version(done.name, str(done.version)).tags[REASON_TAG] == "The data is new."
    assert client.get_run(done.run_id).data.tags[REASON_TAG] == "The data is new."
    assert REASON_TAG not in version_tags(read_evidence(candidate))


@pytest.mark.slow
def test_an_unknown_version_is_named_with_those_there_are(candidate: registry.Candidate) -> None:
    """An unknown model, version or alias gets a sentence that lists what the registry holds."""
    client = registry.connect(candidate.config)
    with pytest.raises(InputError, match="holds no registered model 'medgrpo-synthetic'"):
        registry.get_version(client, "medgrpo-synthetic", "1")
    done = registry.register(candidate)
    with pytest.raises(InputError, match=r"no version '2'\. Versions: 1;"):
        registry.get_version(client, done.name, "2")
    with pytest.raises(InputError, match=r"no alias 'champion'\. Versions: 1; aliases: "):
        registry.get_version(client, done.name, "champion")
    assert registry.get_version(client, done.name, "1").run_id == done.run_id


@pytest.mark.slow
def test_a_downloaded_model_is_the_registered_one(
    candidate: registry.Candidate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The download is the model byte for byte, may be repeated into the same directory, and draws no bar."""
    done = registry.register(candidate)
    for _ in range(2):
        model = registry.download(candidate.config, done.name, "1", tmp_path / "new" / "copy")
        assert model == tmp_path / "new" / "copy"
        assert describe(model).sha256 == done.digest == candidate.model_digest
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]
    assert "Downloading" not in capsys.readouterr().err
    assert registry.find_version(candidate.config, "models:/medgrpo-synthetic@candidate") == done
    with pytest.raises(InputError, match=r"train holds something other than models:/medgrpo-synthetic/1\."):
        registry.download(candidate.config, done.name, "1", candidate.train_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "what"), [("artifacts/model/weights.bin", "model"), ("code/medgrpo/prompts.py", "set of served files")]
)
def test_a_flipped_byte_is_refused(candidate: registry.Candidate, tmp_path: Path, file: str, what: str) -> None:
    """One changed bit in the stored weights, or in the code that serves them, fails verification and download."""
    done = registry.register(candidate)
    client = registry.connect(candidate.config)
    version = client.get_model_version(done.name, "1")
    assert registry.verify_version(client, version) == done.digest
    path = _stored_file(candidate.config, file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refusal = rf"^models:/medgrpo-synthetic/1 is not what was registered: its {what} has the digest"
    with pytest.raises(InputError, match=refusal):
        registry.verify_version(client, version)
    with pytest.raises(InputError, match=refusal):
        registry.download(candidate.config, done.name, "1", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_loading_a_version_does_not_make_it_another(candidate: registry.Candidate) -> None:
    """Python's caches, which appear beside the code once a version is loaded in place, do not count."""
    done = registry.register(candidate)
    cache = _stored_file(candidate.config, "code/medgrpo/prompts.py").parent / "__pycache__"
    cache.mkdir()
    (cache / "prompts.cpython-311.pyc").write_bytes(b"x")
    client = registry.connect(candidate.config)
    assert registry.verify_version(client, client.get_model_version(done.name, "1")) == done.digest


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["model", "everything", "tag"])
def test_a_version_that_cannot_be_checked_is_refused(candidate: registry.Candidate, lost: str) -> None:
    """A version without its model, its files or its digest is refused in a sentence that names it."""
    done = registry.register(candidate)
    client = registry.connect(candidate.config)
    model = _stored_file(candidate.config, "artifacts/model")
    if lost == "tag":
        client.delete_model_version_tag(done.name, "1", registry.DIGEST_TAG)
    else:
        shutil.rmtree(model if lost == "model" else model.parents[1])
    with pytest.raises(InputError, match=r"^models:/medgrpo-synthetic/1(:| has no tag| holds no model)"):
        registry.verify_version(client, client.get_model_version(done.name, "1"))


def _stored_file(config: RunConfig, path: str) -> Path:
    """A file of the only stored model version."""
    [model_file] = (config.runs_dir / "mlartifacts").rglob("MLmodel")
    return model_file.parent / path


# --- a real server


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[MlflowServer]:
    """One with an empty database, which is not started yet."""
    shutil.copy(empty_store, tmp_path / "server.db")
    running = MlflowServer(tmp_path)
    yield running
    running.stop()


@pytest.mark.slow
def test_a_server_that_comes_back_gets_what_it_missed(
    candidate: registry.Candidate, server: MlflowServer, tmp_path: Path
) -> None:
    """Rows written while the server is down arrive once it is up; through it a candidate is registered and checked."""
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
    client = registry.connect(config)
    assert list((tmp_path / "served").rglob("MLmodel"))
    assert registry.find_champion(config, "synthetic") is None
    client.set_registered_model_alias(done.name, registry.CHAMPION, "1")
    champion = registry.find_champion(config, "synthetic")
    assert champion is not None
    model = registry.download(config, done.name, registry.CHAMPION, tmp_path / "copy")
    assert champion.digest == describe(model).sha256 == candidate.model_digest
    version = registry.get_version(client, done.name, registry.CHAMPION)
    assert registry.verify_version(client, version) == champion.digest
    [weights] = (tmp_path / "served").rglob("weights.bin")
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(InputError, match="is not what was registered: its model has the digest"):
        registry.verify_version(client, version)
