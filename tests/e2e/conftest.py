"""The service, started once for all tests of this directory."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from services import postgres

from e2e.stack import DEAD_AFTER, Stack


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The service with both pools' workers, deployed as the documentation says."""
    names = ("postgres_password", "prefect_database_password", "mlflow_database_password")
    with postgres({name: secrets.token_hex(8) for name in names}) as database:
        made = Stack(Path(tmp_path_factory.mktemp("service")), database)
        try:
            made.prepare()
            made.start("prefect", "mlflow")
            made.run("python", "-m", "deployments", "apply", "--dead-after", str(DEAD_AFTER))
            made.start("worker-t4", "worker-cpu")
            yield made
        finally:
            made.stop_all()
