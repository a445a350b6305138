"""Tests of medgrpo.evaluation.plots."""

import math
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from medgrpo.evaluation import plots

MATRIX = {
    "yes": {"yes": 20, "no": 3, "maybe": 1, "none": 4},
    "no": {"yes": 5, "no": 10, "maybe": 0, "none": 0},
    "maybe": {"yes": None, "no": math.nan, "maybe": None, "none": None},
}


def rows(phase, key, values):
    return [{"phase": phase, "step": step, key: value} for step, value in enumerate(values, start=1)]


def test_importing_the_module_does_not_import_matplotlib():
    """Importing the module costs nothing: matplotlib comes with the first figure, pyplot never."""
    code = (
        "import sys, medgrpo.evaluation.report as r; print([m for m in ('matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_figures_do_not_import_pyplot():
    """Drawing leaves pyplot, its global figure list and its display alone."""
    before = "matplotlib.pyplot" in sys.modules
    plots.confusion(MATRIX, "tuned")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_an_svg_is_one_named_element_that_can_stand_in_a_page():
    """No XML header, no doctype, no page-wide style rule, no metadata; a role, a name and the page's own colour."""
    svg = plots.confusion(MATRIX, "tuned")
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>")
    assert not re.search(r"<\?xml|<!DOCTYPE|<style|<metadata|DejaVu", svg)
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert "currentColor" in svg
    assert plots.INK not in svg


def test_the_name_of_a_confusion_matrix_says_all_its_numbers():
    """Who hears the page instead of seeing it gets every cell, and a dash where there is no case."""
    label = ElementTree.fromstring(plots.confusion(MATRIX, "tuned")).get("aria-label")
    assert label is not None
    assert "Confusion matrix of tuned" in label
    assert "Expert yes: yes 20, no 3, maybe 1, unreadable 4." in label
    assert "Expert maybe: yes –, no –, maybe –, unreadable –." in label


def test_cells_show_counts_and_dashes():
    """A cell shows its count and its share of the row; one without a number shows a dash."""
    texts = [
        "".join(t.itertext()) for t in ElementTree.fromstring(plots.confusion(MATRIX, "m")).iter() if "text" in t.tag
    ]
    assert "20" in texts
    assert "71 %" in texts
    assert texts.count("–") == 4


@pytest.mark.parametrize("matrix", [{}, {"yes": None}, {"yes": {"yes": 0, "no": 0}}])
def test_an_empty_matrix_is_drawn(matrix):
    """A matrix without rows, cells or cases is a figure of dashes and zeros, not an error."""
    assert ElementTree.fromstring(plots.confusion(matrix, "tuned")).tag.endswith("svg")


def test_a_hostile_title_stays_text():
    """A model's name cannot open a tag, an attribute or TeX mathematics."""
    title = '</svg><script>x</script>" onload="x $\\frac{$'
    root = ElementTree.fromstring(plots.confusion(MATRIX, title))
    assert not [node for node in root.iter() if "script" in node.tag]
    assert root.get("onload") is None
    assert title in (root.get("aria-label") or "")


def test_figures_are_deterministic():
    """The same numbers give the same bytes, so that a report only changes when a result does."""
    training = rows("grpo", "reward", [0.1, 0.3, 0.2])
    assert plots.reward_curves(training) == plots.reward_curves(training)
    assert plots.confusion(MATRIX, "base") == plots.confusion(MATRIX, "base")


def test_figures_of_one_page_share_no_id():
    """Two figures on a page cannot steal each other's clip paths, even where they draw the same numbers."""
    ids = [re.findall(r' id="([^"]+)"', plots.confusion(MATRIX, name)) for name in ("base", "tuned")]
    assert ids[0]
    assert not set(ids[0]) & set(ids[1])


def test_every_reference_inside_a_figure_finds_its_target():
    """Prefixing the ids keeps clip paths and markers whole."""
    svg = plots.reward_curves(rows("grpo", "reward", [0.1, 0.3]))
    ids = set(re.findall(r' id="([^"]+)"', svg))
    targets = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    assert targets
    assert targets <= ids


def test_nothing_logged_gives_no_figure():
    """Without a number to draw there is no figure: no rows, rows of the other phase, or only NaN."""
    assert plots.reward_curves([]) == ""
    assert plots.warmup_loss([]) == ""
    assert plots.reward_curves(rows("warmup", "loss", [1.0])) == ""
    assert plots.warmup_loss(rows("warmup", "loss", [math.nan, math.inf, None, "x"])) == ""


def test_values_that_are_not_finite_are_left_out():
    """NaN, infinity, None, text and a diverged 1e300 do not break a curve; the finite points stay."""
    svg = plots.reward_curves(rows("grpo", "reward", [0.25, math.nan, -math.inf, 1e300, None, "x", 0.75]))
    assert "From 0.25 at step 1 to 0.75 at step 7." in svg


def test_one_step_is_visible():
    """A run of a single step is drawn as a point; a line of one point would be invisible."""
    one = plots.reward_curves(rows("grpo", "reward", [0.5]))
    assert "<use" in one
    assert "<use" not in plots.reward_curves(rows("grpo", "reward", [0.5, 0.6]))


def test_pillars_are_drawn_without_a_total():
    """Whatever of the reward was logged is shown, and only that is in the legend."""
    svg = plots.reward_curves(rows("grpo", "rewards/grounding/mean", [0.1, 0.2]))
    assert ">grounding<" in svg
    assert ">total<" not in svg


def test_what_is_watched_has_its_curves():
    """The shares of what completions were like, and of their verdicts, are two figures with a legend each."""
    training = rows("grpo", "watch/strict_form", [0.25, 0.75]) + rows("grpo", "watch/verdict_none", [0.5, 0.0])
    watched, said = plots.watched_curves(training), plots.verdict_curves(training)
    assert "Strict form: from 0.25 at step 1 to 0.75 at step 2." in watched
    assert ">strict form<" in watched
    assert ">unreadable<" in said
    assert ">yes<" not in said
    assert plots.watched_curves(rows("grpo", "reward", [0.1])) == plots.verdict_curves([]) == ""


def test_a_step_logged_twice_counts_as_logged_last():
    """A resumed run repeats steps since its checkpoint: the later row wins."""
    again = [*rows("grpo", "reward", [0.1, 0.9]), {"phase": "grpo", "step": 2, "reward": 0.4}]
    assert plots._points(again, "grpo", "reward") == ([1, 2], [0.1, 0.4])


def test_the_running_mean_never_looks_ahead():
    """A smoothed point depends on earlier points only: a late jump leaves the earlier curve alone."""
    assert plots._running_mean([1.0] * 10 + [9.0])[:10] == [1.0] * 10
    assert plots._running_mean([2.0, 4.0]) == [2.0, 3.0]


def test_saved_plots_are_png_files_with_data_only(tmp_path):
    """PNG files for the tracker: one per figure that has data, same bytes each time, names safe for any system."""
    metrics = {"models": {"base": {"confusion": MATRIX}, "../x y": {}}}
    training = rows("grpo", "reward", [0.1, 0.2])
    paths = plots.save_plots(tmp_path / "plots", metrics, training)
    assert [path.name for path in paths] == ["rewards.png", "confusion_base.png", "confusion__x_y.png"]
    assert {path.parent for path in paths} == {tmp_path / "plots"}
    first = [path.read_bytes() for path in paths]
    assert all(content.startswith(b"\x89PNG") for content in first)
    assert [path.read_bytes() for path in plots.save_plots(tmp_path / "plots", metrics, training)] == first


def interval(value, low, high, n=50):
    return {"value": value, "low": low, "high": high, "n": n}


PROBES = {
    "no_abstract": {"drop": interval(0.2, -0.02, 0.4), "flips": interval(0.45, 0.3, 0.6)},
    "altered_numbers": {"drop": interval(None, None, None), "flips": interval(0.1, 0.05, 0.2)},
}
BINS = [
    {"low": 0.0, "high": 0.5, "n": 9, "confidence": 0.4, "accuracy": 0.3},
    {"low": 0.5, "high": 1.0, "n": 0, "confidence": None, "accuracy": None},
]


def test_what_probes_did_is_drawn_and_said():
    """Drop and flips of each probe stand in the figure and in its name; what was not measured is a dash."""
    svg = plots.probe_effects(PROBES, "Tuned", "abstract")
    label = ElementTree.fromstring(svg).get("aria-label").replace("\N{NO-BREAK SPACE}", " ")
    assert "Context probes of Tuned. No abstract: accuracy drops by 20 %, verdicts change in 45 %." in label
    assert "Numbers altered: accuracy drops by –, verdicts change in 10 %." in label
    for text in ("No abstract", "accuracy lost", "verdicts changed"):
        assert f">{text}<" in svg


def test_calibration_is_drawn_and_said():
    """Each group of confidence stands in the figure's name; an empty one breaks nothing."""
    svg = plots.calibration(BINS, "Tuned")
    label = ElementTree.fromstring(svg).get("aria-label").replace("\N{NO-BREAK SPACE}", " ")
    assert label == "Calibration of Tuned: confidence 40 %: right in 30 % of 9; confidence –: right in – of 0."
    assert plots.calibration([], "x").startswith("<svg ")


@pytest.mark.parametrize("title", ['" style="fill: red', "<b style='x'>", "a & b", "$x_1$"])
def test_a_figure_needs_no_inline_style(title):
    """A page whose policy allows no inline style shows figures as they are; a name that looks like one stays text."""
    svg = plots.confusion(MATRIX, title)
    root = ElementTree.fromstring(svg)
    assert not [element for element in root.iter() if "style" in element.attrib]
    assert [element for element in root.iter() if element.get("text-anchor") == "middle"]
    assert title in [element.text for element in root.iter() if element.text]
    assert title in root.get("aria-label")


def test_probes_and_calibration_are_saved_where_there_are_any(tmp_path):
    """Models that were probed or sampled get a file each."""
    models = {"base": {}, "tuned": {"vote": {"calibration": {"bins": BINS}}}}
    paths = plots.save_plots(tmp_path, {"models": models, "probes": {"tuned": PROBES, "base": {}}}, [])
    names = {path.name for path in paths}
    assert names == {"confusion_base.png", "confusion_tuned.png", "probes_tuned.png", "calibration_tuned.png"}
