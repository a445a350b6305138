"""The report's figures: confusion matrices, probes, calibration and curves of the training, as SVG or as PNG files.

matplotlib is imported inside the functions (it takes a second) and used through its object API only: no global figure
list, no display. The same input gives the same bytes.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo import domains
from medgrpo.completions import VERDICTS
from medgrpo.evaluation.report_words import label as model_label
from medgrpo.evaluation.report_words import number, ordered, probe_label, quantity
from medgrpo.records import DEFAULT_DOMAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1b1d"  # text and lines; becomes `currentColor` in SVG, so that a page's dark mode reaches into the figure
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"  # Okabe–Ito: told apart by colour-blind eyes
Curves = tuple[tuple[str, str, str, str], ...]  # key, label, colour, dash: never told apart by colour alone
REWARDS: Curves = (
    ("reward", "total", BLUE, "-"),
    ("rewards/correctness/mean", "correctness", GREEN, "--"),
    ("rewards/grounding/mean", "grounding", ORANGE, "-."),
    ("rewards/structure/mean", "structure", PURPLE, ":"),
)
WATCHED: Curves = (
    ("watch/strict_form", "strict form", BLUE, "-"),
    ("watch/no_spread", "no spread", GREEN, "--"),
    ("watch/unsupported_figures", "invented figures", ORANGE, "-."),
    ("watch/copied_share", "copied", PURPLE, ":"),
)
LABEL_STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."))
SMOOTH_FROM = 30  # with fewer points a running mean hides more than it shows
LARGEST = 1e12  # beyond this a value is a diverged run, and matplotlib's axis arithmetic overflows

Points = tuple[list[int], list[float]]


def reward_curves(training: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the total reward and its three pillars by GRPO step; "" where no reward was logged."""
    figure = _curves_figure(training, REWARDS, "mean reward per completion")
    if figure is None:
        return ""
    label = "Mean reward by GRPO step, total and by pillar." + _journey(*_points(training, "grpo", "reward"))
    return svg_text(figure, label)


def watched_curves(training: Sequence[Mapping[str, Any]]) -> str:
    """SVG of what the sampled completions were like, by GRPO step; "" where that was not logged."""
    figure = _curves_figure(training, WATCHED, "share")
    if figure is None:
        return ""
    label = "Strict form, groups without spread, invented figures and copied share by GRPO step. Strict form:"
    return svg_text(figure, label + _journey(*_points(training, "grpo", "watch/strict_form")).lower())


def verdict_curves(training: Sequence[Mapping[str, Any]], labels: Sequence[str] = VERDICTS) -> str:
    """SVG of the shares of the verdicts that sampled completions gave, by GRPO step; "" where none was logged.

    Where answers are open (no labels) it shows the share of unreadable ones.
    """
    figure = _curves_figure(training, _said_curves(labels), "share of completions")
    return svg_text(figure, "Verdicts of the sampled completions by GRPO step.") if figure else ""


def _said_curves(labels: Sequence[str]) -> Curves:
    named = tuple(
        (f"watch/verdict_{label}", label, *style) for label, style in zip(labels, cycle(LABEL_STYLES), strict=False)
    )
    return (*named, ("watch/verdict_none", "unreadable", PURPLE, ":"))


def warmup_loss(training: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the supervised loss by warm-up step; "" where none was logged."""
    figure = _loss_figure(training)
    if figure is None:
        return ""
    return svg_text(figure, "Loss by warm-up step." + _journey(*_points(training, "warmup", "loss")))


def confusion(matrix: Mapping[str, Mapping[str, Any]], title: str, labels: Sequence[str] = VERDICTS) -> str:
    """SVG heat map of a confusion matrix: rows are the expert's verdict, columns the model's, "none" is unreadable.

    Args:
        matrix: expert verdict -> model verdict or "none" -> number of cases, or None or NaN where there are none.
        title: the model's name.
        labels: the verdicts in their order; without any the result is "".
    """
    if not labels:
        return ""
    rows = [
        f"Expert {row}: " + ", ".join(f"{_column(column)} {_count(matrix, row, column)}" for column in _columns(labels))
        for row in labels
    ]
    return svg_text(_confusion_figure(matrix, title, labels), f"Confusion matrix of {title}. {'. '.join(rows)}.")


def probed(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Model -> its probes, where any were put to it."""
    return {model: probes for model, probes in (metrics.get("probes") or {}).items() if probes}


def calibrated(metrics: Mapping[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Model -> the bins of its confidence's calibration, in the order of the pipeline, where it was sampled."""
    found = {}
    for model in ordered(metrics["models"]):
        bins = ((metrics["models"][model].get("vote") or {}).get("calibration") or {}).get("bins")
        if bins:
            found[model] = bins
    return found


def probe_effects(probes: Mapping[str, Mapping[str, Any]], title: str, source: str) -> str:
    """SVG of the accuracy that each probe costs, and of the share of verdicts that it changes, with their intervals.

    Args:
        probes: probe -> {"drop": interval, "flips": interval}.
        title: the model's name.
        source: what the domain calls its contexts.
    """
    said = [
        f"{probe_label(probe, source)}: accuracy drops by {_said(values.get('drop'))}, verdicts change in "
        f"{_said(values.get('flips'))}"
        for probe, values in probes.items()
    ]
    return svg_text(_probes_figure(probes, source), f"Context probes of {title}. {'. '.join(said)}.")


def calibration(bins: Sequence[Mapping[str, Any]], title: str) -> str:
    """SVG of how often the answer is right by how many samples agree with it; the diagonal is perfect calibration.

    Args:
        bins: {"confidence": mean share of agreeing samples, "accuracy", "n"} each.
        title: the model's name.
    """
    said = [
        f"confidence {quantity(one.get('confidence'), 0)}: right in {quantity(one.get('accuracy'), 0)} "
        f"of {one.get('n')}"
        for one in bins
    ]
    return svg_text(_calibration_figure(bins, title), f"Calibration of {title}: {'; '.join(said)}.")


def save_plots(directory: Path, metrics: Mapping[str, Any], training: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write every figure that has data as a PNG file into `directory`; returns the paths."""
    domain = domains.get(metrics.get("domain") or DEFAULT_DOMAIN)
    labels = domain.form.labels
    figures = {
        "rewards": _curves_figure(training, REWARDS, "mean reward per completion"),
        "watched": _curves_figure(training, WATCHED, "share"),
        "verdicts": _curves_figure(training, _said_curves(labels), "share of completions"),
        "warmup_loss": _loss_figure(training),
    }
    for model, values in metrics.get("models", {}).items():
        if labels:
            matrix = values.get("confusion") or {}
            figures[f"confusion_{_file_name(model)}"] = _confusion_figure(matrix, model, labels)
    for model, probes in probed(metrics).items():
        figures[f"probes_{_file_name(model)}"] = _probes_figure(probes, domain.source)
    for model, bins in calibrated(metrics).items():
        figures[f"calibration_{_file_name(model)}"] = _calibration_figure(bins, model_label(model))
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(directory / f"{name}.png")
            figure.savefig(paths[-1], format="png", dpi=160, metadata={"Software": None})
    return paths


def _file_name(model: str) -> str:
    return re.sub(r"\W+", "_", model)


def _said(cell: Any) -> str:
    return quantity((cell or {}).get("value"), (cell or {}).get("n") or 0)


def _points(training: Sequence[Mapping[str, Any]], phase: str, key: str) -> Points:
    """(steps, values) of one logged number; a step logged twice (a resumed run) counts as logged last."""
    found = {
        row["step"]: float(row[key])
        for row in training
        if row["phase"] == phase and isinstance(row.get(key), int | float) and abs(row[key]) <= LARGEST
    }
    return sorted(found), [found[step] for step in sorted(found)]


def _journey(steps: Sequence[int], values: Sequence[float]) -> str:
    if not steps:
        return ""
    return f" From {values[0]:.3g} at step {steps[0]} to {values[-1]:.3g} at step {steps[-1]}."


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over the last tenth of the run seen so far, so that no point uses the future."""
    window = max(5, len(values) // 10)
    heads = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(head) / len(head) for head in heads]


def new_axes(size: tuple[float, float]) -> "tuple[Figure, Axes]":
    """An empty figure in the house look: no frame, quiet ticks, ink that follows the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    return figure, axes


def _draw(axes: "Axes", points: Points, label: str, colour: str, dash: str) -> None:
    """One curve; a long one is drawn as its running mean over the faint original."""
    steps, values = points
    smooth = len(steps) >= SMOOTH_FROM
    if smooth:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    marker = "o" if len(steps) < 2 else ""
    shown = _running_mean(values) if smooth else values
    axes.plot(steps, shown, color=colour, linestyle=dash, linewidth=2, marker=marker, label=label)


def _label_curves(axes: "Axes", x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def _curves_figure(training: Sequence[Mapping[str, Any]], curves: Curves, y: str) -> "Figure | None":
    points = {key: _points(training, "grpo", key) for key, *_ in curves}
    if not any(steps for steps, _ in points.values()):
        return None
    figure, axes = new_axes((4.7, 3.1))
    for key, label, colour, dash in curves:
        if points[key][0]:
            _draw(axes, points[key], label, colour, dash)
    _label_curves(axes, "GRPO step", y)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK, columnspacing=1.2)
    return figure


def _loss_figure(training: Sequence[Mapping[str, Any]]) -> "Figure | None":
    points = _points(training, "warmup", "loss")
    if not points[0]:
        return None
    figure, axes = new_axes((4.7, 3.1))
    _draw(axes, points, "loss", BLUE, "-")
    axes.set_ylim(bottom=min(0.0, *points[1]))
    _label_curves(axes, "warm-up step", "loss per token (nats)")
    return figure


def _probes_figure(probes: Mapping[str, Mapping[str, Any]], source: str) -> "Figure":
    figure, axes = new_axes((4.7, 0.95 + 0.5 * len(probes)))
    axes.axvline(0, color=INK, linewidth=1, alpha=0.5)
    series = (("drop", "accuracy lost", BLUE, "o", -0.13), ("flips", "verdicts changed", ORANGE, "s", 0.13))
    for key, name, colour, marker, shift in series:
        found = [(place, _bounds(values.get(key))) for place, values in enumerate(probes.values())]
        places = [place + shift for place, bounds in found if bounds]
        known = [bounds for _, bounds in found if bounds]
        axes.hlines(places, [100 * low for low, _, _ in known], [100 * high for *_, high in known], colour, linewidth=2)
        axes.plot([100 * value for _, value, _ in known], places, marker, color=colour, markersize=6, label=name)
    axes.set_yticks(range(len(probes)), [probe_label(probe, source) for probe in probes], parse_math=False)
    axes.set_ylim(len(probes) - 0.5, -0.5)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlabel("of a hundred cases, with 95 % interval", color=INK, fontsize=9)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def _bounds(cell: Any) -> tuple[float, float, float] | None:
    """Low, value and high of an interval; None where one of them is missing."""
    low, value, high = (number((cell or {}).get(key)) for key in ("low", "value", "high"))
    return None if low is None or value is None or high is None else (low, value, high)


def _calibration_figure(bins: Sequence[Mapping[str, Any]], title: str) -> "Figure":
    figure, axes = new_axes((3.4, 3.1))
    axes.plot([0, 100], [0, 100], color=INK, alpha=0.4, linewidth=1, linestyle=":")
    known = [
        one for one in bins if number(one.get("confidence")) is not None and number(one.get("accuracy")) is not None
    ]
    x, y = [100 * one["confidence"] for one in known], [100 * one["accuracy"] for one in known]
    axes.plot(x, y, color=BLUE, linewidth=1.5, alpha=0.6)
    largest = max((one.get("n") or 0 for one in known), default=0) or 1
    axes.scatter(x, y, [20 + 130 * (one.get("n") or 0) / largest for one in known], color=BLUE, zorder=3)
    axes.set(xlim=(-4, 104), ylim=(-4, 104), aspect="equal")
    axes.grid(color=INK, alpha=0.15, linewidth=0.8)
    axes.set_xlabel("samples that agree (%)", color=INK, fontsize=9)
    axes.set_ylabel("answer is right (%)", color=INK, fontsize=9)
    _title(axes, title)
    return figure


def _title(axes: "Axes", title: str) -> None:
    axes.set_title(title, color=INK, fontsize=11, fontweight="bold", loc="left", parse_math=False)


def _columns(labels: Sequence[str]) -> tuple[str, ...]:
    return (*labels, "none")


def _confusion_figure(matrix: Mapping[str, Mapping[str, Any]], title: str, labels: Sequence[str]) -> "Figure":
    figure, axes = new_axes((3.4, 2.75))
    columns = _columns(labels)
    for y, row in enumerate(labels):
        total = sum(_cell(matrix, row, column) or 0 for column in columns)
        for x, column in enumerate(columns):
            _draw_cell(axes, (x, y), _cell(matrix, row, column), total)
    axes.set(xlim=(-0.55, len(columns) - 0.45), ylim=(len(labels) - 0.45, -0.55))
    axes.set_xticks(range(len(columns)), [_column(column) for column in columns])
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("model's verdict", color=INK, fontsize=9)
    axes.set_ylabel("expert's verdict", color=INK, fontsize=9)
    _title(axes, title)
    return figure


def _draw_cell(axes: "Axes", at: tuple[int, int], count: float | None, total: float) -> None:
    """One cell, shaded by its share of the expert's row; a framed cell is a right answer.

    The shade stops at 60 % so that one ink stays readable on every cell, on white paper and on a dark page.
    """
    from matplotlib.patches import Rectangle

    x, y = at
    share = count / total if count and total else 0.0
    box = (x - 0.47, y - 0.47)
    axes.add_patch(Rectangle(box, 0.94, 0.94, facecolor=BLUE, alpha=0.05 + 0.55 * share, linewidth=0))
    if x == y:
        axes.add_patch(Rectangle(box, 0.94, 0.94, fill=False, edgecolor=INK, linewidth=1.3))
    text: dict[str, Any] = {"ha": "center", "va": "center", "color": INK}
    if count is None:
        axes.text(x, y, "–", fontsize=11, **text)
        return
    axes.text(x, y - 0.1, f"{count:g}", fontsize=11, **text)
    if total:
        axes.text(x, y + 0.24, f"{100 * share:.0f} %", fontsize=7.5, **text)


def _cell(matrix: Mapping[str, Mapping[str, Any]], row: str, column: str) -> float | None:
    """The number in a cell; None where there is none."""
    value = (matrix.get(row) or {}).get(column)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _count(matrix: Mapping[str, Mapping[str, Any]], row: str, column: str) -> str:
    value = _cell(matrix, row, column)
    return "–" if value is None else f"{value:g}"


def _column(column: str) -> str:
    return "unreadable" if column == "none" else column


def svg_text(figure: "Figure", label: str) -> str:
    """The figure as an `<svg>` element to stand inside a page, with real text and the page's text colour."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medgrpo"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), label)


def _presentation(match: "re.Match[str]") -> str:
    """A tag's `style` as presentation attributes, which is what all of matplotlib's properties are."""
    pairs = [part.split(":", 1) for part in match[2].split(";") if ":" in part]
    return match[1] + "".join(f' {key.strip()}="{value.strip()}"' for key, value in pairs)


def _inline(document: str, label: str) -> str:
    """Turn a stand-alone SVG document into an element that shares a page with others.

    Its style rule would reach the whole page and its ids would clash with the next figure's: the rule becomes an
    attribute, the ids get a prefix made from the content. A page whose policy allows no inline style still shows it:
    `style` becomes attributes of their own.
    """
    svg = document[document.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"\s*<style type=\"text/css\">.*?</style>", "", svg, flags=re.S)
    prefix = f"p{sha256((svg + label).encode('utf-8', 'replace')).hexdigest()[:8]}-"
    svg = re.sub(r'(<[^<>]*? id="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r"font-family: 'DejaVu Sans'[^;\"]*", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r'(<[^<>]*?) style="([^"<>]*)"', _presentation, svg)
    name = f'role="img" aria-label="{html.escape(label)}" stroke-linejoin="round"'
    return svg.replace(INK, "currentColor").replace("<svg ", f"<svg {name} ", 1).strip()
