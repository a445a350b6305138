"""`python -m deployments`: show what is declared, bring a Prefect server in line with it, or check whether it is."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deployments import DECLARED, Declaration, Deployment
from deployments.automations import DEAD_AFTER, LEAST_SILENCE, RESUMES, Automation, Reactions
from medgrpo.errors import InputError, MedgrpoError, ServiceUnreachable

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

T4s = Annotated[
    int,
    typer.Option("--t4s", envvar="MEDGRPO_T4S", min=1, help="GPUs in work pool t4: one training at a time each."),
]
Notify = Annotated[
    str | None,
    typer.Option(
        "--notify",
        envvar="MEDGRPO_NOTIFY",
        metavar="TYPE/NAME",
        help="Block that tells people of failures, alarms and candidates, such as slack-webhook/ops. Unset: none.",
    ),
]
DeadAfter = Annotated[
    int,
    typer.Option(
        "--dead-after",
        envvar="MEDGRPO_DEAD_AFTER",
        min=LEAST_SILENCE,
        help="Seconds without a sign of life after which a run has crashed.",
    ),
]
Resumes = Annotated[
    int,
    typer.Option("--resumes", envvar="MEDGRPO_RESUMES", min=0, help="How often a crashed run is started again."),
]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]
LONGEST_VALUE = 60

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context, as_json: AsJson = False) -> None:
    """Deployments of medgrpo's flows; without a command, those that are declared."""
    if context.invoked_subcommand is None:
        show(as_json=as_json)
    elif as_json:
        raise typer.BadParameter(f"goes behind the command: {context.invoked_subcommand} --json", param_hint="--json")


@app.command("list")
def show(
    automations: Annotated[bool, typer.Option("--automations", help="The automations instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the declared deployments."""
    if automations:
        rows = [_automation_row(each) for each in Reactions(notify="TYPE/NAME").automations()]
    else:
        rows = [_row(deployment) for deployment in DECLARED.deployments]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _show_table([{name: _text(value) for name, value in row.items() if name != "description"} for row in rows])


@app.command()
def apply(t4s: T4s = 1, notify: Notify = None, dead_after: DeadAfter = DEAD_AFTER, resumes: Resumes = RESUMES) -> None:
    """Bring the Prefect server in use in line: create and update what is declared, remove what no longer is."""
    from deployments import server

    with _prefect() as client:
        changes = 0
        for change in server.apply(client, _declared(t4s, notify, dead_after, resumes)):
            typer.echo(change)
            changes += 1
        typer.echo(f"{client.api_url}: {changes or 'no'} change{'' if changes == 1 else 's'}.")
    typer.echo("Start a worker in the project's directory: python -m deployments.worker --pool cpu --limit 1")


@app.command()
def check(
    t4s: T4s = 1,
    notify: Notify = None,
    dead_after: DeadAfter = DEAD_AFTER,
    resumes: Resumes = RESUMES,
    as_json: AsJson = False,
) -> None:
    """Compare the Prefect server in use with what is declared; exit code 1 and a table if they differ."""
    from deployments import server

    with _prefect() as client:
        declaration = _declared(t4s, notify, dead_after, resumes)
        rows = [asdict(difference) for difference in server.differences(client, declaration)]
        address = client.api_url
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        _show_table([{name: _text(value) for name, value in row.items()} for row in rows])
        typer.echo(f"{address}: {len(rows)} not as declared. `make deploy` brings it in line.")
    else:
        typer.echo(f"{address}: as declared.")
    raise typer.Exit(1 if rows else 0)


def _declared(t4s: int, notify: str | None, dead_after: int, resumes: int) -> Declaration:
    from prefect.settings import get_current_settings

    heartbeat = get_current_settings().flows.heartbeat_frequency
    if heartbeat and dead_after <= heartbeat:
        _stop(
            InputError(
                f"after {dead_after} s without a sign of life (--dead-after, MEDGRPO_DEAD_AFTER) every run would "
                f"count as dead: they give one every {heartbeat} s (prefect.toml). Give several times as many."
            )
        )
    # An empty variable is one that was not set.
    return replace(DECLARED.with_t4s(t4s), reactions=Reactions(dead_after, resumes, notify or None))


def _automation_row(automation: Automation) -> dict[str, Any]:
    return {
        "automation": automation.name,
        "on": [event.removeprefix("prefect.flow-run.") for event in automation.on],
        "silence": automation.silence,
        "count": automation.count,
        "description": automation.description,
    }


def _row(deployment: Deployment) -> dict[str, Any]:
    schedules = [f"{schedule.cron} {schedule.timezone}" for schedule in deployment.schedules]
    return {
        "deployment": deployment.full_name,
        "work_pool": deployment.work_pool,
        "work_queue": deployment.work_queue,
        "profile": deployment.profile,
        "limit": deployment.limit,
        "schedules": schedules,
        "description": deployment.description,
    }


def _text(value: Any) -> str:
    """A value in a table's cell: short, and nothing where it is empty."""
    if value in (None, [], ""):
        return "-"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"


def _show_table(rows: list[dict[str, str]]) -> None:
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*map(Text, row.values()))
    # Without a terminal Rich would cut every table to 80 characters.
    Console(width=None if Console().is_terminal else 200).print(table)


@contextmanager
def _prefect() -> Iterator["SyncPrefectClient"]:
    """A client of the Prefect server in use; an error with a cause outside the project ends in its sentence."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    client = get_client(sync_client=True)
    try:
        with client:
            yield client
    except MedgrpoError as error:
        _stop(error)
    except PrefectHTTPStatusError as error:
        request = f"{error.request.method} {error.request.url.path}"
        _stop(InputError(f"the Prefect server refused {request}: {error.response.status_code} {error.response.text}"))
    except httpx.TransportError as error:
        _stop(
            ServiceUnreachable(
                f"no Prefect server answered at {client.api_url} ({error}); start one with `prefect server start`, or "
                "set PREFECT_API_URL to the address of one."
            )
        )


def _stop(error: MedgrpoError) -> None:
    typer.secho(f"error: {error}", err=True, fg="red")
    raise typer.Exit(error.exit_code)


if __name__ == "__main__":
    app()
