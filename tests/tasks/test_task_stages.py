"""The tasks: what they hand to the library, under which key Prefect keeps them, and how tracking may fail."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
from prefect import Task
from prefect.logging import disable_run_logger

from medgrpo import registry
from medgrpo import stages as library
from medgrpo.config import EvaluationConfig, RunConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import Manifest
from tasks import stages
from tasks.retrain import find_reason
from tasks.running import OUTAGE_SECONDS, RETRIES, cache_key

CONFIG = RunConfig(runs_dir=Path("/nowhere/runs"))
DATA = Manifest(uri="/runs/.artifacts/data-0", sha256="d" * 64, bytes=1, files=1)
AUDITED = Manifest(uri="/runs/.artifacts/audit-0", sha256="a" * 64, bytes=1, files=1)
TRAINED = Manifest(uri="/runs/.artifacts/train-0", sha256="e" * 64, bytes=1, files=1)
EVALUATED = Manifest(uri="/runs/.artifacts/evaluation-0", sha256="f" * 64, bytes=1, files=1)
START = Manifest(uri="/runs/.artifacts/start-0", sha256="b" * 64, bytes=1, files=1)
CHAMPION = library.Champion(model=Manifest(uri="/runs/.artifacts/model-0", sha256="c" * 64, bytes=1, files=1))
TASKS = (stages.prepare, stages.audit, stages.train, stages.evaluate, stages.register)
GIVEN = {
    "config": CONFIG,
    "data": DATA,
    "start": START,
    "audited": AUDITED,
    "trained": TRAINED,
    "champion": CHAMPION,
    "evaluated": EVALUATED,
}


class Silent:
    """A StageProgress that shows nothing and counts what it is told."""

    rows: list[Mapping[str, Any]]

    def __init__(self, key: str, description: str) -> None:
        self.rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def training(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def answers(self, model: str, done: int, total: int) -> None: ...


# --- what a task is


@pytest.mark.parametrize("each", TASKS, ids=lambda each: each.name)
def test_every_stage_survives(each: Task[..., Manifest]) -> None:
    """Each task is retried, keeps its result as JSON, and is cached under a key of its own."""
    assert (each.persist_result, each.result_serializer) == (True, "json")
    assert each.retries >= RETRIES
    assert each.cache_key_fn is not None


def test_what_asks_the_registry_anew_is_retried_and_never_cached() -> None:
    """Which model is in service, or behind an alias, may have changed since the last run."""
    for each in (stages.fetch_champion, stages.fetch_start, stages.locate, stages.compare):
        assert (each.cache_key_fn, each.persist_result) == (None, None), each.name
        assert each.retries >= RETRIES, each.name


def test_what_hours_of_training_depend_on_outlasts_an_outage() -> None:
    """The registry may be away for minutes when a run asks for its champion, registers, or looks for a reason."""
    for each in (stages.fetch_champion, stages.register, find_reason):
        assert each.retries == len(OUTAGE_SECONDS)
        assert each.retry_delay_seconds == [*OUTAGE_SECONDS]
        assert sum(OUTAGE_SECONDS) > 5 * 60


@pytest.mark.parametrize(
    ("count", "known"), [(1, False), (len(OUTAGE_SECONDS), False), (1 + len(OUTAGE_SECONDS), True)]
)
def test_an_evaluation_does_without_its_champion_in_the_end(
    count: int, known: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While MLflow is away the champion is asked for again; the last try gives up on it, and keeps why."""

    def silent(*_: Any) -> None:
        raise ServiceUnreachable("MLflow did not answer.")

    monkeypatch.setattr(library, "fetch_champion", silent)
    monkeypatch.setattr(stages, "task_run", SimpleNamespace(run_count=count))
    with disable_run_logger():
        if known:
            assert stages.fetch_champion.fn(CONFIG, DATA) == library.Champion(unknown="MLflow did not answer.")
        else:
            with pytest.raises(ServiceUnreachable):
                stages.fetch_champion.fn(CONFIG, DATA)


def test_the_stages_go_by_their_names() -> None:
    """Prefect and summary.json show the stages as prepare, audit, train, evaluate and register."""
    assert [each.name for each in TASKS] == ["prepare", "audit", "train", "evaluate", "register"]


@pytest.mark.parametrize(
    ("each", "key"),
    [
        (stages.prepare, library.prepare_key(CONFIG)),
        (stages.audit, library.audit_key(CONFIG, DATA)),
        (stages.train, library.train_key(CONFIG, DATA, START)),
        (stages.evaluate, library.evaluate_key(CONFIG, DATA, AUDITED, TRAINED, CHAMPION)),
        (stages.register, library.register_key(CONFIG, TRAINED, EVALUATED)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_prefect_keeps_a_result_under_the_key_of_its_artifact(each: Task[..., Manifest], key: str) -> None:
    """The task's cache key is the library's key of the artifact, in its runs directory."""
    assert each.cache_key_fn
    assert each.cache_key_fn(None, GIVEN) == cache_key(CONFIG, key)  # type: ignore[arg-type]


def test_an_evaluation_setting_leaves_the_training_cached() -> None:
    """Asking for more cases changes the key of the evaluation's task, not that of the training's or the data's."""
    more = {**GIVEN, "config": CONFIG.model_copy(update={"evaluation": EvaluationConfig(cases=60)})}
    keys = {each.name: each.cache_key_fn for each in TASKS if each.cache_key_fn}
    changed = {name for name, key in keys.items() if key(None, GIVEN) != key(None, more)}  # type: ignore[arg-type]
    assert changed == {"evaluate"}


def test_each_task_is_one_call_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task passes on what it was given and returns the library's manifest."""
    calls: dict[str, tuple[Any, ...]] = {}

    def answer(name: str, manifest: Manifest) -> Callable[..., Manifest]:
        return lambda *given: [manifest, calls.__setitem__(name, given)][0]  # type: ignore[return-value]

    for name, manifest in {"prepare": DATA, "train": TRAINED, "evaluate": EVALUATED, "register": DATA}.items():
        monkeypatch.setattr(library, name, answer(name, manifest))
    monkeypatch.setattr(stages, "StageProgress", Silent)
    announced: list[tuple[RunConfig, Manifest]] = []
    monkeypatch.setattr(stages, "announce_candidate", lambda *given: announced.append(given))
    assert stages.prepare.fn(CONFIG) == DATA
    assert stages.train.fn(CONFIG, DATA, START) == TRAINED
    assert stages.evaluate.fn(CONFIG, DATA, AUDITED, TRAINED, CHAMPION) == EVALUATED
    assert stages.register.fn(CONFIG, DATA, AUDITED, TRAINED, EVALUATED) == DATA
    assert calls["prepare"] == (CONFIG,)
    assert calls["train"][:2] == (CONFIG, DATA)
    assert calls["train"][-1] == START
    assert calls["evaluate"][:5] == (CONFIG, DATA, AUDITED, TRAINED, CHAMPION)
    assert calls["register"][:5] == (CONFIG, DATA, AUDITED, TRAINED, EVALUATED)
    assert announced == [(CONFIG, DATA)]


def test_a_registration_outside_a_flow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a flow run the MLflow tags say "none" rather than nothing."""
    tags: list[Mapping[str, str]] = []
    monkeypatch.setattr(library, "register", lambda *given: tags.append(given[-1]))
    monkeypatch.setattr(stages, "announce_candidate", lambda *_: None)
    stages.register.fn(CONFIG, DATA, AUDITED, TRAINED, EVALUATED)
    assert tags == [{"medgrpo.flow_run": "none", "medgrpo.flow_run_name": "none"}]


def test_the_reason_for_a_training_reaches_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow run that was given a reason tags MLflow with it; one with an empty reason does not."""
    tags: list[Mapping[str, str]] = []
    monkeypatch.setattr(library, "register", lambda *given: tags.append(given[-1]))
    monkeypatch.setattr(stages, "announce_candidate", lambda *_: None)
    for reason in ("New data.", ""):
        run = SimpleNamespace(id="1", name="night", parameters={"reason": reason})
        monkeypatch.setattr(stages, "flow_run", run)
        stages.register.fn(CONFIG, DATA, AUDITED, TRAINED, EVALUATED)
    assert [given.get("medgrpo.reason") for given in tags] == ["New data.", None]


# --- tracking while training


class Mlflow:
    """Stands in for the registry: answers, is away, or refuses."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[str] = []

    def open_run(self, *_: Any) -> str:
        return self._call("open") or "run-1"

    def sync_metrics(self, config: RunConfig, run_id: str, metrics: Path, state: Path) -> None:
        assert (run_id, metrics.name, state.parent) == ("run-1", "metrics.jsonl", metrics.parent)
        self._call("sync")

    def _call(self, name: str) -> str:
        self.calls.append(name)
        if self.error:
            raise self.error
        return ""


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    fake = Mlflow()
    monkeypatch.setattr(registry, "open_run", fake.open_run)
    monkeypatch.setattr(registry, "sync_metrics", fake.sync_metrics)
    monkeypatch.setattr(stages, "StageProgress", Silent)
    return fake


def _train(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object], seconds_per_step: float = 0) -> None:
    """Run the train task; its training calls `steps` one by one and reports a row after each."""
    clock = itertools.count()
    now = SimpleNamespace(monotonic=lambda: 1000.0 + next(clock) * seconds_per_step)
    monkeypatch.setattr(stages, "time", now)

    def train(config: RunConfig, data: Manifest, follow: Any, begin: Any, start: Manifest | None) -> Manifest:
        begin(Path("/work"))
        for number, step in enumerate(steps, start=1):
            step()
            follow({"step": number})
        return TRAINED

    monkeypatch.setattr(library, "train", train)
    with disable_run_logger():
        assert stages.train.fn(CONFIG, DATA) == TRAINED


def _nothing() -> None:
    """An ordinary training step."""


def test_metrics_are_passed_on_with_every_row(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is opened before training starts, and each row sends what is not sent yet."""
    _train(monkeypatch, _nothing, _nothing)
    assert mlflow.calls == ["open", "sync", "sync"]


def test_an_outage_at_the_start_costs_nothing(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """If MLflow is away when training starts, training goes on, and the run is opened once MLflow is back."""
    mlflow.error = ServiceUnreachable("MLflow did not answer.")
    _train(monkeypatch, lambda: setattr(mlflow, "error", None), _nothing, seconds_per_step=stages.SILENT_SECONDS)
    assert mlflow.calls == ["open", "open", "sync"]


def test_a_silent_server_is_left_alone_for_a_while(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a server that does not answer would slow every step, so it is asked again only after two minutes."""
    mlflow.error = ServiceUnreachable("MLflow did not answer.")
    _train(monkeypatch, *[_nothing] * 100, seconds_per_step=1)
    assert mlflow.calls == ["open"]


def test_a_wrong_tracking_setting_stops_before_training(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that MLflow refuses is reported before hours are spent, not after."""
    mlflow.error = InputError("the MLflow experiment was deleted.")
    with pytest.raises(InputError, match="was deleted"):
        _train(monkeypatch, _nothing)


def test_a_refusal_in_the_middle_does_not_stop_training(mlflow: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """If MLflow begins to refuse during training (an expired token, a deleted run), the weights are not given up."""
    _train(monkeypatch, lambda: setattr(mlflow, "error", InputError("MLflow refused: 403")), _nothing)
    assert mlflow.calls == ["open", "sync"]
