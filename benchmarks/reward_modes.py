"""The same short training with gated and with weighted rewards: accuracy, strict form, unsupported figures.

    python -m benchmarks.reward_modes
    python -m benchmarks.reward_modes --pubmedqa PATH/ori_pqal.json --cases 100 --json modes.json

There is one warm-up. From its adapter GRPO runs once for each mode and seed, both modes of a seed on the same prompts
in the same order, and every result answers the same held-out cases greedily. What is finished stays in --directory: a
run that was stopped goes on where it was.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import positive, run
from medgrpo.config import RunConfig, load_config
from medgrpo.evaluation.statistics import Interval, bootstrap, mcnemar, wilson
from medgrpo.manifests import Manifest, build, write_json

MODES = ("gated", "weighted")
MEASURES: Mapping[str, Callable[[Mapping[str, Any], str], bool]] = {
    "accuracy": lambda answer, expert: answer["verdict"] == expert,
    "strict form": lambda answer, expert: answer["well_formed"],
    "unsupported figure": lambda answer, expert: bool(answer["figures"]["unsupported"]),
}
"""What is counted of an answer to a case with this expert verdict."""


def main() -> None:
    """Train, evaluate, compare, print."""
    options = _options()
    config = _config(options)
    cases = compare_modes(config, options.seeds, options.directory)
    result = summarise(cases, options.seeds, config)
    print(table(result))
    if options.json:
        write_json(options.json, {"config": config.model_dump(mode="json"), **result})


def compare_modes(config: RunConfig, seeds: Sequence[int], directory: Path) -> list[dict[str, Any]]:
    """Train each mode with each seed from one warm-up, and let all answer the same cases.

    Returns:
        A row per case as in predictions.jsonl; answers are named "warmup" and "gated 11", "weighted 11" … by seed.
    """
    from medgrpo import stages
    from medgrpo.evaluation.asking import Contestant
    from medgrpo.evaluation.compare import evaluate, read_cases
    from medgrpo.policies import resolve_base

    data = stages.prepare(config)
    trained: dict[str, Manifest] = {}
    for seed in seeds:
        for mode in MODES:
            warmup = next((one.path / "warmup" for one in trained.values()), None)
            rewards = config.rewards.model_copy(update={"mode": mode})
            part = config.model_copy(update={"seed": seed, "rewards": rewards})
            target = directory / f"{mode}-{seed}-{stages.train_key(part, data)}"
            trained[f"{mode} {seed}"] = _train(part, data.path, target, warmup)
    base, first = resolve_base(config.policy), next(iter(trained.values()))
    models = [Contestant("warmup", base, first.path / "warmup" / "adapter", config.policy.revision)]
    for name, one in trained.items():
        models.append(Contestant(name, base, one.path / "grpo" / "adapter", config.policy.revision))
    results = directory / "evaluation"
    evaluate(config, data.path, models, results, directory / "answers", _print_answers)
    return read_cases(results)


def _train(config: RunConfig, data: Path, target: Path, warmup: Path | None) -> Manifest:
    """GRPO from the shared warm-up (None: after a warm-up of its own), unless it is there already."""
    from medgrpo.training.launch import run

    def progress(row: Mapping[str, Any]) -> None:
        reward = f", reward {row['reward']:.2f}" if "reward" in row else ""
        print(
            f"{config.rewards.mode} {config.seed}: {row['phase']} step {row['step']} of {row['steps']}{reward}",
            flush=True,
        )

    def fill(directory: Path) -> None:
        adapter = directory / "warmup" / "adapter"
        if warmup and not adapter.is_dir():
            copied = adapter.with_name("copied")
            shutil.copytree(warmup / "adapter", copied, dirs_exist_ok=True)
            copied.rename(adapter)
        run(config, data, directory, progress)
        # The adapters are what is evaluated.
        shutil.rmtree(directory / "model")

    return build(target, fill)


def _print_answers(name: str, done: int, total: int) -> None:
    if done % 10 == 0 or done == total:
        print(f"{name}: {done} of {total} answers", flush=True)


def summarise(cases: Sequence[Mapping[str, Any]], seeds: Sequence[int], config: RunConfig) -> dict[str, Any]:
    """Each measure by mode over seeds and cases, their difference, and an exact McNemar test of the pairs.

    Intervals resample cases, each with its answers of all seeds: the same case under another seed is no new evidence.
    """
    return {
        "cases": len(cases),
        "seeds": list(seeds),
        "measures": {name: _compare(name, cases, seeds, config) for name in MEASURES},
    }


def _compare(name: str, cases: Sequence[Mapping[str, Any]], seeds: Sequence[int], config: RunConfig) -> dict[str, Any]:
    n, settings = len(cases), config.evaluation

    def outcomes(model: str) -> list[bool]:
        return [bool(MEASURES[name](case["answers"][model], case["expert"])) for case in cases]

    def interval(values: np.ndarray) -> dict[str, Any]:
        found: Interval = bootstrap(
            lambda rows: float(values[:, rows].mean()), n, settings.resamples, settings.seed, values.size
        )
        return found.as_dict()

    # By mode: [seeds, cases].
    seen = {mode: np.array([outcomes(f"{mode} {seed}") for seed in seeds]) for mode in MODES}
    gated, weighted = (seen[mode] for mode in MODES)
    only_gated, only_weighted, p_value = mcnemar(gated.ravel().tolist(), weighted.ravel().tolist())
    return {
        "warmup": wilson(sum(outcomes("warmup")), n).as_dict(),
        **{mode: interval(values.astype(float)) for mode, values in seen.items()},
        "difference": interval(gated.astype(float) - weighted.astype(float)),
        "only_gated": only_gated,
        "only_weighted": only_weighted,
        "p_value": p_value,
        "by_seed": {mode: values.mean(1).tolist() for mode, values in seen.items()},
    }


def table(result: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"{result['cases']} cases, seeds {', '.join(map(str, result['seeds']))}; % with 95 % intervals.",
        "",
        "| | warm-up | gated | weighted | gated less weighted | only gated, only weighted | exact McNemar p |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in result["measures"].items():
        shown = " | ".join(_percent(found[column]) for column in ("warmup", *MODES, "difference"))
        lines.append(f"| {name} | {shown} | {found['only_gated']}, {found['only_weighted']} | {found['p_value']:.2g} |")
    return "\n".join(lines)


def _percent(interval: Mapping[str, float]) -> str:
    return f"{100 * interval['value']:.1f} ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"


def _config(options: argparse.Namespace) -> RunConfig:
    path = options.pubmedqa
    settings = [f"data.path={json.dumps(str(path))}"] if path else []
    settings += [
        f"grpo.steps={options.steps}",
        f"evaluation.cases={options.cases}",
        "audit=warn",
        "grpo.group_size=4",
        "evaluation.probes=false",
    ]
    settings.append(f"runs_dir={json.dumps(str(options.directory))}")
    return load_config("cpu" if path else "demo", [*settings, *options.set])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_modes", description=__doc__.split("\n")[0])
    parser.add_argument("--pubmedqa", type=Path, help="ori_pqal.json; unset, synthetic records")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13], help="of sampling and training")
    parser.add_argument("--steps", type=positive, default=8, help="GRPO steps of 4 prompts of 4 completions")
    parser.add_argument("--cases", type=positive, default=40, help="held-out cases")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as of a profile")
    parser.add_argument("--directory", type=Path, default=Path("runs/reward-modes"), help="where parts are kept")
    parser.add_argument("--json", type=Path, help="where to write the result")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
