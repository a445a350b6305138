"""The base job template for Kubernetes is one that Prefect takes, and asks for what a training on a T4 needs."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

TEMPLATE: dict[str, Any] = json.loads(Path("deployments/kubernetes-t4.json").read_text(encoding="utf-8"))
VARIABLES: dict[str, Any] = TEMPLATE["variables"]["properties"]


def test_every_placeholder_is_a_described_variable() -> None:
    """What the job refers to is declared, what is declared is used, and each variable says what it is."""
    placeholders = set(re.findall(r"{{ (\w+) }}", json.dumps(TEMPLATE["job_configuration"])))
    assert placeholders == set(VARIABLES)
    assert all(variable["description"] and variable["title"] for variable in VARIABLES.values())


def test_secrets_are_named_and_not_contained() -> None:
    """The pod takes its secrets from a Secret by name; nothing in the template has a value that looks like one."""
    [container] = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "{{ secret_name }}"}}]
    assert not [name for name in VARIABLES["env"]["default"] if re.search("KEY|TOKEN|PASSWORD|SECRET|AUTH", name)]


@pytest.mark.slow
def test_it_is_compatible_with_prefects_own_template() -> None:
    """Everything that Prefect's Kubernetes worker reads is there, with the type that Prefect gives it."""
    from prefect.server.api.collections import get_collection_view

    catalogue = asyncio.run(get_collection_view("aggregate-worker-metadata"))
    own = catalogue["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    assert set(own["job_configuration"]) <= set(TEMPLATE["job_configuration"])
    ours_instead = {"cpu_limit", "cpu_request", "memory_limit", "memory_request"}
    for name, variable in own["variables"]["properties"].items():
        if name not in ours_instead:
            assert VARIABLES[name].get("type") == variable.get("type"), name


@pytest.mark.slow
def test_the_server_takes_it_and_asks_for_the_image(prefect_server: None) -> None:
    """Prefect's server validates the template and makes a pool of it; only the image must be named."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.utilities.schema_tools import is_valid_schema, validate

    is_valid_schema(TEMPLATE["variables"])
    [missing] = validate({}, TEMPLATE["variables"])
    assert "'image' is a required property" in missing.message
    assert validate({"image": "medgrpo:gpu", "gpus": 2}, TEMPLATE["variables"]) == []
    assert validate({"image": "medgrpo:gpu", "gpus": "2"}, TEMPLATE["variables"])
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="t4-template", type="kubernetes", base_job_template=TEMPLATE))
        assert client.read_work_pool("t4-template").base_job_template == TEMPLATE
        client.delete_work_pool("t4-template")


@pytest.mark.slow
def test_the_rendered_job_asks_for_a_t4() -> None:
    """Rendered the way a worker does it: a GPU, a node with a T4, shared memory, a claim for runs, no root."""
    job = asyncio.run(_render({"image": "medgrpo:gpu", "name": "night"}))
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert "{{" not in json.dumps(job)
    assert container["image"] == "medgrpo:gpu"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1, "memory": "16Gi"}
    assert container["envFrom"] == [{"secretRef": {"name": "medgrpo"}}]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "Tesla-T4"}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes["shared-memory"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}
    assert volumes["runs"] == {"persistentVolumeClaim": {"claimName": "medgrpo-runs"}}
    assert {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} == {
        "shared-memory": "/dev/shm",
        "runs": "/app/runs",
    }
    dockerfile = Path("docker/Dockerfile").read_text()
    assert pod["securityContext"]["runAsNonRoot"]
    user = pod["securityContext"]["runAsUser"]
    assert pod["securityContext"]["fsGroup"] == user
    assert f"USER {user}:{user}\n" in dockerfile, "another user has no home, and may write nowhere"
    assert job["spec"]["backoffLimit"] == 0, "Prefect decides about retries"


async def _render(values: dict[str, Any]) -> dict[str, Any]:
    from prefect.workers.base import BaseJobConfiguration

    class Job(BaseJobConfiguration):
        job_manifest: dict[str, Any]

    return (await Job.from_template_and_values(TEMPLATE, values)).job_manifest
