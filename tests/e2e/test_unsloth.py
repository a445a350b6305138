"""The real Unsloth, on the CPU that it supports, in an environment of its own: trainings, and adapters to and fro."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from medgrpo import preparation
from medgrpo.config import EMBEDDED_MODEL, RunConfig
from medgrpo.manifests import write_json
from medgrpo.testing import talking_policy, tiny_config, tiny_gemma, tiny_policy

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
# What the registry's absence looks like to pip.
OUT_OF_REACH = ("No matching distribution found", "Could not find a version", "Connection", "Temporary failure")
LOGITS = """
import sys
from pathlib import Path
from benchmarks.gpu_parts import write_logits
from medgrpo.config import RunConfig
settings, target, *adapters = map(Path, sys.argv[1:])
write_logits(RunConfig.model_validate_json(settings.read_text()), adapters, target)
"""


@pytest.fixture(scope="session")
def unsloth_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Python of an environment that has Unsloth beside everything that this one has."""
    home = tmp_path_factory.mktemp("unsloth")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, timeout=120)
    python = home / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()
    Path(site, "shared.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    # Without what it asks for: a torchvision built for CUDA does not load beside a torch that is not, and of the other
    # libraries it imports none on a CPU.
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps", *extra]
    installed = subprocess.run(install, capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode and any(words in installed.stderr for words in OUT_OF_REACH):
        pytest.skip(f"Unsloth cannot be had from the package registry: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    yield python
    shutil.rmtree(home)


@dataclass(frozen=True)
class Bench:
    """Where a model is trained: its settings and its prepared data, for either backend."""

    directory: Path
    config: RunConfig
    unsloth: Path

    def with_backend(self, backend: str, **changes: Any) -> RunConfig:
        """The settings with a backend."""
        policy = self.config.policy.model_copy(update={"backend": backend})
        grpo = self.config.grpo.model_copy(update=changes)
        return self.config.model_copy(update={"policy": policy, "grpo": grpo})

    def python(self, config: RunConfig, *words: str) -> str:
        """Run Python in the backend's environment; what it wrote."""
        # Nothing may be written where it happens to run.
        elsewhere = self.directory / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        done = subprocess.run(
            [self.unsloth if config.policy.backend == "unsloth" else sys.executable, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "MEDGRPO_CACHE": str(self.cache)},
            cwd=elsewhere,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert list(elsewhere.iterdir()) == []
        return done.stdout

    @property
    def cache(self) -> Path:
        """A cache of its own where the model is a directory; else the one that has the embedded model."""
        from medgrpo.policies.embedded import cache_directory

        return cache_directory() if self.config.policy.base == EMBEDDED_MODEL else self.directory / "cache"

    def train(self, config: RunConfig) -> Path:
        """The training process itself, in a directory of the backend's; it goes on with what is there."""
        work = self.directory / config.policy.backend
        job = {"config": config.model_dump(mode="json"), "data": str(self.directory / "data")}
        write_json(work / "job.json", job)
        log = self.python(config, "-m", "medgrpo.training", str(work))
        assert ("Unsloth" in log) == (config.policy.backend == "unsloth")
        return work

    def logits(self, backend: str, *adapters: Path) -> list[Any]:
        """[1, T, V] logits of a short text under each adapter, with a backend."""
        import torch

        config, target = self.with_backend(backend), self.directory / f"{backend}.pt"
        settings = self.directory / "settings.json"
        settings.write_text(config.model_dump_json())
        self.python(config, "-c", LOGITS, str(settings), str(target), *map(str, adapters))
        return list(torch.load(target))


@pytest.fixture
def bench(tmp_path: Path, unsloth_python: Path) -> Callable[..., Bench]:
    """Makes the bench for a model: few, short records, two steps, and rewards that differ for text of any form."""

    def make(base: Path | str, **changes: Any) -> Bench:
        settings: dict[str, Any] = {
            "policy": {"base": str(base)},
            "data": {"synthetic_pool": 24, "synthetic_test": 3},
            "warmup": {"epochs": 0.2, "batch_size": 4, "micro_batch": 2, "learning_rate": 1e-3},
            "grpo": {"group_size": 4, "max_completion_length": 16, "learning_rate": 1e-3},
        }
        for section, values in changes.items():
            settings[section] = {**settings.get(section, {}), **values} if isinstance(values, dict) else values
        config = tiny_config(tmp_path, **settings)
        preparation.prepare(config, tmp_path / "data")
        return Bench(tmp_path, config, unsloth_python)

    return make


def rows_of(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def check_training(work: Path) -> dict[str, Any]:
    """A warm-up and two GRPO steps with finite losses, a warm-up that moved the adapter, and a merge that is exact."""
    from safetensors.torch import load_file

    rows = rows_of(work)
    assert [(row["phase"], row["step"]) for row in rows if row["phase"] == "grpo"] == [("grpo", 1), ("grpo", 2)]
    assert rows[0]["phase"] == "warmup"
    # NaN and infinity are no numbers of JSON, and would have rung an alarm that ends the training.
    assert all(abs(row["loss"]) < 100 and row["grad_norm"] >= 0 for row in rows)
    adapter = load_file(work / "warmup" / "adapter" / "adapter_model.safetensors")
    assert min(float(matrix.abs().max()) for name, matrix in adapter.items() if "lora_B" in name) > 0
    summary = json.loads((work / "training.json").read_text())
    assert summary["merge_difference"] < 1e-3
    return dict(summary)


def check_exchange(bench: Bench, *adapters: Path) -> None:
    """Adapters give the same logits with either backend, and are not without effect."""
    import torch

    others = [_changed(adapter) for adapter in adapters]
    ours, theirs = bench.logits("transformers", *adapters), bench.logits("unsloth", *adapters, *others)
    assert (len(ours), len(theirs)) == (len(adapters), 2 * len(adapters))
    for place, one in enumerate(ours):
        assert one.dtype == theirs[place].dtype == torch.float32
        assert float((one - theirs[place]).abs().max()) < 1e-3
        assert float((theirs[len(ours) + place] - theirs[place]).abs().max()) > 1e-3


def _changed(adapter: Path) -> Path:
    """A copy of an adapter with larger weights."""
    from safetensors.torch import load_file, save_file

    other = adapter.parent / "other"
    shutil.copytree(adapter, other)
    file = other / "adapter_model.safetensors"
    save_file({name: matrix * 3 for name, matrix in load_file(file).items()}, file)
    return other


def test_smollm2(bench: Callable[..., Bench]) -> None:
    """The embedded model is warmed up and trained with Unsloth, and transformers loads its adapter."""
    paid = {"rewards": {"mode": "weighted"}, "audit": "warn"}
    made = bench(EMBEDDED_MODEL, grpo={"group_size": 2}, data={"max_length": 512}, **paid)
    work = made.train(made.with_backend("unsloth"))
    check_training(work)
    check_exchange(made, work / "grpo" / "adapter")


def test_gemma(bench: Callable[..., Bench], tmp_path: Path) -> None:
    """A Gemma 3 is too; and Unsloth loads an adapter that transformers trained."""
    made = bench(tiny_gemma(tmp_path / "gemma"))
    works = [made.train(made.with_backend(backend)) for backend in ("unsloth", "transformers")]
    for work in works:
        check_training(work)
    check_exchange(made, *(work / "grpo" / "adapter" for work in works))


def test_rewards_move_the_adapter_and_a_training_goes_on(bench: Callable[..., Bench], tmp_path: Path) -> None:
    """Where answers earn different rewards GRPO moves the adapter, and a lost last step is repeated as it was."""
    speaker = talking_policy(tmp_path / "speaker", "yes", "no", "maybe")
    made = bench(speaker, warmup={"learning_rate": 1e-5}, grpo={"max_completion_length": 1, "sampling": "spread"})
    config = made.with_backend("unsloth")
    work = made.train(config)
    assert check_training(work)["adapter_change"] > 0
    assert max(row["reward_std"] for row in rows_of(work) if row["phase"] == "grpo") > 0
    before = (work / "grpo" / "adapter" / "adapter_model.safetensors").read_bytes()
    for lost in ("adapter", "checkpoint-2"):
        shutil.rmtree(work / "grpo" / lost)
    made.train(config)
    last, again = [row for row in rows_of(work) if row["step"] == 2 and row["phase"] == "grpo"]
    assert len([row for row in rows_of(work) if row["phase"] == "grpo"]) == 3
    assert {name: again[name] for name in ("loss", "reward")} == {name: last[name] for name in ("loss", "reward")}
    assert (work / "grpo" / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_weights_checkpointing_and_kl(bench: Callable[..., Bench], tmp_path: Path) -> None:
    """Verdicts that weigh more, recomputed activations and a reference to keep near to leave the same files."""
    made = bench(tiny_policy(tmp_path / "llama"), warmup={"verdict_weight": 4.0})
    work = made.train(made.with_backend("unsloth", gradient_checkpointing=True, beta=0.05))
    check_training(work)
    assert all("kl" in row for row in rows_of(work) if row["phase"] == "grpo")
    settings = json.loads((work / "grpo" / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == made.config.policy.lora_rank
    assert {path.name for path in (work / "grpo" / "adapter").glob("*.safetensors")} == {"adapter_model.safetensors"}
