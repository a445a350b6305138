"""How a task runs as a stage: what is retried, what is believed from the cache, what an error looks like."""

import inspect
import itertools
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect import Task, task
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH
from prefect.states import Failed

from medgrpo.config import RunConfig
from medgrpo.errors import DiskFull, InputError, MedgrpoError, ServiceUnreachable, TrainingAlarm, TrainingCrashed
from medgrpo.manifests import Manifest, build
from tasks import stages
from tasks.running import PlainErrors, cache_key, run_stage, worth_retrying

numbers = itertools.count()


@dataclass
class Stage:
    """A real task that writes one file, and counts how often it did."""

    directory: Path
    errors: list[Exception] = field(default_factory=list)
    calls: int = 0
    key: str = field(default_factory=lambda: f"stage-{next(numbers)}")

    @property
    def artifact(self) -> Path:
        return self.directory / self.key

    def task(self) -> Task[..., Manifest]:
        @task(
            name="stage",
            cache_key_fn=lambda _, given: f"{self.directory.name}-{self.key}-{given['setting']}",
            persist_result=True,
            result_serializer="json",
            retries=2,
            retry_delay_seconds=0,
            retry_condition_fn=worth_retrying,
        )
        def stage(setting: str) -> Manifest:
            self.calls += 1
            if self.errors:
                raise self.errors.pop(0)
            return build(self.artifact, lambda work: self._fill(work, setting))

        return stage

    def _fill(self, work: Path, setting: str) -> None:
        (work / "model").mkdir()
        (work / "model" / "weights").write_text(setting)


@pytest.fixture
def stage(tmp_path: Path, prefect_server: None) -> Stage:
    return Stage(tmp_path)


# --- retries


def test_the_retry_condition_is_a_plain_function() -> None:
    """Prefect silently ignores a condition that is a partial or a callable object; ours is one, in every task."""
    assert inspect.isfunction(worth_retrying)
    tasks = (stages.prepare, stages.train, stages.evaluate, stages.register, stages.fetch_champion)
    assert all(each.retry_condition_fn is worth_retrying for each in tasks)


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        (InputError("no such file"), False),
        (DiskFull("no space left"), True),
        (TrainingAlarm("loss is nan"), False),
        (TrainingCrashed("killed"), True),
        (ServiceUnreachable("MLflow did not answer"), True),
        (OSError("connection reset"), True),
    ],
)
def test_only_what_may_pass_is_retried(error: Exception, retried: bool) -> None:
    """Crashes, outages and full disks are worth another try; bad input and training alarms are not."""
    assert worth_retrying(None, None, Failed(data=error)) is retried  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("error", "calls"), [(TrainingCrashed("killed"), 3), (InputError("no such file"), 1)])
def test_prefect_follows_the_condition(stage: Stage, error: Exception, calls: int) -> None:
    """Prefect tries a crashing stage three times and one with bad input once, and raises the stage's own error."""
    stage.errors = [error] * 3
    with pytest.raises(type(error), match=str(error)):
        run_stage(stage.task(), "a")
    assert stage.calls == calls


@pytest.mark.slow
def test_a_stage_that_crashed_once_is_finished_by_its_retry(stage: Stage) -> None:
    """One crash costs a retry and nothing else."""
    stage.errors = [TrainingCrashed("killed")]
    result = run_stage(stage.task(), "a")
    assert (stage.calls, result.cached) == (2, False)
    assert (result.manifest.path / "model" / "weights").read_text() == "a"


# --- the cache


@pytest.mark.slow
def test_an_intact_artifact_is_believed(stage: Stage) -> None:
    """The second run of a stage is a cache hit: its body does not run, and it says so."""
    first, second = run_stage(stage.task(), "a"), run_stage(stage.task(), "a")
    assert (first.cached, second.cached, stage.calls) == (False, True, 1)
    assert first.manifest == second.manifest
    assert second.as_row() == {"name": "stage", "seconds": second.seconds, "cached": True}
    assert 0 <= second.seconds < 60


@pytest.mark.slow
def test_other_arguments_are_other_work(stage: Stage) -> None:
    """A changed setting is no cache hit."""
    assert [run_stage(stage.task(), setting).cached for setting in ("a", "b", "a")] == [False, False, True]


def _delete(artifact: Path) -> None:
    shutil.rmtree(artifact)


def _edit(artifact: Path) -> None:
    (artifact / "model" / "weights").write_text("b")


def _add(artifact: Path) -> None:
    (artifact / "model" / "stray").touch()


def _lose_manifest(artifact: Path) -> None:
    (artifact / "manifest.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("harm", [_delete, _edit, _add, _lose_manifest])
def test_a_damaged_artifact_is_made_again(
    stage: Stage, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A cached result whose files were deleted, edited, added to or never sealed is made again, once."""
    first = run_stage(stage.task(), "a")
    harm(stage.artifact)
    with caplog.at_level(logging.WARNING, "prefect.medgrpo"):
        remade = run_stage(stage.task(), "a")
    assert (remade.cached, stage.calls) == (False, 2)
    assert remade.manifest == first.manifest
    assert (stage.artifact / "model" / "weights").read_text() == "a"
    assert "stage: the cached result" in caplog.text
    assert run_stage(stage.task(), "a").cached


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"\x00garbage", b"{}", b'{"result": "3"'])
def test_a_damaged_record_is_made_again(stage: Stage, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A result file of Prefect's that is empty, garbage or cut short is said and made anew; the artifact is reused."""
    first = run_stage(stage.task(), "a")
    storage = PREFECT_LOCAL_STORAGE_PATH.value()
    [record] = storage.glob(f"*{stage.key}-a")
    record.write_bytes(content)
    with caplog.at_level(logging.WARNING, "prefect.medgrpo"):
        again = run_stage(stage.task(), "a")
    assert (again.cached, again.manifest, stage.calls) == (False, first.manifest, 2)
    assert "the record of its cached result cannot be read" in caplog.text
    assert run_stage(stage.task(), "a").cached


@pytest.mark.slow
def test_a_stage_may_ask_more_of_a_cached_result(stage: Stage) -> None:
    """`still_valid` decides whether a cached manifest is believed; a fresh one is not questioned."""
    asked: list[Manifest] = []

    def refuse(manifest: Manifest) -> bool:
        asked.append(manifest)
        return False

    run_stage(stage.task(), "a", still_valid=refuse)
    assert asked == []
    again = run_stage(stage.task(), "a", still_valid=refuse)
    assert (again.cached, stage.calls, len(asked)) == (False, 2, 1)


def test_the_runs_directory_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another runs directory is other work, as its artifact lies elsewhere; a relative path is resolved."""
    here, there = RunConfig(runs_dir=tmp_path / "a"), RunConfig(runs_dir=tmp_path / "b")
    assert cache_key(here, "data-1") != cache_key(there, "data-1")
    assert cache_key(here, "data-1") != cache_key(here, "data-2")
    monkeypatch.chdir(tmp_path)
    assert cache_key(RunConfig(runs_dir=Path("a")), "data-1") == cache_key(here, "data-1")


# --- errors on the screen


def _record(error: Exception) -> logging.LogRecord:
    try:
        raise error
    except type(error):
        info: Any = sys.exc_info()
    return logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 1, "Encountered %s", ("x",), info)


@pytest.mark.parametrize("kind", [InputError, TrainingAlarm, TrainingCrashed, ServiceUnreachable, MedgrpoError])
def test_an_error_made_on_purpose_is_logged_as_its_sentence(kind: type[MedgrpoError]) -> None:
    """The log shows the sentence of our own error and no traceback."""
    record = _record(kind("data.path: 100 % of nothing was found."))
    assert PlainErrors().filter(record)
    text = logging.Formatter("%(message)s").format(record)
    assert text == "data.path: 100 % of nothing was found."


def test_an_unexpected_error_keeps_its_traceback() -> None:
    """A bug stays as visible as Prefect makes it."""
    record = _record(ValueError("a bug"))
    assert PlainErrors().filter(record)
    text = logging.Formatter("%(message)s").format(record)
    assert text.startswith("Encountered x\nTraceback")
    assert "ValueError: a bug" in text


def test_a_record_without_an_error_passes_unchanged() -> None:
    """Ordinary messages are left alone."""
    record = logging.LogRecord("prefect.flow_runs", logging.INFO, "", 1, "Finished in %s", ("state",), None)
    assert PlainErrors().filter(record)
    assert record.getMessage() == "Finished in state"
