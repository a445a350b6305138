"""Tests of medgrpo.evaluation.report."""

import copy
import itertools
import math
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from medgrpo.evaluation import plots, report

NBSP = "\N{NO-BREAK SPACE}"
VOID = {"meta", "br", "link", "hr", "img", "input"}


def interval(value, low, high, n=50):
    return {"value": value, "low": low, "high": high, "n": n}


def model(accuracy):
    row = {"yes": 1, "no": 0, "maybe": 0, "none": 0}
    shares = ("macro_f1", "strict_form", "parsed", "grounding")
    return {
        "accuracy": accuracy,
        **{name: interval(0.5, 0.4, 0.6) for name in shares},
        "mean_length": interval(58.4, 52.1, 64.9),
        "f1": {"yes": interval(0.6, 0.5, 0.7), "no": interval(0.3, 0.2, 0.4), "maybe": interval(math.nan, None, None)},
        "confusion": {"yes": row, "no": row, "maybe": dict.fromkeys(row)},
    }


def answer(verdict, thought="Pain fell (p=0.01).", **more):
    text = f"<thought>{thought}</thought><answer>{verdict}</answer>"
    given = {"text": text, "thought": thought, "verdict": verdict, "well_formed": True, "tokens": 41, "grounding": 0.66}
    return given | more


@pytest.fixture
def metrics():
    base, tuned = model(interval(0.08, 0.02, 0.19)), model(interval(0.62, 0.48, 0.75))
    comparison = {"first": "base", "second": "tuned", "only_first": 2, "only_second": 29, "p_value": 1e-6}
    return {
        "n": 50,
        "split": "test",
        "domain": "synthetic",
        "synthetic": True,
        "models": {"tuned": tuned, "base": base},
        "comparisons": [comparison | {"accuracy_difference": interval(0.54, -0.38, 0.68)}],
        "references": [{"name": "always yes", "accuracy": 0.56, "macro_f1": 0.24, "note": "without reading"}],
    }


@pytest.fixture
def case():
    return {
        "id": "s-1",
        "question": "Does it help?",
        "contexts": ["RESULTS: Pain fell (p=0.01)."],
        "expert": "yes",
        "long_answer": "It helps.",
        "synthetic": True,
        "answers": {"base": answer("no"), "tuned": answer("yes")},
    }


@pytest.fixture
def run():
    return {
        "name": "demo-1",
        "config": {"seed": 11, "name": None, "tracking": {"uri": "https://ann:secret@host/x"}},
        "environment": {"torch": "2.13.0", "index": "https://ann:secret@host"},
        "seconds": {"train": 125.2, "evaluate": 8.24},
        "data": {
            "train": 270,
            "test": 200,
            "dropped": [{"id": "s-77", "split": "train", "reason": "too long"}],
            "digests": {"train": "a3" * 32},
        },
    }


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch, request):
    """Real figures are tested in test_plots and where a test asks for them; here they would only cost time."""
    if "real_figures" not in request.fixturenames:
        monkeypatch.setattr(plots, "confusion", lambda matrix, title: f"<svg><title>{title}</title></svg>")


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


def test_headings_tables_and_controls_are_named(run, metrics, case):
    """Every table has a caption, every header cell a scope, every section a heading; headings skip no level."""
    page = Page(report.render_report(run, metrics, [case], []))
    assert len(page.named("caption")) == len(page.named("table")) > 5
    assert all(attributes.get("scope") in {"col", "row"} for attributes in page.named("th"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {attributes["aria-labelledby"] for attributes in page.named("section")} <= ids
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def test_the_page_runs_no_script_but_its_own(run, metrics, case):
    """The content security policy names the one script by its hash, so that nothing a model wrote could ever run."""
    page = report.render_report(run, metrics, [case], [])
    script = re.findall(r"(?s)<script>(.*?)</script>", page)
    assert len(script) == 1
    named = b64encode(sha256(script[0].encode()).digest()).decode()
    policy = Page(page).named("meta")[1]["content"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{named}'" in policy


HOSTILE = [
    "<script>alert(1)</script>",
    "\" onmouseover='x' data-x=\"",
    "</textarea></div></article></table><h1>owned</h1>",
    "{{ run.name }}{% raw %}",
    "<!-- <details open>",
    "治療 🩺 \u202eabc",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text, run, metrics, case):
    """Wherever a string of a model, a record or a setting stands, it is shown as written and changes no tag."""
    plain = copy.deepcopy((run, metrics, case))
    for target in (run, metrics, case):
        _poison(target, text)
    page = report.render_report(run, metrics, [case], [])
    calm = report.render_report(plain[0] | {"git_commit": None}, plain[1], [plain[2]], [])
    assert [tag for tag, _ in Page(page).tags] == [tag for tag, _ in Page(calm).tags]
    assert page.count("<script>") == 1
    assert " ".join(text.split()) in words(page)
    assert not [attributes for _, attributes in Page(page).tags if "onmouseover" in attributes]


def _poison(target, text):
    """Put `text` into every free string of a run, metrics or case."""
    free = {"name", "id", "question", "long_answer", "thought", "note", "reason", "torch"}
    for key, value in target.items():
        if isinstance(value, dict):
            _poison(value, text)
        elif isinstance(value, list):
            target[key] = [text if isinstance(item, str) else item for item in value]
            [_poison(item, text) for item in value if isinstance(item, dict)]
        elif key in free and isinstance(value, str):
            target[key] = text


def test_characters_that_no_page_may_hold_are_replaced(run, metrics, case, tmp_path):
    """NUL, escape codes and lone surrogates become the replacement sign, and the page can be written."""
    case["answers"]["tuned"] = answer("yes", thought="a\x00b\x1b[2Jc\ud800d\te\nf")
    path = report.write_report(tmp_path / "report.html", run, metrics, [case], [])
    assert "a\ufffdb\ufffd[2Jc\ufffdd\te\nf" in path.read_text(encoding="utf-8")


def test_a_very_long_answer_is_kept_whole(run, metrics, case):
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
    assert "Synthetic data: says nothing about medicine." in page


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
        "2 (exact McNemar test, p < 0.001). The difference is distinguishable from chance at this size: the tuned "
        "model is better on such cases. For comparison, “always yes” is right in 56 %, which the tuned model's "
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


def test_the_order_of_a_comparison_does_not_turn_it_around(metrics):
    """Given as tuned against base, the counts still belong to their models."""
    metrics["comparisons"][0] |= {"first": "tuned", "second": "base", "only_first": 29, "only_second": 2}
    assert "Only the tuned model is right in 29 cases, only the base model in 2" in " ".join(report._summary(metrics))
    assert "is better" in " ".join(report._summary(metrics))


@pytest.mark.parametrize(
    ("accuracy", "place", "words_"),
    [(0.40, "above", "exceeds"), (0.56, "includes it", "does not exclude"), (0.80, "below", "does not reach")],
)
def test_references_are_placed_by_the_whole_interval(accuracy, place, words_, metrics):
    """A reference counts as beaten only when the tuned model's whole interval lies above it."""
    metrics["references"][0]["accuracy"] = accuracy
    assert report._reference(metrics["references"][0], metrics["models"])["place"] == place
    assert words_ in report._summary(metrics)[-1]


def test_every_metric_carries_interval_and_n(run, metrics):
    """Each cell of the metric table shows value, interval and n; lengths are tokens, not percent."""
    rows = {row["label"]: row["cells"] for row in report._metric_rows(metrics, ["base", "tuned"])}
    tuned = rows["Accuracy"][1]
    assert (tuned["value"], tuned["interval"], tuned["n"]) == (f"62{NBSP}%", f"48–75{NBSP}%", 50)
    assert (rows["Mean length"][1]["value"], rows["Mean length"][1]["interval"]) == ("58", "52–65")
    assert "48–75 % · n = 50" in words(report.render_report(run, metrics, [], []))


def test_models_stand_in_the_order_of_the_pipeline(metrics):
    """Base, warm-up, tuned, whatever the order given; unknown models come last."""
    assert report._models({"other": 0, "tuned": 0, "base": 0, "warmup": 0}) == ["base", "warmup", "tuned", "other"]


def test_what_was_not_measured_is_a_dash(metrics):
    """A value that is None or NaN shows a dash; a metric that no model has is left out."""
    metrics["models"]["tuned"]["f1"]["maybe"] = interval(0.2, 0.1, 0.3)
    rows = {row["label"]: row["cells"] for row in report._metric_rows(metrics, ["base", "tuned"])}
    assert rows["F1, maybe"][0] == {"value": "–", "interval": "–", "n": 50, "bar": None}
    del metrics["models"]["tuned"]["f1"]["maybe"], metrics["models"]["base"]["f1"]["maybe"]
    assert "F1, maybe" not in {row["label"] for row in report._metric_rows(metrics, ["base", "tuned"])}


def test_digits_follow_the_number_of_cases():
    """50 cases carry whole percents, 500 carry tenths."""
    assert report._format(0.6249, 50) == f"62{NBSP}%"
    assert report._format(0.6249, 500) == f"62.5{NBSP}%"


def test_differences_are_signed_points(metrics):
    """A difference is in points with its sign, and its interval is never written with a dash between signs."""
    row = report._comparison(metrics["comparisons"][0])
    assert (row["difference"], row["interval"], row["reading"]) == ("+54", "−38 to +68", "not chance")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-9, "p < 0.001"), (0.0123, "p = 0.012"), (0.3456, "p = 0.35"), (1.0, "p = 1.00"), (None, "p = –")],
)
def test_p_values_read_like_in_a_paper(value, text):
    """Small ones are bounded, the others rounded to what they can mean."""
    assert report._p_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.24, "8.2 s"), (125.2, "2 min 05 s"), (3599.7, "1 h 00 min"), (11220, "3 h 07 min"), (None, "–")],
)
def test_durations_read_like_speech(value, text):
    """Seconds, minutes or hours, whichever a person would say."""
    assert report._duration(value) == text


def test_right_and_wrong_are_written_out(run, metrics, case):
    """Right and wrong differ by word and sign, not only by colour."""
    page = words(report.render_report(run, metrics, [case], []))
    assert "Base: no✗ wrong" in page.replace("no ✗", "no✗")
    assert "Tuned: yes✓ right" in page.replace("yes ✓", "yes✓")
    assert "base wrong → tuned right" in page


@pytest.mark.parametrize(
    ("base", "tuned", "right", "change"),
    [
        ("no", "yes", True, "fixed"),
        ("yes", None, False, "broken"),
        ("yes", "yes", True, ""),
        ("no", "maybe", False, ""),
    ],
)
def test_filters_look_at_the_tuned_model(base, tuned, right, change, case):
    """Right and wrong are the tuned model's; changed means that exactly one of base and tuned is right."""
    case["answers"] = {"base": answer(base), "warmup": answer("no"), "tuned": answer(tuned)}
    seen = report._case(case)
    assert (seen["right"], seen["change"]) == (right, change)
    assert [shown["model"] for shown in seen["answers"]] == ["Base", "Warm-up only", "Tuned"]


def test_filters_need_the_script_and_cases_do_not(run, metrics, case):
    """Without JavaScript there are no dead buttons and every case is visible."""
    page = Page(report.render_report(run, metrics, [case, case], []))
    assert [d for d in page.named("div") if d.get("class") == "filters" and "hidden" in d]
    assert not [attributes for attributes in page.named("article") if "hidden" in attributes]
    assert [attributes["data-show"] for attributes in page.named("button")] == ["all", "right", "wrong", "changed"]


def test_an_answer_without_a_thought_is_shown_whole():
    """What the model wrote is never hidden: no thought shows all the text, a broken form also the raw text."""
    bare = report._answer("base", {"text": "I think so", "thought": "", "verdict": None, "well_formed": False}, False)
    assert (bare["said"], bare["raw"], bare["verdict"]) == ("I think so", "", None)
    broken = report._answer("base", answer("yes", well_formed=False), True)
    assert broken["said"] == "Pain fell (p=0.01)."
    assert broken["raw"].startswith("<thought>")


def test_figures_that_are_not_in_the_abstract_are_listed(run, metrics, case):
    """Invented figures are named, and counted against those that the abstract holds."""
    case["answers"]["tuned"]["figures"] = {"supported": ["0.01"], "unsupported": ["42 %", "n=9"]}
    page = words(report.render_report(run, metrics, [case], []))
    assert "Not in the abstract: 42 %, n=9" in page
    assert "1 of 3 figures in the abstract" in page


def test_the_conclusion_is_marked_as_withheld(run, metrics, case):
    """The authors' conclusion stands behind the abstract, labelled as never shown to the models."""
    assert "Conclusion, not shown to the models: It helps." in words(report.render_report(run, metrics, [case], []))


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
    bare = {"models": {"base": {"accuracy": interval(None, None, None, None)}}}
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
