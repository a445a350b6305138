"""Tests of the benchmarks package: what every comparison shares."""

import pytest

from benchmarks import run
from medgrpo.errors import InputError


def test_bad_input_ends_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """An error made on purpose is printed without a traceback, and decides the exit code."""

    def main() -> None:
        raise InputError("nowhere.json: no such file.")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == InputError.exit_code
    assert capsys.readouterr().err == "error: nowhere.json: no such file.\n"


def test_what_is_not_made_on_purpose_keeps_its_traceback() -> None:
    """A fault of ours is not dressed up as the user's."""

    def main() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run(main)
