"""What evidence costs: an evaluation's four probes, statistics and report against its plain answers.

    python -m benchmarks.evaluation --pubmedqa PATH/ori_pqal.json --model runs/latest/train/model

One model answers the cases; then the same evaluation goes on with its probes, statistics and report (it loads the model
once more, so what is added is rather over- than underestimated). Statistics and report alone: `benchmarks.report`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import positive, run
from medgrpo.config import RunConfig, load_config


def main() -> None:
    """Measure and print."""
    options = _options()
    from medgrpo.preparation import prepare

    config = _config(options)
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        prepare(config, data)
        print(json.dumps(measure(config, data, Path(directory)), indent=1))


def measure(config: RunConfig, data: Path, directory: Path) -> dict[str, Any]:
    """Seconds of the plain answers of the configured base, and of what probes, statistics and report add."""
    from medgrpo.evaluation.asking import Contestant
    from medgrpo.evaluation.compare import evaluate, evaluate_models
    from medgrpo.policies import resolve_base

    models = [Contestant("tuned", resolve_base(config.policy))]
    plain = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"probes": False})})
    times = [time.perf_counter()]
    evaluate(plain, data, models, directory / "plain", directory / "answers")
    times.append(time.perf_counter())
    metrics = evaluate_models(config, data, models, directory / "added", directory / "answers")
    times.append(time.perf_counter())
    seconds = dict(zip(("plain", "added"), (round(end - start, 1) for start, end in pairwise(times)), strict=True))
    probed = {probe: found["n"] for probe, found in metrics["probes"]["tuned"].items()}
    return {
        "cases": metrics["n"],
        "probed": probed,
        "seconds": seconds,
        "ratio": round(seconds["added"] / seconds["plain"], 2),
    }


def _config(options: argparse.Namespace) -> RunConfig:
    path = options.pubmedqa
    settings = [f"data.path={json.dumps(str(path))}"] if path else [f"data.synthetic_test={options.cases}"]
    settings += [f"evaluation.cases={options.cases}"]
    settings += [f"policy.base={json.dumps(str(options.model))}"] if options.model else []
    return load_config("cpu" if path else "demo", [*settings, *options.set])


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.split("\n")[0])
    parser.add_argument("--pubmedqa", type=Path, help="ori_pqal.json; unset, synthetic records")
    parser.add_argument("--model", type=Path, help="model directory; unset, the profile's base")
    parser.add_argument("--cases", type=positive, default=500, help="number of cases")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
