"""A sweep's figures: its trials by what they are judged by, and what each setting had to do with it.

Drawn as the report's figures are: matplotlib's object API inside the functions, the same bytes for the same input.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.config import GateConfig
from medgrpo.evaluation.plots import BLUE, GREEN, INK, ORANGE, new_axes, svg_text
from medgrpo.manifests import write_text
from medgrpo.sweep.selection import pareto
from medgrpo.sweep.trials import LABELS, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = dict(zip(LABELS, (BLUE, ORANGE, GREEN), strict=True))


def save_plots(
    directory: Path,
    trials: Sequence[Trial],
    chosen: int,
    gate: GateConfig,
    importances: Mapping[str, Mapping[str, float]],
    labels: Mapping[str, str] = LABELS,
) -> list[Path]:
    """Write the figures as PNG and SVG files into a directory; returns the paths.

    Args:
        directory: where they go.
        trials: all trials.
        chosen: number of the chosen one.
        gate: the thresholds that are drawn beside them.
        importances: objective -> setting -> share of variance.
        labels: what people call the objectives.
    """
    figures = {"pareto": (_pareto_figure(trials, chosen, gate, labels), _pareto_words(trials, chosen, labels))}
    if any(importances.values()):
        figures["importances"] = (_importances_figure(importances, labels), _importances_words(importances, labels))
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (figure, words) in figures.items():
        paths += [directory / f"{name}.png", directory / f"{name}.svg"]
        figure.savefig(paths[-2], format="png", dpi=160, metadata={"Software": None})
        svg = svg_text(figure, words)
        write_text(
            paths[-1], svg if "xmlns=" in svg else svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
        )
    return paths


def _pareto_figure(trials: Sequence[Trial], chosen: int, gate: GateConfig, labels: Mapping[str, str]) -> "Figure":
    """Macro-F1, or accuracy, over unsupported figures; the area of a point is the share of answers in strict form."""
    figure, axes = new_axes((4.7, 3.4))
    complete, front = [trial for trial in trials if trial.complete], {trial.number for trial in pareto(trials)}
    groups = (
        ("behind another", [each for each in complete if each.number not in front], INK, "o", 0.35),
        ("Pareto", [each for each in complete if each.number in front - {chosen}], BLUE, "o", 1.0),
        ("chosen", [each for each in complete if each.number == chosen], ORANGE, "s", 1.0),
    )
    for label, group, colour, marker, alpha in groups:
        _draw(axes, label, group, colour, marker, alpha)
    threshold: dict[str, Any] = {"linewidth": 1, "linestyle": ":", "alpha": 0.6, "label": "the gate's threshold"}
    axes.axvline(100 * gate.unsupported_figures, color=INK, **threshold)
    axes.grid(color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlabel("answers with unsupported figures (%), on dev", color=INK, fontsize=9)
    axes.set_ylabel(f"{labels['macro_f1']} (%), on dev", color=INK, fontsize=9)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _draw(axes: "Axes", label: str, trials: Sequence[Trial], colour: str, marker: str, alpha: float) -> None:
    if not trials:
        return
    measured = [trial.measured for trial in trials]
    x = [100 * each["unsupported_figures"] for each in measured]
    y = [100 * each["macro_f1"] for each in measured]
    size = [20 + 100 * each["strict_form"] for each in measured]
    axes.scatter(x, y, size, color=colour, marker=marker, alpha=alpha, label=label, zorder=3)
    for place, trial in zip(zip(x, y, strict=True), trials, strict=True):
        text: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, 6), "color": INK, "fontsize": 8}
        axes.annotate(str(trial.number), place, **text)


def _pareto_words(trials: Sequence[Trial], chosen: int, labels: Mapping[str, str]) -> str:
    said = [
        f"trial {trial.number}{' (chosen)' if trial.number == chosen else ''}: "
        + ", ".join(f"{labels[name]} {value:.1%}" for name, value in trial.measured.items())
        for trial in pareto(trials)
    ]
    return f"Pareto trials of the sweep. {'; '.join(said)}."


def _importances_figure(importances: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]) -> "Figure":
    known = {name: shares for name, shares in importances.items() if shares}
    settings = list(next(iter(known.values())))
    figure, axes = new_axes((4.7, 0.95 + 0.5 * len(settings)))
    height = 0.8 / len(known)
    for row, (name, shares) in enumerate(known.items()):
        places = [place - 0.4 + (row + 0.5) * height for place in range(len(settings))]
        widths = [100 * shares[setting] for setting in settings]
        axes.barh(places, widths, 0.9 * height, color=COLOURS[name], label=labels[name])
    axes.set_yticks(range(len(settings)), settings, parse_math=False)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlabel("variance explained (%)", color=INK, fontsize=9)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _importances_words(importances: Mapping[str, Mapping[str, float]], labels: Mapping[str, str]) -> str:
    said = [
        f"{labels[name]}: " + ", ".join(f"{setting} {share:.0%}" for setting, share in shares.items())
        for name, shares in importances.items()
        if shares
    ]
    return f"What each setting explains. {'; '.join(said)}."
