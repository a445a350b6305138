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
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medgrpo.completions import VERDICTS
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.records import Corpus, Record, verdict_counts

DEFAULT_GROUND_TRUTH = "test_ground_truth.json"
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
    return {pmid: _record(pmid, fields, path) for pmid, fields in read_json_object(path).items()}


def load_from_hub(hub_id: str, revision: str) -> Corpus:
    """The same corpus from the Hugging Face Hub.

    Raises:
        ServiceUnreachable: the Hub did not answer.
        InputError: the dataset has other columns than PubMedQA's.
    """
    import datasets

    try:
        rows = datasets.load_dataset(hub_id, "pqa_labeled", split="train", revision=revision)
    except (ConnectionError, OSError, datasets.exceptions.DatasetNotFoundError) as error:
        raise ServiceUnreachable(
            f"the dataset {hub_id} could not be fetched from the Hugging Face Hub ({type(error).__name__}). "
            "Check the network and the name, or give the file itself: --set data.path=PATH/ori_pqal.json."
        ) from error
    except ValueError as error:
        raise InputError(f"the dataset {hub_id} is not PubMedQA: {error}. Set data.hub_id=qiaojin/PubMedQA.") from error
    raw = _Object([_hub_fields(row) for row in rows])
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


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file whose top level is a non-empty object with distinct keys.

    Raises:
        InputError: missing, a directory, not UTF-8, not JSON, truncated, another type, empty, or duplicate keys.
    """
    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated string")
        found = "ends in the middle (truncated?)" if cut else "is not JSON"
        problem = error.msg.removesuffix(" at")
        raise InputError(f"{path}: {found}: {problem} at line {error.lineno}. Fetch the file again.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not usable JSON: {error}. Fetch the file again.") from error
    if not isinstance(value, dict) or not value:
        found = f"a {type(value).__name__}" if value != {} else "an empty object"
        raise InputError(f"{path}: expected a JSON object with one entry per PMID, found {found}.")
    for where, part in [(path, value), *((f"{path}, record {key}", entry) for key, entry in value.items())]:
        if isinstance(part, _Object) and part.twice:
            raise InputError(f"{where}: {part.twice!r} stands there twice; every PMID and field must be unique.")
    return value


def read_text(path: Path) -> str:
    """A UTF-8 file's text, with or without a byte-order mark.

    Raises:
        InputError: missing, a directory, not UTF-8, or not readable.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory; expected a file, for example {path / 'ori_pqal.json'}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file. Give the path of PubMedQA's file, e.g. PATH/ori_pqal.json.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}). Save the file as UTF-8 and try again.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}.") from error


class _Object(dict[str, Any]):
    """A JSON object that remembers the first key it was given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.twice = next((key for key, count in counts.items() if count > 1), None)


def _record(pmid: str, fields: Any, source: Path | str) -> Record:
    if not pmid or pmid != pmid.strip() or not pmid.isprintable():
        raise InputError(f"{source}: {pmid!r} is no PMID: empty, with blanks around it, or no text. Correct that key.")
    if not isinstance(fields, dict):
        raise InputError(f"{source}, record {pmid}: expected an object of fields, found a {type(fields).__name__}.")
    missing = [name for name in _FIELDS if name not in fields and name != "YEAR"]
    if missing:
        raise InputError(f"{source}, record {pmid}: field {missing[0]} is missing. Expected {', '.join(_FIELDS)}.")
    try:
        return Record.model_validate(
            {"id": pmid} | {ours: fields.get(theirs) or None for theirs, ours in _FIELDS.items()}
        )
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
    truth = read_json_object(path)
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
