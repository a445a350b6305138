"""The flow that evaluates any model: from the registry, a directory or by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.evaluate_medgrpo import evaluate_medgrpo
from flows.train_medgrpo import train_medgrpo
from medgrpo.errors import InputError
from medgrpo.manifests import write_json
from medgrpo.runs import summary_markdown
from medgrpo.testing import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


def test_a_directory_is_compared_with_the_base(tmp_path: Path) -> None:
    """A model in a directory is judged beside the profile's base; report and summary stay, nothing is registered."""
    config = tiny_config(tmp_path, name="look")
    base = str(config.policy.base)
    summary = evaluate_medgrpo(config, model=base)
    directory = config.runs_dir / "look"
    assert summary["models"] == ["base", "evaluated"]
    assert summary["compared"] == {"base": base, "evaluated": base}
    assert summary["base"] == summary["evaluated"]
    assert summary["gate"]["outcome"] == "fail"
    assert json.loads((directory / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert (directory / "report.html").is_file()
    assert not (config.runs_dir / "latest").exists()
    assert not (config.runs_dir / "mlflow.db").exists()


def test_an_unnamed_evaluation_is_named_after_what_it_does(tmp_path: Path) -> None:
    """Its directory is not taken for a training's."""
    config = tiny_config(tmp_path)
    summary = evaluate_medgrpo(config, model=str(config.policy.base), against=str(config.policy.base))
    assert summary["name"].startswith("evaluate-tiny-")
    assert summary["models"] == ["against", "evaluated"]


def _pubmedqa(directory: Path) -> dict[str, Any]:
    """Settings of a small data set of PubMedQA's form: 24 records of training pool and 9 of test."""
    verdicts = ("yes", "no", "maybe")
    records = {
        str(9000 + i): {
            "QUESTION": f"Does herb {i} shorten the stay?",
            "CONTEXTS": [f"We gave herb {i} to {100 + i} adults.", f"They stayed {i}.5 days."],
            "final_decision": verdicts[i % 3],
            "LONG_ANSWER": f"Herb {i} may do something.",
        }
        for i in range(33)
    }
    write_json(directory / "ori_pqal.json", records)
    write_json(directory / "test_ground_truth.json", {i: records[i]["final_decision"] for i in list(records)[24:]})
    return {"domain": "pubmedqa", "path": directory / "ori_pqal.json"}


@pytest.mark.e2e
@pytest.mark.filterwarnings("ignore:.*does not refer to an OperatorClass:DeprecationWarning")
def test_a_model_of_one_domain_answers_the_cases_of_another(tmp_path: Path) -> None:
    """What was trained on synthetic records, by its address or as a run, is asked about PubMedQA's, which all that is
    written says."""
    brief: dict[str, Any] = {"cases": 3, "probes": False}
    trained = train_medgrpo(tiny_config(tmp_path, name="synthetic", evaluation=brief))
    address, run = f"models:/{trained['model']['name']}/1", str(tmp_path / "runs" / "synthetic")
    config = tiny_config(tmp_path, name="other", data=_pubmedqa(tmp_path), evaluation={**brief, "cases": 6})
    summary = evaluate_medgrpo(config, model=address, against=run)
    assert (trained["domain"], trained["synthetic"]) == ("synthetic", True)
    assert (summary["domain"], summary["synthetic"]) == ("pubmedqa", False)
    assert summary["compared"] == {"against": run, "evaluated": address}
    # The same weights by two ways give the same answers.
    assert summary["against"] == summary["evaluated"]
    directory = tmp_path / "runs" / "other" / "evaluation"
    rows = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    assert {row["domain"] for row in rows} == {"pubmedqa"}
    assert {row["id"] for row in rows} < {str(9024 + i) for i in range(9)}
    assert json.loads((directory / "metrics.json").read_text())["domain"] == "pubmedqa"
    assert "6 held-out pubmedqa cases" in summary_markdown(summary)
    assert "pubmedqa" in (directory / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:.*does not refer to an OperatorClass:DeprecationWarning")
def test_without_a_champion_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    """An empty registry is said to be empty, before anything is computed."""
    with pytest.raises(InputError, match="champion"):
        evaluate_medgrpo(tiny_config(tmp_path, name="none"))
