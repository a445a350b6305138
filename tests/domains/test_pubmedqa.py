"""PubMedQA: reading the files, the official split, and the sentences about what is wrong with them.

Fixtures here are invented. Tests on the published data run where MEDGRPO_PUBMEDQA names the directory that holds
`ori_pqal.json` and `test_ground_truth.json`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgrpo.config import DataConfig
from medgrpo.domains import load_corpus, pubmedqa
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.prompts import gold_completion, render_prompt
from medgrpo.records import Corpus, leaks, verdict_counts
from medgrpo.rewards import score_completion

VERDICTS = ("yes", "no", "maybe")
Fields = dict[str, Any]


def invented(count: int = 6) -> dict[str, Fields]:
    return {
        str(9000 + i): {
            "QUESTION": f"Does invented drug {i} lower pain?",
            "CONTEXTS": [f"We asked {100 + i} adults.", f"Pain fell by {i}.5 points (p=0.0{i + 1})."],
            "LABELS": ["METHODS", "RESULTS"],
            "YEAR": "2001",
            "final_decision": VERDICTS[i % 3],
            "LONG_ANSWER": f"Drug {i} may have done something.",
        }
        for i in range(count)
    }


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Six invented records and, beside them, a ground truth that holds out the last three."""
    records = invented()
    write(tmp_path / pubmedqa.DEFAULT_GROUND_TRUTH, {i: records[i]["final_decision"] for i in list(records)[3:]})
    return write(tmp_path / "ori_pqal.json", records)


def sentence(path: Path, ground_truth: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        pubmedqa.load(path, ground_truth)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_load(path: Path) -> None:
    """Fields arrive under our names; the ground truth is the test split, the rest the pool; the file order stays."""
    corpus = pubmedqa.load(path)
    record = corpus.records["9001"]
    assert (record.id, record.verdict, record.year, record.synthetic) == ("9001", "no", 2001, False)
    assert record.contexts == ("We asked 101 adults.", "Pain fell by 1.5 points (p=0.02).")
    assert corpus.splits == {"train": ("9000", "9001", "9002"), "dev": (), "test": ("9003", "9004", "9005")}


def test_ground_truth_given_goes_before_the_one_beside(path: Path, tmp_path: Path) -> None:
    """A ground truth that is named is used instead of the file beside the records."""
    other = write(tmp_path / "other.json", {"9000": "yes"})
    assert pubmedqa.load(path, other).splits["test"] == ("9000",)


def test_byte_order_mark(path: Path) -> None:
    """A byte order mark, as some editors put it, does no harm."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(pubmedqa.load(path).records) == 6


def test_year_may_be_missing(path: Path) -> None:
    """A record without a year is a record."""
    records = invented()
    del records["9000"]["YEAR"]
    assert pubmedqa.load(write(path, records)).records["9000"].year is None


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "ends in the middle (truncated?)"),
        (b"hello", "is not JSON"),
        (b"<html>", "is not JSON"),
        (b'{"9000": {"QUESTION": "Does', "ends in the middle (truncated?): Unterminated string starting at line 1"),
        (b'{"9000": {"QUESTION": "Does it?",', "ends in the middle (truncated?)"),
        (b'{"9000": {"YEAR": ', "ends in the middle (truncated?)"),
        (b"[]", "expected a JSON object with one entry per PMID, found a list"),
        (b'"text"', "found a str"),
        (b"null", "found a NoneType"),
        (b"{}", "found an empty object"),
        ('{"9000": "é"}'.encode("latin-1"), "not UTF-8 (byte 10)"),
        ('{"9000": 1}'.encode("utf-16"), "not UTF-8 (byte 0)"),
        (b"\x1f\x8b\x08\x00", "not UTF-8"),
        (b"[" * 200_000, "is not usable JSON"),
        (b'{"9000": ' + b"1" * 5000 + b"}", "is not usable JSON"),
        (b'{"9000": {}, "9000": {}}', "'9000' stands there twice"),
        (b'{"9000": {"QUESTION": "a", "QUESTION": "b"}}', ", record 9000: 'QUESTION' stands there twice"),
    ],
)
def test_unusable_files(path: Path, content: bytes, part: str) -> None:
    """A file that is no JSON object of records is named, with what was found instead, whichever of the two it is."""
    path.with_name("bad.json").write_bytes(content)
    for text in (sentence(path.with_name("bad.json")), sentence(path, path.with_name("bad.json"))):
        assert str(path.with_name("bad.json")) in text
        assert part in text


def test_every_truncation_is_noticed(path: Path) -> None:
    """Wherever the file is cut, it is refused with the file's name."""
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        assert str(path) in sentence(path)


def test_directory_and_missing_file(path: Path) -> None:
    """A directory, or no file at all, is said to be that."""
    assert "is a directory; expected a file" in sentence(path.parent)
    assert "no such file" in sentence(path.parent / "none.json")
    assert "is a directory" in sentence(path, path.parent)
    assert "no such file" in sentence(path, path.parent / "none.json")
    assert "cannot be read" in sentence(path / "below-a-file")


@pytest.mark.parametrize("field", ["QUESTION", "CONTEXTS", "final_decision", "LONG_ANSWER"])
@pytest.mark.parametrize("value", [None, "", [], {}, 7, "\ud800", ["", "x"], "ABSENT"])
def test_bad_fields(path: Path, field: str, value: object) -> None:
    """A missing, empty or mistyped field is named with its file and record."""
    records = invented()
    records["9001"][field] = value
    if value == "ABSENT":
        del records["9001"][field]
    text = sentence(write(path, records))
    assert f"{path}, record 9001: field {field} is " in text
    assert ("missing" if value == "ABSENT" else "expected") in text


@pytest.mark.parametrize("verdict", ["Yes", "perhaps", True, ["yes"]])
def test_unknown_verdicts(path: Path, verdict: object) -> None:
    """An unknown verdict is shown with the three known ones, in the records and in the ground truth."""
    records = invented()
    records["9002"]["final_decision"] = verdict
    text = sentence(write(path, records))
    assert f"record 9002: field final_decision is {json.dumps(verdict)}; expected: yes, no or maybe" in text
    truth = write(path.with_name("truth.json"), {"9003": verdict})
    text = sentence(write(path, invented()), truth)
    assert f"{truth}, record 9003: verdict is {verdict!r}; expected yes, no or maybe" in text


@pytest.mark.parametrize("entry", [None, "text", [1], 5])
def test_record_that_is_no_object(path: Path, entry: object) -> None:
    """An entry that is no object is named."""
    assert "record 9001: expected an object of fields" in sentence(write(path, invented() | {"9001": entry}))


@pytest.mark.parametrize("pmid", ["", " ", "9001 ", "\ud800"])
def test_bad_pmids(path: Path, pmid: str) -> None:
    """An empty or padded PMID, or one that is no text, is refused in a sentence."""
    text = sentence(write(path, invented() | {pmid: invented()["9000"]}))
    assert str(path) in text
    assert "PMID" in text


def test_bad_year(path: Path) -> None:
    """A year that is no number is named."""
    records = invented()
    records["9001"]["YEAR"] = "recent"
    assert 'record 9001: field YEAR is "recent"' in sentence(write(path, records))


def test_ground_truth_of_other_records(path: Path) -> None:
    """A ground truth with a PMID that is not among the records is refused, naming it."""
    truth = write(path.with_name("truth.json"), {"9003": "yes", "1234": "no"})
    assert f"{truth}, record 1234: is not among the 6 records" in sentence(path, truth)


def test_ground_truth_that_disagrees(path: Path) -> None:
    """A ground truth with another verdict than the record's is refused, naming both."""
    truth = write(path.with_name("truth.json"), {"9003": "no"})
    text = sentence(path, truth)
    assert f"{truth}, record 9003: verdict is 'no', but final_decision is 'yes'" in text
    assert "not of the same release" in text


def test_empty_pool(path: Path) -> None:
    """A ground truth that holds out every record leaves an empty train split, which is said."""
    truth = write(path.with_name("truth.json"), {i: fields["final_decision"] for i, fields in invented().items()})
    assert "the train split is empty (6 records, 6 in test)" in sentence(path, truth)


def test_official_split_needs_the_official_records(path: Path) -> None:
    """Without a ground truth, other records than the published ones are refused with what to set."""
    path.with_name(pubmedqa.DEFAULT_GROUND_TRUTH).unlink()
    text = sentence(path)
    assert "not the 1,000 published records" in text
    assert "--set data.path=" in text
    assert "data.ground_truth=" in text


def hub_rows(records: dict[str, Fields]) -> list[Fields]:
    return [
        {
            "pubid": int(pmid),
            "question": fields["QUESTION"],
            "context": {"contexts": fields["CONTEXTS"], "labels": fields["LABELS"], "meshes": []},
            "long_answer": fields["LONG_ANSWER"],
            "final_decision": fields["final_decision"],
        }
        for pmid, fields in records.items()
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put rows, or an error, in the Hub's place; the official digest is taken from the invented records."""

    def serve(answer: Any) -> None:
        def load_dataset(name: str, config: str, split: str, revision: str) -> Any:
            assert (config, split) == ("pqa_labeled", "train")
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr("datasets.load_dataset", load_dataset)

    return serve


def test_hub_rows_give_the_same_records(
    hub: Callable[[Any], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's rows become the records that the file gives, but for the year, which the Hub does not hold."""
    hub(hub_rows(invented()))
    monkeypatch.setattr(pubmedqa, "official_test_ids", lambda records, source: ["9003", "9004", "9005"])
    fetched, read = pubmedqa.load_from_hub("qiaojin/PubMedQA", "main"), pubmedqa.load(path)
    assert fetched.splits == read.splits
    assert fetched.records == {i: record.model_copy(update={"year": None}) for i, record in read.records.items()}


@pytest.mark.parametrize("error", [ConnectionError("offline"), OSError("timed out")])
def test_unreachable_hub(hub: Callable[[Any], None], error: Exception) -> None:
    """A Hub that does not answer is worth a retry, and the sentence says how to do without it."""
    hub(error)
    with pytest.raises(ServiceUnreachable, match=r"qiaojin/PubMedQA could not be fetched.*--set data\.path="):
        load_corpus(DataConfig(domain="pubmedqa"))


def test_unknown_dataset_on_the_hub(hub: Callable[[Any], None]) -> None:
    """A dataset that the Hub does not know is named."""
    from datasets.exceptions import DatasetNotFoundError

    hub(DatasetNotFoundError("no"))
    with pytest.raises(ServiceUnreachable, match="some/where could not be fetched"):
        pubmedqa.load_from_hub("some/where", "main")


@pytest.mark.parametrize("column", ["pubid", "question", "context", "long_answer", "final_decision"])
def test_hub_without_a_column(hub: Callable[[Any], None], column: str) -> None:
    """A dataset that lacks a column is refused, naming the column."""
    hub([{key: value for key, value in row.items() if key != column} for row in hub_rows(invented())])
    with pytest.raises(InputError, match=f"no column '{column}'"):
        pubmedqa.load_from_hub("some/where", "main")


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (ValueError("BuilderConfig 'pqa_labeled' not found"), "the dataset some/where is not PubMedQA"),
        ([row | {"context": "text"} for row in hub_rows(invented())], "column 'context' holds no contexts"),
        (hub_rows(invented()) * 2, "some/where: the PMID 9000 stands there twice"),
        ([row | {"question": ""} for row in hub_rows(invented())], "some/where, record 9000: field QUESTION"),
        (hub_rows(invented()), "some/where: the official test split cannot be computed"),
        ([], "some/where: the official test split cannot be computed"),
    ],
)
def test_another_dataset_on_the_hub(hub: Callable[[Any], None], answer: Any, part: str) -> None:
    """A dataset of another form, with doubled or bad rows, or with other records, is refused in a sentence."""
    hub(answer)
    with pytest.raises(InputError) as caught:
        pubmedqa.load_from_hub("some/where", "main")
    assert part in str(caught.value)


@pytest.fixture(scope="module")
def published() -> Path:
    directory = os.environ.get("MEDGRPO_PUBMEDQA")
    if not directory:
        pytest.skip("MEDGRPO_PUBMEDQA does not name a directory with ori_pqal.json and test_ground_truth.json")
    return Path(directory)


@pytest.fixture(scope="module")
def corpus(published: Path) -> Corpus:
    return pubmedqa.load(published / "ori_pqal.json")


def test_published_split(published: Path, corpus: Corpus) -> None:
    """The official split, recomputed, is the published ground truth, and leaves 500 for the pool."""
    truth = json.loads((published / pubmedqa.DEFAULT_GROUND_TRUTH).read_text())
    computed = pubmedqa.official_test_ids(corpus.records, source="published")
    assert {i: corpus.records[i].verdict for i in computed} == truth
    assert set(corpus.splits["test"]) == set(computed)
    assert verdict_counts(corpus.split("test")) == {"yes": 276, "no": 169, "maybe": 55}
    assert len(corpus.splits["train"]) == 500


def test_published_order_matters(corpus: Corpus) -> None:
    """The published records in another order are refused instead of being split otherwise."""
    backwards = dict(reversed(corpus.records.items()))
    with pytest.raises(InputError, match="in their order"):
        pubmedqa.official_test_ids(backwards, source="backwards")


@pytest.mark.slow
def test_published_gold_completions(corpus: Corpus) -> None:
    """Each of the 1,000 gold completions earns the maximum."""
    totals = [score_completion(record, gold_completion(record)).total for record in corpus.records.values()]
    assert len(totals) == 1000
    assert totals == pytest.approx([1.7] * 1000)


def test_published_prompts_do_not_leak(corpus: Corpus) -> None:
    """No prompt of the 1,000 holds its LONG_ANSWER, and no test record is in the pool."""
    prompts = {i: render_prompt(record)[1]["content"] for i, record in corpus.records.items()}
    assert leaks(prompts, [], corpus.records) == []
    assert not set(corpus.splits["train"]) & set(corpus.splits["test"])


def test_published_hub_form(hub: Callable[[Any], None], published: Path, corpus: Corpus) -> None:
    """The published records in the Hub's form give the same prompts, verdicts and split."""
    hub(hub_rows(json.loads((published / "ori_pqal.json").read_text())))
    fetched = pubmedqa.load_from_hub("qiaojin/PubMedQA", "main")
    assert {name: set(ids) for name, ids in fetched.splits.items()} == {n: set(i) for n, i in corpus.splits.items()}
    assert all(render_prompt(fetched.records[i]) == render_prompt(record) for i, record in corpus.records.items())
