"""Flow train-medgrpo: prepare, audit, train, evaluate, register; by hand: `python -m flows.train_medgrpo PROFILE`."""

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.command import command, resolve
from medgrpo import runs
from medgrpo.config import RunConfig
from medgrpo.manifests import write_json
from medgrpo.stages import read_registration, registration_holds
from tasks.running import run_stage
from tasks.stages import audit, evaluate, prepare, register, train


@flow(name="train-medgrpo")
def train_medgrpo(config: RunConfig | str = "demo") -> dict[str, Any]:
    """Prepare the data, attack the rewards, train, evaluate against the base, register; returns the run's summary.

    Every stage is cached and retried; the run leaves runs/<name>/ with its report and summary.json.
    """
    config, directory = runs.open_run_directory(resolve(config))
    data = run_stage(prepare, config)
    runs.show_result(directory, "data", data.manifest)
    audited = run_stage(audit, config, data.manifest)
    runs.show_result(directory, "audit", audited.manifest)
    trained = run_stage(train, config, data.manifest)
    runs.show_result(directory, "train", trained.manifest)
    evaluated = run_stage(evaluate, config, data.manifest, trained.manifest)
    runs.show_result(directory, "evaluation", evaluated.manifest)
    registered = run_stage(
        register,
        config,
        data.manifest,
        audited.manifest,
        trained.manifest,
        evaluated.manifest,
        still_valid=lambda manifest: registration_holds(config, manifest),
    )
    stages = [stage.as_row() for stage in (data, audited, trained, evaluated, registered)]
    registration = read_registration(registered.manifest)
    summary = runs.summarize(config, stages, evaluated.manifest, trained.manifest, registration, str(flow_run.id))
    write_json(directory / "summary.json", summary)
    create_markdown_artifact(runs.summary_markdown(summary), key="train-medgrpo-summary")
    return summary


if __name__ == "__main__":
    command(train_medgrpo)
