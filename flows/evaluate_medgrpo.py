"""Flow evaluate-medgrpo: any model on the held-out cases; by hand: `python -m flows.evaluate_medgrpo --help`."""

from typing import Annotated, Any

import typer
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.command import Overrides, Profile, resolve, run
from medgrpo import runs
from medgrpo.config import RunConfig
from medgrpo.manifests import write_json
from medgrpo.registry import champion_uri
from medgrpo.resources import Meter, report
from medgrpo.stages import with_base
from tasks.running import name_lines, run_stage
from tasks.stages import compare, locate, prepare


@flow(name="evaluate-medgrpo")
def evaluate_medgrpo(
    config: RunConfig | str = "demo", model: str | None = None, against: str | None = None
) -> dict[str, Any]:
    """Let a model answer the held-out cases beside a second one, and judge it; returns the evaluation's summary.

    A model is a registry address (models:/NAME/VERSION or models:/NAME@ALIAS), a directory (a model's or a run's) or a
    Hugging Face id, trained on whatever domain: the cases are those of the profile. Nothing is registered.

    Args:
        config: every setting of the run, or the name of a profile.
        model: the model in question; unset, the registry's champion.
        against: the model it is compared with; unset, the profile's base model.
    """
    meter = Meter()
    config, directory = runs.open_run_directory(resolve(config), prefix="evaluate-")
    name_lines(config.name)
    reference = {"against": against} if against else {"base": config.policy.base}
    models = {**reference, "evaluated": model or champion_uri(config)}
    located = {name: locate(config, source) for name, source in models.items()}
    # The model's own tokenizer says what is too long: the profile's base need not be within reach.
    data = run_stage(prepare, with_base(config, located["evaluated"]))
    evaluated = run_stage(compare, config, data.manifest, located)
    runs.show_result(directory, "evaluation", evaluated.manifest)
    rows = [stage.as_row() for stage in (data, evaluated)]
    summary = runs.summarize_evaluation(config, rows, evaluated.manifest, str(flow_run.id)) | {"compared": models}
    summary["resources"] = report(meter.stop(), rows)
    write_json(directory / "summary.json", summary)
    create_markdown_artifact(runs.summary_markdown(summary), key="evaluate-medgrpo-summary")
    return summary


def main(
    profile: Profile = "demo",
    model: Annotated[
        str | None, typer.Option(help="Registry address, directory or Hugging Face id; unset, the champion.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="What it is compared with; unset, the profile's base model.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Let a model answer the held-out cases beside a second one, and judge it."""
    run(profile, overrides, lambda config: evaluate_medgrpo(config, model, against))


if __name__ == "__main__":
    typer.run(main)
