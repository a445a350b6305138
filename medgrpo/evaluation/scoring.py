"""Metrics of one model's answers, and the comparison of two models on the same cases."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from medgrpo.completions import VERDICTS, parse_completion
from medgrpo.config import EvaluationConfig, RewardConfig
from medgrpo.errors import InputError
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.statistics import Interval, bootstrap, f1_scores, mcnemar, wilson
from medgrpo.records import Record
from medgrpo.rewards.grounding import evidence, grounding

UNREADABLE = "none"


@cache
def verdict_metric() -> Any:
    """The local `evaluate.Metric` of accuracy and macro-F1."""
    import evaluate

    from medgrpo.evaluation import verdict_metric as metric_file

    return evaluate.load(str(metric_file.__file__))


def official_score(predictions: Mapping[str, str | None], truth: Mapping[str, str]) -> dict[str, float]:
    """Accuracy and macro-F1 of predictions in the official form {PMID: verdict}.

    A prediction of None, which the official scorer does not know, is an unreadable answer and counts as wrong.

    Raises:
        InputError: the PMIDs are not exactly those of the ground truth, or a verdict is unknown.
    """
    missing, extra = truth.keys() - predictions.keys(), predictions.keys() - truth.keys()
    if missing or extra:
        example = sorted(missing or extra)[0]
        raise InputError(
            f"the predictions must cover exactly the {len(truth)} PMIDs of the ground truth: {len(missing)} missing, "
            f"{len(extra)} unknown (for example {example})."
        )
    for name, verdicts in (("prediction", predictions), ("ground truth", truth)):
        for pmid, verdict in verdicts.items():
            if verdict not in VERDICTS and not (verdict is None and verdicts is predictions):
                raise InputError(f"record {pmid}: {name} is {verdict!r}; expected yes, no or maybe.")
    ids = list(truth)
    return verdict_metric().compute(predictions=[predictions[i] or "" for i in ids], references=[truth[i] for i in ids])


def answer_row(record: Record, generations: Sequence[Generation], rewards: RewardConfig) -> dict[str, Any]:
    """One model's answer to one case, as it stands in predictions.jsonl: the first generation, and the others' vote."""
    generation = generations[0]
    vote = {"vote": count_votes([parse_completion(g.text).verdict for g in generations])} if generations[1:] else {}
    completion = parse_completion(generation.text)
    found = evidence(completion.thought, record.contexts, record.question)
    return {
        "text": generation.text,
        "thought": completion.thought,
        "verdict": completion.verdict,
        "well_formed": completion.well_formed,
        "tokens": generation.tokens,
        "grounding": grounding(completion.thought, record.contexts, record.question, rewards),
        "figures": {"supported": list(found.supported), "unsupported": list(found.unsupported)},
        **vote,
    }


def count_votes(verdicts: Sequence[str | None]) -> dict[str, Any]:
    """Majority of the sampled verdicts, and the share of all samples that agree with it.

    Args:
        verdicts: the greedy verdict, which decides a tie that it is part of, then the sampled ones; None is unreadable.

    >>> count_votes(["no", "yes", "no", "yes", "no", None])
    {'verdict': 'no', 'agreement': 0.4, 'counts': {'yes': 2, 'no': 2, 'maybe': 0}}
    """
    greedy, *sampled = verdicts
    counts = {verdict: sampled.count(verdict) for verdict in VERDICTS}
    most = max(counts.values())
    leading = [verdict for verdict, count in counts.items() if count == most]
    winner = (greedy if greedy in leading else leading[0]) if most else None
    return {"verdict": winner, "agreement": most / len(sampled), "counts": counts}


def model_metrics(
    experts: Sequence[str], answers: Sequence[Mapping[str, Any]], config: EvaluationConfig
) -> dict[str, Any]:
    """All metrics of one model, each {value, low, high, n} with its 95 % interval."""
    n = len(experts)
    verdicts = [answer["verdict"] or "" for answer in answers]
    scores = verdict_metric().compute(predictions=verdicts, references=list(experts))
    expected, predicted = _codes(experts), _codes(verdicts)
    labels = sorted({*expected.tolist(), *predicted.tolist()} - {-1})

    def interval(statistic: Any, count: int | None = None) -> dict[str, Any]:
        return bootstrap(statistic, n, config.resamples, config.seed, count).as_dict()

    def mean(key: str) -> dict[str, Any]:
        values = np.array([float(answer[key]) for answer in answers])
        return interval(lambda rows: float(values[rows].mean()))

    return {
        "accuracy": wilson(round(scores["accuracy"] * n), n).as_dict(),
        "macro_f1": interval(lambda rows: float(f1_scores(expected[rows], predicted[rows], labels).mean()))
        | {"value": scores["macro_f1"]},
        "strict_form": wilson(sum(answer["well_formed"] for answer in answers), n).as_dict(),
        "parsed": wilson(sum(answer["verdict"] is not None for answer in answers), n).as_dict(),
        "grounding": mean("grounding"),
        "mean_length": mean("tokens"),
        "f1": {
            verdict: interval(
                lambda rows, c=code: float(f1_scores(expected[rows], predicted[rows], [c])[0]), experts.count(verdict)
            )
            for code, verdict in enumerate(VERDICTS)
            if verdict in experts
        },
        "confusion": confusion(experts, verdicts),
        **({"vote": vote_metrics(experts, answers, config)} if "vote" in answers[0] else {}),
    }


def vote_metrics(
    experts: Sequence[str], answers: Sequence[Mapping[str, Any]], config: EvaluationConfig
) -> dict[str, Any]:
    """How good the majority of the sampled verdicts is, and whether its agreement tells right from wrong."""
    n = len(experts)
    votes = [answer["vote"] for answer in answers]
    agreement = np.array([vote["agreement"] for vote in votes])
    right = np.array([vote["verdict"] == expert for vote, expert in zip(votes, experts, strict=True)])
    expected, predicted = _codes(experts), _codes([vote["verdict"] or "" for vote in votes])
    labels = sorted({*expected.tolist(), *predicted.tolist()} - {-1})

    def interval(statistic: Any) -> dict[str, Any]:
        return bootstrap(statistic, n, config.resamples, config.seed).as_dict()

    certain = agreement == 1
    unanimous = {"unanimous_accuracy": wilson(int(right[certain].sum()), int(certain.sum())).as_dict()}
    return {
        "accuracy": wilson(int(right.sum()), n).as_dict(),
        "macro_f1": interval(lambda rows: float(f1_scores(expected[rows], predicted[rows], labels).mean())),
        "agreement": interval(lambda rows: float(agreement[rows].mean())),
        **(unanimous if certain.any() else {}),
    }


def confusion(experts: Sequence[str], verdicts: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each expert verdict (rows) met each verdict of the model (columns, unreadable ones last)."""
    pairs = list(zip(experts, verdicts, strict=True))
    columns = {**{verdict: verdict for verdict in VERDICTS}, UNREADABLE: ""}
    return {row: {name: pairs.count((row, verdict)) for name, verdict in columns.items()} for row in VERDICTS}


def compare(
    first: str,
    second: str,
    experts: Sequence[str],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    config: EvaluationConfig,
) -> dict[str, Any]:
    """Exact McNemar test of two models, and their difference in accuracy (second minus first) with its interval."""
    right = {
        name: np.array([answer["verdict"] == expert for answer, expert in zip(answers[name], experts, strict=True)])
        for name in (first, second)
    }
    only_first, only_second, p_value = mcnemar(right[first].tolist(), right[second].tolist())
    gains = right[second].astype(float) - right[first].astype(float)
    difference: Interval = bootstrap(
        lambda rows: float(gains[rows].mean()), len(experts), config.resamples, config.seed
    )
    return {
        "first": first,
        "second": second,
        "only_first": only_first,
        "only_second": only_second,
        "p_value": p_value,
        "accuracy_difference": difference.as_dict(),
    }


def _codes(verdicts: Sequence[str]) -> np.ndarray:
    """Index of each verdict in VERDICTS; -1 for an unreadable one."""
    return np.array([VERDICTS.index(verdict) if verdict in VERDICTS else -1 for verdict in verdicts])
