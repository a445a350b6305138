"""Tests of benchmarks.evaluation: a whole measurement of seconds."""

from pathlib import Path

import pytest

from benchmarks.evaluation import measure
from medgrpo.preparation import prepare
from medgrpo.testing import tiny_config


@pytest.mark.slow
def test_a_measurement(tmp_path: Path) -> None:
    """The cases are counted, plain answers and what is added take time, and the report is written."""
    config = tiny_config(tmp_path)
    prepare(config, tmp_path / "data")
    found = measure(config, tmp_path / "data", tmp_path)
    assert found["cases"] == 6
    assert found["probed"]["no_abstract"] == 6
    assert found["ratio"] > 0
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert list(tmp_path.glob("*/report.html"))
