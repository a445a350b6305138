"""Where a Prefect server differs from what is declared, and how it is brought in line."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.events.filters import AutomationFilter, AutomationFilterTags
from prefect.exceptions import ObjectNotFound

from deployments import MANAGED, Declaration, Deployment, Limit, Pool
from deployments.automations import Block
from medgrpo.errors import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.events.schemas.automations import Automation, AutomationCore

Settings = dict[str, Any]
EXISTS = "exists"


@dataclass(frozen=True)
class Difference:
    """One setting that is not on the server as it is declared.

    Attributes:
        thing: its kind and name.
        setting: which of its settings; "exists" where it should, or should not, be there at all.
        deployed: the value on the server.
        declared: the value here.
    """

    thing: str
    setting: str
    deployed: Any
    declared: Any


def differences(client: "SyncPrefectClient", declaration: Declaration) -> list[Difference]:
    """Everything on the server that `apply` would change; empty where it is in line."""
    found: list[Difference] = []
    for pool in declaration.pools:
        found += _compare(f"work pool {pool.name}", _deployed_pool(client, pool), _declared_pool(pool))
    for limit in declaration.limits:
        found += _compare(f"limit {limit.name}", _deployed_limit(client, limit.name), _declared_limit(limit))
    for deployment in declaration.deployments:
        found += _compare_deployment(client, deployment.full_name, _declared_deployment(deployment))
    for name in _undeclared(client, declaration):
        found.append(Difference(f"deployment {name}", EXISTS, True, False))
    deployed, surplus = _deployed_automations(client, declaration)
    for name, automation in _declared_automations(client, declaration).items():
        found += _compare_automation(deployed.get(name), automation)
    found += [Difference(f"automation {automation.name}", EXISTS, True, False) for automation in surplus]
    return found


def apply(client: "SyncPrefectClient", declaration: Declaration) -> Iterator[str]:
    """Create, update and remove until nothing differs; yields a sentence for each thing that changed.

    Pools and limits come first: deployments need them. What is in line is left alone, so that schedules which a person
    paused, and the runs that they planned, stay as they are.

    Raises:
        InputError: a work pool of a type that cannot be changed into a declared one, or a block for messages that is
            not there or cannot pass them on.
    """
    automations = _declared_automations(client, declaration)
    for pool in declaration.pools:
        yield from _apply_pool(client, pool)
    for limit in declaration.limits:
        yield from _apply_limit(client, limit)
    for deployment in declaration.deployments:
        declared = _declared_deployment(deployment)
        if changes := _compare_deployment(client, deployment.full_name, declared):
            _write_deployment(client, deployment, declared)
            yield _sentence(f"deployment {deployment.full_name}", changes)
    for name, found in _undeclared(client, declaration).items():
        _remove_deployment(client, found)
        yield f"deployment {name}: removed, as it is not declared any more"
    yield from _apply_automations(client, declaration, automations)


def _compare(thing: str, deployed: Settings | None, declared: Settings) -> list[Difference]:
    if deployed is None:
        return [Difference(thing, EXISTS, False, True)]
    pairs = {setting: (deployed[setting], value) for setting, value in declared.items()}
    return [Difference(thing, setting, is_, should) for setting, (is_, should) in pairs.items() if is_ != should]


def _sentence(thing: str, changes: list[Difference]) -> str:
    settings = [change.setting for change in changes]
    return f"{thing}: created" if settings == [EXISTS] else f"{thing}: updated {', '.join(settings)}"


def _declared_pool(pool: Pool) -> Settings:
    return {"type": pool.types[0], "description": pool.description}


def _deployed_pool(client: "SyncPrefectClient", pool: Pool) -> Settings | None:
    try:
        found = client.read_work_pool(pool.name)
    except ObjectNotFound:
        return None
    # One that exists as another permitted type is as good as declared.
    return {"type": pool.types[0] if found.type in pool.types else found.type, "description": found.description}


def _apply_pool(client: "SyncPrefectClient", pool: Pool) -> Iterator[str]:
    declared, deployed = _declared_pool(pool), _deployed_pool(client, pool)
    changes = _compare(f"work pool {pool.name}", deployed, declared)
    if deployed is None:
        client.create_work_pool(WorkPoolCreate(name=pool.name, **declared))
    elif deployed["type"] != declared["type"]:
        raise InputError(
            f"work pool {pool.name} on the Prefect server is of type {deployed['type']}, where "
            f"{' or '.join(pool.types)} is expected, and Prefect cannot change a pool's type. If nothing else uses it, "
            f"delete it with `prefect work-pool delete {pool.name}` and deploy again."
        )
    elif changes:
        client.update_work_pool(pool.name, WorkPoolUpdate(description=pool.description))
    if changes:
        yield _sentence(f"work pool {pool.name}", changes)


def _declared_limit(limit: Limit) -> Settings:
    return {"slots": limit.slots, "active": True}


def _deployed_limit(client: "SyncPrefectClient", name: str) -> Settings | None:
    try:
        found = client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        return None
    return {"slots": found.limit, "active": found.active}


def _apply_limit(client: "SyncPrefectClient", limit: Limit) -> Iterator[str]:
    deployed = _deployed_limit(client, limit.name)
    changes = _compare(f"limit {limit.name}", deployed, _declared_limit(limit))
    if deployed is None:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=limit.name, limit=limit.slots))
    elif changes:
        update = GlobalConcurrencyLimitUpdate(limit=limit.slots, active=True)
        client.update_global_concurrency_limit(limit.name, update)
    if changes:
        yield _sentence(f"limit {limit.name}", changes)


def _declared_deployment(deployment: Deployment) -> Settings:
    """Everything that is said about a deployment, under the server's names, but for what it refers to by id."""
    prepared = deployment.to_deployment()
    return {
        "description": prepared.description,
        "tags": sorted(prepared.tags),
        "entrypoint": prepared.entrypoint,
        "path": prepared.job_variables["working_dir"],
        "pull_steps": [],
        "work_pool_name": prepared.work_pool_name,
        "work_queue_name": prepared.work_queue_name,
        "job_variables": prepared.job_variables,
        "parameters": prepared.parameters,
        # Prefect makes the schema here and sends it on, but has no public name for it.
        "parameter_openapi_schema": prepared._parameter_openapi_schema.model_dump(mode="json", exclude_unset=True),
        "enforce_parameter_schema": True,
        "limit": deployment.limit,
        # A run that finds no free slot waits; Prefect's other choice is to cancel it.
        "concurrency_options": {"collision_strategy": "ENQUEUE"},
        "schedules": [_timing(entry) for entry in prepared.schedules or []],
    }


def _timing(entry: Any) -> Settings:
    """When a schedule fires, whether it is paused or not."""
    timing: Settings = entry.schedule.model_dump(mode="json")
    return timing


def _deployed_settings(found: "DeploymentResponse", declared: Settings) -> Settings:
    """The same settings as on the server."""
    settings = found.model_dump(mode="json", include=set(declared))
    limit, options = found.global_concurrency_limit, found.concurrency_options
    return settings | {
        "tags": sorted(found.tags),
        "pull_steps": found.pull_steps or [],
        "limit": limit and limit.name,
        "concurrency_options": options and options.model_dump(mode="json", exclude_none=True),
        "schedules": [_timing(entry) for entry in found.schedules],
    }


def _find(client: "SyncPrefectClient", full_name: str) -> "DeploymentResponse | None":
    try:
        return client.read_deployment_by_name(full_name)
    except ObjectNotFound:
        return None


def _compare_deployment(client: "SyncPrefectClient", full_name: str, declared: Settings) -> list[Difference]:
    found = _find(client, full_name)
    deployed = _deployed_settings(found, declared) if found else None
    return _compare(f"deployment {full_name}", deployed, declared)


def _write_deployment(client: "SyncPrefectClient", deployment: Deployment, declared: Settings) -> None:
    """Create it, or overwrite it whole, schedules included; those that a person paused stay paused.

    The request is made here because only Prefect's server, and not its client, knows `global_concurrency_limit_id`: the
    client would give each deployment a limit of its own, which no other can share.
    """
    found = _find(client, deployment.full_name)
    limit = client.read_global_concurrency_limit_by_name(deployment.limit) if deployment.limit else None
    paused = [] if found is None else [_timing(entry) for entry in found.schedules if not entry.active]
    schedules = [{"schedule": timing, "active": timing not in paused} for timing in declared["schedules"]]
    settings = {setting: value for setting, value in declared.items() if setting not in ("limit", "schedules")}
    payload = settings | {
        "flow_id": str(client.create_flow_from_name(deployment.flow)),
        "name": deployment.name,
        "global_concurrency_limit_id": limit and str(limit.id),
        "schedules": schedules,
    }
    client.request("POST", "/deployments/", json=payload)
    own = found and found.global_concurrency_limit
    if found and own and own.name == f"deployment:{found.id}":
        client.delete_global_concurrency_limit_by_name(own.name)


def _undeclared(client: "SyncPrefectClient", declaration: Declaration) -> "dict[str, DeploymentResponse]":
    """Deployments that were made from here and are not declared any more, by full name."""
    ours = client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[MANAGED])))
    names = {f"{client.read_flow(deployment.flow_id).name}/{deployment.name}": deployment for deployment in ours}
    declared = {deployment.full_name for deployment in declaration.deployments}
    return {name: deployment for name, deployment in names.items() if name not in declared}


def _remove_deployment(client: "SyncPrefectClient", found: "DeploymentResponse") -> None:
    """Delete it, and not its limit along with it: Prefect would, though other deployments share it."""
    no_limit = {"global_concurrency_limit_id": None}
    client.request("PATCH", "/deployments/{id}", path_params={"id": found.id}, json=no_limit)
    client.delete_deployment(found.id)


def _declared_automations(client: "SyncPrefectClient", declaration: Declaration) -> "dict[str, AutomationCore]":
    """The declared automations by name."""
    notify = declaration.reactions.notify
    block = _read_block(client, notify) if notify else None
    return {each.name: each.to_automation(block) for each in declaration.reactions.automations()}


def _read_block(client: "SyncPrefectClient", notify: str) -> Block:
    """The block that messages are sent through.

    Raises:
        InputError: `notify` is not TYPE/NAME, there is no such block, or it cannot pass on messages.
    """
    kind, _, name = notify.partition("/")
    advice = (
        "Expected TYPE/NAME of a block, such as slack-webhook/ops: `prefect block ls` lists them; make one on the "
        "page Blocks. Without --notify (MEDGRPO_NOTIFY) nobody is told."
    )
    if not (kind and name):
        raise InputError(f"--notify (MEDGRPO_NOTIFY) is {notify!r}. {advice}")
    try:
        found = client.read_block_document_by_name(name, kind, include_secrets=False)
    except ObjectNotFound as error:
        raise InputError(
            f"the Prefect server has no block {notify}, which --notify (MEDGRPO_NOTIFY) names. {advice}"
        ) from error
    webhook = kind == "webhook"
    if not webhook and "notify" not in (found.block_schema.capabilities if found.block_schema else []):
        raise InputError(
            f"block {notify}, which --notify (MEDGRPO_NOTIFY) names, cannot pass on messages; expected a webhook or "
            f"one of Prefect's notification blocks. {advice}"
        )
    return Block(found.id, webhook)


def _deployed_automations(
    client: "SyncPrefectClient", declaration: Declaration
) -> "tuple[dict[str, Automation], list[Automation]]":
    """What was made from here: by name what is declared, and what is not, or is there twice."""
    filter_ = AutomationFilter(tags=AutomationFilterTags(all_=[MANAGED]))
    names = {each.name for each in declaration.reactions.automations()}
    deployed: dict[str, Automation] = {}
    surplus = []
    for found in client.read_automations(automations=filter_):
        if found.name in names and found.name not in deployed:
            deployed[found.name] = found
        else:
            surplus.append(found)
    return deployed, surplus


def _automation_settings(automation: "AutomationCore") -> Settings:
    """Everything that is said about an automation; whether it is paused is a person's to say."""
    settings = automation.model_dump(mode="json", include={"description", "tags", "trigger", "actions"})
    return {name: _in_order(value) for name, value in settings.items()}


def _in_order(value: Any) -> Any:
    """The same with what Prefect keeps as sets in a fixed order."""
    if isinstance(value, dict):
        return {key: _in_order(inner) for key, inner in value.items()}
    if isinstance(value, list):
        inner = [_in_order(each) for each in value]
        return sorted(inner) if all(isinstance(each, str) for each in inner) else inner
    return value


def _compare_automation(deployed: "Automation | None", declared: "AutomationCore") -> list[Difference]:
    found = _automation_settings(deployed) if deployed else None
    return _compare(f"automation {declared.name}", found, _automation_settings(declared))


def _apply_automations(
    client: "SyncPrefectClient", declaration: Declaration, declared: "dict[str, AutomationCore]"
) -> Iterator[str]:
    """Create, update and remove automations; one that a person paused stays paused."""
    deployed, surplus = _deployed_automations(client, declaration)
    for name, automation in declared.items():
        found = deployed.get(name)
        changes = _compare_automation(found, automation)
        if not changes:
            continue
        if found is None:
            client.create_automation(automation)
        else:
            # Prefect's client sends what was set by name only, and the kind of a trigger or an action is a default.
            everything = automation.model_dump(exclude={"owner_resource"})
            update = type(automation).model_validate({**everything, "enabled": found.enabled})
            client.update_automation(found.id, update)
        yield _sentence(f"automation {name}", changes)
    for found in surplus:
        client.delete_automation(found.id)
        yield f"automation {found.name}: removed, as it is not declared any more"
