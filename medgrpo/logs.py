"""Log lines as JSON objects, one a line, each with the run that it belongs to.

`deployments/logging.yml` gives them to Prefect. A training that is started where they are on has them too:
`python -m medgrpo.logs MODULE ARGUMENTS` runs a module, and whatever it logs or prints becomes such lines.
"""

import io
import json
import logging
import os
import re
import runpy
import sys
from types import TracebackType

from pythonjsonlogger.json import JsonFormatter

FIELDS = "MEDGRPO_LOG_FIELDS"
"""Environment variable with the fields of every line, as a JSON object; it hands them on to what is started."""
FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""Environment variable in which a worker names the flow run to the process that it starts for it."""


def json_lines() -> JsonFormatter:
    """A formatter whose lines hold time (UTC), level, logger, message, and the fields of the run as far as known."""
    flow_run = {"flow_run_id": os.environ[FLOW_RUN]} if FLOW_RUN in os.environ else {}
    return JsonFormatter(
        ("levelname", "name", "message"),
        rename_fields={"levelname": "level", "name": "logger", "deployment_name": "deployment"},
        timestamp="time",
        defaults=flow_run | json.loads(os.environ.get(FIELDS, "{}")),
        json_ensure_ascii=False,
    )


def remember(**fields: object) -> None:
    """Put fields on every line from now on, here and in what this process starts; nothing where lines are plain."""
    known = {name: str(value) for name, value in fields.items() if value}
    for formatter in _formatters():
        formatter.defaults.update(known)
        os.environ[FIELDS] = json.dumps(json.loads(os.environ.get(FIELDS, "{}")) | known)
        # MLflow would write past these lines, through a handler of its own, once it is imported.
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")


def module_options(module: str) -> list[str]:
    """Python's options that run a module, with JSON lines where this process has them."""
    return ["-m", __spec__.name, module] if _formatters() else ["-m", module]


def _formatters() -> list[JsonFormatter]:
    found = (handler.formatter for handler in logging.getLogger().handlers)
    return [formatter for formatter in found if isinstance(formatter, JsonFormatter)]


class _Lines(io.TextIOBase):
    """A stream that logs each line written to it."""

    def __init__(self, name: str) -> None:
        self._logger, self._rest = logging.getLogger(name), ""

    def write(self, text: str) -> int:
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        for line in filter(str.strip, lines):
            self._logger.info("%s", line.rstrip())
        return len(text)


def main(module: str) -> None:
    """Run a module as `python -m` does; its log, its output and its last error become JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    # Otherwise a line that a full disk refuses would be reported on standard error, which is this log again.
    logging.raiseExceptions = False
    sys.excepthook = _log_error
    sys.stdout, sys.stderr = _Lines("stdout"), _Lines("stderr")
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.write("\n")


def _log_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__spec__.parent).critical("%s", error, exc_info=(kind, error, trace))


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    main(sys.argv[0])
