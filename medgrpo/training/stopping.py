"""A training process that is told to stop, and the lock that keeps two of them out of one directory."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, Self

from medgrpo.errors import MedgrpoError, TrainingCrashed
from medgrpo.manifests import friendly_disk_errors, locked, write_json

SAVE_SECONDS = 60
"""How long a process that was told to stop may take to save; after that it is killed."""
FAILURE_FILE, LOCK_FILE = "failure.json", "writer.lock"
SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class Saver(Protocol):
    """What trains."""

    def save_finished_step(self) -> str:
        """Save the last finished step, if that is possible; a sentence on what there is to go on from."""
        ...

    def heard(self, number: int) -> int:
        """Of the numbers that the processes of this training ask with, all at the same moment, the highest."""
        ...


class Stopping:
    """Handles SIGTERM and Ctrl-C while it is entered: saves the last finished step, leaves a note, ends the process.

    Python runs a handler between two instructions of the main thread, and what a checkpoint holds changes only while a
    step is applied. So it is written from within the handler, unless a step is being applied, which is finished first.
    An exception could do the same only if nothing on its way, a library's destructor for one, swallowed it.

    Several processes that train together can save only together, so they do it at the end of the step that they are in,
    whichever of them got the signal.

    Args:
        directory: the training's; the note is its failure.json.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._saver: Saver | None = None
        self._applying, self._together, self._number = False, False, 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._number = self._number or number
        if not (self._applying or self._together):
            self._leave()

    @contextlib.contextmanager
    def saving(self, saver: Saver, together: bool) -> Iterator[None]:
        """The span in which `saver` trains, alone or together with other processes."""
        self._saver, self._together = saver, together
        try:
            yield
        finally:
            self._saver, self._applying, self._together = None, False, False
        if self._number:
            self._leave()

    def begin_step(self) -> None:
        """A step is about to change the weights."""
        self._applying = True

    def end_step(self) -> None:
        """The step is applied, logged, and saved where it is due."""
        self._applying = False
        if self._saver and self._together:
            self._number = self._saver.heard(self._number)
        if self._number:
            self._leave()

    def _leave(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        try:
            with friendly_disk_errors(self._directory):
                kept = self._saver.save_finished_step() if self._saver else "Running it again goes on where it was."
        except MedgrpoError as error:
            kept = f"Its last step could not be saved: {error} Running it again goes on from the last checkpoint."
        stopped = TrainingCrashed(f"the training was stopped by {signal.Signals(self._number).name}. {kept}")
        # Of several processes the others are stopped because one failed, and it has said why.
        if not (self._directory / FAILURE_FILE).exists():
            leave_note(self._directory, stopped)
        # Not through logging: the signal may have come in the middle of a line.
        os.write(2, f"{stopped}\n".encode())
        os._exit(stopped.exit_code)


def installed() -> Stopping | None:
    """What handles SIGTERM in this process, if it is a `Stopping`."""
    handler: Any = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, Stopping) else None


def leave_note(directory: Path, error: MedgrpoError) -> None:
    """Write failure.json for whoever started this process; on a full disk the exit code has to do."""
    with contextlib.suppress(OSError):
        write_json(directory / FAILURE_FILE, {"kind": type(error).__name__, "message": str(error)})


@contextlib.contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Work in a training's directory alone: wait for another process that still saves there, then keep others out.

    The lock is the system's and ends with its process.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        if not held.enter_context(locked(directory / LOCK_FILE, wait=False)):
            logger.warning("another training process still works in %s: waiting until it has ended", directory)
            held.enter_context(locked(directory / LOCK_FILE))
        yield
