"""What tests share: a home of its own for Prefect, so that the developer's stays untouched, servers and stores."""

import compileall
import gc
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import certifi
import pytest
from hypothesis import settings

from medgrpo import registry
from medgrpo.config import RunConfig
from medgrpo.manifests import describe, write_json
from medgrpo.resources import LEDGER
from medgrpo.testing import tiny_record

HOME = pytest.StashKey[Path]()
FROZEN = pytest.StashKey[int]()
"""How many modules there were when what imports had left was last taken out of garbage collections."""
MANY_MODULES = 100
CHECKS = [
    {"name": "better than base", "outcome": "pass", "reason": "It is better.", "measured": 0.1, "threshold": 0.0},
    {"name": "no leaks", "outcome": "pass", "reason": "None was found.", "measured": 0, "threshold": None},
]


def pytest_configure(config: pytest.Config) -> None:
    """Give this test process, and what it starts, a Prefect home of its own, before anything imports Prefect."""
    # How long an example takes says nothing where test processes share two cores.
    settings.register_profile("suite", deadline=None)
    settings.load_profile("suite")
    if not hasattr(config, "workerinput"):
        _compile_once()
    home = config.stash[HOME] = Path(tempfile.mkdtemp(prefix="medgrpo-tests-"))
    foreign = ("PREFECT_", "MLFLOW_", "MEDGRPO_CACHE", "MEDGRPO_PARENT", "MEDGRPO_SWEEP")
    for name in [name for name in os.environ if name.startswith(foreign)]:
        del os.environ[name]
    os.environ |= {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        # Tasks that are called outside a flow have no flow run to log to, and Prefect warns about it.
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_API_SSL_CERT_FILE": str(_one_authority(home)),
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Several test processes with a thread per core each would wait for each other more than they compute.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _one_authority(home: Path) -> Path:
    """The first of the certificate authorities alone: each of Prefect's clients reads all of them otherwise, for 40 ms.

    Its servers are on loopback here, without TLS.
    """
    last = "-----END CERTIFICATE-----\n"
    authorities = Path(certifi.where()).read_text(encoding="ascii")
    (home / "authority.pem").write_text(authorities.partition(last)[0] + last)
    return home / "authority.pem"


def _compile_once() -> None:
    """Compile the project: where Python may write no bytecode, each process that a test starts would do it anew."""
    for package in ("medgrpo", "tasks", "flows", "deployments", "benchmarks"):
        compileall.compile_dir(Path(__file__).parents[1] / package, quiet=2)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove that home."""
    shutil.rmtree(config.stash[HOME], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that start services: they take longest, and at the end one process would wait for them."""
    services = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: item.path not in services)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Rest the garbage collector while the tests, and all that they import, are read."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Keep what imports have left out of later garbage collections: an evaluation collects, and walks all there is.

    Many imports are made by tests, within functions.
    """
    if len(sys.modules) >= item.config.stash.get(FROZEN, 0) + MANY_MODULES:
        gc.collect()
        gc.freeze()
        item.config.stash[FROZEN] = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def own_random() -> Iterator[None]:
    """Keep Python's generator to the thread that runs the tests.

    Prefect's threads live on after the test that started them and draw masks and pauses of their connections from the
    same generator, in the middle of a training that is compared to the value, or of a strategy of Hypothesis.
    """
    others = random.Random()

    def apart(name: str) -> Callable[..., Any]:
        ours, theirs = getattr(random, name), getattr(others, name)
        return lambda *a, **k: (ours if threading.current_thread() is threading.main_thread() else theirs)(*a, **k)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("random", "uniform", "getrandbits", "randint", "randrange", "choice", "expovariate"):
            patch.setattr(random, name, apart(name))
        yield


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with an empty database. It takes twelve seconds, so only tests that run tasks ask for it."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def declared_once() -> Callable[[Any], dict[str, Any]]:
    """What is deployed of a declaration, worked out once for each: Prefect executes the flow's file every time."""
    from deployments import server

    return cache(server._declared_deployment)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with MLflow's tables; creating them takes longer than a test."""
    runs = tmp_path_factory.mktemp("template")
    registry.connect(RunConfig(runs_dir=runs))
    return runs / "mlflow.db"


@pytest.fixture(scope="session")
def new_candidate(empty_store: Path) -> Callable[[Path], registry.Candidate]:
    """Makes a candidate for a registry of its own, both in the given directory."""

    def make(directory: Path) -> registry.Candidate:
        runs = directory / "runs"
        runs.mkdir()
        shutil.copy(empty_store, runs / "mlflow.db")
        return _candidate(RunConfig(name="night", profile="demo", runs_dir=runs), directory)

    return make


@pytest.fixture
def candidate(tmp_path: Path, new_candidate: Callable[[Path], registry.Candidate]) -> registry.Candidate:
    """A candidate that passed the gate; registering it never loads its model."""
    return new_candidate(tmp_path)


def _candidate(config: RunConfig, directory: Path) -> registry.Candidate:
    """Small stand-ins for every directory of a run."""
    from medgrpo.rewards.audit import audit

    train, model, data, evaluation = (directory / name for name in ("train", "model", "data", "evaluation"))
    write_json(train / "training.json", {"seconds": 2400.0, "device": "cpu"})
    attempts = [{"seconds": 3000.0, "cpu_seconds": 6000.0, "peak_memory_bytes": 3_000_000_000}, {"seconds": 2400.0}]
    write_json(train / LEDGER, attempts)
    write_json(train / "grpo" / "adapter" / "adapter_config.json", {"r": 16})
    write_json(model / "config.json", {"model_type": "llama"})
    (model / "weights.bin").write_bytes(bytes(range(256)))
    counts = {split: {"yes": 3, "no": 2, "maybe": 1} for split in ("train", "dev", "test")}
    digests = {split: split[0] * 64 for split in counts}
    write_json(data / "data.json", {"digests": digests, "domain": "synthetic", "synthetic": True, "counts": counts})
    result = {"value": 0.62, "low": 0.55, "high": 0.69, "n": 200}
    write_json(evaluation / "metrics.json", {"models": {"base": {"accuracy": result}, "tuned": {"accuracy": result}}})
    write_json(evaluation / "predictions.json", {"1": "yes"})
    (evaluation / "report.html").write_text("<p>report</p>")
    (evaluation / "plots").mkdir()
    (evaluation / "plots" / "reward.png").write_bytes(b"png")
    rows = [f'{{"phase": "grpo", "step": {step}, "time": {1000 + step}, "reward": {step / 10}}}\n' for step in (1, 2)]
    (train / "metrics.jsonl").write_text("".join(rows))
    write_json(directory / "audit" / "audit.json", asdict(audit([tiny_record(), tiny_record("2")], config.rewards)))
    return registry.Candidate(
        config=config,
        train_dir=train,
        model_dir=model,
        data_dir=data,
        evaluation_dir=evaluation,
        audit_dir=directory / "audit",
        model_digest=describe(model).sha256,
        gate={"outcome": "pass", "summary": "All 2 checks hold.", "checks": CHECKS},
        champion="none",
        git_commit="c" * 40,
        tags={"medgrpo.flow_run": "flow-1"},
    )
