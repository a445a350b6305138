"""What a training computes in, and with which backend, and that it stays so."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.training import precision
from medgrpo.training.precision import DECISION_FILE, bfloat16_pays, settle

T4, A10 = (7, 5), (8, 6)


def _config(processes: int = 1, rollout: str = "float32", **policy: str) -> RunConfig:
    return RunConfig.model_validate({"policy": policy, "grpo": {"rollout_dtype": rollout}, "processes": processes})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine another: its device, packages, and whether its processor is faster in bfloat16."""

    def become(
        capability: tuple[int, int] | None = None, packages: tuple[str, ...] = (), pays: bool | None = None
    ) -> None:
        monkeypatch.setattr(precision, "present_capability", lambda processes: capability)
        monkeypatch.setattr(precision, "installed_packages", lambda: frozenset(packages))
        monkeypatch.setattr(
            precision, "bfloat16_pays", lambda: pytest.fail("it was measured") if pays is None else pays
        )

    return become


@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_what_is_set_is_not_decided(autocast: str, machine: Any, tmp_path: Path) -> None:
    """Who names a type gets it, and nothing is tried."""
    machine()
    assert settle(_config(autocast=autocast), tmp_path) == _config(autocast=autocast)


@pytest.mark.parametrize(("pays", "autocast", "rollout"), [(True, "bfloat16", "bfloat16"), (False, "none", "float32")])
def test_a_processor_takes_what_pays(pays: bool, autocast: str, rollout: str, machine: Any, tmp_path: Path) -> None:
    """Without CUDA the measurement decides, for training and for rollouts, and no other setting changes."""
    machine(pays=pays)
    settled = settle(_config(autocast="auto", rollout="auto"), tmp_path)
    assert settled == _config(autocast=autocast, rollout=rollout)


@pytest.mark.parametrize(
    ("capability", "autocast", "rollout"), [(T4, "none", "float32"), (A10, "bfloat16", "bfloat16")]
)
def test_a_gpu_takes_what_the_table_says(
    capability: tuple[int, int], autocast: str, rollout: str, machine: Any, tmp_path: Path
) -> None:
    """On CUDA nothing is measured."""
    machine(capability)
    assert settle(_config(autocast="auto", rollout="auto"), tmp_path) == _config(autocast=autocast, rollout=rollout)


def test_several_processes_do_not_measure_each_other(machine: Any, tmp_path: Path) -> None:
    """On a processor they would find different answers, and train in different types."""
    machine()
    assert settle(_config(2, autocast="auto"), tmp_path) == _config(2, autocast="none")


@pytest.mark.parametrize(
    ("capability", "packages", "backend", "why"),
    [
        (T4, ("unsloth",), "unsloth", "there are a CUDA device and the package unsloth"),
        (T4, (), "transformers", "the package unsloth is not installed"),
        (None, ("unsloth",), "transformers", "there is no CUDA device"),
    ],
)
def test_the_log_says_what_was_taken_and_why(
    capability: Any, packages: Any, backend: str, why: str, machine: Any, tmp_path: Path, caplog: Any
) -> None:
    """The backend with its reason, and the device's row of the table with its."""
    machine(capability, packages)
    with caplog.at_level(logging.INFO):
        assert settle(_config(backend="auto"), tmp_path).policy.backend == backend
    assert f"policy.backend is {backend!r}: {why}" in caplog.text
    assert f"{'sm_75' if capability else 'the processor'}, model type 'llama': " in caplog.text
    assert "float32" in caplog.text


def test_the_decisions_are_kept(machine: Any, tmp_path: Path) -> None:
    """They lie in the training's directory, for a resumed training and for people."""
    machine(A10, ("unsloth",))
    settle(_config(backend="auto", autocast="auto"), tmp_path)
    assert json.loads((tmp_path / DECISION_FILE).read_text()) == {"backend": "unsloth", "bfloat16": True}


def test_unsloth_writes_in_the_type_it_trains(machine: Any, tmp_path: Path) -> None:
    """Where `auto` takes unsloth, rollouts stay float32 weights, whatever would be faster with the other backend."""
    machine(A10, ("unsloth",))
    settled = settle(_config(backend="auto", autocast="auto", rollout="auto"), tmp_path)
    assert (settled.policy.backend, settled.policy.autocast) == ("unsloth", "bfloat16")
    assert settled.grpo.rollout_dtype == "float32"


def test_of_several_processes_the_first_writes(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others decide the same, and leave the file alone."""
    machine(A10)
    monkeypatch.setenv("RANK", "1")
    assert settle(_config(2, autocast="auto"), tmp_path).policy.autocast == "bfloat16"
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_training_goes_on_as_it_began(machine: Any, tmp_path: Path) -> None:
    """Whatever the machine says the second time: a resume may find itself on one that is busy, or has another GPU."""
    config = _config(backend="auto", autocast="auto", rollout="auto")
    machine(pays=True)
    first = settle(config, tmp_path)
    machine(pays=False)
    assert settle(config, tmp_path) == first
    machine(A10, ("unsloth",))
    assert settle(config, tmp_path) == first
    assert first.policy.backend == "transformers"


@pytest.mark.parametrize(
    ("capability", "packages"), [(T4, ("unsloth",)), (A10, ())], ids=["without bfloat16", "without unsloth"]
)
def test_what_cannot_go_on_is_decided_anew(
    capability: Any, packages: Any, machine: Any, tmp_path: Path, caplog: Any
) -> None:
    """On a machine that lacks what the training began with, it goes on with what there is, and says so."""
    config = _config(backend="auto", autocast="auto")
    machine(A10, ("unsloth",))
    settle(config, tmp_path)
    machine(capability, packages)
    settled = settle(config, tmp_path)
    assert settled.policy.autocast == ("bfloat16" if capability == A10 else "none")
    assert settled.policy.backend == ("unsloth" if packages else "transformers")
    assert "which this machine cannot do: decided anew" in caplog.text
    assert json.loads((tmp_path / DECISION_FILE).read_text())["backend"] == settled.policy.backend


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"backend": "magic", "bfloat16": true}', '{"bfloat16": true}'])
def test_a_damaged_decision_is_made_again(damage: str, machine: Any, tmp_path: Path, caplog: Any) -> None:
    """It is said, decided anew, and kept."""
    machine(pays=False)
    (tmp_path / DECISION_FILE).write_text(damage)
    assert settle(_config(autocast="auto"), tmp_path).policy.autocast == "none"
    assert f"{DECISION_FILE} cannot be read, so it is decided anew" in caplog.text
    assert json.loads((tmp_path / DECISION_FILE).read_text()) == {"backend": "transformers", "bfloat16": False}


@pytest.mark.parametrize(
    ("capability", "policy", "words"),
    [
        (T4, {"autocast": "bfloat16"}, "Set policy.autocast=none"),
        (T4, {"quantization": "4bit"}, "the package bitsandbytes is not installed"),
        (T4, {"backend": "unsloth"}, "the package unsloth is not installed"),
        (None, {"quantization": "4bit"}, "there is no CUDA device"),
        ((6, 1), {}, "sm_70 or later"),
    ],
)
def test_what_would_end_badly_stops_before_anything_is_decided(
    capability: Any, policy: dict[str, str], words: str, machine: Any, tmp_path: Path
) -> None:
    """Device, settings and packages are compared first; nothing is measured or written."""
    machine(capability)
    with pytest.raises(InputError, match=words):
        settle(_config(**policy), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("bfloat16", "pays"), [(0.5, True), (0.9, False), (1.8, False)])
def test_bfloat16_must_be_clearly_faster(bfloat16: float, pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the time pays, nearly the same or twice the time does not."""
    monkeypatch.setattr(precision, "_seconds", lambda dtype: bfloat16 if dtype is torch.bfloat16 else 1.0)
    assert bfloat16_pays() is pays


def test_this_machine_is_measured_for_real() -> None:
    """Both products are made, and take time."""
    assert precision._seconds(torch.float32) > 0
    assert precision._seconds(torch.bfloat16) > 0
