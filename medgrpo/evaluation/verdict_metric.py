"""`evaluate.Metric` for verdicts: accuracy and macro-F1 as PubMedQA's official scorer computes them.

`evaluate.load("accuracy")` would download a script at run time; this file is loaded by its path instead.
"""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class VerdictMetric(evaluate.Metric):
    """Accuracy and macro-F1 over verdict strings.

    The average runs over the labels of references and readable predictions, as scikit-learn's and so the official
    scorer's does. An unreadable answer is the empty string: wrong, and no label of its own.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy and macro-F1 of yes/no/maybe verdicts, as the data's official scorer computes them.",
            citation="Jin et al. 2019, arXiv 1909.06146.",
            inputs_description="predictions and references: lists of 'yes', 'no', 'maybe'; '' is an unreadable answer.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        labels = sorted({*references, *predictions} - {""})
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "macro_f1": float(f1_score(references, predictions, labels=labels, average="macro", zero_division=0)),
        }
