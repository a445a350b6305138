"""Run a flow by hand: `python -m flows.NAME PROFILE --set key=value`. No Prefect server is needed."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from medgrpo.config import RunConfig, load_config, profile_names
from medgrpo.errors import MedgrpoError
from medgrpo.runs import summary_markdown
from tasks.running import PlainErrors

Profile = Annotated[str, typer.Argument(help=f"One of {', '.join(profile_names())}; or a TOML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a setting: --set grpo.steps=10. Values are TOML; repeat the option for more.",
        metavar="KEY=VALUE",
    ),
]


STOPPED = "\nstopped. The same command goes on where it was."


def resolve(config: RunConfig | str) -> RunConfig:
    """The configuration itself, or that of the named profile."""
    return load_config(config) if isinstance(config, str) else config


def run_summary(config: RunConfig, summary: dict[str, Any]) -> str:
    """What a run found, and where it left it."""
    directory = config.runs_dir / summary["name"]
    return f"{summary_markdown(summary)}\nReport:  {directory / 'report.html'}\nSummary: {directory / 'summary.json'}"


def run(
    profile: str,
    overrides: list[str] | None,
    flow: Callable[[RunConfig], dict[str, Any]],
    describe: Callable[[RunConfig, dict[str, Any]], str] = run_summary,
) -> NoReturn:
    """Run a flow of a profile and show its summary; an error made on purpose ends in its sentence and exit code."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _terminate)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(PlainErrors())
    try:
        config = load_config(profile, overrides or [])
        summary = flow(config)
    except MedgrpoError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    typer.echo(f"\n{describe(config, summary)}")
    sys.exit(0)


def _stop(*_: object) -> None:
    """End at once on Ctrl-C: it also ended Prefect's temporary server, and asking that to record the end takes minutes.

    The training process notices within a second, saves its last step and ends too; whatever is finished, checkpoints
    included, is found by the next run, which waits for that.
    """
    typer.secho(STOPPED, err=True, fg="yellow")
    os._exit(128 + signal.SIGINT)


def _terminate(*_: object) -> None:
    """End on SIGTERM; Prefect, which handles it first while a flow runs, has then ended the training and said so."""
    typer.secho(STOPPED, err=True, fg="yellow")
    sys.exit(128 + signal.SIGTERM)
