"""Run a flow by hand: `python -m flows.NAME PROFILE --set key=value`. No Prefect server is needed."""

import logging
import os
import signal
import sys
from typing import Annotated, Any

import typer
from prefect import Flow

from medgrpo.config import RunConfig, load_config, profile_names
from medgrpo.errors import MedgrpoError
from medgrpo.runs import summary_markdown
from tasks.running import PlainErrors

SET_HELP = "Change a setting: --set grpo.steps=10. Values are TOML; repeat the option for more."


def resolve(config: RunConfig | str) -> RunConfig:
    """The configuration itself, or that of the named profile."""
    return load_config(config) if isinstance(config, str) else config


def command(flow: Flow[..., dict[str, Any]]) -> None:
    """Turn a flow of one run configuration into a command line and run it; errors made on purpose end in a sentence."""

    def main(
        profile: Annotated[str, typer.Argument(help=f"One of {', '.join(profile_names())}; or a TOML file.")] = "demo",
        overrides: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP, metavar="KEY=VALUE")] = None,
    ) -> None:
        signal.signal(signal.SIGINT, _stop)
        sys.exit(_run(flow, profile, overrides or []))

    main.__doc__ = flow.description
    typer.run(main)


def _stop(*_: object) -> None:
    """End at once on Ctrl-C: it also ended Prefect's temporary server, and asking that to record the end takes minutes.

    The training process ends with this one; whatever is finished, checkpoints included, is found by the next run.
    """
    typer.secho("\nstopped. The same command goes on from the last checkpoint.", err=True, fg="yellow")
    os._exit(130)


def _run(flow: Flow[..., dict[str, Any]], profile: str, overrides: list[str]) -> int:
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(PlainErrors())
    try:
        config = load_config(profile, overrides)
        summary = flow(config)
    except MedgrpoError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        return error.exit_code
    directory = config.runs_dir / summary["name"]
    typer.echo(
        f"\n{summary_markdown(summary)}\nReport:  {directory / 'report.html'}\nSummary: {directory / 'summary.json'}"
    )
    return 0
