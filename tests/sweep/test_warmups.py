"""Trials share a warm-up where it would be the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medgrpo.config import RunConfig
from medgrpo.manifests import Manifest, is_sealed, seal
from medgrpo.sweep.settings import TrialConfig
from medgrpo.sweep.warmups import borrow, lend, shared_warmup, warmup_key
from medgrpo.training.metrics import read_metrics

ROWS = [{"phase": "warmup", "step": 1, "loss": 2.0}, {"phase": "grpo", "step": 1, "loss": 0.0}]


def _trained(directory: Path) -> Path:
    """A training whose warm-up is finished."""
    adapter = directory / "warmup" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_text("weights")
    seal(adapter)
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return directory


def test_a_finished_warmup_is_lent_and_borrowed(tmp_path: Path) -> None:
    """Another training finds the adapter whole, and the warm-up's rows of metrics.jsonl, but none of GRPO's."""
    shared = tmp_path / "shared"
    lend(_trained(tmp_path / "one"), shared)
    assert borrow(shared, tmp_path / "two")
    assert is_sealed(tmp_path / "two" / "warmup" / "adapter")
    assert read_metrics(tmp_path / "two" / "metrics.jsonl") == ROWS[:1]


def test_only_what_is_whole_is_shared(tmp_path: Path) -> None:
    """An unfinished warm-up is not lent, a damaged one not borrowed."""
    (tmp_path / "one" / "warmup" / "checkpoint-1").mkdir(parents=True)
    lend(tmp_path / "one", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
    lend(_trained(tmp_path / "two"), tmp_path / "shared")
    (tmp_path / "shared" / "adapter" / "adapter_model.safetensors").write_text("other")
    assert not borrow(tmp_path / "shared", tmp_path / "three")
    lend(tmp_path / "two", tmp_path / "shared")
    assert borrow(tmp_path / "shared", tmp_path / "three")


def test_a_warmup_that_has_begun_goes_on(tmp_path: Path) -> None:
    """A resumed training keeps its own checkpoints; one cut off while it borrowed borrows again."""
    shared, begun = tmp_path / "shared", tmp_path / "begun"
    lend(_trained(tmp_path / "one"), shared)
    (begun / "warmup" / "adapter.partial").mkdir(parents=True)
    assert borrow(shared, begun)
    assert not borrow(shared, begun)
    (tmp_path / "other" / "warmup" / "checkpoint-5").mkdir(parents=True)
    assert not borrow(shared, tmp_path / "other")


def test_a_warmup_depends_on_what_shapes_it(tmp_path: Path, sweep_config: Callable[..., RunConfig]) -> None:
    """GRPO and payments leave it as it is; its own settings, the policy and the seed do not."""
    data = Manifest(uri=str(tmp_path / "data-1"), sha256="d" * 64, bytes=1, files=1)
    key = warmup_key(sweep_config(), data)
    same = [{"grpo": {"learning_rate": 1e-3, "group_size": 4, "beta": 0.1}}, {"rewards": {"correctness": 2.0}}]
    assert {warmup_key(sweep_config(others=others), data) for others in same} == {key}
    for others in ({"warmup": {"epochs": 1.0}}, {"policy": {"lora_rank": 8}}, {"seed": 12}):
        assert warmup_key(sweep_config(others=others), data) != key


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_lends_however_it_ends(tmp_path: Path, fails: bool, sweep_config: Callable[..., RunConfig]) -> None:
    """A pruned trial's warm-up is as good as any; an ordinary run takes no part."""
    data = Manifest(uri=str(tmp_path / "data-1"), sha256="d" * 64, bytes=1, files=1)
    config = sweep_config()
    with shared_warmup(config, data, _trained(tmp_path / "ordinary")):
        pass
    assert not list(tmp_path.glob("warmup-*"))
    trial = config.model_copy(update={"trial": TrialConfig(sweep="s", study="s", number=0, parent="p")})
    try:
        with shared_warmup(trial, data, _trained(tmp_path / "trial")):
            if fails:
                raise InterruptedError
    except InterruptedError:
        assert fails
    [shared] = [path for path in tmp_path.glob("warmup-*") if path.is_dir()]
    assert is_sealed(shared / "adapter")
