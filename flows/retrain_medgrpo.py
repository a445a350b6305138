"""Flow retrain-medgrpo: train only where there is a reason; by hand: `python -m flows.retrain_medgrpo PROFILE`."""

from typing import Any

import typer
from prefect import flow

from flows.command import Overrides, Profile, resolve, run, run_summary
from flows.train_medgrpo import train_medgrpo
from medgrpo.config import RunConfig
from medgrpo.manifests import write_json
from tasks.retrain import find_reason, show_reason
from tasks.running import name_lines, run_stage
from tasks.stages import prepare


@flow(name="retrain-medgrpo")
def retrain_medgrpo(config: RunConfig | str = "demo") -> dict[str, Any]:
    """Train where there is a reason: data that no version was trained on, or a champion that fell on fresh records.

    The reason, or why there is none, is the artifact `retrain-medgrpo-reason`, a tag of this flow run, a tag of the
    version that it causes, and `retraining` in what is returned: beside it stands the training's summary, if any.

    Args:
        config: every setting of the run, or the name of a profile; [retrain] names the fresh records.
    """
    config = resolve(config)
    name_lines(config.name)
    data = run_stage(prepare, config)
    decision = find_reason(config, data.manifest)
    show_reason(decision)
    found = {"retraining": decision.as_dict()}
    if not decision.trains:
        return found
    summary = train_medgrpo(decision.settings(config), decision.sentence) | found
    write_json(config.runs_dir / summary["name"] / "summary.json", summary)
    return summary


def main(profile: Profile = "demo", overrides: Overrides = None) -> None:
    """Train where there is a reason: data that no version was trained on, or a champion that fell on fresh records."""
    run(profile, overrides, retrain_medgrpo, _describe)


def _describe(config: RunConfig, summary: dict[str, Any]) -> str:
    found = summary["retraining"]
    if not found["trains"]:
        return f"Nothing was trained. {found['sentence']}"
    return f"Why: {found['sentence']}\n\n{run_summary(config, summary)}"


if __name__ == "__main__":
    typer.run(main)
