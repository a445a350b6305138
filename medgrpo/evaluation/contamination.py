"""Contamination: evaluated cases whose abstract or question stands, nearly word for word, in the training split too.

Likeness is the cosine of TF-IDF vectors over words and word pairs (counts on a log scale, rarity learned from the texts
compared). Among PubMedQA's 500 training and 500 test records the most alike abstracts reach 0.17 and the most alike
questions 0.37, while a copy keeps about 0.85 with a tenth of its words replaced, 0.7 with a fifth, 0.57 with a third,
and 0.75 with half of its sentences left out. Paraphrases in other words, and translations, are not found.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medgrpo.records import Record


def contamination(train: Sequence[Record], cases: Sequence[Record], threshold: float) -> dict[str, Any]:
    """Near-duplicates between training records and evaluated cases, as metrics.json holds them.

    A pair with like abstracts is a leak: the case's answer was trained on. A question that comes again over another
    abstract is none, for the abstract decides; it is listed once a case, with the training record most like it.

    Args:
        train: the training split.
        cases: what is evaluated.
        threshold: likeness in (0, 1] from which question or abstract is a near-duplicate.

    Returns:
        compared: sizes of both sides; threshold; pairs: {case, train, question, abstract} with the two likenesses, the
        most alike abstracts first, then the most alike questions; cases: how many have a near-duplicate of their
        abstract, and how many only of their question.
    """
    abstract = likeness(["\n".join(record.contexts) for record in train], ["\n".join(r.contexts) for r in cases])
    question = likeness([record.question for record in train], [record.question for record in cases])
    leaks = {(int(i), int(j)) for i, j in np.argwhere(abstract >= threshold)}
    leaking = {case for _, case in leaks}
    asked = set(np.flatnonzero(question.max(axis=0) >= threshold).tolist()) - leaking
    listed = [*leaks, *((_nearest(question, abstract, case), case) for case in asked)]
    listed.sort(key=lambda at: (at not in leaks, -(abstract if at in leaks else question)[at], at))
    pairs = [
        {
            "case": cases[j].id,
            "train": train[i].id,
            "question": round(float(question[i, j]), 3),
            "abstract": round(float(abstract[i, j]), 3),
        }
        for i, j in listed
    ]
    return {
        "compared": {"train": len(train), "cases": len(cases)},
        "threshold": threshold,
        "pairs": pairs,
        "cases": {"abstract": len(leaking), "question": len(asked)},
    }


def likeness(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Likeness in [0, 1] of each text of `first` (rows) with each of `second` (columns).

    >>> likeness(["pain fell after surgery"], ["Pain fell after surgery.", "no change"]).round(2).tolist()
    [[1.0, 0.0]]
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    found = vectors.fit_transform([*first, *second])
    # Rounding may pass 1 by a hair.
    return np.minimum((found[: len(first)] @ found[len(first) :].T).toarray(), 1.0)


def _nearest(question: np.ndarray, abstract: np.ndarray, case: int) -> int:
    """The training record whose question is most like a case's; among equals, that with the most alike abstract."""
    return max(range(len(question)), key=lambda i: (round(question[i, case], 6), abstract[i, case]))
