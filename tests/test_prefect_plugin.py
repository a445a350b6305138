"""`prefect deployment run train-medgrpo` works in the project, and nothing else of Prefect's command line changes."""

import sys

import pytest

from deployments import DEPLOYMENTS, Deployment
from medgrpo.prefect_plugin import full_name, setup_environment, with_full_name


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment.name)
def test_every_deployment_is_found_by_its_name_alone(deployment: Deployment) -> None:
    """A deployment's name begins with its flow's, so that the plugin completes it without asking anybody."""
    assert full_name(deployment.name) == deployment.full_name


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deployment run train-medgrpo", "deployment run train-medgrpo/train-medgrpo"),
        ("deployment run train-medgrpo-cpu --watch", "deployment run train-medgrpo/train-medgrpo-cpu --watch"),
        ("deployment run --watch review-medgrpo", "deployment run --watch review-medgrpo/review-medgrpo"),
        ("--profile x deployment run train-medgrpo", "--profile x deployment run train-medgrpo/train-medgrpo"),
        (
            "deployment run -p config=cpu --tag train-medgrpo train-medgrpo",
            "deployment run -p config=cpu --tag train-medgrpo train-medgrpo/train-medgrpo",
        ),
        ("deployment run --tag=night train-medgrpo", "deployment run --tag=night train-medgrpo/train-medgrpo"),
    ],
)
def test_the_name_is_completed(typed: str, meant: str) -> None:
    """The deployment's name is completed wherever it stands, and the values of options are left alone."""
    assert with_full_name(typed.split()) == meant.split()


@pytest.mark.parametrize(
    "typed",
    [
        "deployment run train-medgrpo/train-medgrpo",
        "deployment run somebody-elses",
        "deployment run",
        "deployment run --id 5f0c",
        "deployment run --tag train-medgrpo",
        "deployment ls",
        "work-pool create train-medgrpo",
        "",
    ],
)
def test_everything_else_is_left_alone(typed: str) -> None:
    """Full names, other deployments and other commands reach Prefect as they were typed."""
    assert with_full_name(typed.split()) == typed.split()


@pytest.mark.parametrize(("program", "completed"), [("/bin/prefect", True), ("-m", True), ("/bin/other", False)])
def test_only_prefects_own_command_is_touched(program: str, completed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that imports Prefect keeps its arguments, whatever they are."""
    monkeypatch.setattr(sys, "argv", [program, "deployment", "run", "train-medgrpo"])
    setup_environment(ctx=None)
    assert (sys.argv[-1] == "train-medgrpo/train-medgrpo") is completed
