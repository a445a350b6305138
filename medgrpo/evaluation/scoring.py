"""Metrics of one model's answers, and the comparison of two models on the same cases."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np

from medgrpo import domains
from medgrpo.completions import VERDICT_FORM, VERDICTS, AnswerForm, parse_completion
from medgrpo.config import EvaluationConfig, RewardConfig
from medgrpo.errors import InputError
from medgrpo.evaluation.generate import Generation
from medgrpo.evaluation.statistics import (
    Interval,
    bootstrap_mean,
    bootstrap_ratio,
    calibration,
    detectable_difference,
    f1_scores,
    mcnemar,
    percentile_interval,
    resampled_f1,
    wider,
    wilson,
)
from medgrpo.records import Record
from medgrpo.rewards.grounding import Evidence

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
    generation, domain = generations[0], domains.get(record.domain)
    completion, *sampled = [parse_completion(given.text, domain.form) for given in generations]
    verdicts = [completion.verdict, *(one.verdict for one in sampled)]
    found = domain.evidence(completion.thought, record.contexts, record.question)
    return {
        "text": generation.text,
        "thought": completion.thought,
        "verdict": completion.verdict,
        "well_formed": completion.well_formed,
        "tokens": generation.tokens,
        "grounding": domain.grounding(completion.thought, record.contexts, record.question, rewards),
        "figures": {"supported": list(found.supported), "unsupported": list(found.unsupported)},
        "disagrees": domain.disagrees(completion.thought, completion.verdict, record.question),
        **citations(found, record.contexts),
        **({"vote": count_votes(verdicts, domain.form)} if sampled else {}),
    }


def citations(found: Evidence, contexts: Sequence[str]) -> dict[str, list[list[int]]]:
    """Where a thought cites what, to be shown.

    Evidence counts the characters of the sections joined by line breaks; a phrase that runs on into the next section
    is cut there.

    Returns:
        spans: [start, end, whether supported] in the thought; cited: [section, start, end] in `contexts`.

    >>> from medgrpo.rewards.grounding import evidence
    >>> citations(evidence("Pain fell by 2.", ["Placebo.", "Pain fell by 2."]), ["Placebo.", "Pain fell by 2."])
    {'spans': [[0, 14, True], [13, 14, True]], 'cited': [[1, 0, 14], [1, 13, 14]]}
    """
    begins = list(accumulate((len(text) + 1 for text in contexts), initial=0))
    sources = {span.source for span in found.spans if span.source is not None}
    pieces = [
        [section, max(start - begin, 0), min(end - begin, len(text))]
        for start, end in sources
        for section, (begin, text) in enumerate(zip(begins, contexts, strict=False))
    ]
    spans = {(span.start, span.end, span.supported) for span in found.spans}
    return {
        "spans": [list(span) for span in sorted(spans)],
        "cited": sorted(piece for piece in pieces if piece[1] < piece[2]),
    }


def count_votes(verdicts: Sequence[str | None], form: AnswerForm = VERDICT_FORM) -> dict[str, Any]:
    """Majority of the sampled verdicts, the share of all samples that agree with it, and with the greedy verdict.

    Args:
        verdicts: the greedy verdict, which decides a tie that it is part of, then the sampled ones; None is unreadable.
        form: the answers that are counted; of open ones those that occur, in the order in which they do.

    >>> count_votes(["no", "yes", "no", "yes", "no", None])
    {'verdict': 'no', 'agreement': 0.4, 'confidence': 0.4, 'counts': {'yes': 2, 'no': 2, 'maybe': 0}}
    """
    greedy, *sampled = verdicts
    said = form.labels or dict.fromkeys(verdict for verdict in sampled if verdict is not None)
    counts = {verdict: sampled.count(verdict) for verdict in said}
    most = max(counts.values(), default=0)
    leading = [verdict for verdict, count in counts.items() if count == most]
    winner = (greedy if greedy in leading else leading[0]) if most else None
    confidence = counts.get(greedy or "", 0) / len(sampled)
    return {"verdict": winner, "agreement": most / len(sampled), "confidence": confidence, "counts": counts}


def model_metrics(
    experts: Sequence[str],
    answers: Sequence[Mapping[str, Any]],
    config: EvaluationConfig,
    form: AnswerForm = VERDICT_FORM,
) -> dict[str, Any]:
    """All metrics of one model, each {value, low, high, n} with its 95 % interval.

    Args:
        experts: the expert's verdict on each case, shape [n].
        answers: the model's answers as `answer_row` gives them, shape [n].
        config: number of resamples and their seed.
        form: the answers that there are; open ones have no F1, recall and confusion.
    """
    n = len(experts)
    return {
        **verdict_metrics(experts, [answer["verdict"] or "" for answer in answers], config, form),
        "strict_form": wilson(sum(answer["well_formed"] for answer in answers), n).as_dict(),
        "parsed": wilson(sum(answer["verdict"] is not None for answer in answers), n).as_dict(),
        "grounding": _mean([answer["grounding"] for answer in answers], config),
        "mean_length": _mean([answer["tokens"] for answer in answers], config),
        "faithfulness": faithfulness(answers, config),
        **({"vote": vote_metrics(experts, answers, config, form)} if "vote" in answers[0] else {}),
    }


def verdict_metrics(
    experts: Sequence[str], verdicts: Sequence[str], config: EvaluationConfig, form: AnswerForm = VERDICT_FORM
) -> dict[str, Any]:
    """What verdicts alone tell: accuracy, macro-F1, F1 and recall of each verdict, confusion; "" is unreadable.

    Of open answers it is their accuracy alone.
    """
    right = sum(verdict == expert for expert, verdict in zip(experts, verdicts, strict=True))
    accuracy = {"accuracy": wilson(right, len(experts)).as_dict()}
    if not form.labels:
        return accuracy
    matrix = confusion(experts, verdicts, form.labels)
    return {
        **accuracy,
        **f1_metrics(experts, verdicts, config, form.labels),
        "recall": {
            verdict: wilson(row[verdict], sum(row.values())).as_dict()
            for verdict, row in matrix.items()
            if any(row.values())
        },
        "confusion": matrix,
    }


def f1_metrics(
    experts: Sequence[str], verdicts: Sequence[str], config: EvaluationConfig, known: Sequence[str] = VERDICTS
) -> dict[str, Any]:
    """Macro-F1 as the official scorer averages it, and F1 of each verdict that occurs; "" is an unreadable answer."""
    expected, predicted = _codes(experts, known), _codes(verdicts, known)
    labels = _labels(expected, predicted)
    values = f1_scores(expected, predicted, range(len(known)))
    resampled = resampled_f1(expected, predicted, range(len(known)), config.resamples, config.seed)
    macro = percentile_interval(float(values[labels].mean()), resampled[:, labels].mean(axis=1), len(experts))
    return {
        "macro_f1": macro.as_dict(),
        "f1": {
            verdict: _f1_interval(expected == code, predicted == code, resampled[:, code]).as_dict()
            for code, verdict in enumerate(known)
            if (expected == code).any()
        },
    }


def _f1_interval(is_so: np.ndarray, said_so: np.ndarray, resampled: np.ndarray) -> Interval:
    """F1 of one verdict, from resamples; where these know only 0 or 1, from Wilson's interval of a share.

    The share s is that of right cases among all that have the verdict or were given it: F1 = 2s / (1 + s).
    """
    share = wilson(int((is_so & said_so).sum()), int((is_so | said_so).sum()))
    value, low, high = (2 * s / (1 + s) for s in (share.value, share.low, share.high))
    found = percentile_interval(value, resampled, int(is_so.sum()))
    return found if found.low < found.high else replace(found, low=low, high=high)


def faithfulness(answers: Sequence[Mapping[str, Any]], config: EvaluationConfig) -> dict[str, Any]:
    """Whether thoughts cite what is there, and answers say what their thoughts conclude.

    Returns:
        unsupported_figures: share of answers with a figure that is not in the abstract, or misquoted.
        evidence_precision: share of the cited figures that are in the abstract; cases are resampled with all their
            figures, and n counts the answers that cite any. Of few answers, or where nearly all figures are right,
            resamples know too little, so the interval also holds Wilson's of as many answers.
        disagreement: share of readable answers whose thought concludes another verdict; see `conclusions`.
    """
    supported = np.array([len(answer["figures"]["supported"]) for answer in answers])
    unsupported = np.array([len(answer["figures"]["unsupported"]) for answer in answers])
    readable = [answer["disagrees"] for answer in answers if answer["verdict"] is not None]
    precision = bootstrap_ratio(supported, supported + unsupported, config.resamples, config.seed)
    precision = wider(precision, wilson(precision.value * precision.n, precision.n))
    return {
        "unsupported_figures": wilson(int((unsupported > 0).sum()), len(answers)).as_dict(),
        "evidence_precision": precision.as_dict(),
        "disagreement": wilson(sum(readable), len(readable)).as_dict(),
    }


def vote_metrics(
    experts: Sequence[str],
    answers: Sequence[Mapping[str, Any]],
    config: EvaluationConfig,
    form: AnswerForm = VERDICT_FORM,
) -> dict[str, Any]:
    """How good the majority of the sampled verdicts is, and whether agreement tells right from wrong.

    Calibrated is what is served as confidence: the share of samples that agree with the greedy verdict.
    """
    votes = [answer["vote"] for answer in answers]
    agreement = np.array([vote["agreement"] for vote in votes], dtype=float)
    right = np.array([vote["verdict"] == expert for vote, expert in zip(votes, experts, strict=True)])
    confidence = np.array([vote["confidence"] for vote in votes], dtype=float)
    greedy_right = np.array([answer["verdict"] == expert for answer, expert in zip(answers, experts, strict=True)])
    certain = agreement == 1
    said = [vote["verdict"] or "" for vote in votes]
    f1 = f1_metrics(experts, said, config, form.labels) if form.labels else {}
    unanimous = {"unanimous_accuracy": wilson(int(right[certain].sum()), int(certain.sum())).as_dict()}
    return {
        "accuracy": wilson(int(right.sum()), len(experts)).as_dict(),
        **({"macro_f1": f1["macro_f1"]} if f1 else {}),
        "agreement": _mean(agreement, config),
        "calibration": calibration(confidence, greedy_right, config.resamples, config.seed),
        **(unanimous if certain.any() else {}),
    }


def confusion(
    experts: Sequence[str], verdicts: Sequence[str], labels: Sequence[str] = VERDICTS
) -> dict[str, dict[str, int]]:
    """How often each expert verdict (rows) met each verdict of the model (columns, unreadable ones last)."""
    pairs = list(zip(experts, verdicts, strict=True))
    columns = {**{verdict: verdict for verdict in labels}, UNREADABLE: ""}
    return {row: {name: pairs.count((row, verdict)) for name, verdict in columns.items()} for row in labels}


def compare(
    first: str,
    second: str,
    experts: Sequence[str],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    config: EvaluationConfig,
    form: AnswerForm = VERDICT_FORM,
) -> dict[str, Any]:
    """Two models on the same cases: exact McNemar test, and differences (second minus first) with intervals.

    Open answers have no macro-F1, and so no difference of it.

    `detectable` is the smallest true difference in accuracy that as many cases, with as many of them discordant, find
    with 80 % power at the two-sided level of 5 %.
    """
    n = len(experts)
    given = {name: [answer["verdict"] or "" for answer in answers[name]] for name in (first, second)}
    right = {
        name: np.array([verdict == expert for verdict, expert in zip(verdicts, experts, strict=True)])
        for name, verdicts in given.items()
    }
    only_first, only_second, p_value = mcnemar(right[first].tolist(), right[second].tolist())
    detectable = detectable_difference(n, (only_first + only_second) / n)
    return {
        "first": first,
        "second": second,
        "only_first": only_first,
        "only_second": only_second,
        "p_value": p_value,
        "accuracy_difference": _mean(right[second].astype(float) - right[first], config),
        **(_macro_f1_difference(experts, given[first], given[second], config, form.labels) if form.labels else {}),
        "detectable": None if detectable != detectable else detectable,
    }


def _macro_f1_difference(
    experts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    config: EvaluationConfig,
    known: Sequence[str],
) -> dict[str, Any]:
    expected, n = _codes(experts, known), len(experts)
    macro, resampled = [], []
    for verdicts in (first, second):
        codes = _codes(verdicts, known)
        labels = _labels(expected, codes)
        macro.append(float(f1_scores(expected, codes, labels).mean()))
        resampled.append(resampled_f1(expected, codes, labels, config.resamples, config.seed).mean(axis=1))
    return {"macro_f1_difference": percentile_interval(macro[1] - macro[0], resampled[1] - resampled[0], n).as_dict()}


def _mean(values: Any, config: EvaluationConfig) -> dict[str, Any]:
    return bootstrap_mean(values, config.resamples, config.seed).as_dict()


def _labels(expected: np.ndarray, predicted: np.ndarray) -> list[int]:
    """The verdicts that the official scorer averages over: those of the experts and of the readable answers."""
    return sorted({*expected.tolist(), *predicted.tolist()} - {-1})


def _codes(verdicts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Index of each verdict among the known ones; -1 for an unreadable one."""
    return np.array([known.index(verdict) if verdict in known else -1 for verdict in verdicts])
