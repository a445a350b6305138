"""Tests of benchmarks.rewards: what is scored, and that a rate comes out."""

from benchmarks.rewards import KINDS, completions, rate
from medgrpo.testing import tiny_record


def test_every_kind_is_measured() -> None:
    """There are texts of each kind for each record, and a positive number of them a second."""
    texts = completions([tiny_record("1"), tiny_record("2", "no")])
    assert list(texts) == ["gold", *KINDS, "all attacks"]
    assert all(texts.values())
    assert all(rate(written, 1, seen) > 0 for written in texts.values() for seen in (False, True))
