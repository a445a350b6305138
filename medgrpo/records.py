"""Records, splits and their digests: the shape every domain's data takes."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from medgrpo.completions import VERDICT_FORM, AnswerForm

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
SplitName = Literal["train", "dev", "test"]

# A conclusion of fewer words ("No effect.") stands in many an abstract by chance.
SHORTEST_PASSAGE = 5
DEFAULT_DOMAIN = "synthetic"
"""Domain of records and questions that name none."""


class Record(BaseModel):
    """One question with the abstract that answers it.

    `contexts` are the abstract's sections without its conclusion; `long_answer` is that conclusion. It may build gold
    completions and references for rewards, and must never stand in a prompt. `verdict` is the expert's answer as its
    `domain` writes it, which also reads and pays the answers of models.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text
    question: Text
    contexts: Annotated[tuple[Text, ...], Field(min_length=1)]
    domain: str = DEFAULT_DOMAIN
    verdict: Text
    long_answer: Text
    year: int | None = None
    synthetic: bool = False

    @field_validator("verdict")
    @classmethod
    def _is_an_answer(cls, verdict: str, info: ValidationInfo) -> str:
        """No completion could be right about an answer that its domain does not write so."""
        from medgrpo.domains import get

        form = get(info.data.get("domain", DEFAULT_DOMAIN)).form
        if form.strict(verdict) != verdict:
            raise ValueError(f"{verdict!r} is no {form.kind} of this domain")
        return verdict


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

    The year is left out: the Hub's copy of PubMedQA lacks it, and is the same data. So is the domain, which says who
    reads the answers.
    """
    contents = (record.model_dump(exclude={"year", "domain"}) for record in records)
    lines = sorted(json.dumps(content, sort_keys=True, ensure_ascii=False) for content in contents)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def verdict_counts(records: Iterable[Record], form: AnswerForm = VERDICT_FORM) -> dict[str, int]:
    """How often each class of answers occurs, in the form's order: yes, no, maybe; open answers are one class."""
    counts = Counter(form.class_of(record.verdict) for record in records)
    return {verdict: counts.get(verdict, 0) for verdict in form.classes}


def split_pool(
    pool: Sequence[Record], fold: int, seed: int, folds: int = 10, form: AnswerForm = VERDICT_FORM
) -> tuple[list[str], list[str]]:
    """Cut a pool into train and dev ids, each class of answers dealt evenly over the folds.

    Args:
        pool: the records of the pool.
        fold: which fold becomes dev, from 0.
        seed: seed of the shuffle before dealing.
        folds: number of folds.
        form: the classes of their answers.

    Returns:
        Train ids and dev ids, in the pool's order.
    """
    generator = random.Random(seed)
    dev: set[str] = set()
    for verdict in form.classes:
        ids = sorted(record.id for record in pool if form.class_of(record.verdict) == verdict)
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
