"""Tests of medgrpo.doctor: what it says of precision and backend on machines of several kinds."""

import pytest
import torch

from medgrpo import doctor
from medgrpo.policies import backends
from medgrpo.training import precision


@pytest.fixture
def lines(monkeypatch):
    """What the doctor says of the policy on a machine: name -> (state, detail)."""

    def examined(capability, packages=(), pays=None):
        monkeypatch.setattr(backends, "present_capability", lambda: capability)
        monkeypatch.setattr(backends, "installed_packages", lambda: frozenset(packages))
        monkeypatch.setattr(precision, "bfloat16_pays", lambda: pytest.fail("measured") if pays is None else pays)
        return {found.name: (found.state, found.detail) for found in doctor._policy()}

    return examined


@pytest.mark.parametrize(("pays", "autocast"), [(True, "bfloat16"), (False, "none")])
def test_a_processor(lines, pays, autocast):
    """All models are alike there; what auto takes is measured."""
    found = lines(None, pays=pays)
    assert found.keys() == {"precision (SmolLM2, Gemma 3)", "backend"}
    state, detail = found["precision (SmolLM2, Gemma 3)"]
    assert state == "ok"
    assert detail.startswith(f"policy.autocast=auto takes {autocast}: a processor")
    assert found["backend"] == ("ok", "policy.backend=auto takes transformers: there is no CUDA device")


def test_a_t4(lines):
    """Each model has its own line, since only one may use vLLM; what unsloth and 4 bits lack is said."""
    found = lines((7, 5))
    assert found.keys() == {"precision (SmolLM2)", "precision (Gemma 3)", "backend", "bitsandbytes"}
    assert "policy.autocast=auto takes none: sm_75 has no bfloat16" in found["precision (SmolLM2)"][1]
    assert "exceed float16's largest number" in found["precision (Gemma 3)"][1]
    assert found["backend"][1].endswith("transformers: the package unsloth is not installed")
    assert found["bitsandbytes"][0] == "note"
    assert "policy.quantization=4bit" in found["bitsandbytes"][1]


def test_an_a10_with_everything(lines):
    """bfloat16 for all models, and unsloth."""
    found = lines((8, 6), ("unsloth", "bitsandbytes"))
    assert found.keys() == {"precision (SmolLM2, Gemma 3)", "backend"}
    assert "policy.autocast=auto takes bfloat16: sm_86" in found["precision (SmolLM2, Gemma 3)"][1]
    assert "policy.backend=auto takes unsloth: there are a CUDA device" in found["backend"][1]


def test_a_device_that_is_too_old(lines):
    """Nothing can be trained on it, and the refusal's sentence says what to do."""
    found = lines((6, 1))
    assert found.keys() == {"precision"}
    assert found["precision"][0] == "missing"
    assert "sm_61" in found["precision"][1]


def test_this_machine_is_examined_for_real():
    """Python, libraries, accelerator, policy and resources each have a line here."""
    names = [found.name for found in (*doctor._software(), *doctor._accelerator(), *doctor._policy())]
    assert names[:2] == ["python", "torch"]
    assert {"cuda", "backend"} <= set(names)
    assert any(name.startswith("precision") for name in names)
    states = {found.name: found.state for found in doctor._accelerator()}
    assert states == {"cuda": "ok" if torch.cuda.is_available() else "note"}
