"""MLflow: runs, metrics, dataset inputs, model versions and aliases.

One training is one MLflow run; one evaluated model is one registered version. Both hold because every step first looks
for what an earlier attempt left. Everything goes through an `MlflowClient` with an explicit URI: MLflow's active run
and global URI are neither read nor set. MLflow is imported inside functions, so that importing this package is quick.
"""

from medgrpo.registry.candidate import Candidate
from medgrpo.registry.card import model_card
from medgrpo.registry.connection import connect
from medgrpo.registry.lookup import (
    CHAMPION,
    DIGEST_TAG,
    ModelUri,
    Registration,
    champion_uri,
    download,
    find_champion,
    find_version,
    get_version,
    parse_model_uri,
    registered_name,
    verify_version,
)
from medgrpo.registry.runs import (
    RUN_FILE,
    SYNC_FILE,
    TRAINING_RUN_TAG,
    VERSION_TAG,
    fail_run,
    log_metric_rows,
    open_run,
    sync_metrics,
    trial_tags,
)
from medgrpo.registry.trials import record_trial
from medgrpo.registry.versions import holds, register

__all__ = [
    "CHAMPION",
    "DIGEST_TAG",
    "RUN_FILE",
    "SYNC_FILE",
    "TRAINING_RUN_TAG",
    "VERSION_TAG",
    "Candidate",
    "ModelUri",
    "Registration",
    "champion_uri",
    "connect",
    "download",
    "fail_run",
    "find_champion",
    "find_version",
    "get_version",
    "holds",
    "log_metric_rows",
    "model_card",
    "open_run",
    "parse_model_uri",
    "record_trial",
    "register",
    "registered_name",
    "sync_metrics",
    "trial_tags",
    "verify_version",
]
