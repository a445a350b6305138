"""Tests of benchmarks.report and of the browser that it looks with."""

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import browser, report
from medgrpo.errors import InputError

SCREENSHOT = Path(__file__).parents[2] / "docs" / "report.png"
needs_chromium = pytest.mark.skipif(browser.find_chromium() is None, reason="no Chromium here")


def test_the_screenshot_in_the_docs_is_small():
    """The picture that the documentation shows is a PNG of at most 300 kB."""
    content = SCREENSHOT.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) <= 300_000


def test_without_a_browser_a_sentence_says_so(monkeypatch):
    """Who asks for a screenshot on a machine without Chromium is told what to install."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="apt-get install chromium"), browser.Browser():
        pass


@pytest.mark.slow
def test_the_example_is_whole_and_synthetic():
    """The simulated evaluation has every part that a report can show, and says that it is synthetic."""
    made = report.example(12)
    assert made.metrics["synthetic"]
    assert all(case["synthetic"] for case in made.cases)
    assert {"probes", "slices", "contamination", "comparisons"} <= made.metrics.keys()
    assert set(made.metrics["models"]) == set(report.MODELS)
    assert made == report.example(12)


@pytest.mark.slow
@needs_chromium
def test_measuring_prints_size_and_time_and_takes_the_screenshot(tmp_path, monkeypatch, capsys):
    """One command gives seconds and bytes, and where asked for the picture."""
    path = tmp_path / "report.png"
    monkeypatch.setattr(sys, "argv", ["report", "--cases", "30", "--screenshot", str(path)])
    report.main()
    measured = json.loads(capsys.readouterr().out)
    assert measured["cases"] == 30
    assert measured["bytes"] > 100_000
    assert measured["seconds"].keys() == {"statistics", "report"}
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert image.size == (report.TOP[0] + report.GAP + report.PHONE[0], report.PHONE[1])


@pytest.mark.slow
@needs_chromium
def test_the_browser_reports_what_a_page_complains_about(tmp_path):
    """Errors of scripts, messages on the console and dialogs are all noticed: an empty list means a quiet page."""
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('a complaint'); missing.call()</script><p>x")
    with browser.Browser() as looked:
        looked.open(page)
        assert looked.evaluate("document.querySelector('p').textContent") == "x"
        assert "a complaint" in looked.problems
        assert any("Uncaught" in problem for problem in looked.problems)
        with pytest.raises(InputError, match="the browser refuses"):
            looked.send("Page.unknown")
