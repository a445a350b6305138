"""Reach MLflow, or say in a sentence why not."""

import contextlib
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from medgrpo.config import RunConfig, resolve_mlflow_uri
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.manifests import friendly_disk_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 8
CALL_SECONDS = 15
_ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\"()\]]+)")


def connect(config: RunConfig) -> "MlflowClient":
    """A client of the run's MLflow store that has answered once.

    MLflow's usage telemetry and its bars are off unless MLFLOW_DISABLE_TELEMETRY and
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR say otherwise.

    Raises:
        ServiceUnreachable: no answer within about ten seconds.
        InputError: the URI names something that cannot be an MLflow store.
    """
    uri = resolve_mlflow_uri(config)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow draws a bar over the files that it fetches, between the lines of whoever asked.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    _check_store(uri)
    with plain_errors(uri), http_timeout(PROBE_SECONDS):
        from mlflow import MlflowClient

        try:
            client = MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        except ModuleNotFoundError as error:
            raise InputError(
                f"MLflow at {public_uri(uri)} needs the Python package {error.name!r}, which is not installed. "
                "Install it, or name the address of an MLflow server."
            ) from error
        client.search_experiments(max_results=1)
    return client


def _check_store(uri: str) -> None:
    """Look at a database before MLflow does, which would try for minutes to open one that cannot be opened."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        _check_sqlite(uri)
    elif parts.scheme not in ("http", "https") and parts.hostname and parts.port:
        try:
            socket.create_connection((parts.hostname, parts.port), timeout=PROBE_SECONDS).close()
        except OSError as error:
            _unreachable(uri, error)


def _check_sqlite(uri: str) -> None:
    path = Path(uri.partition(":///")[2].partition("?")[0])
    if path == Path():
        return
    with friendly_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY"):
            _unreachable(uri, error)
        raise InputError(
            f"tracking.uri {uri}: {path} cannot be used as an SQLite database ({error}). "
            "Name another file, or the address of an MLflow server."
        ) from error


@contextlib.contextmanager
def http_timeout(seconds: int) -> Iterator[None]:
    """One try of `seconds` per HTTP request; MLflow's own settings would keep a training waiting for minutes.

    MLflow reads these variables at each request and offers no other way, so they are set and put back.
    """
    wanted = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def plain_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into ServiceUnreachable or InputError."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except (requests.RequestException, OperationalError) as error:
        _unreachable(uri, error)
    except MlflowException as error:
        if error.error_code == "TEMPORARILY_UNAVAILABLE" or error.message.startswith("API request to http"):
            _unreachable(uri, error)
        raise InputError(f"MLflow at {public_uri(uri)} refused: {_first_line(error.message)}") from error


def _unreachable(uri: str, error: Exception) -> NoReturn:
    """Raise ServiceUnreachable with the reason alone; the connection's own traceback helps nobody."""
    text = str(error)
    errno = _ERRNO.search(text)
    reason = errno[1].strip() if errno else "timed out" if "timed out" in text else _first_line(text)
    raise ServiceUnreachable(
        f"MLflow at {public_uri(uri)} did not answer ({reason}). Start it or correct tracking.uri "
        "(or MLFLOW_TRACKING_URI), then run again: finished stages are reused and metrics catch up."
    ) from None


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]


def public_uri(uri: str) -> str:
    """The URI without user name and password.

    >>> public_uri("https://me:secret@mlflow.example:5000/x")
    'https://mlflow.example:5000/x'
    """
    return re.sub(r"(?<=://)[^/@]*@", "", uri)
