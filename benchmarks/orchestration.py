"""What orchestration costs: the wall time of train-medgrpo, less that of the same stages called one after another.

    python -m benchmarks.orchestration smoke
    python -m benchmarks.orchestration demo --pairs 1 --json FILE

Each pair is a run of the flow as a user starts it (a process with Prefect's temporary server), the stages by hand in a
process of their own, and the flow again with everything cached. Each side begins with an empty runs directory. The
stages' time is that of their calls; starting Python and importing Prefect is part of what orchestration costs.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import positive, run
from medgrpo.config import RunConfig, load_config
from medgrpo.errors import MedgrpoError

GOAL_SECONDS, GOAL_SHARE, GOAL_CACHED = 20, 0.05, 30


def main() -> None:
    """Measure and print."""
    options = _options()
    if options.stages:
        print(json.dumps(by_hand(load_config(options.profile, options.set))))
        return
    found = measure(options.profile, options.set, options.pairs)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def measure(profile: str, settings: Sequence[str], pairs: int) -> dict[str, Any]:
    """Seconds of each pair: `flow`, `stages` (by name), `overhead`, its `share` of the flow, and `cached`."""
    load_config(profile, settings)
    found = []
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as flow, tempfile.TemporaryDirectory() as hand:
            seconds = _flow(profile, settings, flow)
            stages = json.loads(_python(["-m", "benchmarks.orchestration", "--stages", profile], settings, hand))
            overhead = seconds - sum(stages.values())
            pair = {"flow": seconds, "stages": stages, "overhead": overhead, "share": overhead / seconds}
            found.append(pair | {"cached": _flow(profile, settings, flow)})
    return {"profile": profile, "settings": list(settings), "pairs": found}


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
    """One row a pair, and how the medians compare with the goals."""
    pairs = found["pairs"]
    lines = [
        "| flow, s | stages by hand, s | overhead, s | share of the flow | all cached, s |",
        "|---|---|---|---|---|",
    ]
    for pair in pairs:
        seconds = [pair["flow"], sum(pair["stages"].values()), pair["overhead"]]
        lines.append(f"| {' | '.join(f'{s:.1f}' for s in seconds)} | {pair['share']:.1%} | {pair['cached']:.1f} |")
    overhead, cached = (statistics.median(pair[name] for pair in pairs) for name in ("overhead", "cached"))
    goals = f"goals {GOAL_SECONDS} s, {GOAL_SHARE:.0%} of the demo, {GOAL_CACHED} s cached"
    lines.append(f"\nMedians: overhead {overhead:.1f} s, all cached {cached:.1f} s ({goals}).")
    return "\n".join(lines)


def _flow(profile: str, settings: Sequence[str], directory: str) -> float:
    started = time.perf_counter()
    _python(["-m", "flows.train_medgrpo", profile], settings, directory)
    return time.perf_counter() - started


def _python(words: Sequence[str], settings: Sequence[str], directory: str) -> str:
    """Standard output of a Python process with the settings and a runs directory."""
    given = [word for setting in [*settings, f"runs_dir={directory}"] for word in ("--set", setting)]
    command = [sys.executable, *words, *given]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MedgrpoError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__.split("\n")[0])
    parser.add_argument("profile", nargs="?", default="smoke", help="profile that is run (default: smoke)")
    parser.add_argument("--pairs", type=positive, default=3, help="pairs of runs (default: 3)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--stages", action="store_true", help="only the stages by hand; prints their seconds as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
