"""What domains have in common whose questions an abstract answers with yes, no or maybe."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medgrpo.config import DataConfig, RewardConfig
from medgrpo.domains.abstract_attacks import abstract_attacks
from medgrpo.domains.domain import Domain
from medgrpo.evaluation.conclusions import disagrees
from medgrpo.prompts import nearness
from medgrpo.records import Corpus, Record
from medgrpo.rewards.agreement import agreement, conclusion, first_words, split_sentences
from medgrpo.rewards.correctness import correctness
from medgrpo.rewards.grounding import evidence, grounding

SYSTEM = (
    "You read one abstract and answer the question from it alone. First write the findings that decide it between "
    "<thought> and </thought>, citing the abstract. Then conclude with exactly one word, yes, no or maybe, between "
    "<answer> and </answer>."
)
USE = (
    "For research on models that answer from evidence: it reads one abstract, cites it in a thought and answers a "
    "question with yes, no or maybe, so that a person can check the citations. **Not medical advice**: not for "
    "diagnosis, treatment, triage, or any decision about a patient, and not validated for clinical use."
)
LIMITS = (
    "It reads single English abstracts and is meant to know nothing beyond them. It may cite correctly and still "
    "conclude wrongly, may be sure and wrong, and its verdict can be empty. Abstracts of other fields, kinds or years "
    "than those it was measured on may be read worse. Its confidence is a share of agreeing answers, no probability "
    "of being right."
)
EXAMPLE = {
    "question": "Does daily walking lower resting heart rate? (synthetic example)",
    "contexts": [
        "METHODS: 120 invented adults walked daily or not for 12 weeks.",
        "RESULTS: Resting heart rate fell by 6 beats per minute with walking and by 1 without (p=0.01).",
    ],
}


def abstracts_domain(
    name: str,
    *,
    load: Callable[[DataConfig], Corpus],
    read_labelled: Callable[[Path], list[Record]] | None,
    data: str,
    **others: Any,
) -> Domain:
    """A domain of abstracts.

    Args:
        name: of the domain.
        load: its records.
        read_labelled: the records of a further file.
        data: what its records are, for the model card.
        others: fields of `Domain` that differ from one such domain to the next.
    """
    return Domain(
        name=name,
        summary="Reads an abstract and answers yes, no or maybe",
        load=load,
        read_labelled=read_labelled,
        system=SYSTEM,
        render=render,
        gold_thought=gold_thought,
        correctness=correctness,
        agreement=agreement,
        grounding=grounding,
        evidence=evidence,
        disagrees=disagrees,
        other=other_verdict,
        attacks=abstract_attacks(SYSTEM),
        card={"intended_use": USE, "limitations": LIMITS, "data": data},
        conclusion=comparable_conclusion,
        topics=("medical",),
        source="abstract",
        caution="Not medical advice.",
        example=EXAMPLE,
        **others,
    )


def render(question: str, contexts: Sequence[str]) -> str:
    """The user's turn: an abstract given as sections, and a question about it."""
    abstract = "\n".join(contexts)
    return f"Abstract: {abstract}\n\nQuestion: {question}"


def gold_thought(record: Record, config: RewardConfig) -> str:
    """A thought that earns the maximum.

    It quotes the sentences of the abstract nearest to the expert's long_answer, as many as the grounding reward asks
    for, then gives the long_answer without sentences whose figures are not in the abstract.
    """
    concluded = conclusion(record.long_answer, record.contexts, config.max_thought_words // 2)
    quoted: list[str] = []
    for sentence in _nearest_sentences(record):
        if quoted and _earns_all(record, " ".join([*quoted, concluded]), config):
            break
        quoted.append(_closed(first_words(sentence, config.max_copied_words // 2)))
    return " ".join([*quoted, concluded]).strip()


def other_verdict(record: Record) -> str:
    """A verdict that is not the expert's, the opposite one where there is one."""
    return {"yes": "no", "no": "yes"}.get(record.verdict, "yes")


def comparable_conclusion(record: Record, config: RewardConfig) -> str:
    """The expert's conclusion; "" where an empty thought would agree with it, for there is nothing to compare."""
    said = conclusion(record.long_answer, record.contexts, config.max_thought_words // 2)
    return said if agreement("", record, config) < 1 else ""


def _closed(sentence: str) -> str:
    """A quotation that ends visibly, so that the conclusion is a sentence of its own."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence} ..."


def _earns_all(record: Record, thought: str, config: RewardConfig) -> bool:
    return grounding(thought, record.contexts, record.question, config) == 1.0


def _nearest_sentences(record: Record) -> list[str]:
    """The abstract's sentences, nearest to the long_answer first."""
    near = {
        sentence: nearness(sentence, record, section)
        for section, text in enumerate(record.contexts)
        for sentence in split_sentences(text)
    }
    return sorted(near, key=lambda sentence: -near[sentence])
