"""Trials of a sweep in MLflow: runs nested under the sweep's, from which no model version comes."""

from dataclasses import asdict
from typing import Any

from medgrpo.config import resolve_mlflow_uri
from medgrpo.registry.candidate import Candidate, read_evidence
from medgrpo.registry.connection import connect, plain_errors
from medgrpo.registry.evidence import log_evidence
from medgrpo.registry.lookup import Registration
from medgrpo.registry.runs import TRIAL_TAG, VERSION_TAG, experiment_id, open_run, trial_name
from medgrpo.sweep.settings import TrialConfig

NO_VERSION = "none: a trial"
"""Content of VERSION_TAG, which says that nothing is left to do, on the run of a trial."""


def trial_query(trial: TrialConfig) -> str:
    """MLflow's search for the runs of a trial."""
    return f"tags.`{TRIAL_TAG}` = '{trial_name(trial)}'"


def record_trial(candidate: Candidate) -> dict[str, Any]:
    """Log the evaluation of a trial with its run and end that; what is returned has the form of a registration.

    There is no version, and no alias moves. A try that was cut short is completed.

    Raises:
        ServiceUnreachable: MLflow does not answer.
        InputError: an artifact is missing, or MLflow refuses.
    """
    config, evidence = candidate.config, read_evidence(candidate)
    assert config.trial, "only a trial is recorded as one"
    client = connect(config)
    with plain_errors(resolve_mlflow_uri(config)):
        runs = client.search_runs([experiment_id(client, config)], trial_query(config.trial))
        run_id = next((str(run.info.run_id) for run in runs if VERSION_TAG in run.data.tags), "")
        if not run_id:
            run_id = open_run(config, candidate.train_dir, candidate.tags)
            log_evidence(client, run_id, evidence)
            client.set_terminated(run_id, status="FINISHED")
            client.set_tag(run_id, VERSION_TAG, NO_VERSION)
    nothing = Registration(evidence.name, 0, run_id, "", candidate.model_digest, ())
    return asdict(nothing) | {"version": None}
