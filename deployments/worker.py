"""A worker whose runs stop before it does: `python -m deployments.worker --pool cpu --type process --limit 1`.

Prefect's own process worker, when it is told to stop, kills the processes of its runs and ends at once. A training
then saves its last step with nobody to wait for it, which a container does not outlive, and the Prefect server hears
of it by the run's silence only. Here each run is told to stop, saves, and says that it has; then the worker is told.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from medgrpo.training.stopping import SAVE_SECONDS

STOP_SECONDS = 2 * SAVE_SECONDS
"""How long runs may take to stop: what each waits for its training, and as much to end."""
WORKER_SECONDS = 10
"""How long the worker may take after them."""
POLL_SECONDS = 0.2


def main(arguments: Sequence[str]) -> int:
    """Run `prefect worker start` with the arguments until it ends, on SIGTERM after its runs; returns its exit code.

    Ctrl-C reaches the worker and its runs by the terminal, and ends them as Prefect does.
    """
    worker = subprocess.Popen([sys.executable, "-m", "prefect", "worker", "start", *arguments])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _stop(worker.pid))
    return worker.wait()


def _stop(pid: int) -> None:
    """Stop the runs of a worker, and then the worker, which is halted meanwhile and takes no others."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # It may have ended by itself, or been told at the same time.
    with suppress(psutil.NoSuchProcess):
        worker = psutil.Process(pid)
        worker.suspend()
        runs = worker.children()
        for run in runs:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
        _wait_for(runs, STOP_SECONDS)
        worker.terminate()
        worker.resume()
        # Now and then it goes on all the same, and would take the next run. It has none now.
        if not _wait_for([worker], WORKER_SECONDS):
            worker.kill()


def _wait_for(processes: Sequence[psutil.Process], seconds: float) -> bool:
    """Wait until all have ended, for so long at most; whether they have."""
    limit = time.monotonic() + seconds
    while alive := any(map(_alive, processes)):
        if time.monotonic() > limit:
            break
        time.sleep(POLL_SECONDS)
    return not alive


def _alive(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
