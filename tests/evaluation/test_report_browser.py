"""Tests of the report in a real browser: Debian's Chromium, without a window."""

import re
import time

import pytest

from benchmarks.browser import Browser, find_chromium
from benchmarks.report import example
from medgrpo.config import RewardConfig
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.scoring import answer_row
from medgrpo.testing import tiny_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
    ),
]

ATTACKS = [
    "<script>window.owned=1</script>",
    "</script><script>window.owned=1</script>",
    "<img src=x onerror='window.owned=1'>",
    '"><svg onload="window.owned=1">',
    "'\" autofocus onfocus=window.owned=1 x='",
    "<a href='javascript:window.owned=1'>click</a><base href='http://attacker.test/'>",
    "<style>*{display:none}</style><link rel=stylesheet href=http://attacker.test/x.css>",
    "<iframe srcdoc='<script>parent.owned=1</script>'></iframe><meta http-equiv=refresh content='0;url=http://a.test'>",
    "\u202e gnidaer \u2066 NUL \x00 \x1b[2J \ud800",
    "W" * 100_000,
    "a b " * 25_000,
]


def attack(text):
    """A case whose every free string is an attack, with an invented figure in its thought."""
    record = tiny_record()
    begins = {"base": "We randomised 120 adults to treatment.", "tuned": "Mean pain fell by 2.4 points, and 97 died."}
    thoughts = {name: f"<thought>{begin} {text}</thought><answer>yes</answer>" for name, begin in begins.items()}
    rows = {name: answer_row(record, [Generation(one, 9)], RewardConfig()) for name, one in thoughts.items()}
    probes = {"no_abstract": {"verdict": "no", "text": text}, text[:300]: {"verdict": None, "text": text}}
    fields = {"id": text, "question": text, "contexts": [*record.contexts, text], "long_answer": text}
    return {**fields, "expert": "no", "synthetic": True, "answers": rows, "probes": probes}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of simulated models on a few cases, and one case per attack."""
    made = example(24)
    hostile = {"name": ATTACKS[0], "base": ATTACKS[1], "created": ATTACKS[6]}
    gate = {**made.gate, "summary": ATTACKS[2], "checks": [{**made.gate["checks"][0], "reason": ATTACKS[3]}]}
    cases = [*made.cases, *map(attack, ATTACKS)]
    made = type(made)({**made.run, **hostile}, made.metrics, cases, made.training, gate)
    return made.write(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, report):
    """The report, just opened on a desktop."""
    browser.problems.clear()
    browser.look(1280)
    browser.open(report)
    return browser


def shown(page):
    """Number of cases that can be seen."""
    return page.evaluate("[...document.querySelectorAll('.case')].filter(c => c.checkVisibility()).length")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_hostile_runs_and_nothing_complains(width, dark, page, report):
    """No script of an answer runs, nothing is loaded, the console stays empty, and the page is not wider than it."""
    page.look(width, dark=dark)
    page.open(report)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.evaluate("document.querySelectorAll('.case').forEach(c => { c.style.contentVisibility = 'visible'; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.owned") is None
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0
    assert page.evaluate("document.querySelectorAll('img, iframe, link, base, script:not(body > script)').length") == 0
    assert page.problems == []


def test_the_policy_holds_where_escaping_would_fail(page):
    """Even markup that got into the page could run no script, apply no style and load nothing."""
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', `<img src='http://a.test/x.png' onerror='window.owned=1'>"
        "<p id='styled' style='position: fixed'>x</p>`); const s = document.createElement('script');"
        "s.textContent = 'window.owned=1'; document.body.append(s);"
    )
    assert page.evaluate("window.owned") is None
    assert page.evaluate("getComputedStyle(document.getElementById('styled')).position") == "static"
    assert len(page.problems) >= 3
    assert all("Content Security Policy" in problem for problem in page.problems)


def test_filters_show_what_they_count(page):
    """Each filter shows as many cases as its button says, and says how many; All brings every case back."""
    total = shown(page)
    for name in ("right", "wrong", "changed-base", "changed-champion", "invents", "all"):
        page.evaluate(f"document.querySelector('[data-show={name}]').click()")
        counted = page.evaluate(f"Number(document.querySelector('[data-show={name}] span').textContent)")
        assert shown(page) == counted
        assert page.evaluate("document.querySelector('.shown').textContent") == f"Showing {counted} of {total} cases."
        assert page.evaluate("document.querySelectorAll('[data-show][aria-pressed=true]').length") == 1
    assert shown(page) == total == 24 + len(ATTACKS)


def test_search_finds_text_within_the_filter(page):
    """A search looks at question, answers and abstract, whatever the case of its letters, within the chosen filter."""
    page.evaluate("document.querySelector('[data-show=wrong]').click()")
    page.evaluate(
        "const box = document.querySelector('.filters input'); box.value = 'AND 97 died';"
        "box.dispatchEvent(new Event('input'));"
    )
    assert shown(page) == len(ATTACKS)
    page.evaluate("document.querySelector('[data-show=right]').click()")
    assert shown(page) == 0


def test_a_link_to_a_hidden_case_shows_it(page):
    """A contaminated pair links to its case even where a filter hides that."""
    page.evaluate("document.querySelector('.filters input').value = 'nothing holds this'")
    page.evaluate("document.querySelector('[data-show=wrong]').click()")
    assert shown(page) == 0
    page.evaluate("document.querySelector('#contamination').parentElement.querySelector('td a, th a').click()")
    page.evaluate("new Promise(done => setTimeout(done, 100))")
    assert page.evaluate("document.querySelector('#case-1').checkVisibility()")


def test_the_filters_work_from_the_keyboard(page):
    """Tab reaches every filter, the focus can be seen, and the space bar presses it."""
    page.evaluate("document.querySelector('[data-show=all]').focus()")
    page.press("Tab")
    page.press("Tab")
    assert page.evaluate("document.activeElement.dataset.show") == "wrong"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(" ", " ")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert shown(page) == page.evaluate("Number(document.activeElement.querySelector('span').textContent)")


def test_marks_differ_without_colour_and_are_read_aloud(page):
    """Supported is underlined, unsupported boxed in dashes and bold; a screen reader hears which is which."""
    style = "(s => [s.borderTopStyle, s.borderBottomStyle, Number(s.fontWeight) > 500])(getComputedStyle({}))"
    one = "document.querySelector('.case mark.{}')"
    assert page.evaluate(style.format(one.format("supported"))) == ["none", "solid", False]
    assert page.evaluate(style.format(one.format("unsupported"))) == ["dashed", "dashed", True]
    assert page.evaluate(style.format(one.format("other"))) == ["none", "dotted", False]
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    heard = " ".join(str(node["name"].get("value")) for node in nodes if "name" in node)
    assert "[supported:" in heard
    assert "[not supported:" in heard
    assert "[cited by" in heard


def test_marks_are_no_text_of_the_page(page):
    """What only a screen reader hears is not found by a search and not copied with an answer."""
    assert "[not supported" not in page.evaluate("document.body.innerText")


def test_print_cuts_nothing_off(page):
    """On paper there are no filters, what was folded lies open, and long answers run on."""
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    page.look(720, media="print")
    for hidden in (".filters", "nav", ".shown"):
        assert page.evaluate(f"getComputedStyle(document.querySelector('{hidden}')).display") == "none"
    assert page.evaluate("document.querySelector('.contexts p').getBoundingClientRect().height") > 10
    assert page.evaluate("document.querySelector('.probed .said').getBoundingClientRect().height") > 10
    clipped = "[...document.querySelectorAll('.said')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    assert page.evaluate(clipped) == 0


def test_the_report_prints_as_a_pdf(page):
    """What the browser prints is a PDF in which every case takes its room, the hostile ones included."""
    pdf = page.pdf()
    assert pdf.startswith(b"%PDF")
    assert max(int(count) for count in re.findall(rb"/Count (\d+)", pdf)) > 12


def test_without_javascript_every_case_is_there(browser, report):
    """Where scripts are off, all cases are shown and no button is dead."""
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    browser.look(1280)
    browser.open(report)
    browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert shown(browser) == 24 + len(ATTACKS)
    assert not browser.evaluate("document.querySelector('.filters').checkVisibility()")


def test_five_hundred_cases_are_written_and_opened_quickly(browser, tmp_path):
    """A report of 500 cases with four models takes under 5 s of computing and 6 MB, and opens in under 5 s."""
    made = example(25)
    made = type(made)(made.run, made.metrics, list(made.cases) * 20, made.training, made.gate)
    started = time.process_time()
    path = made.write(tmp_path / "report.html")
    assert time.process_time() - started < 5
    assert path.stat().st_size < 6_000_000
    browser.look(1280)
    browser.open(path)
    assert browser.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 5000
