"""The page of benchmarks.gpu_check: Markdown, and a plot beside it, from what is in its JSON."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medgrpo.manifests import write_text

PAGE, PLOT = "gpu_check.md", "curve.png"
ORDER = ("environment", "guards", "backends", "resume", "evaluation", "exchange", "curve")
NOT_RUN = {"state": "not run", "why": "it was not asked for yet (--parts; curve needs --minutes).", "found": {}}

Found = Mapping[str, Any]


def write_page(report: Found, directory: Path) -> Path:
    """Write the page, and the plot where there is a curve; returns the page's path."""
    parts = report["parts"]
    points = parts.get("curve", {}).get("found", {}).get("points", [])
    if points:
        plot(points, directory / PLOT)
    write_text(directory / PAGE, render(report))
    return directory / PAGE


def render(report: Found) -> str:
    """The page as Markdown."""
    parts = {name: report["parts"].get(name, NOT_RUN) for name in ORDER}
    title = "# What this machine does with medgrpo"
    blocks = [title]
    if report["dry_run"]:
        blocks.append(
            "**A dry run**: a random model of two layers, a few steps. It shows that the script works, and no more."
        )
    blocks.append(_overview(parts))
    for name, part in parts.items():
        if part["found"]:
            blocks += [f"## {name.capitalize()}", *SECTIONS[name](part["found"])]
    return "\n\n".join(blocks) + "\n"


def _overview(parts: Mapping[str, Found]) -> str:
    rows = []
    for name, part in parts.items():
        seconds, where = "", ""
        if "seconds" in part:
            seconds, where = (
                f"{part['seconds']:.0f}",
                f"{part['device']}, {part['commit'] or 'no commit'}, {part['at']}",
            )
        rows.append([name, part["state"], _cell(part["why"]), seconds, where])
    return _table(["part", "outcome", "why", "seconds", "where and when"], rows)


def _environment(found: Found) -> list[str]:
    precision, backend = found["precision"], found["backend"]
    memory = f"{found['memory_gb']:.1f} GB" if found["memory_gb"] else "no memory of its own"
    facts = [
        f"{found['device']} ({found['capability']}), {memory}, CUDA {found['cuda'] or 'none'}.",
        f"Precision: weights {precision['weights']}, autocast {precision['autocast']}, quantisation "
        f"{' or '.join(precision['quantization'])}, attention {precision['attention']}, vLLM "
        f"{'possible' if precision['vllm'] else 'off'}: {precision['reason']}.",
        f"policy.backend=auto takes {backend['auto']}: {backend['reason']}.",
        "Optional packages: " + (", ".join(found["optional"]) or "none") + ".",
    ]
    versions = _table(["", "version"], [[name, version] for name, version in found["versions"].items()])
    lacking = [f"Doctor, {one['name']}: {one['detail']}." for one in found["doctor"] if one["state"] != "ok"]
    return ["\n".join(f"- {fact}" for fact in [*facts, *lacking]), versions]


def _guards(found: Found) -> list[str]:
    rows = []
    for autocast, one in found.items():
        if one["state"] != "ok":
            rows.append([autocast, one["state"], _cell(one["why"]), "", "", "", ""])
            continue
        losses, norms = one["losses"]["warmup"], one["gradient_norms"]
        rows.append(
            [
                autocast,
                "ok",
                "",
                f"{len(losses)} + {len(one['losses']['grpo'])}",
                f"{losses[0]:.3f} to {losses[-1]:.3f}",
                f"{max(norms):.3g}",
                _gigabytes(one["peak_memory_gb"]),
            ]
        )
    head = ["autocast", "outcome", "why", "steps", "warm-up loss", "largest gradient norm", "peak memory"]
    return ["A warm-up and the first steps of GRPO; the training process looks at itself.", _table(head, rows)]


def _backends(found: Found) -> list[str]:
    rows, case = [], {}
    for side, one in found.items():
        if one["state"] != "ok":
            rows.append([side, one["state"], _cell(one["why"]), "", "", "", ""])
            continue
        case, seconds = one["case"], one["step_seconds"]
        spread = f"{seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})"
        figures = [spread, f"{one['tokens_per_second']:.0f}", f"{one['peak_memory_gb']:.2f}"]
        rows.append([side, "ok", f"autocast {one['autocast']}", str(one["steps"]), *figures])
    head = ["backend", "outcome", "how, or why", "steps", "seconds a step", "tokens a second", "peak memory, GB"]
    said = "Each in a process of its own, one after another."
    if case:
        said += (
            f" A step: {case['prompts']} prompts of {case['prompt']} tokens, {case['group']} completions of "
            f"{case['completion']} tokens each; tokens are those written."
        )
    return [said, _table(head, rows)]


def _resume(found: Found) -> list[str]:
    differences = ", ".join(f"{name} {value:.2g}" for name, value in found["largest_differences"].items())
    other = (
        f"The largest differences of a step to the same training when it was not killed: {differences}."
        if differences
        else "There is no training that was not killed to compare it with (part guards)."
    )
    return [
        f"Killed after step {found['killed_after_step']}, it went on at step {found['resumed_at_step']} and has "
        f"the steps {', '.join(map(str, found['steps']))}. {other}"
    ]


def _evaluation(found: Found) -> list[str]:
    return [
        f"{found['cases']} cases in {found['seconds']:.1f} s: {found['seconds_a_case']:.3f} s a case, "
        f"{found['tokens_per_second']:.0f} tokens a second, {found['mean_tokens']:.0f} tokens an answer, peak memory "
        f"{_gigabytes(found['peak_memory_gb'])}. {found['readable']} are readable, {found['right']} right; the "
        "model (from a training of a few steps) is not meant to be good."
    ]


def _exchange(found: Found) -> list[str]:
    rows = [[name, f"{value:.1e}"] for name, value in found["largest_logit_difference"].items()]
    return [_table(["adapter of", "largest difference of a logit between backends, float32"], rows)]


def _curve(found: Found) -> list[str]:
    data, grpo = found["config"]["data"], found["config"]["grpo"]
    records = "official PubMedQA test cases" if data["domain"] == "pubmedqa" else "synthetic test cases"
    number = "all" if found.get("cases") == "all" else f"{found.get('cases')} of the"
    pace = f", {found['step_seconds']:.1f} s a step" if "step_seconds" in found else ""
    said = (
        f"Greedy answers to {number} {records}, in {found['minutes']:g} minutes in all. GRPO: "
        f"{grpo['prompts_per_step']} prompts of {grpo['group_size']} completions a step{pace}. Intervals are of 95 % "
        "(accuracy: Wilson's; macro-F1: cases resampled)."
    )
    rows = [
        [
            point["label"],
            str(point["step"]),
            str(point["n"]),
            *(_interval(point[name]) for name in ("accuracy", "macro_f1", "strict_form")),
        ]
        for point in found["points"]
    ]
    table = _table(["model", "GRPO steps", "cases", "accuracy, %", "macro-F1, %", "strict form, %"], rows)
    return [said, table, f"![Accuracy and macro-F1 by GRPO step]({PLOT})"] if rows else [said]


SECTIONS: Mapping[str, Callable[[Found], list[str]]] = {
    "environment": _environment,
    "guards": _guards,
    "backends": _backends,
    "resume": _resume,
    "evaluation": _evaluation,
    "exchange": _exchange,
    "curve": _curve,
}


def plot(points: Sequence[Found], path: Path) -> None:
    """Accuracy and macro-F1 with their intervals by GRPO step; the base, which has no step, is a line across."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, label, colour in (("accuracy", "accuracy", "C0"), ("macro_f1", "macro-F1", "C1")):
        trained = [point for point in points if point["label"] != "base"]
        for point in points:
            if point["label"] == "base":
                axes.axhline(100 * point[name]["value"], color=colour, linestyle=":", label=f"{label}, base")
        if trained:
            values = [point[name] for point in trained]
            below = [100 * (one["value"] - one["low"]) for one in values]
            above = [100 * (one["high"] - one["value"]) for one in values]
            steps, shown = [point["step"] for point in trained], [100 * one["value"] for one in values]
            axes.errorbar(steps, shown, yerr=[below, above], color=colour, marker="o", capsize=3, label=label)
    axes.set(xlabel="GRPO steps after the warm-up", ylabel="%", ylim=(0, 100))
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _interval(one: Found) -> str:
    return f"{100 * one['value']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"


def _gigabytes(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f} GB"


def _cell(text: str) -> str:
    """A sentence that a table's cell can hold."""
    return text.replace("|", "\\|").replace("\n", "<br>")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
