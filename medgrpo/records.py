"""Records, splits and their digests: the shape every domain's data takes."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
SplitName = Literal["train", "dev", "test"]
Verdict = Literal["yes", "no", "maybe"]

# A conclusion of fewer words ("No effect.") stands in many an abstract by chance.
SHORTEST_PASSAGE = 5


class Record(BaseModel):
    """One question with the abstract that answers it.

    `contexts` are the abstract's sections without its conclusion; `long_answer` is that conclusion. It may build gold
    completions and references for rewards, and must never stand in a prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text
    question: Text
    contexts: Annotated[tuple[Text, ...], Field(min_length=1)]
    verdict: Verdict
    long_answer: Text
    year: int | None = None
    synthetic: bool = False


class Dropped(BaseModel):
    """A record left out of training, and why."""

    model_config = ConfigDict(frozen=True)

    id: str
    split: SplitName
    reason: str


class Corpus(BaseModel):
    """All records of a domain and which split each id belongs to.

    Attributes:
        records: id -> Record.
        splits: split name -> ids, in a fixed order.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    records: dict[str, Record]
    splits: dict[SplitName, tuple[str, ...]]
    synthetic: bool = False

    def split(self, name: SplitName) -> list[Record]:
        """The records of one split, in its fixed order."""
        return [self.records[record_id] for record_id in self.splits[name]]


def digest(records: Iterable[Record]) -> str:
    """sha256 (hex) over the records' content, independent of their order.

    The year is left out: the Hub's copy of PubMedQA lacks it, and is the same data.
    """
    contents = (record.model_dump(exclude={"year"}) for record in records)
    lines = sorted(json.dumps(content, sort_keys=True, ensure_ascii=False) for content in contents)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def verdict_counts(records: Iterable[Record]) -> dict[str, int]:
    """How often each verdict occurs, in the order yes, no, maybe."""
    counts = Counter(record.verdict for record in records)
    return {verdict: counts.get(verdict, 0) for verdict in ("yes", "no", "maybe")}


def split_pool(pool: Sequence[Record], fold: int, seed: int, folds: int = 10) -> tuple[list[str], list[str]]:
    """Cut a pool into train and dev ids, each verdict dealt evenly over the folds.

    Args:
        pool: the records of the pool.
        fold: which fold becomes dev, from 0.
        seed: seed of the shuffle before dealing.
        folds: number of folds.

    Returns:
        Train ids and dev ids, in the pool's order.
    """
    generator = random.Random(seed)
    dev: set[str] = set()
    for verdict in ("yes", "no", "maybe"):
        ids = sorted(record.id for record in pool if record.verdict == verdict)
        generator.shuffle(ids)
        dev.update(ids[fold::folds])
    ordered = [record.id for record in pool]
    return [i for i in ordered if i not in dev], [i for i in ordered if i in dev]


def leaks(train: Mapping[str, str], test_ids: Sequence[str], records: Mapping[str, Record]) -> list[str]:
    """Sentences naming every leak in a set of training prompts; empty means none.

    Args:
        train: id -> rendered prompt text of each training record.
        test_ids: ids of the held-out test split.
        records: id -> Record, at least for every id in `train`.
    """
    test = set(test_ids)
    passages = {i: " ".join(records[i].long_answer.split()) for i in train}
    found = [f"record {i} of the test split is among the training prompts" for i in train if i in test]
    return found + [
        f"the prompt of record {i} contains its long_answer"
        for i, prompt in train.items()
        if len(passages[i].split()) >= SHORTEST_PASSAGE and passages[i] in " ".join(prompt.split())
    ]
