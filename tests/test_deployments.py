"""Deployments point at flows that exist, with profiles that parse."""

import pytest

from deployments import DEPLOYMENTS, Deployment
from medgrpo.config import load_config


@pytest.mark.slow
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment.name)
def test_target_exists(deployment: Deployment) -> None:
    """The entry point imports, and the deployment's flow name is the flow's own."""
    from prefect.flows import load_flow_from_entrypoint

    flow = load_flow_from_entrypoint(deployment.entrypoint)
    assert deployment.to_deployment().flow_name == flow.name


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment.name)
def test_profile_parses(deployment: Deployment) -> None:
    """The deployment's profile is a shipped one."""
    assert load_config(deployment.profile).profile == deployment.profile


def test_names_are_unique() -> None:
    """No deployment replaces another."""
    names = [deployment.name for deployment in DEPLOYMENTS]
    assert len(set(names)) == len(names)
    assert "train-medgrpo" in names
