"""Tests of medgrpo.evaluation.gate: each check in its three outcomes, on metrics as an evaluation writes them."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.config import EvaluationConfig, GateConfig, RewardConfig
from medgrpo.errors import InputError
from medgrpo.evaluation.gate import FAIL, PASS, UNDECIDED, Check, Gate, judge
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.scoring import answer_row, compare, model_metrics
from medgrpo.evaluation.statistics import detectable_difference, paired_score_interval, wilson
from medgrpo.prompts import gold_completion
from medgrpo.testing import tiny_record

NAMES = [
    *("better than base", "not worse than champion", "strict form", "faithfulness", "context reliance"),
    *("no collapse", "reward audit", "training alarms", "no leaks"),
]


def share(successes, n=500):
    return wilson(successes, n).as_dict()


def probe(lost=120, won=30, flips=200, n=500):
    """What a probe found: cases that only the abstract makes right, that it makes wrong, and verdicts that changed."""
    return {"drop": paired_score_interval(won, lost, n).as_dict(), "flips": share(flips, n), "n": n, "skipped": 0}


@pytest.fixture
def metrics():
    """A sound model on 500 cases: 300 right where the base has 250."""
    tuned = {
        "accuracy": share(300),
        "strict_form": share(490),
        "recall": {"yes": share(200, 276), "no": share(85, 169), "maybe": share(15, 55)},
        "faithfulness": {
            "unsupported_figures": share(40),
            "evidence_precision": share(1450, 1500),
            "disagreement": share(15),
        },
    }
    return {
        "n": 500,
        "models": {"base": {"accuracy": share(250)}, "tuned": tuned},
        "comparisons": [{"first": "base", "second": "tuned", "only_first": 40, "only_second": 90}],
        "probes": {"tuned": {"no_abstract": probe(), "other_abstract": probe()}},
        "contamination": {"compared": {"train": 450, "cases": 500}, "threshold": 0.5, "pairs": []},
    }


def judged(metrics, name=None, **changes):
    known = {"audit_holes": "", "alarms": [], **changes}
    gate = judge("tuned", metrics, GateConfig(), **known)
    return gate if name is None else next(check for check in gate.checks if check.name == name)


def with_champion(metrics, only_champion, only_tuned, right=300):
    metrics["models"]["champion"] = {"accuracy": share(right)}
    pair = {"first": "champion", "second": "tuned", "only_first": only_champion, "only_second": only_tuned}
    metrics["comparisons"].append(pair)
    return metrics


# --- The gate as a whole -----------------------------------------------------------------------------------------


def test_a_sound_model_passes_every_check(metrics):
    """A better model that reads, cites and keeps to the form passes, and the summary says so."""
    gate = judged(metrics)
    assert [check.name for check in gate.checks] == NAMES
    assert {check.outcome for check in gate.checks} == {PASS}
    assert (gate.outcome, gate.summary) == (PASS, "The tuned model passes all 9 checks.")


def test_the_gate_as_a_dict_is_what_gate_json_holds(metrics):
    """Outcome, summary, and each check with name, outcome, reason, measured and threshold, as strict JSON."""
    found = judged(metrics).as_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found.keys() == {"outcome", "summary", "checks"}
    assert all(check.keys() == {"name", "outcome", "reason", "measured", "threshold"} for check in found["checks"])


@given(st.lists(st.sampled_from([PASS, FAIL, UNDECIDED]), min_size=1, max_size=9))
def test_one_failure_fails_and_one_doubt_withholds(outcomes):
    """Any failure is fail, else any doubt not enough evidence, else it is a pass; the summary names why."""
    checks = tuple(Check(f"check {place}", outcome, "Because.") for place, outcome in enumerate(outcomes))
    gate = Gate("tuned", checks)
    assert gate.outcome == (FAIL if FAIL in outcomes else UNDECIDED if UNDECIDED in outcomes else PASS)
    if gate.outcome != PASS:
        named = [check.name for check in checks if check.name in gate.summary]
        assert named == [check.name for check in checks if check.outcome == gate.outcome]


def test_reasons_are_sentences(metrics):
    """Every reason begins with a capital or a figure and ends with a full stop, whatever is known."""
    for gate in (judged(metrics), judged({**metrics, "probes": {}}, audit_holes=None, alarms=None)):
        for check in gate.checks:
            assert check.reason[0].isupper() or check.reason[0].isdigit(), check
            assert check.reason.endswith("."), check


def test_the_gate_reads_what_scoring_writes():
    """Metrics of real answers, as `model_metrics` and `compare` give them, are judged as they are."""
    config, verdicts = EvaluationConfig(resamples=50), ["yes"] * 60 + ["no"] * 40
    records = [tiny_record(str(i), verdict) for i, verdict in enumerate(verdicts)]
    texts = {
        "base": ["<answer>yes</answer>"] * 100,
        "tuned": [gold_completion(record) for record in records],
    }
    answers = {
        name: [answer_row(one, [Generation(text, 9)], RewardConfig()) for one, text in zip(records, given, strict=True)]
        for name, given in texts.items()
    }
    found = {
        "n": 100,
        "models": {name: model_metrics(verdicts, rows, config) for name, rows in answers.items()},
        "comparisons": [compare("base", "tuned", verdicts, answers, config)],
    }
    outcomes = {check.name: check.outcome for check in judged(found).checks}
    assert [name for name, outcome in outcomes.items() if outcome == UNDECIDED] == ["context reliance", "no leaks"]
    assert FAIL not in outcomes.values()
    base = judge("base", found, GateConfig(), audit_holes="", alarms=[])
    failed = [check.name for check in base.checks if check.outcome == FAIL]
    assert failed == ["strict form", "no collapse"]


def test_an_unknown_model_is_refused(metrics):
    """Judging a model that was not evaluated ends in a sentence with the names there are."""
    with pytest.raises(InputError, match="no model named 'mine', only base, tuned"):
        judge("mine", metrics, GateConfig(), audit_holes="", alarms=[])


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("better than base", ("comparisons",)),
        ("faithfulness", ("models", "tuned", "faithfulness")),
        ("context reliance", ("probes",)),
        ("context reliance", ("probes", "tuned")),
        ("context reliance", ("probes", "tuned", "other_abstract")),
        ("no collapse", ("models", "tuned", "recall")),
        ("no leaks", ("contamination",)),
    ],
)
def test_what_was_not_measured_is_not_taken_for_granted(metrics, name, missing):
    """Without its measurement a check lacks evidence, and so does the gate: nothing passes by default."""
    *parents, last = missing
    part = metrics
    for key in parents:
        part = part[key]
    part[last] = [] if last == "comparisons" else {}
    gate = judged(metrics)
    assert judged(metrics, name).outcome == UNDECIDED
    assert gate.outcome == UNDECIDED


@pytest.mark.parametrize(
    ("name", "known"), [("reward audit", "audit_holes"), ("training alarms", "alarms"), ("no leaks", "alarms")]
)
def test_an_unknown_training_is_not_taken_for_a_good_one(metrics, name, known):
    """None for audit or alarms means that nobody looked, and records that trained another model clear nobody."""
    assert judged(metrics, name, **{known: None}).outcome == UNDECIDED


def test_numbers_that_are_null_decide_nothing(metrics):
    """An interval without numbers, as of no cited figure at all, is not enough evidence and no error."""
    metrics["models"]["tuned"]["faithfulness"]["evidence_precision"] = wilson(0, 0).as_dict()
    metrics["probes"]["tuned"]["no_abstract"]["drop"] = wilson(0, 0).as_dict()
    assert judged(metrics, "faithfulness").outcome == UNDECIDED
    assert judged(metrics, "context reliance").outcome == UNDECIDED


# --- Base and champion -------------------------------------------------------------------------------------------


def test_a_reviewer_reads_counts_interval_and_p_value(metrics):
    """The reason names both counts, the interval of the difference in points, the test and its level."""
    metrics["n"] = 100
    metrics["models"]["tuned"]["accuracy"], metrics["models"]["base"]["accuracy"] = share(62, 100), share(50, 100)
    metrics["comparisons"][0].update(only_first=10, only_second=22)
    check = judged(metrics, "better than base")
    assert (check.measured, check.threshold) == (pytest.approx(0.0251, abs=1e-4), 0.05)
    assert check.reason == (
        "The tuned model is right in 62 of 100 cases, the base in 50; 95 % interval of the difference +1 to +23 "
        "points. Exact one-sided McNemar p = 0.025, below 0.05."
    )


@pytest.mark.parametrize(
    ("only_base", "only_tuned", "outcome"),
    [(40, 90, PASS), (0, 5, PASS), (0, 4, UNDECIDED), (40, 45, UNDECIDED), (0, 0, UNDECIDED), (90, 40, FAIL)],
)
def test_better_than_base_is_one_sided_and_exact(metrics, only_base, only_tuned, outcome):
    """Five cases gained and none lost are enough (p = 1/32), four are not (1/16); surely worse fails."""
    metrics["comparisons"][0].update(only_first=only_base, only_second=only_tuned)
    check = judged(metrics, "better than base")
    assert check.outcome == outcome
    assert ("four times in five" in check.reason) == (outcome == UNDECIDED)


def test_a_doubtful_gain_comes_with_what_could_have_been_found(metrics):
    """The reason names the difference that the one-sided test of these cases finds with 80 % power."""
    metrics["comparisons"][0].update(only_first=40, only_second=45)
    found = 100 * detectable_difference(500, 85 / 500, level=2 * GateConfig().level)
    assert f"500 cases find a difference of {found:.1f} points" in judged(metrics, "better than base").reason


def test_base_and_champion_are_not_held_against_themselves(metrics):
    """Judged themselves, the base is not said to be missing, nor the champion not to exist."""
    checks = judge("base", full(metrics, "base"), GateConfig(), audit_holes="", alarms=[]).checks
    assert (checks[0].outcome, checks[0].reason) == (UNDECIDED, "This is the base model itself.")
    metrics["models"]["champion"] = metrics["models"]["tuned"]
    checks = judge("champion", metrics, GateConfig(), audit_holes="", alarms=[], unmeasured_champion="Why.").checks
    assert (checks[1].outcome, checks[1].reason) == (PASS, "This is the champion itself.")


def full(metrics, name):
    """The metrics with everything about one more model."""
    metrics["models"][name] = {**metrics["models"]["tuned"], **metrics["models"][name]}
    return metrics


def test_the_order_of_a_comparison_does_not_matter(metrics):
    """A comparison named the other way round says the same."""
    turned = copy.deepcopy(metrics)
    turned["comparisons"] = [{"first": "tuned", "second": "base", "only_first": 90, "only_second": 40}]
    assert judged(turned) == judged(metrics)


def test_without_a_champion_nobody_is_worse_off(metrics):
    """No champion yet passes with that reason; one that could not be evaluated is not enough evidence."""
    assert judged(metrics, "not worse than champion").outcome == PASS
    assert "no champion yet" in judged(metrics, "not worse than champion").reason
    check = judged(metrics, "not worse than champion", unmeasured_champion="The registry did not answer.")
    assert check.outcome == UNDECIDED
    assert "registry did not answer" in check.reason


@pytest.mark.parametrize(
    ("only_champion", "only_tuned", "outcome"),
    [(30, 40, PASS), (20, 20, PASS), (60, 45, UNDECIDED), (80, 60, UNDECIDED), (90, 20, FAIL)],
)
def test_the_champion_may_not_lose_more_than_the_margin(metrics, only_champion, only_tuned, outcome):
    """The whole interval decides: a small loss may be chance, so it takes many cases to show that it is one."""
    check = judged(with_champion(metrics, only_champion, only_tuned), "not worse than champion")
    assert (check.outcome, check.threshold) == (outcome, -0.05)


def test_few_cases_cannot_show_that_a_champion_is_matched(metrics):
    """Two models that agree on all of 50 cases may still differ by more than the margin elsewhere."""
    metrics["n"] = 50
    assert judged(with_champion(metrics, 0, 0), "not worse than champion").outcome == UNDECIDED


# --- What an answer is like --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("well_formed", "outcome"), [(500, PASS), (465, PASS), (452, UNDECIDED), (420, FAIL)])
def test_strict_form_is_held_against_its_threshold(metrics, well_formed, outcome):
    """Nine in ten are asked for, by the interval."""
    metrics["models"]["tuned"]["strict_form"] = share(well_formed)
    assert judged(metrics, "strict form").outcome == outcome


def test_what_misses_a_threshold_does_not_read_like_it(metrics):
    """An interval from 89.6 % does not hold 90 %, and the reason does not round it away."""
    metrics["models"]["tuned"]["strict_form"] = share(462)
    check = judged(metrics, "strict form")
    assert (check.outcome, check.reason) == (
        UNDECIDED,
        "92.4 % of the answers are in strict form (95 % interval 89.7 % to 94.4 %; at least 90 % is asked for): that "
        "cannot be told.",
    )


def test_answers_without_figures_are_said_to_tell_nothing(metrics):
    """Where no answer cites a figure, its precision was looked for: the reason does not say that nobody measured."""
    metrics["models"]["tuned"]["faithfulness"]["evidence_precision"] = wilson(0, 0).as_dict()
    reason = judged(metrics, "faithfulness").reason
    assert "No answer tells how many of the cited figures are in the abstract; at least 90 % is asked for." in reason


@pytest.mark.parametrize(
    ("what", "found", "outcome"),
    [
        ("unsupported_figures", share(100), UNDECIDED),
        ("unsupported_figures", share(150), FAIL),
        ("evidence_precision", share(450), UNDECIDED),
        ("evidence_precision", share(400), FAIL),
        ("disagreement", share(45), UNDECIDED),
        ("disagreement", share(90), FAIL),
    ],
)
def test_each_part_of_faithfulness_counts(metrics, what, found, outcome):
    """One part that is missed, or not known well enough, decides however good the others are."""
    metrics["models"]["tuned"]["faithfulness"][what] = found
    assert judged(metrics, "faithfulness").outcome == outcome


@pytest.mark.parametrize("name", ["no_abstract", "other_abstract"])
@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (probe(lost=0, won=0, flips=0), FAIL),
        (probe(lost=30, won=25), FAIL),
        (probe(lost=60, won=50), UNDECIDED),
        (probe(lost=70, won=40), PASS),
    ],
    ids=["blind", "hardly", "perhaps", "surely"],
)
def test_a_model_that_does_not_need_its_abstract_fails(metrics, name, found, outcome):
    """However accurate, a model that is as good without the abstract, or with another's, does not read."""
    metrics["models"]["tuned"]["accuracy"] = share(480)
    metrics["probes"]["tuned"][name] = found
    assert judged(metrics, "context reliance").outcome == outcome
    assert judged(metrics).outcome == outcome


def test_a_model_that_does_better_without_its_abstract_is_not_said_to_drop(metrics):
    """A negative drop is a rise, in words too."""
    metrics["probes"]["tuned"]["no_abstract"] = probe(lost=30, won=80)
    assert "Accuracy rises by 10 points without the abstract (95 % interval of the drop -14" in (
        judged(metrics, "context reliance").reason
    )


@pytest.mark.parametrize(("flips", "outcome"), [(10, FAIL), (52, UNDECIDED), (80, PASS)])
def test_verdicts_must_change_with_another_abstract(metrics, flips, outcome):
    """The flip rate with another record's abstract is judged; without one it is not."""
    metrics["probes"]["tuned"]["other_abstract"]["flips"] = share(flips)
    metrics["probes"]["tuned"]["no_abstract"]["flips"] = share(0)
    assert judged(metrics, "context reliance").outcome == outcome


@pytest.mark.parametrize(
    ("recall", "outcome"),
    [
        ({"yes": share(276, 276), "no": share(0, 169), "maybe": share(0, 55)}, FAIL),
        ({"yes": share(200, 276), "no": share(85, 169), "maybe": share(0, 55)}, FAIL),
        ({"yes": share(200, 276), "no": share(85, 169), "maybe": share(5, 55)}, UNDECIDED),
        ({"yes": share(60, 110), "no": share(30, 68), "maybe": share(0, 12)}, PASS),
        ({"yes": share(28, 28), "no": share(0, 17), "maybe": share(0, 5)}, UNDECIDED),
    ],
    ids=["always yes", "never maybe", "maybe too seldom", "few maybes", "only yes has enough"],
)
def test_a_verdict_that_is_never_given_fails(metrics, recall, outcome):
    """Each verdict with enough cases must be found; one verdict alone cannot show that there is no collapse."""
    metrics["models"]["tuned"]["recall"] = recall
    assert judged(metrics, "no collapse").outcome == outcome


def test_verdicts_that_were_not_judged_are_named(metrics):
    """The reason says which verdicts had too few cases, and how many."""
    metrics["models"]["tuned"]["recall"]["maybe"] = share(0, 12)
    assert "not judged: maybe (12)." in judged(metrics, "no collapse").reason


# --- Where a model comes from ------------------------------------------------------------------------------------


def test_holes_and_alarms_fail(metrics):
    """A hole in the rewards or an alarm in training fails, and its sentence is in the reason."""
    audit = judged(metrics, "reward audit", audit_holes="the rewards can be gamed: 'stuffing' earns all.")
    assert audit.outcome == FAIL
    assert "The rewards can be gamed: 'stuffing' earns all." in audit.reason
    alarms = judged(metrics, "training alarms", alarms=["entropy is 0.01.", "everything is 'yes'"])
    assert (alarms.outcome, alarms.measured) == (FAIL, 2)
    assert alarms.reason == "While it trained, 2 alarms rang. Entropy is 0.01. Everything is 'yes'."


def test_a_question_that_comes_again_over_another_abstract_is_no_leak(metrics):
    """What decides is the abstract: the same question over another one gives nothing away."""
    metrics["contamination"]["pairs"] = [
        {"case": str(i), "train": "t", "abstract": 0.2, "question": 1.0} for i in range(100)
    ]
    check = judged(metrics, "no leaks")
    assert (check.outcome, check.measured) == (PASS, 0.0)


@pytest.mark.parametrize(("leaked", "outcome"), [(0, PASS), (5, PASS), (6, FAIL)])
def test_leaks_are_counted_by_case(metrics, leaked, outcome):
    """A case that resembles two training records is one leaked case, and more than one in a hundred fail."""
    likeness = {"abstract": 0.5, "question": 0.1}
    pairs = [{"case": str(i), "train": t, **likeness} for i in range(leaked) for t in ("a", "b")]
    metrics["contamination"]["pairs"] = pairs
    check = judged(metrics, "no leaks")
    assert (check.outcome, check.measured) == (outcome, leaked / 500)
    assert ("and others" in check.reason) == (leaked > 3)
