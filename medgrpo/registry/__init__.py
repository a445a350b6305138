"""MLflow: runs, metrics, dataset inputs, model versions and aliases.

One training is one MLflow run; one evaluated model is one registered version. Both hold because every step first looks
for what an earlier attempt left. Everything goes through an `MlflowClient` with an explicit URI: MLflow's active run
and global URI are neither read nor set. MLflow is imported inside functions, so that importing this package is quick.
"""

from medgrpo.registry.card import model_card
from medgrpo.registry.connection import connect
from medgrpo.registry.runs import (
    METRICS_FILE,
    RUN_FILE,
    SYNC_FILE,
    TRAINING_RUN_TAG,
    VERSION_TAG,
    fail_run,
    log_metric_rows,
    open_run,
    sync_metrics,
)
from medgrpo.registry.versions import Candidate, Registration, holds, register

__all__ = [
    "METRICS_FILE",
    "RUN_FILE",
    "SYNC_FILE",
    "TRAINING_RUN_TAG",
    "VERSION_TAG",
    "Candidate",
    "Registration",
    "connect",
    "fail_run",
    "holds",
    "log_metric_rows",
    "model_card",
    "open_run",
    "register",
    "sync_metrics",
]
