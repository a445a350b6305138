"""A domain that is not of the package, as somebody would add one: by a file."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgrpo import domains


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of the domain in `example/`, which lies beside the package's own for one test."""
    monkeypatch.setattr(domains, "__path__", [*domains.__path__, str(Path(__file__).with_name("example"))])
    yield "counting"
    domains.get.cache_clear()
    sys.modules.pop(f"{domains.__name__}.counting", None)
    vars(domains).pop("counting", None)
