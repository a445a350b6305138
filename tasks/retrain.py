"""A decision to train again as Prefect runs it: retried while MLflow is away, shown as an artifact, kept as a tag."""

from typing import TYPE_CHECKING
from uuid import UUID

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.input import create_flow_run_input, read_flow_run_input
from prefect.runtime import flow_run

from medgrpo import retraining, stages
from medgrpo.config import RunConfig
from medgrpo.manifests import Manifest
from medgrpo.retraining import Decision, Measured
from tasks.progress import StageProgress
from tasks.running import OUTLASTS, RETRIED

if TYPE_CHECKING:
    from medgrpo.registry import Registration

TAG = "retrain:"
"""Begins the tag of a flow run that says what was found."""
FOUND = "medgrpo-reason"
"""Key, on Prefect's server, of the reason that a flow run trains for."""


@task(name="find reason", **OUTLASTS)
def find_reason(config: RunConfig, data: Manifest) -> Decision:
    """Look for a reason to train; which versions there are is asked anew each time.

    A run that has found one keeps it on Prefect's server: put back after a crash it would find the version that it was
    about to register, and no reason any more.
    """

    def measure(champion: "Registration") -> Measured:
        with StageProgress("retrain-medgrpo-progress", "Asking the champion about fresh records") as progress:
            return retraining.read_measured(stages.ask_fresh(config, data, champion, progress.answers).path)

    known = read_flow_run_input(FOUND)
    if known is not None:
        return Decision.model_validate(known)
    decision = retraining.find_reason(config, data.path, measure)
    if decision.trains:
        create_flow_run_input(FOUND, decision.model_dump(mode="json"))
    return decision


@task(name="show reason", **RETRIED)
def show_reason(decision: Decision) -> None:
    """Post the reason, or why there is none, as an artifact of the flow run, and tag the run with it."""
    create_markdown_artifact(decision.markdown(), key="retrain-medgrpo-reason", description=decision.outcome)
    others = [tag for tag in flow_run.tags if not tag.startswith(TAG)]
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags=[*others, f"{TAG}{decision.outcome}"])
