"""Flow train-medgrpo: prepare, audit, train, evaluate, register; by hand: `python -m flows.train_medgrpo PROFILE`."""

from typing import Any

import typer
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.command import Overrides, Profile, resolve, run
from medgrpo import runs
from medgrpo.config import RunConfig
from medgrpo.manifests import write_json
from medgrpo.resources import Meter, report
from medgrpo.stages import read_registration, registration_holds
from tasks.running import name_lines, prunable, run_stage
from tasks.stages import audit, evaluate, fetch_champion, fetch_start, prepare, register, train


@flow(name="train-medgrpo")
@prunable
def train_medgrpo(config: RunConfig | str = "demo", reason: str = "") -> dict[str, Any]:
    """Prepare, attack the rewards, train, evaluate against base and champion, register; returns the run's summary.

    Every stage is cached and retried; the run leaves runs/<name>/ with its report and summary.json.

    Args:
        config: every setting of the run, or the name of a profile.
        reason: why, in a sentence; a tag of the MLflow run and of the version.
    """
    meter = Meter()
    config, directory = runs.open_run_directory(resolve(config))
    name_lines(config.name)
    start, data = fetch_start(config), run_stage(prepare, config)
    runs.show_result(directory, "data", data.manifest)
    audited = run_stage(audit, config, data.manifest)
    runs.show_result(directory, "audit", audited.manifest)
    trained = run_stage(train, config, data.manifest, start)
    runs.show_result(directory, "train", trained.manifest)
    champion = fetch_champion(config, data.manifest)
    evaluated = run_stage(evaluate, config, data.manifest, audited.manifest, trained.manifest, champion)
    runs.show_result(directory, "evaluation", evaluated.manifest)
    parts = [stage.manifest for stage in (data, audited, trained, evaluated)]
    registered = run_stage(register, config, *parts, still_valid=lambda manifest: registration_holds(config, manifest))
    stages = [stage.as_row() for stage in (data, audited, trained, evaluated, registered)]
    registration = read_registration(registered.manifest)
    summary = runs.summarize(config, stages, evaluated.manifest, trained.manifest, registration, str(flow_run.id))
    summary["resources"] = report(meter.stop(), stages, config.processes, trained.manifest.path)
    write_json(directory / "summary.json", summary)
    create_markdown_artifact(runs.summary_markdown(summary), key="train-medgrpo-summary")
    return summary


def main(profile: Profile = "demo", overrides: Overrides = None) -> None:
    """Prepare, attack the rewards, train, evaluate against base and champion, register.

    Every stage is cached and retried: the same command goes on where an earlier run was stopped.
    """
    run(profile, overrides, train_medgrpo)


if __name__ == "__main__":
    typer.run(main)
