"""Prepare the data of a run: split, measure, drop what is too long, check for leaks, store as `datasets.Dataset`."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from medgrpo import domains
from medgrpo.completions import AnswerForm
from medgrpo.config import EvaluationConfig, RewardConfig, RunConfig
from medgrpo.domains import load_corpus
from medgrpo.domains.domain import Domain
from medgrpo.errors import InputError
from medgrpo.manifests import friendly_disk_errors, write_json
from medgrpo.policies import load_tokenizer, resolve_base
from medgrpo.prompts import gold_completion, render_prompt
from medgrpo.records import Corpus, Dropped, Record, SplitName, digest, leaks, verdict_counts

SUMMARY = "data.json"
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
TRAINING_SPLITS: tuple[SplitName, ...] = ("train", "dev")

PAYMENTS = frozenset(
    {"mode", "correctness", "agreement", "grounding", "structure"}
    | {name for name in RewardConfig.model_fields if name.startswith("cost_")}
)
"""Rewards that say what a grade is worth, and not what earns it."""

logger = logging.getLogger(__name__)


def prepare(config: RunConfig, directory: Path) -> dict[str, Any]:
    """Write `train/`, `dev/`, `test/` (each a saved `datasets.Dataset`) and `data.json` into a directory.

    A row holds `record_id`, `prompt` (chat messages), `completion` (the gold completion; empty in test), `verdict` and
    `record` (JSON).
    Only train and dev records are dropped for length: the official test score needs every test record. Records whose
    gold completion their domain calls unteachable are dropped from train.

    Returns:
        The content of `data.json`: domain, synthetic, digests, counts, dropped, max_prompt_tokens (of all splits),
        max_training_tokens (a train prompt with its gold completion, or one at the cap), gold_longer_than_cap.

    Raises:
        InputError: unusable input, or a leak.
    """
    corpus, domain = load_corpus(config.data), domains.get(config.data.domain)
    form, rewards = domain.form, gold_rewards(config.rewards)
    tokenizer = load_tokenizer(resolve_base(config.policy), config.policy.revision)
    limit = config.data.max_length - config.grpo.max_completion_length
    if limit <= 0:
        raise InputError(
            f"grpo.max_completion_length ({config.grpo.max_completion_length}) leaves no room for a prompt within "
            f"data.max_length ({config.data.max_length}). Lower the first or raise the second."
        )
    lengths = {i: _prompt_tokens(record, tokenizer) for i, record in corpus.records.items()}
    corpus, dropped = _drop_long(corpus, lengths, limit, form)
    corpus, untaught = _drop_unteachable(corpus, domain, rewards)
    dropped += untaught
    _check_classes(corpus, form, limit)
    pool = corpus.split("train") + corpus.split("dev")
    check_leaks({record.id: prompt_text(render_prompt(record)) for record in pool}, pool, corpus.splits["test"])
    golds = {record.id: gold_completion(record, rewards) for split in TRAINING_SPLITS for record in corpus.split(split)}
    tokens = _completion_tokens({i: golds[i] for i in corpus.splits["train"]}, tokenizer)
    cap = config.grpo.max_completion_length
    cut = [i for i, length in tokens.items() if length > cap]
    if cut:
        # The warm-up would teach answers that generation cuts off before their verdict.
        logger.warning("%d gold completions are longer than grpo.max_completion_length, e.g. %s", len(cut), cut[0])
    longest = max(lengths[i] + max(cap, length) for i, length in tokens.items())
    summary = _summary(corpus, dropped, lengths, form) | {"max_training_tokens": longest, "gold_longer_than_cap": cut}
    with friendly_disk_errors(directory), _no_progress_bars():
        for split in SPLITS:
            _save(corpus.split(split), golds, directory / split)
        write_json(directory / SUMMARY, summary)
    logger.info("%s: %s; %d dropped", corpus.name, summary["counts"], len(dropped))
    return summary


def gold_rewards(rewards: RewardConfig) -> RewardConfig:
    """The rewards that gold completions are written for, whatever is paid for them: payments are the default ones.

    So trainings that differ in payments share their data.
    """
    return RewardConfig.model_validate(rewards.model_dump(exclude=set(PAYMENTS)))


def check_cases(config: RunConfig, data: Path) -> None:
    """Look whether the split to evaluate on holds the cases that are asked for, before anything is trained.

    Raises:
        InputError: it holds fewer.
    """
    split, cases = config.evaluation.split, config.evaluation.cases
    held = sum(json.loads((data / SUMMARY).read_text())["counts"][split].values())
    if cases != "all" and cases > held:
        raise too_many_cases(config.evaluation, held, "sweep" if config.trial else "evaluation")


def too_many_cases(config: EvaluationConfig, held: int, section: str = "evaluation") -> InputError:
    """The error that more cases are asked for than a split holds."""
    return InputError(
        f"{section}.cases is {config.cases}, but the {config.split} split holds {held}; lower it, or set "
        f'{section}.cases="all".'
    )


def load_records(directory: Path, split: str) -> list[Record]:
    """The records of one prepared split."""
    import datasets

    rows = datasets.load_from_disk(str(directory / split))
    return [Record.model_validate_json(text) for text in rows["record"]]


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """All that a prompt says, as one text."""
    return "\n".join(message["content"] for message in messages)


def check_leaks(prompts: Mapping[str, str], train: Sequence[Record], test_ids: Sequence[str]) -> None:
    """Stop where a test id, or a long_answer, is in a training prompt.

    Args:
        prompts: id -> text of each training prompt, as the model will read it.
        train: the records of these prompts.
        test_ids: ids of the held-out test split.

    Raises:
        InputError: listing up to three leaks.
    """
    found = leaks(prompts, test_ids, {record.id: record for record in train})
    if found:
        raise InputError(
            f"{len(found)} leaks into the training prompts: {'; '.join(found[:3])}. "
            "Training on these would make the evaluation worthless; correct the data."
        )


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Saving a thousand rows takes no time; its bars are noise."""
    import datasets

    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _prompt_tokens(record: Record, tokenizer: Any) -> int:
    ids = tokenizer.apply_chat_template(
        render_prompt(record), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return len(ids)


def _completion_tokens(completions: Mapping[str, str], tokenizer: Any) -> dict[str, int]:
    """Length of each completion, its end of turn included."""
    return {i: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for i, text in completions.items()}


def _drop_long(
    corpus: Corpus, lengths: Mapping[str, int], limit: int, form: AnswerForm
) -> tuple[Corpus, list[Dropped]]:
    dropped = [
        Dropped(id=i, split=split, reason=f"prompt of {lengths[i]} tokens; at most {limit} leave room for a completion")
        for split in TRAINING_SPLITS
        for i in corpus.splits[split]
        if lengths[i] > limit
    ]
    kept = _without(dropped, corpus)
    if not kept.splits["train"]:
        raise InputError(f"{corpus.name}: every train prompt is longer than {limit} tokens. Raise data.max_length.")
    return kept, dropped


def _drop_unteachable(corpus: Corpus, domain: Domain, rewards: RewardConfig) -> tuple[Corpus, list[Dropped]]:
    reasons = {record.id: domain.unteachable(record, rewards) for record in corpus.split("train")}
    dropped = [Dropped(id=i, split="train", reason=reason) for i, reason in reasons.items() if reason]
    if dropped and len(dropped) == len(reasons):
        raise InputError(f"{corpus.name}: of every train record {dropped[0].reason}. Add records that can be learned.")
    return _without(dropped, corpus), dropped


def _check_classes(corpus: Corpus, form: AnswerForm, limit: int) -> None:
    """Refuse training records of which a whole class of answers was dropped."""
    lost = [verdict for verdict, count in verdict_counts(corpus.split("train"), form).items() if not count]
    if lost:
        raise InputError(
            f"{corpus.name}: every train prompt with the {form.kind} {' or '.join(lost)} is longer than {limit} "
            "tokens, or is not taught, so the model could never learn it. Raise data.max_length, or add records."
        )


def _without(dropped: Sequence[Dropped], corpus: Corpus) -> Corpus:
    """The corpus without these records in its splits."""
    gone = {record.id for record in dropped}
    splits = {split: tuple(i for i in ids if i not in gone) for split, ids in corpus.splits.items()}
    return corpus.model_copy(update={"splits": splits})


def _summary(
    corpus: Corpus, dropped: Sequence[Dropped], lengths: Mapping[str, int], form: AnswerForm
) -> dict[str, Any]:
    return {
        "domain": corpus.name,
        "synthetic": corpus.synthetic,
        "digests": {split: digest(corpus.split(split)) for split in SPLITS},
        "counts": {split: verdict_counts(corpus.split(split), form) for split in SPLITS},
        "dropped": [record.model_dump() for record in dropped],
        "max_prompt_tokens": max(lengths.values()),
    }


def _save(records: Sequence[Record], golds: Mapping[str, str], directory: Path) -> None:
    """Store records, each with its gold completion if it has one."""
    import datasets

    rows = [
        {
            "record_id": record.id,
            "prompt": render_prompt(record),
            "completion": golds.get(record.id, ""),
            "verdict": record.verdict,
            "record": record.model_dump_json(),
        }
        for record in records
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(directory))
