"""Predictions of anyone's model: read from a file, scored like ours."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medgrpo.config import EvaluationConfig
from medgrpo.errors import InputError
from medgrpo.evaluation.scoring import compare, official_score, verdict_metrics
from medgrpo.jsonfiles import read_json_object, read_text

ID_NAMES = ("id", "pmid", "pubid")
VERDICT_NAMES = ("verdict", "prediction", "final_decision", "answer", "label")


def read_predictions(path: Path) -> dict[str, str | None]:
    """Verdicts by record id: a JSON object of them, or rows of a .jsonl or .csv file.

    A row names its record in a key or column of `ID_NAMES`, its verdict in one of `VERDICT_NAMES`, in any case. An
    empty verdict is an unreadable answer.

    Raises:
        InputError: no such file, not of its form, or a record twice.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        return read_json_object(path)
    predictions: dict[str, str | None] = {}
    for number, row in readers[path.suffix.lower()](path):
        record, verdict = (_field(path, number, row, names) for names in (ID_NAMES, VERDICT_NAMES))
        if str(record) in predictions:
            raise InputError(f"{path}, line {number}: record {record} stands there twice; every id must be unique.")
        predictions[str(record)] = verdict or None
    if not predictions:
        raise InputError(f"{path} holds no predictions; expected a row for each record.")
    return predictions


def score_predictions(
    predictions: Mapping[str, Mapping[str, str | None]], truth: Mapping[str, str], config: EvaluationConfig
) -> dict[str, Any]:
    """The official score of each set of predictions, its uncertainty, and where there are two, their difference.

    Args:
        predictions: name -> {id: verdict}, the reference first.
        truth: {id: verdict} of the same records.
        config: resamples and seed of the intervals.

    Returns:
        models: name -> `official`, the official {accuracy, macro_f1}, and the metrics of `scoring.verdict_metrics`;
        comparison: the paired comparison of the first and the last (see `scoring.compare`), None where there is one.

    Raises:
        InputError: the ids are not exactly those of the ground truth, or a verdict is unknown.
    """
    experts = list(truth.values())
    models = {
        name: {
            "official": official_score(one, truth),
            **verdict_metrics(experts, [one[record] or "" for record in truth], config),
        }
        for name, one in predictions.items()
    }
    answers = {name: [{"verdict": one[record]} for record in truth] for name, one in predictions.items()}
    first, *_, last = answers if len(answers) > 1 else (None, None)
    comparison = compare(first, last, experts, answers, config) if first and last else None
    return {"models": models, "comparison": comparison}


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # Not splitlines(): a text may hold U+2028 or U+0085, which JSON leaves as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is not JSON: {error}.") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number} is {line[:40]!r}; expected an object with id and verdict.")
            yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path)))
    try:
        for row in reader:
            yield reader.line_num, {name.strip(): (value or "").strip() for name, value in row.items() if name}
    except csv.Error as error:
        raise InputError(f"{path}, after line {reader.line_num}: no CSV ({error}).") from error


def _field(path: Path, number: int, row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    by_name = {str(name).lower(): value for name, value in row.items()}
    for name in names:
        if name in by_name:
            return by_name[name]
    held = ", ".join(by_name) or "nothing"
    raise InputError(f"{path}, line {number} holds {held}; expected one of {', '.join(names)}.")
