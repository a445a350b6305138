"""Evaluate models on the same held-out cases and write what came of it."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from medgrpo.config import EvaluationConfig, RunConfig
from medgrpo.errors import InputError
from medgrpo.evaluation.baselines import majority_rule
from medgrpo.evaluation.generate import Generation, sample
from medgrpo.evaluation.plots import save_plots
from medgrpo.evaluation.report import write_report
from medgrpo.evaluation.scoring import answer_row, compare, model_metrics, verdict_metric
from medgrpo.manifests import describe, write_json, write_text
from medgrpo.policies import load_model, resolve_base
from medgrpo.preparation import SUMMARY, load_records
from medgrpo.prompts import render_prompt
from medgrpo.provenance import environment, fingerprint, git_commit
from medgrpo.records import Record
from medgrpo.training.metrics import read_metrics

# PubMedQA's human performance, reasoning-required setting, test split (Jin et al. 2019, table 5).
HUMAN = {"name": "human (reasoning required)", "accuracy": 0.780, "macro_f1": 0.722, "note": "on the 500 test records"}

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Contestant:
    """A model to evaluate.

    Attributes:
        name: base, warmup, tuned, or any other label.
        source: directory or Hugging Face id of a whole model.
        adapter: adapter to fold into it, or None.
        revision: revision of a Hugging Face id.
    """

    name: str
    source: str
    adapter: Path | None = None
    revision: str | None = None

    def identity(self) -> str:
        """What tells this model's answers from another's: names, and digests of the weights on disk."""
        source = Path(self.source)
        parts = [describe(source).sha256 if source.is_dir() else f"{self.source}@{self.revision}"]
        return fingerprint([*parts, describe(self.adapter).sha256 if self.adapter else None])


def contestants(config: RunConfig, train: Path) -> list[Contestant]:
    """Base, warm-up (where there was one) and tuned model of a finished training."""
    base = resolve_base(config.policy)
    warmup = train / "warmup" / "adapter"
    found = [Contestant("base", base, revision=config.policy.revision)]
    if warmup.is_dir():
        found.append(Contestant("warmup", base, warmup, config.policy.revision))
    return [*found, Contestant("tuned", str(train / "model"))]


def evaluate(
    config: RunConfig,
    data: Path,
    models: Sequence[Contestant],
    directory: Path,
    answers_cache: Path,
    on_progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Answer the cases with each model, score and compare.

    Writes predictions.jsonl (a row per case), predictions.json (the last model's verdicts in the official form),
    metrics.json and plots/ into `directory`.

    Args:
        config: the run's settings.
        data: directory of the prepared data.
        models: the models, the reference first and the one in question last.
        directory: where results go.
        answers_cache: where answers are kept as they arrive, so that a killed evaluation goes on, and a model that
            was asked before is not asked again.
        on_progress: called with (model name, answers so far, cases).

    Returns:
        The content of metrics.json.
    """
    records = draw_cases(load_records(data, config.evaluation.split), config.evaluation)
    # The model in question is asked first: it is what somebody who follows the evaluation waits for.
    asked = {model.name: _answers(model, records, config, answers_cache, on_progress) for model in reversed(models)}
    answers = {
        model.name: [
            answer_row(record, generations, config.rewards)
            for record, generations in zip(records, asked[model.name], strict=True)
        ]
        for model in models
    }
    metrics = score(config, json.loads((data / SUMMARY).read_text()), load_records(data, "train"), records, answers)
    write_json(directory / "metrics.json", metrics)
    rows = (json.dumps(case_row(record, answers, i), ensure_ascii=False) for i, record in enumerate(records))
    write_text(directory / "predictions.jsonl", "\n".join(rows) + "\n")
    last = answers[models[-1].name]
    write_json(directory / "predictions.json", {r.id: a["verdict"] for r, a in zip(records, last, strict=True)})
    return metrics


def evaluate_training(
    config: RunConfig,
    data: Path,
    train: Path,
    directory: Path,
    answers_cache: Path,
    on_progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Evaluate base, warm-up and tuned model of a finished training; adds plots/ and report.html to the results."""
    metrics = evaluate(config, data, contestants(config, train), directory, answers_cache, on_progress)
    rows = read_metrics(train / "metrics.jsonl")
    save_plots(directory / "plots", metrics, rows)
    write_report(directory / "report.html", describe_run(config, data, train), metrics, read_cases(directory), rows)
    return metrics


def describe_run(config: RunConfig, data: Path, train: Path) -> dict[str, Any]:
    """What the report says about where its numbers come from."""
    prepared = json.loads((data / SUMMARY).read_text())
    training = json.loads((train / "training.json").read_text())
    return {
        "name": config.name or config.profile,
        "profile": config.profile,
        "domain": prepared["domain"],
        "synthetic": prepared["synthetic"],
        "base": config.policy.base,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "seconds": {"train": training["seconds"]},
        "environment": environment(),
        "config": config.model_dump(mode="json"),
        "data": {
            **{split: sum(counts.values()) for split, counts in prepared["counts"].items()},
            "dropped": prepared["dropped"],
            "digests": prepared["digests"],
        },
    }


def score(
    config: RunConfig,
    data: Mapping[str, Any],
    train: Sequence[Record],
    records: Sequence[Record],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Metrics of each model and every pairwise comparison, as metrics.json holds them."""
    experts = [record.verdict for record in records]
    return {
        "n": len(records),
        "split": config.evaluation.split,
        "domain": data["domain"],
        "synthetic": data["synthetic"],
        "models": {name: model_metrics(experts, rows, config.evaluation) for name, rows in answers.items()},
        "comparisons": [compare(a, b, experts, answers, config.evaluation) for a, b in combinations(answers, 2)],
        "references": _references(data["domain"], train, records),
    }


def draw_cases(records: Sequence[Record], config: EvaluationConfig) -> list[Record]:
    """The cases to evaluate: all, or a seeded draw that keeps the verdicts' shares.

    Raises:
        InputError: more cases are asked for than there are.
    """
    if config.cases == "all" or config.cases == len(records):
        return list(records)
    if config.cases > len(records):
        raise InputError(
            f"evaluation.cases is {config.cases}, but the {config.split} split holds {len(records)}; "
            'lower it, or set evaluation.cases="all".'
        )
    by_verdict: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: hashlib.sha256(f"{config.seed} {r.id}".encode()).digest()):
        by_verdict.setdefault(record.verdict, []).append(record)
    ranked = sorted(
        ((position + 0.5) / len(group), record.id)
        for group in by_verdict.values()
        for position, record in enumerate(group)
    )
    chosen = {record_id for _, record_id in ranked[: config.cases]}
    return [record for record in records if record.id in chosen]


def case_row(record: Record, answers: Mapping[str, Sequence[Mapping[str, Any]]], index: int) -> dict[str, Any]:
    """One case with every model's answer, as a row of predictions.jsonl."""
    return {
        "id": record.id,
        "question": record.question,
        "contexts": list(record.contexts),
        "expert": record.verdict,
        "long_answer": record.long_answer,
        "synthetic": record.synthetic,
        "answers": {name: rows[index] for name, rows in answers.items()},
    }


def read_cases(directory: Path) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl."""
    text = (directory / "predictions.jsonl").read_text(encoding="utf-8")
    # Not splitlines(): a text may hold U+2028 or U+0085, which JSON leaves as they are.
    return [json.loads(line) for line in text.split("\n") if line]


def _references(domain: str, train: Sequence[Record], records: Sequence[Record]) -> list[dict[str, Any]]:
    rule = majority_rule(train)
    scores = verdict_metric().compute(
        predictions=[rule(record) for record in records], references=[record.verdict for record in records]
    )
    always = {"name": f'always "{rule(records[0])}"', **scores, "note": "on these cases"}
    return [always, HUMAN] if domain == "pubmedqa" else [always]


def _answers(
    model: Contestant, records: Sequence[Record], config: RunConfig, cache: Path, on_progress: Progress
) -> list[list[Generation]]:
    """The greedy answer to each case and the sampled ones after it: from the cache, the missing from the model."""
    from medgrpo.prefix.generation import Sampling

    settings = config.evaluation
    copies, temperature = 1 + settings.samples, settings.sample_temperature if settings.samples else 0.0
    sampling = Sampling(config.grpo.max_completion_length, temperature, first_greedy=True)
    drawn = [copies, asdict(sampling), settings.seed if settings.samples else None]
    path = cache / f"{model.name}-{fingerprint([model.identity(), drawn])}.jsonl"
    prompts = {record.id: render_prompt(record) for record in records}
    digests = {record_id: fingerprint(prompt) for record_id, prompt in prompts.items()}
    known = _read_answers(path, digests)
    missing = [record for record in records if record.id not in known]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        weights, tokenizer = load_model(model.source, model.adapter, model.revision)
        with path.open("a", encoding="utf-8") as stream:

            def keep(index: int, answers: list[Generation]) -> None:
                record_id = missing[index].id
                known[record_id] = answers
                row = {"id": record_id, "prompt": digests[record_id], "answers": [asdict(a) for a in answers]}
                stream.write(json.dumps(row) + "\n")
                stream.flush()
                on_progress(model.name, len(known), len(records))

            seed_sampling(settings.seed)
            asked = [prompts[record.id] for record in missing]
            sample(weights, tokenizer, asked, copies, sampling, settings.batch_tokens, keep)
    return [known[record.id] for record in records]


def seed_sampling(seed: int) -> None:
    """Seed the generator that sampled answers are drawn with."""
    import torch

    torch.manual_seed(seed)


def _read_answers(path: Path, digests: Mapping[str, str]) -> dict[str, list[Generation]]:
    """Answers kept so far to these very prompts; a last line cut off by a kill is asked again."""
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        write_text(path, whole)
    rows = [json.loads(line) for line in whole.splitlines()]
    return {
        row["id"]: [Generation(**answer) for answer in row["answers"]]
        for row in rows
        if digests.get(row["id"]) == row["prompt"]
    }


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
