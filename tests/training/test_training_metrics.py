"""Tests of medgrpo.training.metrics (named so that it does not collide with other tests of metrics)."""

import json

from hypothesis import given
from hypothesis import strategies as st

from medgrpo.training.metrics import RaisedAlarm, parse_rows, raised_alarms, read_metrics

phases = st.sampled_from(["warmup", "grpo"])
written = st.lists(
    st.builds(lambda phase, step: {"phase": phase, "step": step}, phases, st.integers(1, 6)), max_size=20
)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(phase, step, reward):
    return {"phase": phase, "step": step, "reward": reward}


def test_the_later_row_of_a_repeated_step_counts(tmp_path):
    """A resumed training repeats steps after its checkpoint; the row of the run that went on is kept, in its place."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines([row("grpo", 1, 0.1), row("grpo", 2, 0.2), row("grpo", 2, 0.9), row("grpo", 3, 0.3)]))
    assert read_metrics(path) == [row("grpo", 1, 0.1), row("grpo", 2, 0.9), row("grpo", 3, 0.3)]


def test_the_same_step_of_another_phase_is_another_row(tmp_path):
    """Step 1 of the warm-up and step 1 of GRPO do not replace each other."""
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines([row("warmup", 1, 0.1), row("grpo", 1, 0.2)]))
    assert len(read_metrics(path)) == 2


def test_a_last_line_still_being_written_is_left_out(tmp_path):
    """A line without its end may be half of a row, even where it parses, and is left for the next look."""
    path = tmp_path / "metrics.jsonl"
    whole = lines([row("grpo", 1, 0.1)])
    for torn in ('{"phase": "grpo", "st', '{"phase": "grpo", "step": 2}', '"', " "):
        path.write_text(whole + torn)
        assert read_metrics(path) == [row("grpo", 1, 0.1)]


def test_no_file_means_no_rows(tmp_path):
    """Before the first step there is nothing to read, which is no error."""
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_blank_lines_are_not_rows():
    """An empty line between rows is passed over."""
    assert list(parse_rows(lines([row("grpo", 1, 0.1)]) + "\n\n" + lines([row("grpo", 2, 0.2)]))) == [
        row("grpo", 1, 0.1),
        row("grpo", 2, 0.2),
    ]


@given(written, st.data())
def test_any_prefix_of_the_file_gives_its_whole_lines(rows, data):
    """Cut at any byte, the text yields exactly the rows whose line ends before the cut."""
    text = lines(rows)
    cut = data.draw(st.integers(0, len(text)))
    assert list(parse_rows(text[:cut])) == rows[: text[:cut].count("\n")]


@given(written)
def test_each_phase_and_step_stands_once_with_its_last_values(tmp_path_factory, rows):
    """Reading gives one row per phase and step, the last written, in the order of those last writes."""
    numbered = [{**given_row, "n": n} for n, given_row in enumerate(rows)]
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_text(lines(numbered))
    last = {(r["phase"], r["step"]): r["n"] for r in numbered}
    assert [r["n"] for r in read_metrics(path)] == sorted(last.values())


def test_alarms_are_listed_once_with_their_steps_and_last_sentence():
    """An alarm that rings again goes on the line of its first time; the order is that of the first steps."""
    alarms = {4: {"kl": "KL is 2."}, 5: {"kl": "KL is 3.", "length": "Cut off."}, 9: {"kl": "KL is 4."}}
    rows = [row("grpo", step, 0.1) | ({"alarms": alarms[step]} if step in alarms else {}) for step in range(1, 11)]
    kl, length = raised_alarms(rows)
    assert kl == RaisedAlarm("kl", 4, 9, "KL is 4.")
    assert (str(kl), str(length)) == ("alarm kl (steps 4 to 9): KL is 4.", "alarm length (step 5): Cut off.")
    assert raised_alarms([row("grpo", 1, 0.1)]) == []
