"""What orchestration costs: the wall time of train-medgrpo, less what its stages do.

    python -m benchmarks.orchestration smoke --by-hand
    python -m benchmarks.orchestration demo --rounds 1 --json FILE

Each round is a run of the flow as a user starts it (a process with Prefect's temporary server), and the flow again with
everything cached. The work is timed inside of the flow: the stages' own functions, without what these spend in telling
the flow of their progress, though the training goes on meanwhile. Starting Python and importing Prefect is part of what
orchestration costs. With `--by-hand` the same stages are also called one after another in a process of their own; of
two long trainings one takes so much longer by chance that their difference says nothing of orchestration.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import positive, run
from medgrpo.config import RunConfig, load_config
from medgrpo.errors import MedgrpoError

GOAL_SECONDS, GOAL_SHARE, GOAL_CACHED = 20, 0.05, 30
STAGES = ("fetch_start", "prepare", "audit", "train", "fetch_champion", "evaluate", "register")


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.inside:
        inside(options.profile, options.set, options.inside)
    elif options.stages:
        print(json.dumps(by_hand(load_config(options.profile, options.set))))
    else:
        found = measure(options.profile, options.set, options.rounds, options.by_hand)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        print(table(found))


def measure(profile: str, settings: Sequence[str], rounds: int, by_hand: bool = False) -> dict[str, Any]:
    """Seconds of each round: `flow`, its `work` by stage, `overhead`, its `share`, `cached`, and `by_hand` if asked."""
    load_config(profile, settings)
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as hand:
            work = Path(hand) / "work.json"
            seconds = _flow(profile, settings, directory, work)
            done = json.loads(work.read_text())
            overhead = seconds - sum(done.values())
            one = {"flow": seconds, "work": done, "overhead": overhead, "share": overhead / seconds}
            one["cached"] = _flow(profile, settings, directory, work)
            if by_hand:
                printed = _python(["-m", "benchmarks.orchestration", "--stages", profile], settings, hand)
                one["by_hand"] = json.loads(printed.splitlines()[-1])
            found.append(one)
    return {"profile": profile, "settings": list(settings), "rounds": found}


def inside(profile: str, settings: Sequence[str], file: Path) -> None:
    """Run the flow as its command does, and write the seconds of each stage's work in it as JSON."""
    from flows import train_medgrpo
    from medgrpo import stages

    work: dict[str, float] = {}
    for name in STAGES:
        setattr(stages, name, _timed(work, name, getattr(stages, name)))
    try:
        train_medgrpo.main(profile, list(settings))
    finally:
        file.write_text(json.dumps(work))


def _timed(work: dict[str, float], name: str, stage: Callable[..., Any]) -> Callable[..., Any]:
    """A stage that adds its seconds to `work`, without those of the functions that it is given to call."""
    told = 0.0

    def counted(tell: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal told
            started = time.perf_counter()
            try:
                return tell(*arguments)
            finally:
                told += time.perf_counter() - started

        return call

    def call(*arguments: Any) -> Any:
        nonlocal told
        started, told = time.perf_counter(), 0.0
        try:
            return stage(*(counted(each) if callable(each) else each for each in arguments))
        finally:
            work[name] = work.get(name, 0) + time.perf_counter() - started - told

    return call


def by_hand(config: RunConfig) -> dict[str, float]:
    """Seconds of each stage of train-medgrpo, called in this process without Prefect."""
    from medgrpo import runs, stages

    config, _ = runs.open_run_directory(config)
    seconds: dict[str, float] = {}

    def timed(name: str, stage: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        result = stage(config, *arguments)
        seconds[name] = time.perf_counter() - started
        return result

    data = timed("prepare", stages.prepare)
    audited = timed("audit", stages.audit, data)
    trained = timed("train", stages.train, data, lambda row: None, lambda directory: None)
    champion = timed("fetch champion", stages.fetch_champion, data)
    evaluated = timed("evaluate", stages.evaluate, data, audited, trained, champion, lambda *_: None)
    timed("register", stages.register, data, audited, trained, evaluated, {})
    return seconds


def table(found: dict[str, Any]) -> str:
    """One row a round, and how the medians compare with the goals."""
    rounds = found["rounds"]
    lines = [
        "| flow, s | its stages' work, s | overhead, s | share of the flow | all cached, s | stages by hand, s |",
        "|---|---|---|---|---|---|",
    ]
    for one in rounds:
        seconds = " | ".join(f"{s:.1f}" for s in (one["flow"], sum(one["work"].values()), one["overhead"]))
        hand = f"{sum(one['by_hand'].values()):.1f}" if "by_hand" in one else "-"
        lines.append(f"| {seconds} | {one['share']:.1%} | {one['cached']:.1f} | {hand} |")
    overhead, cached = (statistics.median(one[name] for one in rounds) for name in ("overhead", "cached"))
    goals = f"goals {GOAL_SECONDS} s, {GOAL_SHARE:.0%} of the demo, {GOAL_CACHED} s cached"
    lines.append(f"\nMedians: overhead {overhead:.1f} s, all cached {cached:.1f} s ({goals}).")
    return "\n".join(lines)


def _flow(profile: str, settings: Sequence[str], directory: str, work: Path) -> float:
    started = time.perf_counter()
    _python(["-m", "benchmarks.orchestration", "--inside", str(work), profile], settings, directory)
    return time.perf_counter() - started


def _python(words: Sequence[str], settings: Sequence[str], directory: str) -> str:
    """Standard output of a Python process with the settings and a runs directory."""
    given = [word for setting in [*settings, f"runs_dir={directory}"] for word in ("--set", setting)]
    command = [sys.executable, *words, *given]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MedgrpoError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__.split("\n")[0])
    parser.add_argument("profile", nargs="?", default="smoke", help="profile that is run (default: smoke)")
    parser.add_argument("--rounds", type=positive, default=3, help="runs with nothing cached (default: 3)")
    parser.add_argument("--by-hand", action="store_true", help="also call the stages without the flow, in each round")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument(
        "--inside", type=Path, metavar="FILE", help="only run the flow; write its stages' seconds there"
    )
    parser.add_argument("--stages", action="store_true", help="only the stages by hand; prints their seconds as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
