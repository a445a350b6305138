"""What holds for any text and any record, not only for those that somebody thought of."""

from random import Random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medgrpo.completions import VERDICTS, parse_completion, render_completion
from medgrpo.config import RewardConfig
from medgrpo.prompts import gold_completion
from medgrpo.records import Record
from medgrpo.rewards import PILLARS, score_completion
from medgrpo.rewards.attacks import PLAINEST_THOUGHT
from medgrpo.rewards.audit import audit

deterministic = settings(derandomize=True, deadline=None, max_examples=200)
CONFIGS = {mode: RewardConfig(mode=mode) for mode in ("gated", "weighted")}

COMMON = ("pain", "fell", "with", "versus", "placebo", "no", "adults", "not", "naïve", "组", "(p=", "CI", "β-blockers")
LETTERS = st.characters(categories=["Ll", "Lu", "Lo", "Mn"])
WORDS = st.lists(st.text(LETTERS, min_size=4, max_size=9), min_size=20, max_size=30, unique=True)
FIGURES = st.lists(
    st.one_of(
        st.integers(0, 99999).map(str),
        st.floats(0, 1, width=16).map(lambda value: f"{value:.3f}"),
        st.integers(1, 99).map(lambda value: f"{value}–{value + 7}%"),
    ),
    max_size=9,
    unique=True,
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A record of sentences made of generated words; its abstract is longer than what may be quoted whole."""
    vocabulary = sorted({*COMMON, *draw(WORDS), *draw(FIGURES)})
    random = Random(draw(st.integers(0, 2**32)))

    def sentences(least: int, most: int) -> list[str]:
        lengths = [random.randint(8, 14) for _ in range(random.randint(least, most))]
        return [f"{' '.join(random.sample(vocabulary, length)).capitalize()}." for length in lengths]

    return Record(
        id="1",
        question=f"{sentences(1, 1)[0][:-1]}?",
        contexts=(*sentences(1, 2), " ".join(sentences(4, 6))),
        verdict=random.choice(VERDICTS),
        long_answer=" ".join(sentences(1, 2)),
    )


@st.composite
def answered(draw: st.DrawFn) -> tuple[Record, str]:
    """A record, and a completion of free text, of its own pieces, or of tags and verdicts in any order."""
    record = draw(records())
    gold = parse_completion(gold_completion(record)).thought
    pieces = [*record.contexts, record.question, record.long_answer, gold, "8317", "The answer is no.", "<", "\0", "\n"]
    tags = ["<thought>", "</thought>", "<answer>", "</answer>", "＜answer＞", *VERDICTS]
    thought = st.one_of(st.text(), st.lists(st.sampled_from(pieces), min_size=1, max_size=6).map(" ".join))
    formed = st.builds(render_completion, thought, st.sampled_from(VERDICTS))
    jumbled = st.lists(st.sampled_from([*pieces, *tags]), max_size=9).map("".join)
    return record, draw(st.one_of(st.text(), thought, formed, jumbled))


@pytest.mark.slow
@deterministic
@given(answered(), st.none() | st.floats(0, 2), st.sampled_from(sorted(CONFIGS)))
def test_no_text_raises_or_leaves_the_range(pair: tuple[Record, str], used: float | None, mode: str) -> None:
    """Whatever the record, the text, the share of the cap and the mode: each pillar within 0 and its weight."""
    config = CONFIGS[mode]
    scores = score_completion(*pair, config, used)
    for pillar in PILLARS:
        assert 0 <= getattr(scores, pillar) <= getattr(config, pillar)
    assert 0 <= scores.total <= config.correctness + config.grounding + config.structure + 1e-9


@pytest.mark.slow
@deterministic
@given(answered(), st.floats(0, 0.15), st.floats(0.55, 1), st.floats(0, 0.3))
def test_no_wrong_verdict_reaches_the_plainest_right_one(
    pair: tuple[Record, str], structure: float, cost: float, agreement: float
) -> None:
    """With any settings that are accepted, a right verdict over an empty phrase earns more than anything wrong."""
    record, text = pair
    config = RewardConfig(structure=structure, cost_maybe_for_either=cost, agreement=agreement)
    completion = parse_completion(text)
    plain = score_completion(record, render_completion(PLAINEST_THOUGHT, record.verdict), config, used=1.0).total
    if not (completion.well_formed and completion.verdict == record.verdict):
        assert score_completion(record, text, config).total < plain


@pytest.mark.slow
@deterministic
@given(answered())
def test_any_right_answer_outranks_any_wrong_one(pair: tuple[Record, str]) -> None:
    """A right verdict in strict form, however bad its thought, earns at least 0.8; what is wrong at most 0.4."""
    record, text = pair
    completion, total = parse_completion(text), score_completion(*pair).total
    if completion.well_formed and completion.verdict == record.verdict:
        assert total >= 0.8
    else:
        assert total <= 0.4 + 1e-9


@pytest.mark.slow
@settings(deterministic, max_examples=60)
@given(st.lists(records(), min_size=2, max_size=2, unique_by=lambda record: record.contexts))
def test_no_attack_on_any_record_gets_through(pair: list[Record]) -> None:
    """Every attack on generated records earns less than their gold completions, wherever these can earn the maximum."""
    report = audit([record.model_copy(update={"id": f"{n}"}) for n, record in enumerate(pair)], RewardConfig())
    assume(report.lowest_gold == pytest.approx(1.0))
    assert report.holds, (report.holes(), [kind.example for kind in report.kinds if not kind.holds])
