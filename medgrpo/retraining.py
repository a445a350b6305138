"""Whether there is a reason to train again: data that no version was trained on, or a champion that fell.

A champion fell where the whole 95 % interval of its accuracy on fresh labelled records lies below the interval that its
evaluation recorded. That is the gate's own rule: in between there is not enough evidence, and nothing is trained.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from medgrpo.config import RunConfig
from medgrpo.domains import read_labelled
from medgrpo.errors import InputError
from medgrpo.evaluation.statistics import Interval, wilson
from medgrpo.manifests import write_json, write_text
from medgrpo.preparation import SUMMARY, load_records
from medgrpo.records import Record

if TYPE_CHECKING:
    from medgrpo.evaluation.asking import Contestant, Progress
    from medgrpo.registry import Registration

MEASURED_FILE, ANSWERS_FILE = "fresh.json", "predictions.jsonl"
Outcome = Literal["new-data", "champion-fell", "waits-for-review", "not-enough-evidence", "no-reason"]
REASONS: tuple[Outcome, ...] = ("new-data", "champion-fell")
"""The outcomes that start a training."""
_ADVICE = "The data is known, so another seed is trained: to learn from the fresh records, add them to data.path"


class Measured(BaseModel):
    """What is in a file of fresh records, and what a model made of them."""

    model_config = ConfigDict(frozen=True)

    file: str
    """The file's name."""
    in_pool: int
    """Records left out because they are in the training pool."""
    in_test: int
    """Records left out because they are in the test split."""
    copies: int
    """Records left out because their abstract is nearly one of those under another id."""
    n: int
    """Records that are fresh."""
    right: int | None = None
    """How many of them the model answered as the experts did; None where it was not asked."""

    @property
    def accuracy(self) -> Interval | None:
        """Share of right answers; None where the model was not asked."""
        return None if self.right is None else wilson(self.right, self.n)

    @property
    def left_out(self) -> str:
        """What was left out, in a sentence."""
        total = self.in_pool + self.in_test + self.copies + self.n
        return (
            f"Of the {total:,} records in {self.file} {self.in_pool:,} are in the training pool, {self.in_test:,} in "
            f"the test split and {self.copies:,} nearly copies of such, which leaves {self.n:,} fresh."
        )


class Decision(BaseModel):
    """Whether to train, and why."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    """What was found, in a word to filter by."""
    sentence: str
    """The same for a person."""
    fresh: Measured | None = None
    """What the champion made of fresh records; None where they were not looked at."""
    seed_offset: int = 0
    """Added to the seed. On known data the same seed would give the same model; one number for each champion that fell
    gives one other, however often it is found to have fallen."""

    @property
    def trains(self) -> bool:
        """Whether there is a reason to train."""
        return self.outcome in REASONS

    def settings(self, config: RunConfig) -> RunConfig:
        """The settings to train with."""
        return config.model_copy(update={"seed": config.seed + self.seed_offset})

    def as_dict(self) -> dict[str, Any]:
        """The decision as summary.json holds it."""
        return {"trains": self.trains, **self.model_dump()}

    def markdown(self) -> str:
        """The decision for a page."""
        return f"**{'Training' if self.trains else 'Nothing is trained'}** ({self.outcome}). {self.sentence}\n"


def find_reason(config: RunConfig, data: Path, measure: "Callable[[Registration], Measured]") -> Decision:
    """Look for a reason to train: first at the data, then at the champion.

    Args:
        config: the run's settings.
        data: directory of the prepared data.
        measure: lets a champion answer the fresh records; called only where it decides.

    Raises:
        ServiceUnreachable: MLflow does not answer, so that nothing is known.
        InputError: the file of fresh records cannot be used.
    """
    from medgrpo.registry import registered_name
    from medgrpo.registry.facts import data_digest
    from medgrpo.registry.lookup import trained_on

    # What is wrong with the file is said at once, and not in the week when it is needed.
    read_fresh_file(config)
    prepared = json.loads((data / SUMMARY).read_text())
    name, digest = registered_name(config, prepared["domain"]), data_digest(prepared)
    this_data, known = f"this data (digest {digest[:12]})", trained_on(config, prepared["domain"], digest)
    if not known:
        sentence = f"No version of {name} was trained on {this_data}: it is new, or was changed."
        return Decision(outcome="new-data", sentence=sentence)
    waiting = next((version for version in known if config.tracking.alias in version.aliases), None)
    if waiting:
        sentence = (
            f"Version {waiting.version} of {name} was trained on {this_data} and waits for review (alias "
            f"{config.tracking.alias}). Decide about it before anything is trained again: medgrpo review."
        )
        return Decision(outcome="waits-for-review", sentence=sentence)
    trained = f"Version {known[0].version} of {name} was trained on {this_data} already"
    if not config.retrain.fresh:
        sentence = f"{trained}, and no fresh labelled records are named (retrain.fresh)."
        return Decision(outcome="no-reason", sentence=sentence)
    found = _ask_champion(config, prepared["domain"], measure)
    return found.model_copy(update={"sentence": f"{trained}. {found.sentence}"})


def _ask_champion(config: RunConfig, domain: str, measure: "Callable[[Registration], Measured]") -> Decision:
    """What fresh records say about the champion."""
    from medgrpo.registry import find_champion, review

    champion = find_champion(config, domain)
    if champion is None:
        sentence = "Fresh records say nothing as long as no version is the champion: approve one with medgrpo review."
        return Decision(outcome="no-reason", sentence=sentence)
    recorded = recorded_accuracy(review.show(config, str(champion.version)).metrics)
    if recorded is None:
        sentence = (
            f"Not enough evidence: version {champion.version}, the champion, was registered without an evaluation that "
            "fresh records could be compared with."
        )
        return Decision(outcome="not-enough-evidence", sentence=sentence)
    return judge(champion.version, recorded, measure(champion), config.retrain.fresh_cases)


def judge(version: int, recorded: Interval, fresh: Measured, cases: int) -> Decision:
    """Whether a champion fell.

    Args:
        version: number of the champion.
        recorded: its accuracy as it was evaluated.
        fresh: its answers to fresh records.
        cases: fresh records that it takes to conclude anything.
    """
    now = fresh.accuracy
    if now is None:
        needed = f"it takes {cases:,} fresh records to conclude anything (retrain.fresh_cases)"
        sentence = f"Not enough evidence: {needed}. {fresh.left_out}"
        return Decision(outcome="not-enough-evidence", sentence=sentence, fresh=fresh)
    right = f"{now.value:.1%} ({now.low:.1%} to {now.high:.1%}) of {now.n:,} fresh records"
    begins = f"{recorded.low:.1%}, where the interval of its evaluation begins ({recorded.value:.1%} of {recorded.n:,})"
    outcome: Outcome
    offset = 0
    if now.high < recorded.low:
        outcome, judged, offset = "champion-fell", f"all of that is below {begins}. {_ADVICE}", version
    elif now.value < recorded.low:
        outcome, judged = "not-enough-evidence", f"that is below {begins}, but not enough evidence that it fell"
    else:
        outcome, judged = "no-reason", f"that is not below {begins}"
    sentence = f"Version {version}, the champion, is right in {right}: {judged}. {fresh.left_out}"
    return Decision(outcome=outcome, sentence=sentence, fresh=fresh, seed_offset=offset)


def recorded_accuracy(metrics: Mapping[str, Any]) -> Interval | None:
    """Accuracy of the model in question, the last one, as an evaluation recorded it; None where it recorded none.

    Args:
        metrics: content of metrics.json.
    """
    models = list(metrics.get("models", {}).values())
    found = models[-1].get("accuracy") if models else None
    return Interval(**found) if found and None not in found.values() else None


@dataclass(frozen=True)
class Fresh:
    """Labelled records that are neither trained on nor evaluated with.

    Attributes:
        records: the fresh ones, in the file's order.
        counts: their number and how many others the file holds, as yet without answers.
    """

    records: Sequence[Record]
    counts: Measured


def read_fresh_file(config: RunConfig) -> list[Record]:
    """All records of the file that `retrain.fresh` names; none where it names none.

    Raises:
        InputError: the file cannot be used.
    """
    path = config.retrain.fresh
    try:
        return read_labelled(config.data, path) if path else []
    except InputError as error:
        raise InputError(f"retrain.fresh (fresh labelled records, in the form of the data): {error}") from error


def find_fresh(config: RunConfig, data: Path) -> Fresh:
    """The records of `retrain.fresh` without those that are, or nearly are, among the prepared ones.

    Records that were dropped, as too long or unteachable, are in the pool nevertheless, but known by their ids alone.

    Args:
        config: the run's settings.
        data: directory of the prepared data.

    Raises:
        InputError: the file cannot be used.
    """
    given = read_fresh_file(config)
    dropped = json.loads((data / SUMMARY).read_text())["dropped"]
    pool, test = [*load_records(data, "train"), *load_records(data, "dev")], load_records(data, "test")
    in_pool, in_test = {record.id for record in pool} | {gone["id"] for gone in dropped}, {record.id for record in test}
    others = [record for record in given if record.id not in in_pool | in_test]
    fresh = _without_copies(others, [*pool, *test], config.evaluation.near_duplicate)
    counts = Measured(
        file=Path(str(config.retrain.fresh)).name,
        in_pool=sum(record.id in in_pool for record in given),
        in_test=sum(record.id in in_test for record in given),
        copies=len(others) - len(fresh),
        n=len(fresh),
    )
    return Fresh(fresh, counts)


def _without_copies(records: Sequence[Record], known: Sequence[Record], threshold: float) -> list[Record]:
    """Records whose abstract is not nearly that of a known one."""
    from medgrpo.evaluation.contamination import likeness

    if not records:
        return []
    known_texts, texts = (["\n".join(record.contexts) for record in group] for group in (known, records))
    nearest = likeness(known_texts, texts).max(axis=0)
    return [record for record, alike in zip(records, nearest, strict=True) if alike < threshold]


def ask(
    config: RunConfig, records: Sequence[Record], model: "Contestant", answers_cache: Path, on_progress: "Progress"
) -> list[dict[str, Any]]:
    """A model's greedy answers to records, as rows of predictions.jsonl.

    Args:
        config: the run's settings.
        records: the cases.
        model: whom to ask.
        answers_cache: where answers are kept as they arrive.
        on_progress: called with (model name, answers so far, cases).
    """
    from medgrpo.evaluation import asking
    from medgrpo.evaluation.compare import case_row
    from medgrpo.evaluation.scoring import answer_row

    greedy = config.evaluation.model_copy(update={"samples": 0, "probes": False})
    settings = config.model_copy(update={"evaluation": greedy})
    generations = asking.ask([model], records, settings, answers_cache, on_progress).generations[model.name]
    rows = [answer_row(record, given, config.rewards) for record, given in zip(records, generations, strict=True)]
    return [case_row(record, {model.name: rows}, i) for i, record in enumerate(records)]


def write_measured(directory: Path, fresh: Fresh, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep what the one model that was asked made of fresh records; without rows none was."""
    right = sum(answer["verdict"] == row["expert"] for row in rows for answer in row["answers"].values())
    measured = fresh.counts.model_copy(update={"right": right}) if rows else fresh.counts
    write_text(directory / ANSWERS_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(directory / MEASURED_FILE, measured.model_dump())


def read_measured(directory: Path) -> Measured:
    """What `write_measured` kept."""
    return Measured.model_validate_json((directory / MEASURED_FILE).read_bytes())
