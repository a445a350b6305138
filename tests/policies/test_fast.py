"""Tests of medgrpo.policies.fast that need no Unsloth; tests/e2e/test_unsloth.py has the others."""

import ast
import sys
from pathlib import Path

import pytest

import medgrpo
from medgrpo.config import RunConfig
from medgrpo.errors import InputError
from medgrpo.policies import fast
from medgrpo.testing import tiny_gemma, tiny_policy

VARIABLES = (
    "UNSLOTH_DISABLE_AUTO_PADDING_FREE",
    "UNSLOTH_DISABLE_STATISTICS",
    "UNSLOTH_COMPILE_LOCATION",
    "UNSLOTH_MEGA_CACHE_DIR",
)


def test_one_place_imports_unsloth():
    """Unsloth rewrites libraries when it is imported, so only `fast.start` does that."""
    root = Path(medgrpo.__file__).parent
    importers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0].startswith("unsloth") for name in names):
                importers.add(path.relative_to(root).as_posix())
    assert importers == {"policies/fast.py"}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs something that calls itself unsloth, for one test; returns the cache."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MEDGRPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)

    def install(code):
        (tmp_path / "unsloth.py").write_text(code)
        return tmp_path / "cache"

    yield install
    sys.modules.pop("unsloth", None)


def test_its_files_are_in_our_cache_and_it_counts_nobody(package):
    """When Unsloth is imported it is already told where to write, and not to count its users."""
    cache = package(f"import os\nseen = [os.environ[name] for name in {VARIABLES}]\n")
    assert fast.start().seen == ["1", "1", str(cache / "unsloth" / "modules"), str(cache / "unsloth" / "kernels")]


@pytest.mark.parametrize(
    ("raised", "named"),
    [
        ("NotImplementedError('no accelerator\\nlong story')", "NotImplementedError: no accelerator Install"),
        ("ImportError('needs torchvision')", "ImportError: needs torchvision Install"),
        ("RuntimeError('CUDA driver too old')", "RuntimeError: CUDA driver too old Install"),
        ("OSError()", "OSError:  Install"),
    ],
)
def test_a_refusal_is_a_sentence(package, raised, named):
    """A broken installation, or one that does not want this machine, is told with what to do."""
    package(f"raise {raised}\n")
    with pytest.raises(InputError, match=r"policy.backend is 'unsloth', but it cannot be imported") as caught:
        fast.start()
    assert named in str(caught.value)
    assert "use --set policy.backend=transformers" in str(caught.value)


def test_a_missing_package_is_a_sentence(package, monkeypatch):
    """Where Unsloth is not installed the extra that brings it is named."""
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(InputError, match=r"pip install 'medgrpo\[gpu\]'"):
        fast.start()


@pytest.mark.parametrize(
    ("setting", "value", "neutral"), [("rollout_dtype", "bfloat16", "float32"), ("use_vllm", True, "false")]
)
def test_settings_that_it_does_not_know_are_refused(setting, value, neutral):
    """What would silently do nothing is named, with what would do."""
    config = RunConfig.model_validate({"grpo": {setting: value}})
    with pytest.raises(InputError, match=f"grpo.{setting} is {value!r}.*--set grpo.{setting}={neutral} or"):
        fast._refuse_others(config)
    assert fast._refuse_others(RunConfig()) is None


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_policy, tiny_gemma])
def test_the_same_layers_are_trained_as_with_transformers(tmp_path, make):
    """The layers named to Unsloth are PEFT's "all-linear"."""
    from peft import LoraConfig, get_peft_model

    from medgrpo.policies import load_model

    source = make(tmp_path / "model")
    named = fast._linear_layers(load_model(source)[0])

    def trained(layers):
        model = get_peft_model(load_model(source)[0], LoraConfig(target_modules=layers))
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert trained(named) == trained("all-linear") != set()
    assert len(named) == 7
