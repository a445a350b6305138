"""Flow sweep-medgrpo: try settings, choose on dev, judge on test; by hand: `python -m flows.sweep_medgrpo PROFILE`."""

from typing import Any

import typer
from prefect import flow
from prefect.runtime import flow_run

from flows.command import Overrides, Profile, resolve, run
from flows.train_medgrpo import train_medgrpo
from medgrpo import runs
from medgrpo.config import RunConfig
from medgrpo.sweep import report
from medgrpo.sweep.loop import run_trials
from medgrpo.sweep.study import open_study, without_storage
from tasks.running import name_lines
from tasks.sweep import close_sweep, find_runner, show_progress, tracked


@flow(name="sweep-medgrpo")
def sweep_medgrpo(config: RunConfig | str = "demo") -> dict[str, Any]:
    """Try settings out of sweep.space, each trial a training judged on dev; train-medgrpo then judges the best on test.

    A killed sweep goes on where it was; a trial that fails is counted and the others go on. The sweep leaves
    runs/<name>/ with sweep.json and its plots.

    Args:
        config: every setting of the trials and of the sweep, or the name of a profile.
    """
    config = resolve(config)
    # A run that was put back waits for its own first process, should that live after all.
    with open_study(config, wait=flow_run.run_count > 1) as study:
        config, directory = runs.open_run_directory(without_storage(config, study.name))
        name_lines(config.name)
        with tracked(config, study):
            runner = find_runner(config, study.id, train_medgrpo)
            for trial in run_trials(study, runner):
                # One that ran in this process has named the lines of its log after itself.
                name_lines(config.name)
                show_progress(study, trial)
            choice, chosen = report.decide(study, config)
            result = runner.finish(chosen, f"Sweep {study.name}: {choice.sentence}")
            summary = report.write_summary(directory, study, config, choice, result, str(flow_run.id))
            close_sweep(config, summary, directory / report.PLOTS)
    return summary


def main(profile: Profile = "demo", overrides: Overrides = None) -> None:
    """Try settings out of sweep.space, each trial a training judged on dev, and judge the best one on test.

    The same command goes on where an earlier sweep was stopped.
    """
    run(profile, overrides, sweep_medgrpo, _describe)


def _describe(config: RunConfig, summary: dict[str, Any]) -> str:
    directory = config.runs_dir / summary["study"]
    return (
        f"{report.markdown(summary)}\nPlots:   {directory / report.PLOTS}\nSummary: {directory / report.SUMMARY_FILE}"
    )


if __name__ == "__main__":
    typer.run(main)
