"""One GRPO step of plain TRL against ours: same model, prompts and sizes, alternating in one run.

    python -m benchmarks.grpo_step --quick
    python -m benchmarks.grpo_step --group 2 4 8 --prompt 100 400 --json sizes.json --plot sizes.png

Where the package unsloth is installed, its trainer steps too, with its own prefix grouping on.

Each side runs in a process of its own, which sleeps while the other works, so that peak memory is each side's own. TRL
is set up as a competent user would: micro-batches of four completions, so that it is not starved of memory. Completions
have exactly the length asked for: the end-of-turn token is one that the model never writes. Rewards differ within every
group, so that nothing is saved on groups that teach nothing.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import machine, positive, ratios, run
from benchmarks.step_worker import OURS, OURS_BFLOAT16, PHASES, STOCK, UNSLOTH, Case, Setup, Worker, sides

GROUPS, PROMPT_LENGTHS, COMPLETION_LENGTHS = (2, 4, 8, 16), (100, 400, 900), (64, 128)


def main() -> None:
    """Run the cases, print a table, save what was asked for."""
    options = _options()
    sizes = product(options.prompt, options.completion, options.group)
    if options.grid:
        sizes = product(PROMPT_LENGTHS, COMPLETION_LENGTHS, GROUPS)
    cases = [Case(group, prompt, completion, options.prompts) for prompt, completion, group in sizes]
    if options.quick:
        cases = [Case()]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(
            base=options.base,
            records=options.pubmedqa,
            budget=options.micro_batch_tokens,
            micro_batch=options.micro_batch,
            folder=folder,
        )
        for case in cases:
            results.append(compare(setup, case, options.pairs))
            print(_line(results[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(_report(results), indent=1) + "\n", encoding="utf-8")
    print(table(results))
    if options.plot:
        plot(results, options.plot)


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| G | prompt | completion | step ratio (min to max) | with bfloat16 rollout | prefill | decode | forward "
        "| backward | memory ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        case, ratio, other = result["case"], result["step_ratio"], result["step_ratio_bfloat16_rollout"]
        sizes = " | ".join(str(case[name]) for name in ("group", "prompt", "completion"))
        phases = " | ".join(f"{result['phase_ratio'][name]:.1f}" for name in PHASES[:4])
        lines.append(
            f"| {sizes} | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | {other['median']:.2f} "
            f"| {phases} | {result['memory_ratio']:.1f} |"
        )
    return "\n".join(lines)


def compare(setup: Setup, case: Case, pairs: int) -> dict[str, Any]:
    """Alternate steps of all sides; medians, spread, split, memory and the largest difference of a gradient."""
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(setup, case, name)) for name in sides()}
        # This warms up everything that a step does, so that every step counts.
        rollouts = {name: worker.ask("rollout") for name, worker in workers.items() if name != UNSLOTH}
        gradients = {name: workers[name].ask("gradients", rollouts[STOCK]) for name in rollouts}
        for name in workers.keys() - rollouts.keys():
            workers[name].ask("warm_up")
        steps: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(pairs):
            for name, worker in workers.items():
                steps[name].append(worker.ask("step"))
        memory = {name: worker.ask("peak_memory") for name, worker in workers.items()}
        peak = workers[OURS].ask("matmul_peak")
    return _summary(case, steps, memory, _largest_difference(gradients[STOCK], gradients[OURS]), peak)


def _summary(
    case: Case,
    steps: dict[str, list[dict[str, float]]],
    memory: dict[str, float],
    difference: float,
    peak: float,
) -> dict[str, Any]:
    median = {
        side: {name: statistics.median(step[name] for step in measured) for name in measured[0]}
        for side, measured in steps.items()
    }
    whole = {side: [step["step"] for step in measured] for side, measured in steps.items()}
    written = case.prompts * case.group * case.completion
    loss_seconds = median[OURS]["loss forward"] + median[OURS]["backward"]
    return {
        "case": asdict(case),
        "step_ratio": ratios(whole[STOCK], whole[OURS]),
        "step_ratio_bfloat16_rollout": ratios(whole[STOCK], whole[OURS_BFLOAT16]),
        **({"step_ratio_to_unsloth": ratios(whole[UNSLOTH], whole[OURS])} if UNSLOTH in whole else {}),
        "phase_ratio": {name: median[STOCK][name] / median[OURS][name] for name in PHASES},
        "memory_ratio": memory[STOCK] / memory[OURS],
        "parity_max_rel": difference,
        "seconds": median,
        "tokens_per_second": {side: written / seconds["step"] for side, seconds in median.items()},
        "peak_memory_gb": memory,
        "matmul_peak_gflops": peak / 1e9,
        "loss_share_of_peak": median[OURS]["loss_flops"] / loss_seconds / peak,
        "pairs": len(steps[STOCK]),
    }


def _largest_difference(reference: Path, other: Path) -> float:
    """Largest relative difference (Frobenius norm) of a parameter's gradient."""
    import torch

    wanted, got = torch.load(reference), torch.load(other)
    return max(float((got[n] - g).norm() / g.norm()) for n, g in wanted.items() if g.norm() > 0)


def _report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The first case's numbers at the top level, all cases below."""
    from medgrpo.provenance import environment

    return {**results[0], "device": machine(), "environment": environment(), "cases": results}


def _line(result: dict[str, Any]) -> str:
    case, ratio, other = result["case"], result["step_ratio"], result["step_ratio_bfloat16_rollout"]
    sides = [
        f"  {side}: {seconds['step']:.2f} s ("
        + ", ".join(f"{name} {seconds[name]:.2f}" for name in PHASES if name in seconds)
        + "), "
        f"{result['tokens_per_second'][side]:.1f} tokens/s, {result['peak_memory_gb'][side]:.2f} GB"
        for side, seconds in result["seconds"].items()
    ]
    headline = (
        f"{case['prompts']} prompts x G={case['group']}, {case['prompt']} + {case['completion']} tokens: "
        f"step {ratio['median']:.2f} times faster ({ratio['min']:.2f} to {ratio['max']:.2f}, {result['pairs']} pairs), "
        f"with bfloat16 rollout {other['median']:.2f} ({other['min']:.2f} to {other['max']:.2f}), "
        f"memory {result['memory_ratio']:.2f} times less, gradients differ by {result['parity_max_rel']:.1e}, "
        f"loss at {result['loss_share_of_peak']:.0%} of the matrix peak"
    )
    return "\n".join([headline, *sides])


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Step ratio against group size, one line per prompt and completion length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    lines: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    for result in results:
        case = result["case"]
        lines[case["prompt"], case["completion"]].append((case["group"], result["step_ratio"]["median"]))
    for (prompt, completion), points in sorted(lines.items()):
        style = "-" if completion == min(COMPLETION_LENGTHS) else "--"
        axes.plot(*zip(*sorted(points), strict=True), style, marker="o", label=f"{prompt} + {completion} tokens")
    axes.set(xlabel="G, completions per prompt", ylabel="times faster than plain TRL", xscale="log", ylim=(0, None))
    axes.minorticks_off()
    axes.set_xticks(GROUPS, [str(group) for group in GROUPS])
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.legend()
    figure.savefig(path, dpi=150)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpo_step", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the headline case alone, in minutes")
    parser.add_argument("--grid", action="store_true", help="the whole grid of sizes: hours on two cores")
    parser.add_argument("--group", type=positive, nargs="+", default=[4], help="completions per prompt")
    parser.add_argument("--prompt", type=positive, nargs="+", default=[400], help="tokens of a prompt")
    parser.add_argument("--completion", type=positive, nargs="+", default=[64], help="tokens of a completion")
    parser.add_argument("--prompts", type=positive, default=4, help="distinct prompts in a step")
    parser.add_argument("--pairs", type=positive, default=5, help="counted steps of each side")
    parser.add_argument("--micro-batch", type=positive, default=4, help="TRL's completions per micro-batch")
    parser.add_argument("--micro-batch-tokens", type=positive, default=1024, help="our tokens per micro-batch")
    parser.add_argument("--base", default="smollm2-135m-instruct", help="model name or directory")
    parser.add_argument(
        "--pubmedqa", type=Path, default=_from_environment(), help="ori_pqal.json; else synthetic records"
    )
    parser.add_argument("--json", type=Path, help="save all numbers here")
    parser.add_argument("--plot", type=Path, help="save a plot of the ratios here")
    return parser.parse_args()


def _from_environment() -> Path | None:
    folder = os.environ.get("MEDGRPO_PUBMEDQA")
    return Path(folder) / "ori_pqal.json" if folder else None


if __name__ == "__main__":
    run(main)
