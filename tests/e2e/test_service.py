"""The service as its users meet it: a deployment run by its name, a review, a schedule, several runs at once."""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deployments import DECLARED, Deployment, Schedule
from deployments.automations import Reactions
from e2e.stack import DEAD_AFTER, ROOT, WAIT_SECONDS, Run, Stack, check_result

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True)
class Tiny(Deployment):
    """A deployment whose settings are those of a tiny run."""

    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"config": self.settings}


def _find(stack: Stack, name: str) -> Any:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with stack.client() as client:
        [found] = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return found


def _artifacts(stack: Stack, run: Run) -> set[str | None]:
    """Keys of the artifacts that a run left on Prefect's server."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    with stack.client() as client:
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        return {artifact.key for artifact in client.read_artifacts(artifact_filter=wanted)}


@pytest.fixture(scope="module")
def night(stack: Stack) -> tuple[Run, dict[str, Any]]:
    """A run of train-medgrpo by the bare name, typed in the project's directory."""
    config = stack.config("night")
    began = time.monotonic()
    told = stack.run(
        "prefect", "deployment", "run", "train-medgrpo",
        "--flow-run-name", "night", "--param", f"config={config.model_dump_json()}",
    )  # fmt: skip
    assert "Created flow run 'night'" in told
    run = Run(stack, _find(stack, "night").id, config, began)
    return run, run.completed()


def test_a_deployment_is_run_by_its_name(stack: Stack, night: tuple[Run, dict[str, Any]]) -> None:
    """A registered version, its artifacts and the report are there; and one process of the run is not, any more."""
    run, summary = night
    check_result(run, summary)
    assert summary["flow_run"] == str(run.id)
    assert summary["model"]["name"] == "night-synthetic"
    assert {"train-medgrpo-audit", "train-medgrpo-training", "train-medgrpo-evaluation"} < _artifacts(stack, run)
    assert "train-medgrpo-summary" in _artifacts(stack, run)
    kept = {path.relative_to(stack.root / "artifacts").name for path in (stack.root / "artifacts").rglob("*")}
    assert {"model.safetensors", "report.html"} <= kept, "files pass through MLflow's server"


def test_a_review_is_answered_over_the_api(stack: Stack, night: tuple[Run, dict[str, Any]]) -> None:
    """The flow run shows the version, is suspended without a process, and promotes once it is resumed."""
    run, summary = night
    assert run.config
    settings = run.config.model_dump(mode="json")
    review = stack.launch("review-medgrpo/review-medgrpo", "review", config=settings, version=1)
    review.wait(lambda state: state.is_paused(), "was to be suspended")
    assert _artifacts(stack, review) == {"review-medgrpo"}
    deadline = time.monotonic() + WAIT_SECONDS
    while review.processes():
        assert time.monotonic() < deadline, "a suspended flow run keeps its process"
        time.sleep(0.5)
    answer = {
        "approve": True,
        "reviewer": "ann",
        "note": "the first",
        "digest": summary["model"]["digest"],
        "despite_gate": "a model of random weights",
    }
    with stack.client() as client:
        client.resume_flow_run(review.id, run_input=answer)
    review.wait(lambda state: state.is_completed(), "was to be completed")
    [version] = run.versions()
    assert "champion" in version.aliases


def test_a_schedule_fires(stack: Stack, night: tuple[Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment with a schedule runs by itself, finds everything cached, and is gone once it is not declared."""
    from deployments import server

    monkeypatch.chdir(ROOT)
    run, _ = night
    assert run.config
    config = run.config.model_copy(update={"name": "scheduled"})
    nightly = Tiny(
        name="train-medgrpo-nightly",
        entrypoint="flows/train_medgrpo.py:train_medgrpo",
        work_pool="cpu",
        profile="tiny",
        description="Every minute.",
        schedules=(Schedule("* * * * *", "Europe/Berlin"),),
        settings=config.model_dump(mode="json"),
    )
    as_deployed = replace(DECLARED, reactions=Reactions(dead_after=DEAD_AFTER))
    summary = config.runs_dir / "scheduled" / "summary.json"
    with stack.client() as client:
        list(server.apply(client, replace(as_deployed, deployments=(*DECLARED.deployments, nightly))))
        deadline = time.monotonic() + WAIT_SECONDS
        while not summary.is_file():
            assert time.monotonic() < deadline, "no scheduled run came to its end"
            time.sleep(0.5)
        changes = list(server.apply(client, as_deployed))
    assert changes == ["deployment train-medgrpo/train-medgrpo-nightly: removed, as it is not declared any more"]
    stages = {stage["name"]: stage["cached"] for stage in json.loads(summary.read_text())["stages"]}
    assert stages["train"]
    assert len(run.versions()) == len(run.mlflow_runs())


def test_runs_at_the_same_time(stack: Stack) -> None:
    """Of two runs with one configuration one trains and the other waits; one more of the deployment waits its turn."""
    same = stack.config("same")
    runs = [stack.train("t4", same), stack.train("cpu", same), stack.train("t4", stack.config("other", seed=5))]
    held = True
    deadline = time.monotonic() + 2 * WAIT_SECONDS
    while not all((state := run.state()) and state.is_completed() for run in runs):
        assert time.monotonic() < deadline, [run.states() for run in runs]
        trainings = [run.process("training") for run in runs]
        assert not (trainings[0] and trainings[1]), "two processes write in one directory"
        running = [(state := runs[index].state()) and state.is_running() for index in (0, 2)]
        held = held and not all(running)
        time.sleep(0.3)
    assert held, "two runs of one deployment, whose limit is one"
    assert "AwaitingConcurrencySlot" in [*runs[0].states(), *runs[2].states()]
    for run in runs:
        check_result(run, json.loads((run.directory / "summary.json").read_text()))
    assert len(list(Path(runs[0].artifacts).glob("train-*/manifest.json"))) == 1
