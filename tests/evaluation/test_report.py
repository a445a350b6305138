"""Tests of medgrpo.evaluation.report."""

import copy
import itertools
import math
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medgrpo.evaluation import plots, report

NBSP = "\N{NO-BREAK SPACE}"
VOID = {"meta", "br", "link", "hr", "img", "input"}


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch, request):
    """Real figures are tested in test_plots and where a test asks for them; here they would only cost time."""
    if "real_figures" not in request.fixturenames:
        for figure in ("confusion", "probe_effects", "calibration"):
            monkeypatch.setattr(plots, figure, lambda values, title, labels=(): "<svg><title>drawn</title></svg>")


@pytest.fixture
def real_figures():
    return True


class Page(HTMLParser):
    """Collects start tags with attributes, and checks that every tag is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def words(source):
    """The page's visible text with single spaces."""
    return " ".join("".join(Page(re.sub(r"(?s)<(style|script)>.*?</\1>", "", source)).text).split()).replace(NBSP, " ")


def test_the_page_is_whole_and_loads_nothing(run, metrics, case, real_figures):
    """One well-nested page with unique ids, links within itself only, and no address of another machine to load."""
    training = [{"phase": "grpo", "step": step, "reward": step / 9} for step in range(5)]
    page = report.render_report(run, metrics, [case], training)
    parsed = Page(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert page.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert len(ids) == len(set(ids))
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert not [attributes for _, attributes in parsed.tags if "src" in attributes]
    assert {attributes["href"][1:] for attributes in parsed.named("a")} <= set(ids)
    assert len([svg for svg in parsed.named("svg") if svg.get("role") == "img"]) == 3


def test_alarms_of_the_training_are_said_at_the_top_and_under_training(run, metrics, case):
    """An alarm that rang is named in the summary, and stands under Training with its steps and its sentence."""
    training = [{"phase": "grpo", "step": step, "alarms": {"kl": "Far <away>."}} for step in (7, 8)]
    text = words(report.render_report(run, metrics, [case], training))
    assert "Alarms rang during the training (kl); what they said is under Training." in text
    assert "alarm kl (steps 7 to 8): Far <away>." in text
    assert "alarm" not in words(report.render_report(run, metrics, [case], [{"phase": "grpo", "step": 1}])).lower()


def test_headings_tables_and_controls_are_named(run, probed, case, gate):
    """Every table has a caption, every header cell a scope, every section a heading; headings skip no level."""
    page = Page(report.render_report(run, probed, [case], [], gate))
    assert len(page.named("caption")) == len(page.named("table")) > 5
    assert all(attributes.get("scope") in {"col", "row", "rowgroup"} for attributes in page.named("th"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {attributes["aria-labelledby"] for attributes in page.named("section")} <= ids
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_the_page_runs_no_script_and_applies_no_style_but_its_own(run, probed, case, gate, real_figures):
    """The policy names the one script and the one style by hash, and nothing on the page needs more than that."""
    training = [{"phase": "grpo", "step": step, "reward": step / 9} for step in range(5)]
    source = report.render_report(run, probed, [case], training, gate)
    page = Page(source)
    policy = page.named("meta")[1]["content"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        (content,) = re.findall(rf"(?s)<{kind}>(.*?)</{kind}>", source)
        assert f"{kind}-src 'sha256-{b64encode(sha256(content.encode()).digest()).decode()}'" in policy
    assert not [tag for tag, attributes in page.tags if "style" in attributes]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]


HOSTILE = [
    "<script>alert(1)</script>",
    "\" onmouseover='x' data-x=\"",
    "</textarea></div></article></table><h1>owned</h1>",
    "{{ run.name }}{% raw %}",
    "<!-- <details open>",
    "治療 🩺 \u202eabc",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text, run, probed, case, gate):
    """Wherever a string of a model, a record or a setting stands, it is shown as written and changes no tag."""
    case["answers"]["tuned"] |= {"spans": [[0, 3, True], [3, 5, False]], "cited": [[0, 0, 3]]}
    case["probes"] = {"no_abstract": {"verdict": "no", "text": "thought"}}
    plain = copy.deepcopy((run, probed, case, gate))
    for target in (run, probed, case, gate):
        _poison(target, text)
    page = report.render_report(run, probed, [case], [], gate)
    calm = report.render_report(plain[0], plain[1], [plain[2]], [], plain[3])
    assert [tag for tag, _ in Page(page).tags] == [tag for tag, _ in Page(calm).tags]
    assert page.count("<script>") == 1
    shown = words(page)
    assert shown.count(" ".join(text.split())) >= 12
    assert not [attributes for _, attributes in Page(page).tags if "onmouseover" in attributes]


def _poison(target, text):
    """Put `text` into every free string of a run, metrics or case."""
    free = {
        "name",
        "id",
        "question",
        "long_answer",
        "text",
        "thought",
        "note",
        "reason",
        "torch",
        "summary",
        "group",
        "train",
        "case",
    }
    for key, value in target.items():
        if isinstance(value, dict):
            _poison(value, text)
        elif isinstance(value, list):
            target[key] = [text if isinstance(item, str) else item for item in value]
            [_poison(item, text) for item in value if isinstance(item, dict)]
        elif key in free and isinstance(value, str):
            target[key] = text


def test_characters_that_no_page_may_hold_are_replaced(run, metrics, case, answer, tmp_path):
    """NUL, escape codes and lone surrogates become the replacement sign, and the page can be written."""
    case["answers"]["tuned"] = answer("yes", thought="a\x00b\x1b[2Jc\ud800d\te\nf")
    path = report.write_report(tmp_path / "report.html", run, metrics, [case], [])
    assert "a\ufffdb\ufffd[2Jc\ufffdd\te\nf" in path.read_text(encoding="utf-8")


def test_a_very_long_answer_is_kept_whole(run, metrics, case, answer):
    """Nothing of an answer is cut off, however long."""
    case["answers"]["tuned"] = answer("yes", thought="very" * 50_000)
    assert "very" * 50_000 in report.render_report(run, metrics, [case], [])


@pytest.mark.parametrize("where", ["run", "metrics", "case"])
def test_synthetic_is_said_wherever_it_is_known(where, run, metrics, case):
    """One mark of synthetic data in the run, the metrics or a case is enough for the banner."""
    given = {"run": run, "metrics": metrics, "case": case}
    for name, part in given.items():
        part["synthetic"] = name == where
    page = words(report.render_report(run, metrics, [case], []))
    assert "Synthetic data: says nothing about real abstracts." in page


def test_the_disclaimer_always_stands(run, metrics, case):
    """Real data carries no synthetic banner, but the disclaimer stays."""
    metrics["synthetic"] = case["synthetic"] = False
    page = words(report.render_report(run, metrics, [case], []))
    assert "Synthetic data" not in page
    assert "Not medical advice." in page
    assert "On 50 held-out cases (test split)" in page


def test_the_summary_is_made_from_the_numbers(run, metrics):
    """The first paragraph names n, both accuracies with intervals, the discordant cases, p, and what they mean."""
    page = words(report.render_report(run, metrics, [], []))
    assert (
        "On 50 held-out synthetic cases (test split), the tuned model is right in 62 % (48–75 %), the base model in "
        "8 % (2–19 %); 95 % intervals in brackets. Only the tuned model is right in 29 cases, only the base model in "
        "2 (exact two-sided McNemar test, p < 0.001). The difference is distinguishable from chance at this size: the "
        "tuned model is better on such cases. For comparison, always yes is right in 56 %, which the tuned model's "
        "interval does not exclude."
    ) in page


@pytest.mark.parametrize(
    ("first", "second", "p_value", "expected"),
    [
        (9, 12, 0.66, "is not distinguishable from chance at this size: do not read it as a change"),
        (29, 2, 1e-6, "is distinguishable from chance at this size: the tuned model is worse"),
        (0, 0, math.nan, "No test of the difference was possible."),
        (3, 10, 0.05, "is not distinguishable"),
    ],
)
def test_the_summary_follows_the_test(first, second, p_value, expected, metrics):
    """A difference within chance, a loss and a missing test are each said as such."""
    metrics["comparisons"][0] |= {"only_first": first, "only_second": second, "p_value": p_value}
    assert expected in " ".join(report._summary(metrics))


@pytest.mark.parametrize(
    ("first", "second", "p_value", "explained"),
    [(5, 14, 0.064, True), (14, 5, 0.064, False), (6, 12, 0.24, False), (3, 14, 0.013, False)],
    ids=["a gain", "a loss", "too small", "large enough"],
)
def test_a_pass_is_explained_where_the_two_sided_test_finds_nothing(first, second, p_value, explained, metrics):
    """A gain that the gate's one-sided test finds and the two-sided one does not is no contradiction, and is said."""
    metrics["comparisons"][0] |= {"only_first": first, "only_second": second, "p_value": p_value}
    assert ("The gate's test is one-sided" in " ".join(report._summary(metrics))) == explained


def test_the_order_of_a_comparison_does_not_turn_it_around(metrics):
    """Given as tuned against base, the counts still belong to their models."""
    metrics["comparisons"][0] |= {"first": "tuned", "second": "base", "only_first": 29, "only_second": 2}
    assert "Only the tuned model is right in 29 cases, only the base model in 2" in " ".join(report._summary(metrics))
    assert "is better" in " ".join(report._summary(metrics))


def test_right_and_wrong_are_written_out(run, metrics, case):
    """Right and wrong differ by word and sign, not only by colour."""
    page = words(report.render_report(run, metrics, [case], []))
    assert "Base: no✗ wrong" in page.replace("no ✗", "no✗")
    assert "Tuned: yes✓ right" in page.replace("yes ✓", "yes✓")
    assert "Base wrong → Tuned right" in page


def test_filters_need_the_script_and_cases_do_not(run, metrics, case):
    """Without JavaScript there are no dead buttons and every case is visible."""
    page = Page(report.render_report(run, metrics, [case, case], []))
    assert [d for d in page.named("div") if d.get("class") == "filters" and "hidden" in d]
    assert not [attributes for attributes in page.named("article") if "hidden" in attributes]
    shown = [attributes["data-show"] for attributes in page.named("button") if "data-show" in attributes]
    assert shown == ["all", "right", "wrong", "changed-base", "invents"]


def test_figures_that_are_not_in_the_abstract_are_listed(run, metrics, case):
    """Invented figures are named, and counted against those that the abstract holds."""
    case["answers"]["tuned"]["figures"] = {"supported": ["0.01"], "unsupported": ["42 %", "n=9"]}
    page = words(report.render_report(run, metrics, [case], []))
    assert "Not in the abstract: 42 %, n=9" in page
    assert "1 of 3 figures in the abstract" in page


def test_the_gates_verdict_comes_before_every_number(run, probed, case, gate):
    """The outcome is the first heading under the title; each check gives its outcome in words, and its reason."""
    page = words(report.render_report(run, probed, [case], [], gate))
    assert page.index("Gate: fail One check fails.") < page.index("On 50 held-out") < page.index("Metric")
    assert "no leaks fail One pair." in page
    assert "no collapse not enough evidence Few maybe." in page
    assert page.index("no leaks fail") < page.index("no collapse") < page.index("better than base pass")


def test_a_report_without_a_gate_claims_none(run, metrics, case):
    """What was not done has no heading and no link: no gate, probes, slices or look-alikes."""
    page = words(report.render_report(run, metrics, [case], []))
    for absent in ("Gate:", "Context probes", "Slices", "Contamination", "Calibration"):
        assert absent not in page


def test_what_an_evaluation_adds_is_on_the_page(run, probed, case, gate):
    """Probes, slices that are too small, look-alikes and what this number of cases can detect are all shown."""
    page = words(report.render_report(run, probed, [case], [], gate))
    assert "No abstractthe question alone" in page
    assert "6 skipped" in page
    assert "maybe8too few cases" in page
    assert "with only a question so alike, over another abstract: 1." in page
    assert "270 training records were compared with the 50 evaluated cases." in page
    assert "Base → Tuned 2 29" in page.replace("Tuned229", "Tuned 2 29")


def test_marks_say_what_they_are(run, metrics, case, answer):
    """In an answer marks are supported or unsupported; in the abstract they name the models that cite the place."""
    tuned = answer("yes", "Pain fell by 99.", spans=[[0, 9, True], [13, 15, False]], cited=[[0, 9, 18]])
    case["answers"] |= {"tuned": tuned}
    page = Page(report.render_report(run, metrics, [case], []))
    article = [attributes for attributes in page.named("mark") if attributes.get("data-by") != "others"]
    kinds = [attributes["class"] for attributes in article]
    assert kinds == ["supported", "unsupported", "cited", "supported", "unsupported", "cited"]  # a legend, then these
    assert article[-1]["data-by"] == "Tuned"


def test_a_report_of_one_model_is_about_that_model(run, metrics, case, answer):
    """A model from anywhere is summed up, filtered and held against the reference under its own name."""
    metrics |= {"models": {"org/model": metrics["models"]["tuned"]}, "comparisons": []}
    case["answers"] = {"org/model": answer("yes")}
    page = words(report.render_report(run, metrics, [case], []))
    assert "model org/model is right in 62 % (48–75 %); 95 % intervals in brackets." in page
    assert "the filters look at model org/model" in page
    assert "which model org/model's interval does not exclude" in page


def test_any_two_models_are_compared_in_words_and_filtered(run, metrics, case, answer):
    """A model held against any other has the paired test in the summary, and a filter for what differs."""
    metrics["models"] = {"against": metrics["models"]["base"], "evaluated": metrics["models"]["tuned"]}
    metrics["comparisons"][0] |= {"first": "against", "second": "evaluated"}
    case["answers"] = {"against": answer("no"), "evaluated": answer("yes")}
    run["weights"] = {"against": "org/model@main", "evaluated": "ab" * 32}
    source = report.render_report(run, metrics, [case], [])
    page = words(source)
    assert "Only the evaluated model is right in 29 cases, only the other model in 2 (exact two-sided" in page
    assert "changed-against" in [attributes.get("data-show") for attributes in Page(source).named("button")]
    assert "Other wrong → Evaluated right" in page
    assert "weights of the evaluated model abababababab" in page
    assert "Otherorg/model@main" in page
    assert "Evaluated" + "ab" * 32 in page


def test_the_champion_is_tested_too(run, metrics):
    """Where a champion was asked, the summary says how the tuned model stands against it."""
    row = {"first": "tuned", "second": "champion", "only_first": 9, "only_second": 4, "p_value": 0.27}
    metrics["models"]["champion"] = metrics["models"]["base"]
    metrics["comparisons"].append(row)
    page = words(report.render_report(run, metrics, [], []))
    assert (
        "Only the tuned model is right in 9 cases, only the champion in 4 (exact two-sided McNemar test, p = 0.27)."
        in page
    )


def test_the_published_answer_is_marked_as_withheld(run, metrics, case):
    """The published answer stands beside the expert's verdict, labelled as never shown to the models."""
    page = words(report.render_report(run, metrics, [case], []))
    assert "Expert: yes It helps.the published answer, not shown to the models" in page


def test_data_settings_and_time_are_complete(run, metrics):
    """Counts, dropped records with reasons, digests, every setting, versions and stage times are on the page."""
    page = words(report.render_report(run, metrics, [], []))
    for expected in ("train270", "a3" * 32, "1 dropped: 1 × too long.", "s-77", "seed11", "nameunset", "torch2.13.0"):
        assert expected in page
    assert "train2 min 05 s" in page
    assert "total2 min 13 s" in page


def test_passwords_in_addresses_are_left_out(run, metrics):
    """A tracking address may carry a user and a password; a report that is mailed around must not."""
    page = report.render_report(run, metrics, [], [])
    assert "secret" not in page
    assert "https://…@host/x" in page


def test_a_bare_run_still_makes_a_page(metrics):
    """Only a name and one model: every missing part is said to be missing or left out."""
    bare = {"models": {"base": {"accuracy": dict.fromkeys(("value", "low", "high", "n"))}}}
    page = words(report.render_report({"name": "x"}, bare, [], []))
    for expected in ("No two models were compared.", "No training was logged", "No cases were recorded."):
        assert expected in page
    assert "the base model is right in – (–)" in page


def test_writing_is_all_or_nothing(run, metrics, tmp_path, monkeypatch):
    """An interrupted write leaves the old report and no leftovers; a finished one replaces it."""
    path = tmp_path / "deep" / "report.html"
    assert report.write_report(path, run, metrics, [], []) == path
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", _full_disk)
        with pytest.raises(OSError, match="disk full"):
            report.write_report(path, run | {"name": "other"}, metrics, [], [])
    assert path.read_bytes() == before
    report.write_report(path, run | {"name": "other"}, metrics, [], [])
    assert b"other" in path.read_bytes()
    assert list(path.parent.iterdir()) == [path]


def _full_disk(*_):
    raise OSError("disk full")


def test_the_same_results_make_the_same_page(run, metrics, case, real_figures):
    """The page holds no time of rendering and no random id: it changes only when a result does."""
    assert report.render_report(run, metrics, [case], []) == report.render_report(run, metrics, [case], [])


def _luminance(colour):
    """Relative luminance of #rgb or #rrggbb (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme):
    """In light and in dark, text reaches the contrast of 4.5 to 1 that WCAG asks for, on every ground it stands on."""
    style = Path(report.__file__).with_name("report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    colours = {}
    for block in blocks[: 1 if scheme == "light" else 2]:
        colours |= dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+)", block))
    grounds = {"ink": ("paper", "card", "held", "made-up", "warn"), "soft": ("paper", "card")}
    grounds |= dict.fromkeys(("blue", "green", "red", "amber"), ("paper", "card"))
    for text, behind in grounds.items():
        for ground in behind:
            darker, lighter = sorted([_luminance(colours[text]), _luminance(colours[ground])])
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)
