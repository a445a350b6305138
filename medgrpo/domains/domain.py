"""What a domain is: where its records come from, how its answers are written and read, and what they are paid for.

All else (training, watch, audit, evaluation, gate, report, registry) is the same for every domain and asks this one
object. A domain is one file of this package with a `DOMAIN`; its name is the file's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medgrpo.completions import VERDICT_FORM, AnswerForm
from medgrpo.config import DataConfig, RewardConfig
from medgrpo.records import Corpus, Record
from medgrpo.rewards.attacks import Attack
from medgrpo.rewards.grounding import Evidence


def named_files(config: DataConfig) -> list[Path]:
    """The files that `data.path` and `data.ground_truth` name; of a directory, those that lie in it."""
    named = [path for path in (config.path, config.ground_truth) if path]
    return [file for path in named for file in (sorted(path.iterdir()) if path.is_dir() else [path])]


@dataclass(frozen=True)
class Domain:
    """One domain. Everything here is pure but `load` and `read_labelled`.

    Attributes:
        name: of the domain and its file.
        summary: what a model of it does, as "Reads an abstract and answers yes, no or maybe".
        load: the records of the settings, all that may be trained on in "train", "dev" empty.
        read_labelled: the records of a further file in the same form; None where there are no files.
        system: the instructions that open every prompt.
        render: question and contexts -> the user's turn. It knows no answer, so none can leak.
        gold_thought: a thought that earns the maximum with the record's answer.
        correctness: (answer or None, expert's answer, settings, agreement) -> grade in [0, 1], 1 only for the right
            answer with full agreement.
        agreement: (thought, record, settings) -> how well it concludes what the expert concluded, in [0, 1].
        grounding: (thought, contexts, question, settings) -> grade in [0, 1].
        evidence: (thought, contexts, question) -> what the thought cites, and what of it is unsupported.
        disagrees: (thought, answer, question) -> whether the thought concludes another answer.
        other: a wrong answer of the same form, for the audit.
        attacks: the domain's own, beside those on form that every domain is tried with, or instead of one of that name.
        form: how answers are written and read.
        card: for the model card: {intended_use, limitations, data}, a paragraph each.
        references: published results that reports show beside the models', as `evaluation.compare` describes them.
        hub_id: dataset on the Hugging Face Hub; None where there is none.
        conclusion: the expert's conclusion, as the gold thought ends with it; "" where another would earn as much.
        unteachable: why the gold completion should not be imitated, and the record is no training record; "" for most.
        files: those that the settings' records are read from; what is prepared depends on their content.
        suffix: what registered models of it have behind `tracking.model_name`; None for a hyphen and its name.
        topics: tags of its models on the Hub.
        source: what a record's contexts are, a noun with a plural in -s, as in "the figures that the abstract lacks".
        caution: the sentence that warns readers of its answers; "" for none.
        example: {question, contexts} that a registered model carries as its input example; None for none.
    """

    name: str
    summary: str
    load: Callable[[DataConfig], Corpus]
    read_labelled: Callable[[Path], list[Record]] | None
    system: str
    render: Callable[[str, Sequence[str]], str]
    gold_thought: Callable[[Record, RewardConfig], str]
    correctness: Callable[[str | None, str, RewardConfig, float], float]
    agreement: Callable[[str, Record, RewardConfig], float]
    grounding: Callable[[str, Sequence[str], str, RewardConfig], float]
    evidence: Callable[[str, Sequence[str], str], Evidence]
    disagrees: Callable[[str, str | None, str], bool]
    other: Callable[[Record], str]
    attacks: Mapping[str, Attack]
    card: Mapping[str, str]
    form: AnswerForm = VERDICT_FORM
    references: tuple[Mapping[str, Any], ...] = ()
    hub_id: str | None = None
    conclusion: Callable[[Record, RewardConfig], str] = lambda record, config: ""
    unteachable: Callable[[Record, RewardConfig], str] = lambda record, config: ""
    files: Callable[[DataConfig], Sequence[Path]] = named_files
    suffix: str | None = None
    topics: tuple[str, ...] = ()
    source: str = "text"
    caution: str = ""
    example: Mapping[str, Any] | None = None

    @property
    def model_suffix(self) -> str:
        """What registered models have behind `tracking.model_name`, so that those of two domains never mix."""
        return f"-{self.name}" if self.suffix is None else self.suffix
