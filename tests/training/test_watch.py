"""Tests of medgrpo.training.watch: the moving averages, and each alarm on a series that has its trouble."""

import json
import math
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgrpo.completions import VERDICT_FORM
from medgrpo.config import RunConfig, WatchConfig
from medgrpo.prompts import gold_completion
from medgrpo.testing import tiny_record
from medgrpo.training.watch import _RULES, ALWAYS_STOP, Watch, completion_facts, smoothed

STEPS = 60
CONFIG = RunConfig()


@dataclass(frozen=True)
class Trend:
    """A number that goes from one value to another, from step `after` to the last, with chance around it."""

    first: float
    last: float
    noise: float = 0.0
    after: int = 1

    def at(self, step, steps):
        return self.first + max(0, step - self.after) / max(1, steps - self.after) * (self.last - self.first)


HEALTHY = {
    "loss": Trend(0.0, 0.0, 0.01),
    "grad_norm": Trend(0.3, 0.2, 0.05),
    "entropy": Trend(0.6, 0.4, 0.05),
    "kl": Trend(0.0, 0.05, 0.01),
    "reward": Trend(0.6, 1.0, 0.1),
    "rewards/correctness/mean": Trend(0.4, 0.6, 0.1),
    "rewards/grounding/mean": Trend(0.1, 0.25, 0.05),
    "rewards/structure/mean": Trend(0.1, 0.18, 0.01),
    "completions/mean_length": Trend(70, 80, 5),
    "completions/clipped_ratio": Trend(0.2, 0.05, 0.05),
    "watch/strict_form": Trend(0.6, 0.95, 0.05),
    "watch/verdict_yes": Trend(0.5, 0.5, 0.1),
    "watch/verdict_no": Trend(0.3, 0.3, 0.05),
    "watch/verdict_maybe": Trend(0.1, 0.15, 0.05),
    "watch/verdict_none": Trend(0.1, 0.05, 0.02),
    "watch/copied_share": Trend(0.15, 0.2, 0.05),
    "watch/unsupported_figures": Trend(0.3, 0.2, 0.05),
    "watch/empty": Trend(0.02, 0.0),
    "watch/no_spread": Trend(0.2, 0.4, 0.1),
}


def series(steps=STEPS, seed=0, **troubles):
    """Rows of a training that goes well but for the given numbers."""
    chance, rows = random.Random(seed), []
    trends = HEALTHY | {name.replace("__", "/"): trend for name, trend in troubles.items()}
    for step in range(1, steps + 1):
        values = {name: trend.at(step, steps) + chance.gauss(0, 1) * trend.noise for name, trend in trends.items()}
        rows.append({"phase": "grpo", "step": step} | values)
    return rows


def alarms(rows, config=CONFIG):
    """First step at which each alarm rang."""
    watch, first = Watch(config), {}
    for row in rows:
        for name in watch.look(row).get("alarms", {}):
            first.setdefault(name, row["step"])
    return first


def test_an_alarm_has_the_name_of_its_threshold():
    """Every threshold of WatchConfig has a rule and every rule a threshold, but for the two that always stop."""
    assert _RULES.keys() - set(ALWAYS_STOP) == WatchConfig.model_fields.keys() - {"action", "span", "patience"}
    assert set(ALWAYS_STOP) < _RULES.keys()


@pytest.mark.parametrize("seed", range(20))
def test_a_training_that_goes_well_is_left_alone(seed):
    """With rewards that rise, and chance as in batches of a few prompts, nothing rings."""
    assert alarms(series(seed=seed)) == {}


TROUBLES = {
    "form": {
        "rewards__structure__mean": Trend(0.04, 0.18, 0.01),
        "rewards__correctness__mean": Trend(0.4, 0.38, 0.05),
    },
    "verdicts": {
        "watch__verdict_yes": Trend(0.5, 1.2),
        "watch__verdict_no": Trend(0.2, -0.2),
        "watch__verdict_maybe": Trend(0.0, 0.0),
    },
    "length": {"completions__clipped_ratio": Trend(0.1, 1.0)},
    "copying": {"watch__copied_share": Trend(0.15, 0.8, 0.05)},
    "invention": {"watch__unsupported_figures": Trend(0.2, 0.7, 0.05)},
    "no_spread": {"watch__no_spread": Trend(0.5, 1.1)},
    "kl": {"kl": Trend(0.0, 4.0, 0.1)},
    "gradient": {"grad_norm": Trend(0.3, 20.0, after=20)},
    "entropy": {"entropy": Trend(0.4, -0.2)},
    "silence": {"watch__empty": Trend(0.0, 1.2)},
    "not_finite": {"loss": Trend(0.0, math.nan)},
}


def bounded(rows):
    """Shares stay between 0 and 1, and the entropy above 0, whatever trend they were given."""
    shares = [name for name in HEALTHY if name.startswith("watch/") or name == "completions/clipped_ratio"]
    return [row | {name: min(1.0, max(0.0, row[name])) for name in (*shares, "entropy")} for row in rows]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alarm", TROUBLES)
def test_each_alarm_rings_on_its_own_trouble_and_no_other_does(alarm, seed):
    """A series that is healthy but for one trouble rings that one alarm."""
    assert alarms(bounded(series(seed=seed, **TROUBLES[alarm]))).keys() == {alarm}


def test_every_alarm_has_a_series_with_its_trouble():
    """A new alarm fails here until there is a series for it."""
    assert TROUBLES.keys() == _RULES.keys()


@pytest.mark.parametrize("alarm", sorted(TROUBLES.keys() - {"not_finite"}))
def test_an_alarm_waits_for_the_start_and_its_patience(alarm):
    """Trouble from the first step on rings after the patience where it always stops, else not before the start is over
    and the trouble has lasted; a patience longer than the training never rings."""
    worst = {name: Trend(t.last, t.last) for name, t in TROUBLES[alarm].items()}
    start = {"form", "invention", "gradient"} & {alarm}
    rows = bounded(series(**worst))
    expected = {} if start else {alarm: 3 if alarm in ALWAYS_STOP else CONFIG.watch.span + 2}
    assert alarms(rows) == expected
    assert alarms(rows, RunConfig(watch=WatchConfig(patience=STEPS + 1))) == {}


def test_correctness_that_follows_form_is_no_alarm():
    """Form may rise as it likes while correctness rises by a tenth of it, in shares of what each is paid at most."""
    rise = {"rewards__structure__mean": Trend(0.0, 0.2)}
    assert alarms(series(**rise, rewards__correctness__mean=Trend(0.2, 0.35))) == {}
    assert alarms(series(**rise, rewards__correctness__mean=Trend(0.2, 0.25))).keys() == {"form"}


def test_verdicts_are_judged_among_the_readable_ones():
    """Where few answers can be read, one verdict in them is chance; where most can, the others do not hide it."""
    silent = {f"watch__verdict_{verdict}": Trend(0.0, 0.0) for verdict in ("yes", "no", "maybe")}
    assert alarms(series(**silent)) == {}
    assert alarms(series(**silent | {"watch__verdict_yes": Trend(0.05, 0.05)})) == {}
    assert alarms(series(**silent | {"watch__verdict_yes": Trend(0.6, 0.6)})).keys() == {"verdicts"}


def test_steps_without_a_gradient_do_not_lower_its_start():
    """Groups without spread give a gradient of 0; the first real ones after them are no explosion."""
    rows = series(30)
    for row in rows[:9]:
        row["grad_norm"] = 0.0
    assert alarms(rows) == {}


def test_one_odd_batch_is_no_trend():
    """A spike of a single step, however high, does not ring an alarm on averages or streaks."""
    rows = series(40)
    rows[20] |= {"watch/empty": 1.0, "completions/clipped_ratio": 1.0, "grad_norm": 8.0, "watch/no_spread": 1.0}
    assert alarms(rows) == {}


def test_an_alarm_falls_silent_when_the_trouble_is_over():
    """It rings as long as the average is beyond the threshold, and not afterwards."""
    watch = Watch(RunConfig(watch=WatchConfig(span=1, patience=1)))
    ringing = [bool(watch.look({"phase": "grpo", "step": i, "kl": kl}).get("alarms")) for i, kl in enumerate((0, 2, 0))]
    assert ringing == [False, True, False]
    assert watch.calm


def test_the_first_step_beyond_a_threshold_is_the_end_of_calm():
    """A checkpoint saved while an alarm is on its way is not one from before the trouble."""
    watch = Watch(RunConfig(watch=WatchConfig(span=1)))
    assert watch.calm
    assert "alarms" not in watch.look({"phase": "grpo", "step": 1, "kl": 5.0})
    assert not watch.calm


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_said_with_a_remedy(name, value):
    """In either phase, at once: the sentence has the number, the step, and what to do."""
    row = {"phase": "warmup", "step": 7, "loss": 0.1, "grad_norm": 0.2, name: value}
    sentence = Watch(CONFIG).look(row)["alarms"]["not_finite"]
    assert f"{name} is {value} at step 7" in sentence
    assert "learning rate" in sentence
    assert "policy.autocast" in sentence


@pytest.mark.parametrize("patience", [1, 3])
def test_completions_that_stay_empty_are_said_with_a_remedy(patience):
    """Only steps in a row with nothing but empty completions count, and the sentence names the causes."""
    watch = Watch(RunConfig(watch=WatchConfig(patience=patience)))
    rows = [{"phase": "grpo", "step": step, "watch/empty": 1.0} for step in range(1, 2 * patience + 1)]
    rows[patience - 1]["watch/empty"] = 0.9
    said = [watch.look(row).get("alarms", {}) for row in rows]
    assert said[:-1] == [{}] * (2 * patience - 1)
    assert f"empty for {patience} steps (at step {2 * patience})" in said[-1]["silence"]
    assert "chat template" in said[-1]["silence"]


def test_steps_that_write_no_completions_neither_count_nor_reset():
    """The second of two passes over the same completions says nothing new about them."""
    watch = Watch(CONFIG)
    for step in range(1, 6):
        row = {"phase": "grpo", "step": step, "loss": 0.0, **({"watch/empty": 1.0} if step % 2 else {})}
        added = watch.look(row)
    assert added["alarms"].keys() == {"silence"}


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_what_stops_is_for_the_config_to_say(action):
    """`watch.action` decides for every alarm but those that always stop."""
    watch = Watch(RunConfig(watch=WatchConfig(action=action)))
    assert {alarm for alarm in _RULES if watch.stops(alarm)} == (set(_RULES) if action == "stop" else set(ALWAYS_STOP))


def test_a_sentence_ends_as_one_and_names_a_setting():
    """Every alarm tells what to change, by the setting's name where there is one."""
    for alarm, trouble in TROUBLES.items():
        watch, rows = Watch(CONFIG), bounded(series(**trouble))
        said = [added["alarms"][alarm] for row in rows if "alarms" in (added := watch.look(row))]
        assert said[-1].endswith(".")
        assert any(part in said[-1] for part in ("grpo.", "rewards.", "policy.", "warm up", "medgrpo audit"))


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40)


@given(values, st.integers(1, 30))
def test_the_average_is_the_weighted_mean_it_is_documented_as(numbers, span):
    """After n values: their mean with weights (1 - 2/(span+1))^age, which is the plain mean at first."""
    watch = Watch(RunConfig(watch=WatchConfig(span=span)))
    rows = [{"phase": "grpo", "step": step, "reward": value} for step, value in enumerate(numbers)]
    got = [watch.look(row)["smooth/reward"] for row in rows][-1]
    weights = [(1 - 2 / (span + 1)) ** age for age in range(len(numbers))][::-1]
    assert got == pytest.approx(sum(map(lambda w, v: w * v, weights, numbers)) / sum(weights), rel=1e-6, abs=1e-6)


@given(st.integers(1, 59), st.sampled_from(sorted(TROUBLES)))
def test_rows_read_back_from_json_give_the_same_watch(stop, alarm):
    """A watch that sees the rows again, as a resumed training's does, goes on to the value."""
    rows = bounded(series(**TROUBLES[alarm]))
    whole = Watch(CONFIG)
    expected = [whole.look(row) for row in rows]
    resumed = Watch(CONFIG)
    for row, added in zip(rows[:stop], expected, strict=False):
        resumed.look(json.loads(json.dumps(row | added)))
    assert [resumed.look(row) for row in rows[stop:]] == expected[stop:]


def test_numbers_that_are_missing_or_not_finite_are_passed_over():
    """TRL leaves out the entropy of a step without a gradient, and logs None where all is NaN."""
    watch = Watch(CONFIG)
    watch.look({"phase": "grpo", "step": 1, "reward": 1.0})
    for step, odd in enumerate(({}, {"reward": math.nan}, {"reward": None}), start=2):
        assert "smooth/reward" not in watch.look({"phase": "grpo", "step": step, **odd})
    assert watch.look({"phase": "grpo", "step": 5, "reward": 1.0})["smooth/reward"] == 1.0


def test_the_warmup_is_watched_for_what_always_stops_only():
    """Its loss and gradients follow another schedule, and it writes no completions."""
    added = Watch(CONFIG).look({"phase": "warmup", "step": 1, "loss": 2.0, "grad_norm": 3.0, "entropy": 0.0})
    assert added == {"watch/alarms": 0}


def test_the_facts_of_gold_completions_are_what_they_are():
    """Gold is in strict form, its verdicts are the experts', it invents nothing and copies a part."""
    records = [tiny_record("1", "yes"), tiny_record("2", "no"), tiny_record("3", "maybe"), tiny_record("4", "yes")]
    facts = completion_facts(records, [gold_completion(record) for record in records])
    assert facts["watch/strict_form"] == 1
    assert [facts[f"watch/verdict_{verdict}"] for verdict in ("yes", "no", "maybe", "none")] == [0.5, 0.25, 0.25, 0]
    assert facts["watch/unsupported_figures"] == 0
    assert 0 < facts["watch/copied_share"] < 1
    assert facts["watch/empty"] == 0


def test_the_facts_tell_copies_inventions_and_silence_apart():
    """A pasted abstract is copied whole, a figure from nowhere is unsupported, white space is empty."""
    record = tiny_record()
    form = "<thought>{}</thought><answer>yes</answer>"
    pasted = completion_facts([record], [form.format(" ".join(record.contexts))])
    assert pasted["watch/copied_share"] == pytest.approx(1)
    invented = completion_facts([record] * 2, [form.format("Pain fell by 77 points."), form.format("It helps.")])
    assert invented["watch/unsupported_figures"] == 0.5
    blank = completion_facts([record] * 2, ["", " \n"])
    assert (blank["watch/empty"], blank["watch/verdict_none"], blank["watch/strict_form"]) == (1, 1, 0)


def test_every_fact_is_followed():
    """What is computed of completions has a moving average."""
    assert completion_facts([tiny_record()], ["yes"]).keys() <= set(smoothed(VERDICT_FORM))
