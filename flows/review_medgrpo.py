"""Flow review-medgrpo: show a version, wait for a person, act; by hand: `python -m flows.review_medgrpo PROFILE`."""

from typing import Annotated, Any

import typer
from prefect import flow

from flows.command import Overrides, Profile, resolve, run
from medgrpo.config import RunConfig
from tasks.review import ask, decide, show_review
from tasks.running import name_lines


@flow(name="review-medgrpo")
def review_medgrpo(config: RunConfig | str = "demo", version: int | str | None = None) -> dict[str, Any]:
    """Show a version beside the champion, wait for a person, promote or reject it; returns what was decided.

    The version (its number or an alias; unset, the one under review) is promoted only if, when the person has decided,
    it and the champion are still those that were shown, and its files still have the digest that the person repeated.

    Args:
        config: settings that name the registry and the model, or the name of a profile.
        version: number or alias of the version; unset, the one under review.
    """
    config = resolve(config)
    name_lines()
    shown = show_review(config, None if version is None else str(version))
    answer = ask(shown)
    return decide(config, shown, answer)


def main(
    profile: Profile = "demo",
    version: Annotated[
        str | None, typer.Option(help="Number or alias of the version; unset, the one under review.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Show a version beside the champion, wait for a person's answer on Prefect's pages, promote or reject it.

    Needs a Prefect server that others can reach (PREFECT_API_URL); `medgrpo review` needs none.
    """
    run(profile, overrides, lambda config: review_medgrpo(config, version), _sentence)


def _sentence(_: RunConfig, decided: dict[str, Any]) -> str:
    return f"Version {decided['version']} of {decided['name']} is {decided['decision']} by {decided['reviewer']}."


if __name__ == "__main__":
    typer.run(main)
