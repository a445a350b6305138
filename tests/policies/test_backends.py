"""Tests of medgrpo.policies.backends: which backend is chosen, and what is found on the machine."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from medgrpo.config import PolicyConfig, RunConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.policies import backends
from medgrpo.policies.backends import (
    PACKAGES,
    architecture_of,
    check_packages,
    choose_backend,
    installed_packages,
    present_capability,
)


@pytest.mark.parametrize(
    ("setting", "cuda", "installed", "processes", "backend", "why"),
    [
        ("auto", True, True, 1, "unsloth", "a CUDA device and the package unsloth"),
        ("auto", True, False, 1, "transformers", "unsloth is not installed"),
        ("auto", False, True, 1, "transformers", "no CUDA device"),
        ("auto", False, False, 1, "transformers", "no CUDA device"),
        ("auto", True, True, 2, "transformers", "one process only"),
        ("transformers", True, True, 1, "transformers", "policy.backend says so"),
        ("unsloth", True, True, 1, "unsloth", "policy.backend says so"),
        ("unsloth", False, True, 1, "unsloth", "policy.backend says so"),
    ],
)
def test_the_backend_is_chosen_with_a_reason(setting, cuda, installed, processes, backend, why):
    """What is set is taken; auto takes unsloth only where it can use a GPU, and says why or why not."""
    chosen, reason = choose_backend(setting, cuda, installed, processes)
    assert chosen == backend
    assert why in reason


@pytest.mark.parametrize("cuda", [True, False])
def test_unsloth_must_be_there_if_asked_for(cuda):
    """The sentence names the Python that lacks it, and what to set instead."""
    with pytest.raises(InputError) as refused:
        choose_backend("unsloth", cuda, installed=False)
    assert sys.executable in str(refused.value)
    assert "policy.backend=transformers, or auto" in str(refused.value)


def test_unsloth_is_for_one_process():
    """Several would train apart, with nothing said."""
    with pytest.raises(InputError, match="processes is 2, but unsloth is tested with one process only"):
        choose_backend("unsloth", True, installed=True, processes=2)


@pytest.mark.parametrize(
    ("policy", "grpo", "package", "remedy"),
    [
        ({"quantization": "4bit"}, {}, "bitsandbytes", "policy.quantization=none"),
        ({}, {"optimizer": "adamw_8bit"}, "bitsandbytes", "grpo.optimizer=adamw_torch"),
        ({}, {"use_vllm": True}, "vllm", "grpo.use_vllm=false"),
    ],
)
def test_a_missing_package_is_named(policy, grpo, package, remedy):
    """A setting whose package is missing is refused with what to install or set; where it is there, all is well."""
    config = RunConfig.model_validate({"policy": policy, "grpo": grpo})
    with pytest.raises(InputError) as refused:
        check_packages(config, {"unsloth"})
    assert f"the package {package} is not installed" in str(refused.value)
    assert str(refused.value).endswith(f"or set {remedy}.")
    check_packages(config, {package})


def test_packages_are_found_without_being_imported(monkeypatch):
    """A package that can be found counts; one that cannot does not, and none is loaded."""
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object() if name == "vllm" else None)
    assert installed_packages() == {"vllm"}
    assert "vllm" in PACKAGES
    assert "vllm" not in sys.modules


@pytest.mark.parametrize(("processes", "capability"), [(1, (8, 6)), (2, (7, 5)), (8, (7, 5))])
def test_the_oldest_device_that_trains_counts(processes, capability, monkeypatch):
    """One process uses the first device; several compute alike, so the oldest of theirs decides."""
    devices = [(8, 6), (7, 5), (9, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(devices))
    monkeypatch.setattr(torch.cuda, "get_device_capability", devices.__getitem__)
    assert present_capability(processes) == capability


def test_without_cuda_there_is_no_capability(monkeypatch):
    """None stands for the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert present_capability() is None


# --- The architecture --------------------------------------------------------------------------------------------


def _model(directory, text):
    directory.mkdir()
    (directory / "config.json").write_text(text)
    return PolicyConfig(base=str(directory))


@pytest.mark.parametrize(("text", "architecture"), [('{"model_type": "gemma3_text"}', "gemma3_text"), ("{}", "")])
def test_the_architecture_of_a_directory_is_in_its_config(tmp_path, text, architecture):
    """It is read from config.json; where that names none, it is unknown."""
    assert architecture_of(_model(tmp_path / "model", text)) == architecture


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_damaged_config_is_named(tmp_path, text):
    """What is no JSON object is said, with its path."""
    with pytest.raises(InputError, match=r"model/config\.json is not a model's configuration"):
        architecture_of(_model(tmp_path / "model", text))


def test_the_embedded_model_is_a_llama():
    """It is known without its file, which may still have to be converted."""
    assert architecture_of(PolicyConfig()) == "llama"


def test_the_architecture_of_a_hub_model_is_fetched_alone(tmp_path, monkeypatch):
    """Of a Hugging Face id only config.json is asked for, in the revision that is set."""
    asked = []

    def download(*arguments, **options):
        asked.append((arguments, options))
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"model_type": "gemma3_text"}))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    config = PolicyConfig(base="google/gemma-3-1b-it", revision="abc")
    assert architecture_of(config) == "gemma3_text"
    assert asked == [(("google/gemma-3-1b-it", "config.json"), {"revision": "abc"})]


def test_an_unreachable_hub_is_worth_a_retry(monkeypatch):
    """Neither cached nor reachable ends in the sentence that loading the model would end in."""

    def download(*_, **__):
        raise LocalEntryNotFoundError("No connection.\nDetails.")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(ServiceUnreachable, match=r"'a/b' is neither cached nor reachable .* No connection\. Check"):
        architecture_of(PolicyConfig(base="a/b"))


@pytest.mark.slow
def test_settling_leaves_unsloth_to_be_imported_first(tmp_path):
    """After all is decided, for a directory too, neither transformers nor TRL nor PEFT is loaded."""
    _model(tmp_path / "model", '{"model_type": "gemma3_text"}')
    code = f"""
        import sys
        from pathlib import Path
        from medgrpo.config import RunConfig
        from medgrpo.training.precision import settle
        auto = {{"base": {str(tmp_path / "model")!r}, "backend": "auto", "autocast": "auto"}}
        settle(RunConfig.model_validate({{"policy": auto}}), Path({str(tmp_path)!r}))
        print(sorted({{"torch", "transformers", "trl", "peft", "datasets"}} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['torch']"
