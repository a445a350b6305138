"""Prepared data: what is stored, what is dropped, and what stops the run."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from medgrpo import preparation
from medgrpo.config import RewardConfig, RunConfig
from medgrpo.errors import DiskFull, InputError
from medgrpo.policies import load_tokenizer
from medgrpo.preparation import PAYMENTS, check_cases, check_leaks, gold_rewards, load_records, prepare
from medgrpo.prompts import render_prompt
from medgrpo.records import Corpus, digest
from medgrpo.rewards import score_completion
from medgrpo.stages import prepare as prepare_stage
from medgrpo.sweep.settings import TrialConfig
from medgrpo.testing import tiny_config, tiny_record

VERDICTS = ("yes", "no", "maybe")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny policy is saved once for all tests here."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def config(home: Path) -> RunConfig:
    return tiny_config(home)


@pytest.fixture(scope="module")
def prepared(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    prepare(config, directory)
    return directory


def rows(directory: Path, split: str) -> list[dict[str, Any]]:
    import datasets

    return datasets.load_from_disk(str(directory / split)).to_list()


def corpus_of(**splits: list[Any]) -> Corpus:
    """A corpus of given records per split; the test split holds one record unless given."""
    splits.setdefault("test", [tiny_record("test")])
    records = {record.id: record for group in splits.values() for record in group}
    return Corpus(name="tiny", records=records, splits={name: tuple(r.id for r in splits[name]) for name in splits})


def serve(monkeypatch: pytest.MonkeyPatch, corpus: Corpus) -> None:
    monkeypatch.setattr(preparation, "load_corpus", lambda _: corpus)


def test_summary_is_what_is_stored(prepared: Path) -> None:
    """data.json holds each split's counts and the digest of the records that are stored, and says synthetic."""
    summary = json.loads((prepared / "data.json").read_text())
    assert summary["synthetic"] is True
    for split in ("train", "dev", "test"):
        records = load_records(prepared, split)
        assert summary["digests"][split] == digest(records)
        assert sum(summary["counts"][split].values()) == len(records) > 0


def test_rows(prepared: Path) -> None:
    """A row holds prompt, gold completion and record; a test row holds no completion."""
    for split in ("train", "dev", "test"):
        for row, record in zip(rows(prepared, split), load_records(prepared, split), strict=True):
            assert row["record_id"] == record.id
            assert row["prompt"] == render_prompt(record)
            assert row["verdict"] == record.verdict
            if split == "test":
                assert row["completion"] == ""
            else:
                assert score_completion(record, row["completion"]).total == pytest.approx(1.7)


def test_prompts_do_not_leak(prepared: Path) -> None:
    """No stored prompt holds its record's long_answer, and no test id is in train or dev."""
    ids: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        ids[split] = {row["record_id"] for row in rows(prepared, split)}
        for row, record in zip(rows(prepared, split), load_records(prepared, split), strict=True):
            assert record.long_answer not in row["prompt"][1]["content"]
    assert not ids["test"] & (ids["train"] | ids["dev"])


def test_the_longest_row_of_training_is_known(config: RunConfig, prepared: Path) -> None:
    """It is a train prompt with its gold completion, or with one at the cap; dev and test are never trained on."""
    tokenizer = load_tokenizer(config.policy.base)

    def tokens(messages: list[dict[str, str]], answered: bool) -> int:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=not answered, return_dict=False)
        return len(ids)

    longest = 0
    for row in rows(prepared, "train"):
        prompt = tokens(row["prompt"], answered=False)
        gold = tokens([*row["prompt"], {"role": "assistant", "content": row["completion"]}], answered=True)
        # The template writes a line break behind the end of a turn, which nobody generates.
        longest = max(longest, prompt + config.grpo.max_completion_length, gold - 1)
    assert json.loads((prepared / "data.json").read_text())["max_training_tokens"] == longest


def test_same_settings_same_data(config: RunConfig, prepared: Path, tmp_path: Path) -> None:
    """Preparing twice gives the same summary and the same rows."""
    prepare(config, tmp_path)
    assert (tmp_path / "data.json").read_text() == (prepared / "data.json").read_text()
    assert rows(tmp_path, "train") == rows(prepared, "train")


def test_long_records_are_dropped_and_listed(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train and dev records that are too long are dropped, listed with their lengths; test records stay."""
    long = ("word " * 2000,)
    train = [tiny_record(f"train-{verdict}", verdict) for verdict in VERDICTS]
    serve(
        monkeypatch,
        corpus_of(
            train=[*train, tiny_record("long-train", contexts=long)],
            dev=[tiny_record("dev"), tiny_record("long-dev", contexts=long)],
            test=[tiny_record("long-test", contexts=long)],
        ),
    )
    summary = prepare(config, tmp_path)
    assert [(entry["id"], entry["split"]) for entry in summary["dropped"]] == [
        ("long-train", "train"),
        ("long-dev", "dev"),
    ]
    assert all("at most 1000 leave room for a completion" in entry["reason"] for entry in summary["dropped"])
    assert [record.id for record in load_records(tmp_path, "train")] == [record.id for record in train]
    assert [record.id for record in load_records(tmp_path, "test")] == ["long-test"]


@pytest.mark.parametrize(("kept", "part"), [((), "every train prompt is"), (("yes", "no"), "the verdict maybe is")])
def test_dropping_all_of_a_verdict_stops(
    config: RunConfig, tmp_path: Path, kept: tuple[str, ...], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where dropping long records leaves nothing, or nothing of a verdict, the run stops and nothing is written."""
    long = ("word " * 2000,)
    train = [tiny_record(v, v) if v in kept else tiny_record(v, v, contexts=long) for v in VERDICTS]
    serve(monkeypatch, corpus_of(train=train, dev=[tiny_record("dev")]))
    with pytest.raises(InputError, match=rf"{part} longer than 1000 tokens.*Raise data\.max_length"):
        prepare(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_prompt(home: Path, tmp_path: Path) -> None:
    """A completion cap that leaves no room for a prompt is refused with both settings and their values."""
    config = tiny_config(home, data={"max_length": 24}, grpo={"max_completion_length": 24})
    with pytest.raises(InputError, match=r"grpo\.max_completion_length \(24\).*data\.max_length \(24\).*raise"):
        prepare(config, tmp_path)


def test_leaks_stop_the_run(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test record in train, or a long_answer in a prompt, stops the run, is named, and nothing is written."""
    train = [tiny_record(verdict, verdict) for verdict in VERDICTS]
    told = tiny_record("told", contexts=("We saw it.", "The treatment relieves pain  better\nthan placebo."))
    for leaking, part in (
        (corpus_of(train=train, dev=[tiny_record("dev")], test=[train[0]]), "record yes of the test split"),
        (corpus_of(train=[*train, told], dev=[tiny_record("dev")]), "prompt of record told contains its long_answer"),
        (corpus_of(train=train, dev=[told]), "prompt of record told contains its long_answer"),
    ):
        serve(monkeypatch, leaking)
        with pytest.raises(InputError, match=f"1 leaks into the training prompts: .*{part}"):
            prepare(config, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_many_leaks_are_counted() -> None:
    """Of many leaks three are named and all are counted."""
    records = [tiny_record(str(i)) for i in range(5)]
    with pytest.raises(InputError) as caught:
        check_leaks({r.id: "prompt" for r in records}, records, [record.id for record in records])
    assert str(caught.value).startswith("5 leaks")
    assert str(caught.value).count("of the test split") == 3


def test_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up while rows are saved is one sentence, leaves no artifact, and a later call completes."""
    config = tiny_config(home).model_copy(update={"runs_dir": home / "full"})
    save = preparation._save

    def full(records: Any, golds: Any, directory: Path) -> None:
        if directory.name == "dev":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(records, golds, directory)

    monkeypatch.setattr(preparation, "_save", full)
    with pytest.raises(DiskFull, match=f"no space left on the disk of {home}"):
        prepare_stage(config)
    assert not list((home / "full").rglob("manifest.json"))
    monkeypatch.setattr(preparation, "_save", save)
    manifest = prepare_stage(config)
    assert (manifest.path / "data.json").is_file()
    assert prepare_stage(config) == manifest


def test_payments_do_not_change_the_data() -> None:
    """Gold completions are written for what earns a grade; trainings that pay it differently share their data."""
    paid = {"mode": "weighted", "correctness": 3.0, "agreement": 0.1, "grounding": 0.9, "structure": 0.1}
    costs = {name: 0.95 for name in PAYMENTS if name.startswith("cost_")}
    assert paid.keys() | costs.keys() == PAYMENTS
    assert gold_rewards(RewardConfig.model_validate(paid | costs)) == RewardConfig()
    assert gold_rewards(RewardConfig(evidence=2, structure=0.1)) == RewardConfig(evidence=2)


def test_cases_are_counted_before_anything_is_trained(config: RunConfig, prepared: Path) -> None:
    """More cases than the split holds are refused, under the setting's name in a run or in a sweep's trial."""
    held = len(rows(prepared, "test"))
    trial = TrialConfig(sweep="s", study="s", number=0, parent="p")
    for cases, changes in ((held, {}), ("all", {}), (held, {"trial": trial})):
        check_cases(_evaluating(config, cases, changes), prepared)
    with pytest.raises(InputError, match=rf"^evaluation\.cases is {held + 1}, but the test split holds {held}"):
        check_cases(_evaluating(config, held + 1, {}), prepared)
    with pytest.raises(InputError, match=r"^sweep\.cases is"):
        check_cases(_evaluating(config, held + 1, {"trial": trial}), prepared)


def _evaluating(config: RunConfig, cases: int | str, changes: dict[str, Any]) -> RunConfig:
    evaluation = config.evaluation.model_copy(update={"cases": cases})
    return config.model_copy(update={"evaluation": evaluation, **changes})
