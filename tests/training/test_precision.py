"""Which type a training computes in, and that it stays so."""

import json
from pathlib import Path

import pytest
import torch

from medgrpo.config import RunConfig
from medgrpo.training import precision
from medgrpo.training.precision import bfloat16_pays, settle


def _config(autocast: str) -> RunConfig:
    return RunConfig.model_validate({"policy": {"autocast": autocast}})


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_what_is_set_is_not_decided(autocast: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a type gets it, and nothing is tried or written."""
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: pytest.fail("tried"))
    assert settle(_config(autocast), tmp_path) == _config(autocast)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("pays", "autocast"), [(True, "bfloat16"), (False, "none")])
def test_auto_becomes_what_pays(pays: bool, autocast: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine decides, and no other setting changes."""
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: pays)
    assert settle(_config("auto"), tmp_path) == _config(autocast)
    assert json.loads((tmp_path / precision.DECISION_FILE).read_text()) == {"autocast": autocast}


def test_a_resumed_training_goes_on_in_the_same_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine says the second time, on which a resume may even find itself another."""
    answers = iter((True, False))
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: next(answers))
    assert settle(_config("auto"), tmp_path) == settle(_config("auto"), tmp_path) == _config("bfloat16")


@pytest.mark.parametrize(("bfloat16", "pays"), [(0.5, True), (0.9, False), (1.8, False)])
def test_bfloat16_must_be_clearly_faster(bfloat16: float, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the time pays, nearly the same or twice the time does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: bfloat16 if dtype is torch.bfloat16 else 1.0)
    assert bfloat16_pays() is pays


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_says_what_it_has(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with bfloat16 of its own uses it; on a T4, which only emulates it, training stays in float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    assert bfloat16_pays() is supported


def test_this_machine_is_measured_for_real() -> None:
    """Both products are made, and take time."""
    assert precision._seconds(torch.float32) > 0
    assert precision._seconds(torch.bfloat16) > 0
