"""`python -m deployments list` shows what is declared, `python -m deployments apply` creates it on the server."""

from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from deployments import DEPLOYMENTS

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Deployments of medgrpo's flows.")


@app.command("list")
def show() -> None:
    """Show the declared deployments."""
    table = Table("deployment", "flow", "work pool", "profile")
    for deployment in DEPLOYMENTS:
        table.add_row(deployment.name, deployment.entrypoint, deployment.work_pool, deployment.profile)
    Console().print(table)


@app.command()
def apply() -> None:
    """Create or update them, and the work pools they need, on the Prefect server in use."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for deployment in DEPLOYMENTS:
            _ensure_pool(client, deployment.work_pool)
            prepared = deployment.to_deployment()
            prepared.apply()
            typer.echo(f"{prepared.full_name}: on work pool {deployment.work_pool}")
    typer.echo("Start a worker in the project's directory: prefect worker start --pool NAME")


def _ensure_pool(client: "SyncPrefectClient", name: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


if __name__ == "__main__":
    app()
