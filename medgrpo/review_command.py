"""`medgrpo review`: see what is registered, and decide about a version without any page open."""

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medgrpo.config import RunConfig
    from medgrpo.registry.champions import Version

app = typer.Typer(
    no_args_is_help=True,
    help="Approve or reject a registered version, or roll back. Start with `medgrpo review show`.",
)

VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="Number of the version, or an alias.")]
ProfileOption = Annotated[str, typer.Option(help="Profile it was trained with; names the registry and the model.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as tracking.uri; may be repeated."),
]
DigestOption = Annotated[str, typer.Option(help="Digest that `show` gave, in full or its first 12 characters or more.")]
NoteOption = Annotated[str, typer.Option(help="Why; kept as a tag of the version.")]
ReviewerOption = Annotated[
    str, typer.Option(envvar="USER", help="Who decides; unset, the name you are logged in with ($USER).")
]
ReplacesOption = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION|none",
        help="Champion you compared with; refused if another one is champion by now. Unset, the champion found now.",
    ),
]


@app.command("list")
def list_versions(profile: ProfileOption = "demo", overrides: SetOption = None) -> None:
    """Every version, newest first: aliases, gate, what a review decided."""
    from medgrpo.registry import champions, review

    versions = review.list_versions(_config(profile, overrides))
    rows = [
        (
            str(version.number),
            ", ".join(version.aliases),
            version.gate,
            version.state,
            version.tags.get(champions.REVIEWER_TAG, ""),
            version.tags.get(champions.TIME_TAG, ""),
            version.digest[: review.SHORTEST_DIGEST],
        )
        for version in versions
    ]
    _show_table(("version", "aliases", "gate", "review", "by", "at", "digest"), rows)


@app.command()
def show(
    version: Annotated[
        str | None, typer.Argument(metavar="[VERSION]", help="Number or alias; unset, the version under review.")
    ] = None,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """A version beside the champion it would replace, and the command that approves it."""
    from medgrpo.registry import champions, comparison, review

    found = review.show(_config(profile, overrides), version)
    tags, replaced = found.version.tags, comparison.champion_number(found)
    facts = {
        "version": f"{found.version.number} of {found.version.name} ({', '.join(found.version.aliases) or 'no alias'})",
        "digest": found.version.digest or "none",
        "gate": found.version.gate,
        "replaces": f"version {replaced}" if found.champion else "nothing, there is no champion",
        "review": found.version.state or "none yet",
        **{key.removeprefix("medgrpo."): tags[key] for key in champions.DECISION_TAGS if key in tags},
        **found.links,
    }
    for name, value in facts.items():
        typer.echo(f"{name:>17}  {champions.printable(value)}")
    for label, sentences in (("gate", found.version.gate_reasons), ("against it", found.objections)):
        for sentence in sentences:
            typer.echo(f"{label:>17}  {champions.printable(sentence)}")
    rows = comparison.comparison_rows(found.metrics)
    if rows:
        _show_table(tuple(rows[0]), [tuple(row.values()) for row in rows])
    for note in comparison.comparison_notes(found.metrics):
        typer.echo(champions.printable(note))
    override = ' --despite-gate "WHY"' if found.objections else ""
    typer.echo(
        f"\nmedgrpo review approve {found.version.number} --digest {found.version.digest} --replaces {replaced} "
        f'--note "WHY"{override}{_settings(profile, overrides)}'
    )


@app.command()
def approve(
    version: VersionArgument,
    digest: DigestOption,
    note: NoteOption,
    reviewer: ReviewerOption = "",
    replaces: ReplacesOption = None,
    despite_gate: Annotated[
        str, typer.Option(metavar="WHY", help="Approve although gate or an earlier review is against it; recorded.")
    ] = "",
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Make a version the champion, after its stored files were checked against the digest."""
    from medgrpo.registry import review

    decision = review.Decision(version, reviewer, note, digest, despite_gate, replaces)
    champion = review.approve(_config(profile, overrides), decision)
    typer.echo(f"{_named(champion)} is the champion. {_decided(champion)}")


@app.command()
def reject(
    version: VersionArgument,
    note: NoteOption,
    reviewer: ReviewerOption = "",
    digest: Annotated[str, typer.Option(help="Digest that `show` gave; checked if given.")] = "",
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Record that a version was rejected; it is no longer the one under review."""
    from medgrpo.registry import review

    version_now = review.reject(_config(profile, overrides), review.Decision(version, reviewer, note, digest))
    typer.echo(f"{_named(version_now)} is rejected. {_decided(version_now)}")


@app.command()
def rollback(
    note: NoteOption,
    reviewer: ReviewerOption = "",
    replaces: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Champion to go back from; refused if it is another one.")
    ] = None,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
) -> None:
    """Make the previous champion the champion again, after its stored files were checked."""
    from medgrpo.registry import review

    champion = review.rollback(_config(profile, overrides), reviewer, note, replaces)
    typer.echo(f"{_named(champion)} is the champion again.")


def _config(profile: str, overrides: list[str] | None) -> "RunConfig":
    from medgrpo.config import load_config

    return load_config(profile, overrides or [])


def _show_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of texts: what looks like rich's markup, or steers a terminal, is shown as it is or left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from medgrpo.registry.champions import printable

    table = Table()
    for name in header:
        table.add_column(Text(printable(name)))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def _settings(profile: str, overrides: list[str] | None) -> str:
    """The options that name the same registry again."""
    chosen = [] if profile == "demo" else ["--profile", profile]
    chosen += [part for override in overrides or [] for part in ("--set", override)]
    return f" {shlex.join(chosen)}" if chosen else ""


def _named(version: "Version") -> str:
    return f"version {version.number} of {version.name}"


def _decided(version: "Version") -> str:
    from medgrpo.registry import champions

    return champions.printable(
        f"Decided by {version.tags[champions.REVIEWER_TAG]} at {version.tags[champions.TIME_TAG]}."
    )
