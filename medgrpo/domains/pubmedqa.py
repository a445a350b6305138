"""PubMedQA, expert-labelled part (PQA-L): 1,000 questions with the abstracts that answer them.

Jin et al. 2019, arXiv 1909.06146. `ori_pqal.json` maps a PMID to a record, shortened here:

    {"QUESTION": "Is anorectal endosonography valuable in dyschesia?",
     "CONTEXTS": ["Dyschesia can be provoked by ...", "Twenty consecutive patients ...", "..."],
     "LABELS": ["AIMS", "METHODS", "RESULTS"], "YEAR": "2002", "final_decision": "yes",
     "LONG_ANSWER": "Linear anorectal endosonography demonstrated incomplete or even absent relaxation ..."}

The official split holds 500 PMIDs for test and leaves 500 as the pool for train and dev. `official_test_ids` computes
it, so the Hub's single 1,000-row "train" split is never cut naively.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medgrpo.completions import VERDICTS
from medgrpo.config import DataConfig
from medgrpo.domains.abstracts import abstracts_domain
from medgrpo.domains.hub import load_split
from medgrpo.errors import InputError
from medgrpo.jsonfiles import JsonObject, Wanted, read_json_object
from medgrpo.records import Corpus, Record, verdict_counts

DEFAULT_GROUND_TRUTH = "test_ground_truth.json"
FILE = Wanted(file="PubMedQA's file", example="ori_pqal.json", key="PMID")
HUB_ID = "qiaojin/PubMedQA"
OFFICIAL_TEST_SHA256 = "8cf42aa2181eb26c952897e953a7c2665d72f065d1ae2a9b613fb8f682cf3225"

_FIELDS = {
    "QUESTION": "question",
    "CONTEXTS": "contexts",
    "final_decision": "verdict",
    "LONG_ANSWER": "long_answer",
    "YEAR": "year",
}


def load(path: Path | str, ground_truth: Path | str | None = None) -> Corpus:
    """Read `ori_pqal.json` and its official test split.

    Args:
        path: the file of labelled records.
        ground_truth: the file {PMID: verdict} of the test split; by default the file of the official name beside
            `path` if there is one, else the official split is computed.

    Returns:
        A corpus whose splits are "train" (the whole pool), "dev" (empty) and "test".

    Raises:
        InputError: naming file, record and field of the first problem found.
    """
    path = Path(path)
    records = read_records(path)
    beside = path.parent / DEFAULT_GROUND_TRUTH
    truth = Path(ground_truth) if ground_truth else beside if beside.is_file() else None
    test = _read_test_ids(truth, records) if truth else official_test_ids(records, source=str(path))
    return _corpus(records, test)


def read_records(path: Path) -> dict[str, Record]:
    """PMID -> record of a file in the form of `ori_pqal.json`, in the file's order.

    Raises:
        InputError: naming file, record and field of the first problem found.
    """
    return {pmid: _record(pmid, fields, path) for pmid, fields in read_json_object(path, FILE).items()}


def load_from_hub(hub_id: str, revision: str) -> Corpus:
    """The same corpus from the Hugging Face Hub.

    Raises:
        ServiceUnreachable: the Hub did not answer.
        InputError: the dataset has other columns than PubMedQA's.
    """
    give = "the file itself: --set data.path=PATH/ori_pqal.json"
    rows = load_split(hub_id, "pqa_labeled", "train", revision, title="PubMedQA", give=give, own=HUB_ID)
    raw = JsonObject([_hub_fields(row) for row in rows])
    if raw.twice:
        raise InputError(f"{hub_id}: the PMID {raw.twice} stands there twice; every PMID must be unique.")
    records = {pmid: _record(pmid, fields, hub_id) for pmid, fields in raw.items()}
    return _corpus(records, official_test_ids(records, source=hub_id))


def official_test_ids(records: Mapping[str, Record], source: str) -> list[str]:
    """The 500 official test PMIDs, computed as PubMedQA's own split: a seeded shuffle per verdict, second half.

    The result depends on the order of the records, so it is checked against the digest of the published list.

    Raises:
        InputError: these are not the 1,000 published records in their order.
    """
    generator = random.Random(0)
    test: list[str] = []
    for verdict in VERDICTS:
        ids = [record.id for record in records.values() if record.verdict == verdict]
        generator.shuffle(ids)
        test += ids[math.ceil(len(ids) / 2) :]
    if hashlib.sha256(" ".join(sorted(test)).encode()).hexdigest() != OFFICIAL_TEST_SHA256:
        raise InputError(
            f"{source}: the official test split cannot be computed, these are not the 1,000 published records in their "
            f"order ({len(records)} records found). Give the split itself: --set data.path=PATH/ori_pqal.json --set "
            f"data.ground_truth=PATH/{DEFAULT_GROUND_TRUTH}."
        )
    return test


def _record(pmid: str, fields: Any, source: Path | str) -> Record:
    if not pmid or pmid != pmid.strip() or not pmid.isprintable():
        raise InputError(f"{source}: {pmid!r} is no PMID: empty, with blanks around it, or no text. Correct that key.")
    if not isinstance(fields, dict):
        raise InputError(f"{source}, record {pmid}: expected an object of fields, found a {type(fields).__name__}.")
    missing = [name for name in _FIELDS if name not in fields and name != "YEAR"]
    if missing:
        raise InputError(f"{source}, record {pmid}: field {missing[0]} is missing. Expected {', '.join(_FIELDS)}.")
    values: dict[str, Any] = {ours: fields.get(theirs) or None for theirs, ours in _FIELDS.items()}
    try:
        return Record(id=pmid, domain="pubmedqa", **values)
    except ValidationError as error:
        problem = error.errors()[0]
        name = next(theirs for theirs, ours in _FIELDS.items() if ours == problem["loc"][0])
        found = json.dumps(fields.get(name), ensure_ascii=False)[:80]
        expected = "yes, no or maybe" if name == "final_decision" else problem["msg"]
        raise InputError(f"{source}, record {pmid}: field {name} is {found}; expected: {expected}.") from error


def _hub_fields(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """PMID and fields of a row of the Hub's dataset, named as in the file."""
    try:
        return str(row["pubid"]), {
            "QUESTION": row["question"],
            "CONTEXTS": row["context"]["contexts"],
            "final_decision": row["final_decision"],
            "LONG_ANSWER": row["long_answer"],
        }
    except KeyError as error:
        raise InputError(f"the dataset has no column {error}; expected the columns of qiaojin/PubMedQA.") from error
    except TypeError as error:
        raise InputError("the dataset's column 'context' holds no contexts; expected qiaojin/PubMedQA.") from error


def _read_test_ids(path: Path, records: Mapping[str, Record]) -> list[str]:
    truth = read_json_object(path, FILE)
    for pmid, verdict in truth.items():
        if verdict not in VERDICTS:
            raise InputError(f"{path}, record {pmid}: verdict is {verdict!r}; expected yes, no or maybe.")
        if pmid not in records:
            raise InputError(f"{path}, record {pmid}: is not among the {len(records)} records it should belong to.")
        if records[pmid].verdict != verdict:
            raise InputError(
                f"{path}, record {pmid}: verdict is {verdict!r}, but final_decision is {records[pmid].verdict!r}. "
                "The two files are not of the same release."
            )
    return list(truth)


def _corpus(records: dict[str, Record], test: Iterable[str]) -> Corpus:
    held_out = set(test)
    pool = tuple(i for i in records if i not in held_out)
    corpus = Corpus(name="pubmedqa", records=records, splits={"train": pool, "dev": (), "test": tuple(test)})
    for name in ("train", "test"):
        counts = verdict_counts(corpus.split(name))
        if not sum(counts.values()):
            raise InputError(f"PubMedQA: the {name} split is empty ({len(records)} records, {len(held_out)} in test).")
    return corpus


def _load(config: DataConfig) -> Corpus:
    if config.path:
        return load(config.path, config.ground_truth)
    if config.ground_truth:
        raise InputError(
            "data.ground_truth is set, but data.path is not, so it would be ignored: set data.path=PATH/ori_pqal.json, "
            "or leave both out to use the Hugging Face Hub."
        )
    return load_from_hub(config.hub_id or HUB_ID, config.hub_revision)


def _files(config: DataConfig) -> list[Path]:
    return [config.path, config.ground_truth or config.path.parent / DEFAULT_GROUND_TRUTH] if config.path else []


DOMAIN = abstracts_domain(
    "pubmedqa",
    load=_load,
    read_labelled=lambda path: list(read_records(path).values()),
    data="expert-labelled abstracts",
    suffix="",
    files=_files,
    hub_id=HUB_ID,
    # Human performance, reasoning-required setting, test split (Jin et al. 2019, table 5).
    references=(
        {
            "name": "human (reasoning required)",
            "accuracy": 0.780,
            "macro_f1": 0.722,
            "note": "on the 500 test records",
        },
    ),
)
