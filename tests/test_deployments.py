"""What is declared fits together, and Prefect's form shows every setting with its description."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from typer.testing import CliRunner

from deployments import DECLARED, DEPLOYMENTS, LIMITS, POOLS, T4_LIMIT, Deployment
from deployments.__main__ import app
from medgrpo.config import RunConfig, load_config
from medgrpo.settings import Settings


def _each(deployment: Deployment) -> str:
    return deployment.name


@pytest.mark.slow
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=_each)
def test_target_exists(deployment: Deployment) -> None:
    """The entry point imports, and the deployment's flow name is the flow's own."""
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(deployment.entrypoint)
    assert deployment.to_deployment().flow_name == deployment.flow == flow.name


@pytest.mark.slow
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=_each)
def test_runs_where_the_project_is(deployment: Deployment) -> None:
    """A worker runs the flow in the project's directory, so that relative paths mean the same every time."""
    assert deployment.to_deployment().job_variables == {"working_dir": str(Path.cwd())}


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=_each)
def test_parameters_are_the_profile(deployment: Deployment) -> None:
    """The form's values, sent back as they are, are the profile to the last setting."""
    sent = json.loads(json.dumps(deployment.parameters))
    assert RunConfig.model_validate(sent["config"]) == load_config(deployment.profile)


def test_names_are_unique() -> None:
    """No deployment replaces another."""
    names = [deployment.name for deployment in DEPLOYMENTS]
    assert len(set(names)) == len(names)
    assert {"train-medgrpo", "train-medgrpo-cpu", "evaluate-medgrpo", "review-medgrpo"} <= set(names)
    assert {"retrain-medgrpo", "retrain-medgrpo-cpu"} <= set(names)


def test_everything_named_is_declared() -> None:
    """A deployment's work pool and limit are declared beside it."""
    assert {deployment.work_pool for deployment in DEPLOYMENTS} == {pool.name for pool in POOLS}
    used = {deployment.limit for deployment in DEPLOYMENTS if deployment.limit}
    assert used == {limit.name for limit in LIMITS}


def test_one_training_at_a_time_on_each_gpu() -> None:
    """Trainings share a limit per kind of machine: one slot, or as many as the pool has T4s."""
    limits = {deployment.name: deployment.limit for deployment in DEPLOYMENTS}
    assert limits["train-medgrpo"] == T4_LIMIT != limits["train-medgrpo-cpu"]
    assert {limit.slots for limit in DECLARED.limits} == {1}
    assert {limit.name: limit.slots for limit in DECLARED.with_t4s(3).limits}[T4_LIMIT] == 3
    assert [limit.slots for limit in DECLARED.with_t4s(3).limits].count(1) == len(LIMITS) - 1


def test_a_schedule_is_weekly_in_a_time_zone() -> None:
    """retrain-medgrpo starts by itself once a week, whatever the clocks do; no other deployment does unasked."""
    scheduled = {deployment.name: deployment.schedules for deployment in DEPLOYMENTS if deployment.schedules}
    assert set(scheduled) == {"retrain-medgrpo"}
    [schedule] = scheduled["retrain-medgrpo"]
    minute, hour, *days, weekday = schedule.cron.split()
    assert (days, weekday.isdecimal(), minute.isdecimal(), hour.isdecimal()) == (["*", "*"], True, True, True)
    assert ZoneInfo(schedule.timezone).key == schedule.timezone


def test_a_retraining_waits_for_the_gpu_as_a_training_does() -> None:
    """On each pool a retraining takes its turn in the limit of the trainings."""
    limits = {deployment.name: deployment.limit for deployment in DEPLOYMENTS}
    assert limits["retrain-medgrpo"] == limits["train-medgrpo"]
    assert limits["retrain-medgrpo-cpu"] == limits["train-medgrpo-cpu"]


def test_a_sweep_leaves_the_gpu_to_its_trials() -> None:
    """The sweep waits in another pool than its trials run in, and counts for no limit that they would wait for."""
    known = {deployment.full_name: deployment for deployment in DEPLOYMENTS}
    sweep = known["sweep-medgrpo/sweep-medgrpo"]
    trials = known[load_config(sweep.profile).sweep.deployment]
    assert sweep.work_pool != trials.work_pool
    assert sweep.limit is None
    assert trials.limit == T4_LIMIT


def test_list_as_json() -> None:
    """`list --json` names every deployment with its flow, pool, queue, limit and schedules."""
    rows = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert [row["deployment"] for row in rows] == [deployment.full_name for deployment in DEPLOYMENTS]
    assert rows[0] | {"description": ""} == {
        "deployment": "train-medgrpo/train-medgrpo",
        "work_pool": "t4",
        "work_queue": "default",
        "profile": "t4",
        "limit": "medgrpo-t4",
        "schedules": [],
        "description": "",
    }


def test_without_a_command_it_is_the_list() -> None:
    """`python -m deployments`, with or without `--json`, is `list`; before another command `--json` would be lost."""
    run = CliRunner().invoke
    assert run(app, []).stdout == run(app, ["list"]).stdout
    assert run(app, ["--json"]).stdout == run(app, ["list", "--json"]).stdout
    refused = run(app, ["--json", "check"])
    assert refused.exit_code == 2
    assert "check --json" in refused.output


def test_list_as_a_table() -> None:
    """`list` shows the same as a table with whole names."""
    shown = CliRunner().invoke(app, ["list"]).stdout
    for deployment in DEPLOYMENTS:
        [line] = [line for line in shown.splitlines() if f" {deployment.full_name} " in line]
        assert {deployment.work_pool, deployment.work_queue, deployment.profile} <= set(line.split())


@pytest.mark.slow
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=_each)
def test_the_form_describes_every_setting(deployment: Deployment) -> None:
    """In the schema that Prefect's form is made from, each parameter and each setting has a description."""
    schema = deployment.to_deployment()._parameter_openapi_schema.model_dump()
    undescribed = [name for name, parameter in schema["properties"].items() if not parameter.get("description")]
    assert undescribed == []
    described = schema["definitions"]
    for part, name in _settings(RunConfig):
        field = described[part.__name__]["properties"][name]
        assert field.get("description") or "$ref" in field, f"{part.__name__}.{name}"
    assert all(described[part.__name__]["description"] for part, _ in _settings(RunConfig))


def _settings(part: type[Settings]) -> Iterator[tuple[type[Settings], str]]:
    for name, field in part.model_fields.items():
        yield part, name
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            yield from _settings(annotation)
