"""Records, folds, digests and leaks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medgrpo.records import Corpus, Record, digest, leaks, split_pool, verdict_counts
from medgrpo.testing import tiny_record

deterministic = settings(derandomize=True, deadline=None, max_examples=100)
verdicts = st.lists(st.sampled_from(["yes", "no", "maybe"]), max_size=60)


def pool_of(verdicts: list[str]) -> list[Record]:
    return [tiny_record(str(number), verdict) for number, verdict in enumerate(verdicts)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", " "),
        ("question", ""),
        ("contexts", ()),
        ("contexts", ("fine", "\n")),
        ("contexts", "one string"),
        ("verdict", "Yes"),
        ("verdict", "perhaps"),
        ("long_answer", None),
        ("year", "recent"),
        ("note", "unknown field"),
    ],
)
def test_rejects_bad_fields(field: str, value: object) -> None:
    """A record with an empty, mistyped or unknown field does not come into being; the error names the field."""
    with pytest.raises(ValidationError) as caught:
        tiny_record(**{field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_json_round_trip() -> None:
    """A record survives being stored as JSON."""
    record = tiny_record(year=2002, synthetic=True)
    assert Record.model_validate_json(record.model_dump_json()) == record


def test_corpus_split_keeps_order() -> None:
    """A split's records come in the split's order."""
    records = {record.id: record for record in pool_of(["yes", "no", "maybe"])}
    corpus = Corpus(name="x", records=records, splits={"train": ("2", "0"), "dev": (), "test": ("1",)})
    assert [record.id for record in corpus.split("train")] == ["2", "0"]


@deterministic
@given(verdicts, st.integers(2, 10), st.integers(0, 5))
def test_folds_partition_the_pool(verdicts: list[str], folds: int, seed: int) -> None:
    """Over all folds every record is dev exactly once; in each fold train and dev make up the pool."""
    pool = pool_of(verdicts)
    held_out = []
    for fold in range(folds):
        train, dev = split_pool(pool, fold, seed, folds)
        assert sorted(train + dev) == sorted(record.id for record in pool)
        held_out += dev
    assert sorted(held_out) == sorted(record.id for record in pool)


@deterministic
@given(verdicts, st.integers(2, 10), st.integers(0, 5))
def test_folds_are_stratified(verdicts: list[str], folds: int, seed: int) -> None:
    """Each verdict is spread over the folds as evenly as whole records allow."""
    pool = pool_of(verdicts)
    by_id = {record.id: record for record in pool}
    counts = [
        verdict_counts(by_id[i] for i in split_pool(pool, fold, seed, folds)[1]).values() for fold in range(folds)
    ]
    for over_folds in zip(*counts, strict=True):
        assert max(over_folds) - min(over_folds) <= 1


@deterministic
@given(verdicts.flatmap(st.permutations))
def test_split_ignores_order(verdicts: list[str]) -> None:
    """Which records are dev depends on the records and the seed, not on the order of the pool."""
    pool = pool_of(verdicts)
    assert set(split_pool(pool, 0, 20)[1]) == set(split_pool(pool[::-1], 0, 20)[1])


def test_split_seed_matters() -> None:
    """Another seed holds out other records."""
    pool = pool_of(["yes"] * 40)
    assert split_pool(pool, 0, 1)[1] != split_pool(pool, 0, 2)[1]


def test_digest_ignores_order_and_sees_content() -> None:
    """The digest is the same in any order, and another one after the smallest change."""
    pool = pool_of(["yes", "no", "maybe"])
    assert digest(pool) == digest(pool[::-1])
    assert digest(pool) != digest([*pool[:2], tiny_record("2", "yes")])


def test_verdict_counts_name_all_three() -> None:
    """A verdict that never occurs is counted as 0."""
    assert verdict_counts(pool_of(["no", "no"])) == {"yes": 0, "no": 2, "maybe": 0}


def test_leaks_finds_test_ids() -> None:
    """A test id among the training prompts is named."""
    records = {"1": tiny_record("1")}
    assert leaks({"1": "prompt"}, ["2", "1"], records) == ["record 1 of the test split is among the training prompts"]


def test_leaks_finds_long_answer_however_wrapped() -> None:
    """A long_answer in a prompt is found even where line breaks differ."""
    records = {"1": tiny_record("1", long_answer="It helps\nmost people with pain.")}
    assert leaks({"1": "Abstract: It  helps most\npeople with pain. Question: does it?"}, [], records) == [
        "the prompt of record 1 contains its long_answer"
    ]


def test_a_few_common_words_are_no_leak() -> None:
    """A long_answer of a word or two may stand in a prompt by chance."""
    records = {"1": tiny_record("1", long_answer="No effect.")}
    assert leaks({"1": "Abstract: No effect. Question: any effect?"}, [], records) == []


def test_no_leaks() -> None:
    """Clean prompts give an empty list."""
    assert leaks({"1": "prompt"}, ["2"], {"1": tiny_record("1")}) == []
