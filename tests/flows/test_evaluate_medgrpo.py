"""The flow that evaluates any model: from the registry, a directory or by name."""

import json
from pathlib import Path

import pytest

from flows.evaluate_medgrpo import evaluate_medgrpo
from medgrpo.errors import InputError
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


@pytest.mark.filterwarnings("ignore:.*does not refer to an OperatorClass:DeprecationWarning")
def test_without_a_champion_there_is_nothing_to_evaluate(tmp_path: Path) -> None:
    """An empty registry is said to be empty, before anything is computed."""
    with pytest.raises(InputError, match="champion"):
        evaluate_medgrpo(tiny_config(tmp_path, name="none"))
