"""Reviews on a real Prefect server: suspended or waiting, answered by a person, and what the registry holds then."""

import contextvars
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

import tasks.review
from deployments import DECLARED
from flows.review_medgrpo import review_medgrpo
from medgrpo.config import RunConfig
from medgrpo.errors import InputError, MedgrpoError
from medgrpo.registry import review
from medgrpo.testing import tiny_version

WAIT_SECONDS = 180

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    # MLflow opens its SQL store after Prefect's server has declared a type in SQLAlchemy's old way.
    pytest.mark.filterwarnings("ignore:.*does not refer to an OperatorClass:DeprecationWarning"),
]


@dataclass
class Review:
    """A flow run that reviews, and the registry it reviews in.

    Attributes:
        config: names the registry.
        shown: digest of the version it shows.
        flow_run: the flow run; None until it is known.
        ending: what the flow returned or raised, where it runs in this process.
    """

    config: RunConfig
    shown: str
    flow_run: UUID | None = None
    ending: Future[dict[str, Any]] | None = None

    def state(self) -> Any:
        with _client() as client:
            return client.read_flow_run(self.flow_run).state

    def wait(self, reached: Callable[[Any], bool]) -> Any:
        limit = time.monotonic() + WAIT_SECONDS
        while not reached(state := self.state()):
            assert time.monotonic() < limit, f"still {state.name} {state.message}"
            time.sleep(0.3)
        return state

    def resume(self, **answer: Any) -> None:
        """Answer the form as Prefect's page does."""
        from prefect.flow_runs import resume_flow_run

        resume_flow_run(self.flow_run, run_input=answer or None)

    def approve(self, **changes: Any) -> None:
        self.resume(**{"approve": True, "reviewer": "bob", "note": "better", "digest": self.shown[:12], **changes})

    def end(self) -> dict[str, Any]:
        """What the flow returned; raises what it raised."""
        assert self.ending is not None
        return self.ending.result(timeout=WAIT_SECONDS)

    def aliases(self) -> dict[str, int]:
        return {alias: version.number for version in review.list_versions(self.config) for alias in version.aliases}


def _client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _registry(directory: Path) -> RunConfig:
    """Version 1 is the champion, version 2 is under review, version 3 did not pass its gate."""
    config = RunConfig(runs_dir=directory / "runs")
    tiny_version(config, weights="1")
    review.approve(config, review.Decision("1", "ann", "the first", review.show(config).version.digest))
    tiny_version(config, weights="2")
    tiny_version(config, weights="3", gate="fail")
    return config


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file of such a registry."""
    return _registry(tmp_path_factory.mktemp("template")).runs_dir / "mlflow.db"


@pytest.fixture
def config(template: Path, tmp_path: Path) -> RunConfig:
    """Such a registry for one test."""
    (tmp_path / "runs").mkdir()
    shutil.copy(template, tmp_path / "runs" / "mlflow.db")
    return RunConfig(runs_dir=tmp_path / "runs")


@pytest.fixture(scope="module")
def deployed(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UUID]:
    """The deployment review-medgrpo on the tests' server, with a process worker that serves it."""
    from deployments import server

    with _client() as client:
        list(server.apply(client, DECLARED))
        found = client.read_deployment_by_name("review-medgrpo/review-medgrpo")
    with (tmp_path_factory.mktemp("worker") / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", str(found.work_pool_name)],
            # Elsewhere, because the deployment itself says where the project is.
            cwd=tmp_path_factory.mktemp("elsewhere"),
            env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield found.id
    os.killpg(worker.pid, signal.SIGTERM)
    try:
        worker.wait(timeout=15)
    except subprocess.TimeoutExpired:
        # A worker that still waits for a flow run has no test left to serve.
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _shown(config: RunConfig, version: int | None = None) -> str:
    return review.show(config, str(version) if version else None).version.digest


# --- a deployment: the flow run is suspended, its process ends


@pytest.fixture(scope="module")
def suspended(deployed: UUID, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Review]:
    """Two reviews of version 2, each in a registry of its own, both suspended."""
    found = {}
    for name in ("answered", "replaced"):
        config = _registry(tmp_path_factory.mktemp(name))
        parameters = {"config": config.model_dump(mode="json")}
        with _client() as client:
            flow_run = client.create_flow_run_from_deployment(deployed, parameters=parameters).id
        found[name] = Review(config, _shown(config), flow_run)
    for waiting in found.values():
        waiting.wait(lambda state: state.is_paused() or state.is_final())
    return found


@pytest.fixture(scope="module")
def resumed(suspended: dict[str, Review]) -> dict[str, Any]:
    """How both ended, the version of one of them having been replaced before it was answered."""
    tiny_version(suspended["replaced"].config, weights="2")
    for waiting in suspended.values():
        waiting.approve()
    return {name: waiting.wait(lambda state: state.is_final()) for name, waiting in suspended.items()}


def test_a_suspended_review_promotes_once_it_is_answered(suspended: dict[str, Review], resumed: dict[str, Any]) -> None:
    """Suspended, its process gone, then resumed with the form filled in: the version is the champion."""
    assert resumed["answered"].is_completed(), resumed["answered"].message
    assert suspended["answered"].aliases() == {"champion": 2, "previous-champion": 1}
    tags = review.show(suspended["answered"].config, "champion").version.tags
    assert (tags["medgrpo.reviewer"], tags["medgrpo.review_note"]) == ("bob", "better")


def test_a_version_replaced_while_suspended_is_not_promoted(
    suspended: dict[str, Review], resumed: dict[str, Any]
) -> None:
    """Another version came under review meanwhile, even one with the very same files: nothing is promoted."""
    assert resumed["replaced"].is_failed()
    assert "version 2 of medgrpo-synthetic is no longer the one under review" in resumed["replaced"].message
    assert suspended["replaced"].aliases() == {"champion": 1, "candidate": 4}


def test_the_comparison_is_an_artifact_of_the_flow_run(suspended: dict[str, Review], resumed: dict[str, Any]) -> None:
    """It was posted once, before the decision, although the resumed run starts from the top."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    only = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[suspended["answered"].flow_run]))
    with _client() as client:
        [artifact] = client.read_artifacts(artifact_filter=only)
    assert artifact.key == "review-medgrpo"
    assert suspended["answered"].shown in artifact.data
    assert "# Review of medgrpo-synthetic version 2" in artifact.data


# --- by hand: the flow run pauses, its process waits


@pytest.fixture
def start(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Review]:
    """Starts a review in a thread, and returns once it waits for an answer."""
    monkeypatch.setattr(tasks.review, "POLL_SECONDS", 1)

    def start(config: RunConfig, version: int | None = None) -> Review:
        ending: Future[dict[str, Any]] = Future()

        def run() -> None:
            try:
                ending.set_result(review_medgrpo(config, version))
            except MedgrpoError as error:
                ending.set_exception(error)

        # The address of the tests' server is in the context, which a thread does not inherit.
        threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
        known = {waiting.id for waiting in _paused()}
        limit = time.monotonic() + WAIT_SECONDS
        while not (fresh := [waiting.id for waiting in _paused() if waiting.id not in known]):
            assert time.monotonic() < limit, "the flow does not wait for an answer"
            time.sleep(0.2)
        return Review(config, _shown(config, version), fresh[0], ending)

    return start


def _paused() -> list[Any]:
    with _client() as client:
        return [run for run in client.read_flow_runs() if run.state and run.state.is_paused()]


def test_a_review_started_by_hand_waits_in_its_process(start: Callable[..., Review], config: RunConfig) -> None:
    """Without a deployment the flow pauses instead of being suspended; the answer does the same."""
    waiting = start(config)
    waiting.approve()
    assert waiting.end() == {
        "name": "medgrpo-synthetic",
        "version": 2,
        "decision": "approved",
        "aliases": ["champion"],
        "digest": waiting.shown,
        "reviewer": "bob",
        "previous_champion": "1",
    }


def test_a_no_is_recorded(start: Callable[..., Review], config: RunConfig) -> None:
    """With approve left off, reviewer and note reject the version; no digest is asked for."""
    waiting = start(config)
    waiting.resume(reviewer="bob", note="invents figures")
    assert waiting.end()["decision"] == "rejected"
    assert waiting.aliases() == {"champion": 1}


def test_a_review_resumed_without_an_answer_decides_nothing(start: Callable[..., Review], config: RunConfig) -> None:
    """A click on Resume alone neither promotes nor rejects, and the flow says so."""
    waiting = start(config)
    waiting.resume()
    with pytest.raises(InputError, match="resumed without a decision, so nothing was promoted or rejected"):
        waiting.end()
    assert waiting.aliases() == {"champion": 1, "candidate": 2}


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        ({"reviewer": " "}, "reviewer is empty"),
        ({"note": ""}, "note is empty"),
        ({"digest": ""}, "must be repeated"),
        ({"digest": "0" * 64}, "not the model that was reviewed"),
    ],
)
def test_an_approval_that_lacks_something_decides_nothing(
    config: RunConfig, lacking: dict[str, str], sentence: str
) -> None:
    """Without who, why or exactly what, nothing is promoted."""
    digest = _shown(config)
    shown = tasks.review.Shown(name="m", version=2, digest=digest, replaces="1", as_candidate=True)
    given = {"approve": True, "reviewer": "bob", "note": "better", "digest": digest, **lacking}
    with pytest.raises(InputError, match=sentence):
        tasks.review.decide.fn(config, shown, tasks.review.ReviewDecision.model_validate(given))
    assert review.show(config, "champion").version.number == 1


def test_the_second_of_two_open_reviews_finds_another_champion(start: Callable[..., Review], config: RunConfig) -> None:
    """What it compared with is not the champion any more, so its approval is refused."""
    first, second = start(config), start(config, 3)
    first.approve()
    assert first.end()["version"] == 2
    second.approve(despite_gate="I know better")
    with pytest.raises(InputError, match="was compared with version 1 as champion, but the champion is version 2"):
        second.end()
    assert second.aliases() == {"champion": 2, "previous-champion": 1}


def test_a_version_that_is_not_there_ends_the_review(prefect_server: None, config: RunConfig) -> None:
    """Nobody is asked about a version that does not exist."""
    with pytest.raises(InputError, match="has no version '9'"):
        review_medgrpo(config, 9)


def test_without_a_server_nobody_is_asked() -> None:
    """On Prefect's temporary server nobody could answer: the sentence names the command that decides instead."""
    shown = tasks.review.Shown(name="m", version=2, digest="d" * 64, replaces="none", as_candidate=True)
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InputError, match=f"medgrpo review approve 2 --digest {'d' * 64} --replaces none --note WHY"),
    ):
        tasks.review.ask(shown)
