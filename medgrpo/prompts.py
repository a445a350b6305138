"""The prompt of a question with its abstract, and the gold completion of a labelled record."""

from collections.abc import Sequence

from medgrpo.completions import render_completion
from medgrpo.config import RewardConfig
from medgrpo.records import Record
from medgrpo.rewards.agreement import conclusion, first_words, split_sentences, stems
from medgrpo.rewards.grounding import grounding, tokenize

SYSTEM = (
    "You read one abstract and answer the question from it alone. First write the findings that decide it between "
    "<thought> and </thought>, citing the abstract. Then conclude with exactly one word, yes, no or maybe, between "
    "<answer> and </answer>."
)


def render_question(question: str, contexts: Sequence[str]) -> list[dict[str, str]]:
    """Chat messages for a question about an abstract given as sections."""
    abstract = "\n".join(contexts)
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Abstract: {abstract}\n\nQuestion: {question}"},
    ]


def render_prompt(record: Record) -> list[dict[str, str]]:
    """Chat messages of a record; never holds its long_answer."""
    return render_question(record.question, record.contexts)


def gold_completion(record: Record, config: RewardConfig | None = None) -> str:
    """A completion that earns the maximum, built without a teacher model.

    The thought quotes the sentences of the abstract nearest to the expert's long_answer, as many as the grounding
    reward asks for, then gives the long_answer without sentences whose figures are not in the abstract.
    """
    config = config or RewardConfig()
    concluded = conclusion(record.long_answer, record.contexts, config.max_thought_words // 2)
    quoted: list[str] = []
    for sentence in _nearest_sentences(record):
        if quoted and _earns_all(record, " ".join([*quoted, concluded]), config):
            break
        quoted.append(_closed(first_words(sentence, config.max_copied_words // 2)))
    return render_completion(" ".join([*quoted, concluded]).strip(), record.verdict)


def _closed(sentence: str) -> str:
    """A quotation that ends visibly, so that the conclusion is a sentence of its own."""
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence} ..."


def _earns_all(record: Record, thought: str, config: RewardConfig) -> bool:
    return grounding(thought, record.contexts, record.question, config) == 1.0


def nearness(sentence: str, record: Record, section: int) -> float:
    """How near a sentence of a record's abstract is to the long_answer, from 0 to 2.

    It is the Dice overlap of content words, doubled towards the abstract's end: findings stand in its later sections,
    while its first ones often repeat the question that the long_answer answers.

    Args:
        sentence: the sentence.
        record: the record.
        section: which of the abstract's sections it stands in, from 0.
    """
    wanted, said = (set(stems(tokenize(text))) for text in (record.long_answer, sentence))
    overlap = len(said & wanted) / (len(said) + len(wanted) or 1)
    return overlap * (1 + section / max(1, len(record.contexts) - 1))


def _nearest_sentences(record: Record) -> list[str]:
    """The abstract's sentences, nearest to the long_answer first."""
    near = {
        sentence: nearness(sentence, record, section)
        for section, text in enumerate(record.contexts)
        for sentence in split_sentences(text)
    }
    return sorted(near, key=lambda sentence: -near[sentence])
