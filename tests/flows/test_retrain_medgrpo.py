"""The flow that trains only for a reason: what it does, and where it says why."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

import flows.retrain_medgrpo as module
from flows.retrain_medgrpo import retrain_medgrpo
from medgrpo import retraining
from medgrpo.config import RunConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import Manifest
from medgrpo.registry import connect, find_version, versions
from medgrpo.retraining import Decision
from medgrpo.testing import tiny_config
from tasks.retrain import find_reason
from tasks.running import OUTAGE_SECONDS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    # MLflow opens its SQL store after Prefect's server has declared a type in SQLAlchemy's old way.
    pytest.mark.filterwarnings("ignore:.*does not refer to an OperatorClass:DeprecationWarning"),
    pytest.mark.usefixtures("prefect_server"),
]

MODEL = "medgrpo-synthetic"


@dataclass
class Chapter:
    """A run of the flow, and how many versions there were afterwards."""

    config: RunConfig
    summary: dict[str, Any]
    versions: int

    @property
    def flow_run(self) -> Any:
        """The newest flow run of retrain-medgrpo with this chapter's name among its settings."""
        return next(run for run in _flow_runs() if run.parameters["config"]["name"] == self.config.name)


def _flow_runs() -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    with get_client(sync_client=True) as client:
        named = FlowFilter(name=FlowFilterName(any_=["retrain-medgrpo"]))
        return list(client.read_flow_runs(flow_filter=named))


def _artifacts(flow_run: Any) -> dict[str, str]:
    """Text of each markdown artifact of a flow run, by key."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with get_client(sync_client=True) as client:
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        found = client.read_artifacts(artifact_filter=of_run)
    return {str(artifact.key): str(artifact.data) for artifact in found}


def _chapter(config: RunConfig) -> Chapter:
    summary = retrain_medgrpo(config)
    return Chapter(config, summary, len(connect(config).search_model_versions(f"name = '{MODEL}'")))


@pytest.fixture(scope="module")
def story(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chapter]:
    """A first run; the same again; other data."""
    directory = tmp_path_factory.mktemp("retrain")
    return {
        "first": _chapter(tiny_config(directory, name="first")),
        "again": _chapter(tiny_config(directory, name="again")),
        "changed": _chapter(tiny_config(directory, name="changed", data={"synthetic_seed": 8})),
    }


def test_only_new_data_is_trained_on(story: dict[str, Chapter]) -> None:
    """The first run and the one with other data register a version each; the same again trains nothing."""
    found = {name: (chapter.summary["retraining"]["outcome"], chapter.versions) for name, chapter in story.items()}
    assert found == {"first": ("new-data", 1), "again": ("no-reason", 1), "changed": ("new-data", 2)}
    assert story["again"].summary.keys() == {"retraining"}
    assert not (story["again"].config.runs_dir / "again").exists()


def test_a_training_keeps_its_summary_and_its_reason(story: dict[str, Chapter]) -> None:
    """summary.json is what the flow returns: all that a training leaves, and why it was started."""
    first = story["first"]
    kept = json.loads((first.config.runs_dir / "first" / "summary.json").read_text())
    assert kept == json.loads(json.dumps(first.summary))
    assert {"model", "tuned", "gate", "stages", "retraining"} <= kept.keys()
    assert kept["retraining"]["trains"] is True


def test_the_reason_is_an_artifact_and_a_tag(story: dict[str, Chapter]) -> None:
    """Each flow run says why it trained, or why not, in an artifact, and in a tag to filter by."""
    for chapter in story.values():
        found, run = chapter.summary["retraining"], chapter.flow_run
        assert run.tags == [f"retrain:{found['outcome']}"]
        assert found["sentence"] in _artifacts(run)["retrain-medgrpo-reason"]


def test_the_reason_is_a_tag_of_the_version(story: dict[str, Chapter]) -> None:
    """Version and MLflow run carry the sentence, so that a reviewer need not look elsewhere."""
    for name in ("first", "changed"):
        chapter = story[name]
        model, client = chapter.summary["model"], connect(chapter.config)
        sentence = chapter.summary["retraining"]["sentence"]
        version = client.get_model_version(model["name"], str(model["version"]))
        assert version.tags["medgrpo.reason"] == sentence
        run_id = find_version(chapter.config, f"models:/{model['name']}/{model['version']}").run_id
        assert client.get_run(run_id).data.tags["medgrpo.reason"] == sentence


def test_an_outage_is_retried_and_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While MLflow is away nothing is trained: the decision is tried for minutes, then the run fails."""
    monkeypatch.setattr(module, "find_reason", module.find_reason.with_options(retry_delay_seconds=0))
    config = tiny_config(tmp_path, name="away", tracking={"uri": "http://127.0.0.1:9"})
    with pytest.raises(ServiceUnreachable, match="did not answer"):
        retrain_medgrpo(config)
    assert not (config.runs_dir / "away").exists()
    run = next(run for run in _flow_runs() if run.parameters["config"]["name"] == "away")
    assert run.state.is_failed()
    assert _attempts(run) == {"prepare": 1, "find reason": 1 + len(OUTAGE_SECONDS)}


def test_a_retraining_that_dies_while_it_registers_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version whose registration was cut short is no reason not to train: it is completed, and stays one."""
    config, begun = tiny_config(tmp_path, name="cut"), []

    class Killed(BaseException):
        pass

    def cut_short(client: Any, run_id: str, version: Any) -> None:
        begun.append(version)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(versions, "_finish_run", cut_short)
        with pytest.raises(Killed):
            retrain_medgrpo(config)
    client = connect(config)
    assert [version.version for version in client.search_model_versions(f"name = '{MODEL}'")] == [begun[0].version]
    summary = retrain_medgrpo(config)
    assert summary["retraining"]["outcome"] == "new-data"
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1
    assert client.get_run(summary["mlflow_run_id"]).info.status == "FINISHED"
    assert retrain_medgrpo(tiny_config(tmp_path, name="later"))["retraining"]["outcome"] == "no-reason"


def test_a_flow_run_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back after a crash it trains on though its own version is there by now; another flow run asks anew."""
    decisions = iter(
        [
            Decision(outcome="champion-fell", sentence="It fell.", seed_offset=3),
            Decision(outcome="no-reason", sentence="All is known."),
            Decision(outcome="no-reason", sentence="All is known."),
        ]
    )
    monkeypatch.setattr(retraining, "find_reason", lambda *_: next(decisions))
    data = Manifest(uri="/runs/.artifacts/data-0", sha256="d" * 64, bytes=1, files=1)

    @flow
    def put_back() -> list[Decision]:
        return [find_reason(RunConfig(), data) for _ in range(2)]

    first, second = put_back()
    assert first == second
    assert (first.outcome, first.seed_offset) == ("champion-fell", 3)
    assert [decision.outcome for decision in put_back()] == ["no-reason", "no-reason"]


def _attempts(flow_run: Any) -> dict[str, int]:
    """How often each task of a flow run ran."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        this = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
        return {run.name.rpartition("-")[0]: run.run_count for run in client.read_task_runs(flow_run_filter=this)}


def test_a_useless_file_is_not_retried(tmp_path: Path) -> None:
    """A file of fresh records that is not there ends the run at once, in the sentence that names it."""
    config = tiny_config(tmp_path, name="lost", retrain={"fresh": tmp_path / "fresh.json"})
    with pytest.raises(InputError, match=r"retrain\.fresh"):
        retrain_medgrpo(config)


def test_by_hand_a_sentence_says_that_nothing_was_trained() -> None:
    """On the command line the sentence is all there is; after a training the summary follows."""
    found = {"trains": False, "outcome": "no-reason", "sentence": "All is known.", "fresh": None}
    assert module._describe(RunConfig(), {"retraining": found}) == "Nothing was trained. All is known."
