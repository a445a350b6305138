"""What people see of long work: log lines at a readable pace, and a progress artifact that ends at 100 %."""

import logging
import uuid
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.exceptions import ObjectNotFound

from tasks import progress
from tasks.progress import LOG_SECONDS, StageProgress


@dataclass
class Screen:
    """Stands in for Prefect's artifact API and for the clock."""

    now: float = 1000.0
    created: list[dict[str, Any]] = field(default_factory=list)
    updates: list[tuple[float, str]] = field(default_factory=list)
    outage: Exception | None = None

    def create(self, **values: Any) -> uuid.UUID:
        self.created.append(values)
        return uuid.UUID(int=7)

    def update(self, artifact: uuid.UUID, progress: float, description: str) -> None:
        assert artifact == uuid.UUID(int=7)
        if self.outage:
            raise self.outage
        self.updates.append((progress, description))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Screen:
    fake = Screen()
    monkeypatch.setattr(progress, "create_progress_artifact", fake.create)
    monkeypatch.setattr(progress, "update_progress_artifact", fake.update)
    monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("test.progress"))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: fake.now))
    caplog.set_level(logging.INFO, "test.progress")
    return fake


def _row(step: int, **values: Any) -> dict[str, Any]:
    return {"phase": "grpo", "step": step, "steps": 4, "seconds_left": 90.0, "loss": 0.5, **values}


def test_an_artifact_is_created_at_zero(screen: Screen) -> None:
    """The work shows up in Prefect before its first step is done."""
    StageProgress("train-medgrpo-training", "Training tiny")
    expected = {"progress": 0.0, "key": "train-medgrpo-training", "description": "Training tiny"}
    assert screen.created == [expected]


def test_a_training_row_says_reward_loss_and_time_left(screen: Screen, caplog: pytest.LogCaptureFixture) -> None:
    """One line tells which step of how many, the reward, the loss and the minutes left."""
    with StageProgress("key", "Training") as shown:
        shown.training(_row(1, reward=0.25))
    assert caplog.messages == ["grpo 1/4 reward 0.250, loss 0.500, 1.5 min left"]
    assert screen.updates == [(25.0, "grpo reward 0.250, loss 0.500, 1.5 min left")]


def test_a_phase_without_rewards_leaves_them_out(screen: Screen, caplog: pytest.LogCaptureFixture) -> None:
    """Warm-up rows have no reward, and none is invented."""
    with StageProgress("key", "Training") as shown:
        shown.training(_row(1, phase="warmup"))
    assert caplog.messages == ["warmup 1/4 loss 0.500, 1.5 min left"]


def test_an_alarm_that_rings_is_shown(screen: Screen, caplog: pytest.LogCaptureFixture) -> None:
    """The line names the alarms of the step; what they say is in the training's own log."""
    with StageProgress("key", "Training") as shown:
        shown.training(_row(1, alarms={"kl": "Far away.", "length": "Too long."}))
    assert caplog.messages == ["grpo 1/4 loss 0.500, 1.5 min left, alarm kl, alarm length"]


def test_lines_come_at_most_every_fifteen_seconds(screen: Screen, caplog: pytest.LogCaptureFixture) -> None:
    """Steps that follow each other quickly share a line; the last step always gets its own."""
    with StageProgress("key", "Training") as shown:
        for step in range(1, 101):
            shown.advance("grpo", step, 100, "")
            screen.now += 1
    steps = [int(message.split()[1].split("/")[0]) for message in caplog.messages]
    assert steps == [*range(1, 101, LOG_SECONDS + 1), 100]
    assert [percent for percent, _ in screen.updates] == [float(step) for step in steps]


def test_each_model_that_answers_ends_at_all_its_cases(screen: Screen, caplog: pytest.LogCaptureFixture) -> None:
    """Every model gets a line when it has answered all its cases, however quick it was."""
    with StageProgress("key", "Evaluating") as shown:
        for model in ("base", "tuned"):
            for done in (1, 2, 3):
                shown.answers(model, done, 3)
    finished = [message.strip() for message in caplog.messages if " 3/3" in message]
    assert finished == ["answers of base 3/3", "answers of tuned 3/3"]
    assert screen.updates[-1][0] == 100.0


@pytest.mark.parametrize("outage", [httpx.ConnectError("refused"), ObjectNotFound(ValueError("deleted"))])
def test_a_lost_artifact_does_not_stop_the_work(
    screen: Screen, caplog: pytest.LogCaptureFixture, outage: Exception
) -> None:
    """While Prefect is away, or its artifact was deleted, training goes on; the log keeps the progress."""
    screen.outage = outage
    with StageProgress("key", "Training") as shown:
        shown.training(_row(1))
        screen.outage, screen.now = None, screen.now + 2 * LOG_SECONDS
        shown.training(_row(2))
    assert [message.split()[1] for message in caplog.messages if message.startswith("grpo")] == ["1/4", "2/4"]
    assert [percent for percent, _ in screen.updates] == [50.0]


def test_the_bar_is_drawn_on_a_terminal_only(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file or a worker's log there are lines and no bar; on a terminal there is one, gone when the work fails."""
    with StageProgress("key", "Training") as shown:
        assert not shown._bar.live.is_started
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    shown = StageProgress("key", "Training")
    with pytest.raises(ValueError, match="broken"), shown:
        raise ValueError("broken") if shown._bar.live.is_started else AssertionError("no bar was drawn")
    assert not shown._bar.live.is_started


def test_a_log_line_is_not_written_into_the_bar(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The bar is off the terminal while a line is logged, and back afterwards."""
    drawn: list[bool] = []

    def look(record: logging.LogRecord) -> bool:
        drawn.append(shown._bar.live.is_started)
        return True

    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    caplog.handler.addFilter(look)
    with StageProgress("key", "Training") as shown:
        shown.advance("grpo", 1, 4, "")
        assert shown._bar.live.is_started
    caplog.handler.removeFilter(look)
    assert drawn == [False]
