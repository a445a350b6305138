"""The one door through which a run gets its records."""

import json
from pathlib import Path

import pytest

from medgrpo.config import DataConfig
from medgrpo.domains import load_corpus
from medgrpo.errors import InputError


def pqal(directory: Path, pool: str, test: str = "yn") -> DataConfig:
    """Settings for invented records whose verdicts are given by their initials."""
    verdicts = {"y": "yes", "n": "no", "m": "maybe"}
    records = {
        str(i): {
            "QUESTION": f"Is invented question {i} answered?",
            "CONTEXTS": [f"Of {i + 10} people some said so."],
            "final_decision": verdicts[initial],
            "LONG_ANSWER": "Nobody can tell from this.",
        }
        for i, initial in enumerate(pool + test)
    }
    truth = {i: records[i]["final_decision"] for i in list(records)[len(pool) :]}
    (directory / "ori_pqal.json").write_text(json.dumps(records))
    (directory / "truth.json").write_text(json.dumps(truth))
    return DataConfig(domain="pubmedqa", path=directory / "ori_pqal.json", ground_truth=directory / "truth.json")


def sentence(config: DataConfig) -> str:
    with pytest.raises(InputError) as caught:
        load_corpus(config)
    return str(caught.value)


def test_synthetic_corpus_is_labelled_and_split() -> None:
    """Synthetic records say that they are synthetic, and fall into three splits without overlap."""
    corpus = load_corpus(DataConfig(synthetic_pool=60, synthetic_test=30))
    assert corpus.synthetic
    assert all(record.synthetic for record in corpus.records.values())
    sizes = {name: len(ids) for name, ids in corpus.splits.items()}
    assert (sizes["train"] + sizes["dev"], sizes["test"]) == (60, 30)
    assert len(set().union(*corpus.splits.values())) == 90


def test_same_settings_same_corpus() -> None:
    """The same settings give the same records in the same splits."""
    config = DataConfig(synthetic_pool=60, synthetic_test=30)
    assert load_corpus(config) == load_corpus(config)


def test_folds_change_dev_and_never_test(tmp_path: Path) -> None:
    """Another fold holds out other records of the pool; the test split stays."""
    config = pqal(tmp_path, "ynm" * 10)
    first, second = (load_corpus(config.model_copy(update={"fold": fold})) for fold in (0, 1))
    assert first.splits["test"] == second.splits["test"] == ("30", "31")
    assert not set(first.splits["dev"]) & set(second.splits["dev"])


@pytest.mark.parametrize(
    ("pool", "part"),
    [("ynm", "train split is empty"), ("yn" * 10, "no record with the verdict maybe"), ("y" * 20, "no or maybe")],
)
def test_unlearnable_pools(tmp_path: Path, pool: str, part: str) -> None:
    """A pool too small to split, or without records of a verdict, is refused with what to do."""
    text = sentence(pqal(tmp_path, pool))
    assert text.startswith("pubmedqa: ")
    assert part in text
    assert "Give more records or another fold." in text


def test_empty_dev(tmp_path: Path) -> None:
    """A fold that holds no record is refused."""
    config = pqal(tmp_path, "ynm" * 3).model_copy(update={"fold": 9})
    assert "the dev split is empty" in sentence(config)


@pytest.mark.parametrize("setting", ["path", "ground_truth"])
def test_files_for_the_synthetic_domain(setting: str) -> None:
    """A file given to the synthetic domain is not silently ignored."""
    assert "set data.domain=pubmedqa" in sentence(DataConfig.model_validate({setting: "x.json"}))


def test_ground_truth_without_records() -> None:
    """A ground truth without the records it belongs to is not silently ignored."""
    assert "data.ground_truth is set, but data.path is not" in sentence(
        DataConfig(domain="pubmedqa", ground_truth=Path("truth.json"))
    )
