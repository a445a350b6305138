"""Tell the Prefect server what happened in a run, for its automations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.events import emit_event
from prefect.runtime import flow_run

from medgrpo.config import RunConfig
from medgrpo.manifests import Manifest
from medgrpo.stages import read_registration

ALARM, CANDIDATE = "medgrpo.alarm", "medgrpo.candidate"


def emit(event: str, config: RunConfig, payload: Mapping[str, Any]) -> None:
    """Send an event about a run; the run's name and profile go with it, and Prefect adds flow run and deployment.

    A thread of Prefect's sends it, so that a server which is slow or away neither fails nor slows the run: the event is
    lost then. Outside a flow run, where Prefect would start a server of its own for it, nothing is sent.
    """
    if flow_run.id is None:
        return
    resource = {"prefect.resource.id": f"medgrpo.run.{config.name}", "prefect.resource.name": str(config.name)}
    emit_event(event, resource, payload={"run": config.name, "profile": config.profile, **payload})


class Alarms:
    """Sends an event when an alarm first rings in a training: once, however often it rings or is resumed.

    Of a sweep's trial none is sent: the table of the sweep says what came of it.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._rung: set[str] = set()

    def begin(self, directory: Path) -> None:
        """Leave out what rang in an earlier attempt, which the training's directory tells."""
        from medgrpo.training.metrics import METRICS_FILE, raised_alarms, read_metrics

        self._rung |= {alarm.name for alarm in raised_alarms(read_metrics(directory / METRICS_FILE))}

    def look(self, row: Mapping[str, Any]) -> None:
        """Send what rings for the first time in a row of metrics.jsonl."""
        for name, sentence in row.get("alarms", {}).items():
            if name not in self._rung and self._config.trial is None:
                self._rung.add(name)
                emit(ALARM, self._config, {"alarm": name, "step": row["step"], "sentence": sentence})


def announce_candidate(config: RunConfig, registered: Manifest) -> None:
    """Send an event if a registration is the version under review: it passed the gate, and nobody has decided yet."""
    registration = read_registration(registered)
    if config.tracking.alias in registration["aliases"]:
        told = {"model": registration["name"], "version": registration["version"], "digest": registration["digest"]}
        emit(CANDIDATE, config, told)
