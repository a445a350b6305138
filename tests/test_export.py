"""Exported models: plain files with the digest that was measured, compared with their adapter."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from medgrpo import registry
from medgrpo.cli import app
from medgrpo.config import RunConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.export import EXPORT_FILE, TOLERANCE, check_push, export, largest_difference, push
from medgrpo.manifests import describe, write_json
from medgrpo.testing import tiny_config

RESULT = {"value": 0.62, "low": 0.55, "high": 0.69, "n": 200}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with a tiny adapter that moves its model, and the model it was merged into."""
    import torch

    from medgrpo.policies import load_model, load_trainable, resolve_base
    from medgrpo.preparation import prepare

    directory = tmp_path_factory.mktemp("trained")
    config, run = tiny_config(directory), directory / "runs" / "night"
    train, model = run / "train", run / "train" / "model"
    prepare(config, run / "data")
    policy, tokenizer = load_trainable(config.policy)
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    policy.save_pretrained(train / "grpo" / "adapter")
    merged, _ = load_model(resolve_base(config.policy), train / "grpo" / "adapter")
    merged.save_pretrained(model)
    tokenizer.save_pretrained(model)
    write_json(run / "config.json", config.model_dump(mode="json"))
    write_json(train / "training.json", {"seconds": 60.0, "device": "cpu"})
    write_json(run / "evaluation" / "metrics.json", {"models": {"tuned": {"accuracy": RESULT}}})
    write_json(run / "evaluation" / "gate.json", {"outcome": "fail", "summary": "It is no better.", "checks": []})
    write_json(run / "summary.json", {"git_commit": "abc123"})
    return run


def _plain_logits(directory: Path, ids: list[int]) -> list[float]:
    """What transformers alone says, in a process that can import neither medgrpo nor peft."""
    code = """
import json, sys
sys.modules["medgrpo"] = sys.modules["peft"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert model.dtype == torch.float32
assert tokenizer.eos_token_id == model.generation_config.eos_token_id
assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)
with torch.inference_mode():
    print(json.dumps(model(torch.tensor([json.loads(sys.argv[2])])).logits[0, -1].tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(directory), json.dumps(ids)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    logits: list[float] = json.loads(done.stdout.splitlines()[-1])
    return logits


@pytest.mark.slow
def test_a_run_is_exported_as_plain_files(trained: Path, tmp_path: Path) -> None:
    """Transformers alone loads what was trained, which answers as base and adapter do, to a thousandth of a logit."""
    import torch
    from huggingface_hub import ModelCard

    from medgrpo.policies import load_trainable

    done = export(str(trained), tmp_path / "out", RunConfig())
    config = tiny_config(trained.parents[1])
    assert done.digest == describe(trained / "train" / "model").sha256
    assert done.difference is not None
    assert 0 <= done.difference < TOLERANCE
    assert done.unchecked == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    note = json.loads((tmp_path / "out" / EXPORT_FILE).read_text())
    assert (note["digest"], note["difference"], note["source"]) == (done.digest, done.difference, "run night")
    policy, _ = load_trainable(config.policy, trained / "train" / "grpo" / "adapter")
    ids = [5, 70, 300, 12]
    with torch.inference_mode():
        expected = policy.eval()(torch.tensor([ids])).logits[0, -1]
        with policy.disable_adapter():
            base = policy(torch.tensor([ids])).logits[0, -1]
    found = torch.tensor(_plain_logits(tmp_path / "out", ids))
    assert float((found - expected).abs().max()) < TOLERANCE
    assert float((found - base).abs().max()) > 10 * TOLERANCE
    card = ModelCard((tmp_path / "out" / "README.md").read_text())
    assert card.data.library_name == "transformers"
    said = ("Not medical advice", "**fail**: It is no better.", "commit abc123", "no logit differs from those")
    for phrase in (*said, done.digest):
        assert phrase in card.text


@pytest.mark.slow
def test_a_version_is_exported_with_the_digest_that_was_approved(
    trained: Path, candidate: registry.Candidate, tmp_path: Path
) -> None:
    """A registered model leaves the registry as it was measured; its run keeps the adapter that it is checked with."""
    model = trained / "train" / "model"
    config = candidate.config.model_copy(update={"policy": tiny_config(trained.parents[1]).policy})
    parts: dict[str, Any] = {"config": config, "model_dir": model, "model_digest": describe(model).sha256}
    shutil.copytree(trained / "train" / "grpo", candidate.train_dir / "grpo", dirs_exist_ok=True)
    version = registry.register(replace(candidate, **parts))
    done = export("models:/medgrpo-synthetic@candidate", tmp_path / "out", config)
    assert (done.source, done.digest) == (version.uri, version.digest)
    assert done.difference is not None
    assert done.difference < TOLERANCE
    readme = (tmp_path / "out" / "README.md").read_text()
    assert readme.startswith("---\nlanguage: en\n")
    assert "**pass**: All 2 checks hold." in readme
    assert version.uri in readme


@pytest.mark.slow
def test_a_merged_model_that_is_not_its_adapters_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were changed since, or merged into another base, are not exported, and nothing is left behind."""
    import torch
    from safetensors.torch import load_file, save_file

    run = shutil.copytree(trained, tmp_path / "run")
    weights = run / "train" / "model" / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "down_proj" in name)
    save_file({**tensors, name: tensors[name] + 0.05 * torch.randn_like(tensors[name])}, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"logits differ from those of its base with the adapter by .* at most 0\.001"):
        export(str(run), tmp_path / "out", RunConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_merged_model_that_cannot_be_loaded_is_refused(trained: Path, tmp_path: Path) -> None:
    """Damaged weights are no missing comparison: nobody could load what would be exported."""
    run = shutil.copytree(trained, tmp_path / "run")
    weights = run / "train" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="is not a usable model directory"):
        export(str(run), tmp_path / "out", RunConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lose", "reason"),
    [
        (lambda run: shutil.rmtree(run / "train" / "grpo"), "the adapter that was merged into it is not kept with"),
        (lambda run: _rebase(run, "/nowhere/base"), "'/nowhere/base' is not a directory"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_not_claimed(
    trained: Path, tmp_path: Path, lose: Callable[[Path], object], reason: str
) -> None:
    """Without the adapter, or its base, the model is exported, and everything says that it is unchecked."""
    run = shutil.copytree(trained, tmp_path / "run")
    lose(run)
    done = export(str(run), tmp_path / "out", RunConfig())
    assert done.difference is None
    assert reason in done.unchecked
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "not compared with the adapter" in readme
    assert "no logit differs" not in readme
    assert str(tmp_path) not in readme + (tmp_path / "out" / EXPORT_FILE).read_text()
    assert "/nowhere" not in readme


def _rebase(run: Path, base: str) -> None:
    config = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", {**config, "policy": {**config["policy"], "base": base}})


@pytest.mark.slow
def test_a_nan_anywhere_is_no_small_difference() -> None:
    """One logit that is not a number, on whichever prompt, makes the whole difference none."""
    import torch

    ones = [torch.zeros(2, 3), torch.zeros(1, 3)]
    assert largest_difference(ones, [torch.full((2, 3), 0.25), torch.full((1, 3), -0.5)]) == 0.5
    for place in (0, 1):
        others = [tensor.clone() for tensor in ones]
        others[place][0, 1] = math.nan
        assert math.isnan(largest_difference(ones, others))


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    """A directory in use is refused before anything is looked at."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty\. Name a new directory"):
        export("runs/latest", tmp_path, RunConfig())


def test_what_is_no_trained_run_is_refused(tmp_path: Path) -> None:
    """A directory without a trained model gets a sentence with both kinds of source, and nothing is made."""
    with pytest.raises(InputError, match=r"holds no train/model. Expected a run such as runs/latest"):
        export(str(tmp_path), tmp_path / "out", RunConfig())
    assert list(tmp_path.iterdir()) == []


# --- the Hub


@pytest.mark.parametrize("name", ["a/b/c", "-x/y", "a b/c", ""])
def test_a_name_that_the_hub_cannot_have_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found out before a model is exported."""
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(InputError, match="is not a name on the Hugging Face Hub"):
        check_push(name)


def test_without_a_token_nothing_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says how to get one."""
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match="hf auth login"):
        push(tmp_path, "me/reader")


def test_a_hub_that_is_out_of_reach_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files stay, and the sentence says how to push them later."""
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    # Offline mode, in which tests run, would answer before the network does.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ServiceUnreachable, match=r"did not answer \(.*refused.*\)\. The files are in .*hf upload me/x"):
        push(tmp_path, "me/x", "http://127.0.0.1:9")


class _Hub(BaseHTTPRequestHandler):
    """A Hub that knows nobody."""

    asked: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        """Refuse."""
        self.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_hub_that_refuses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that may not write is the user's to mend; the repository would have been private."""
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), _Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=r"the Hugging Face Hub refused me/x: .*401"):
            push(tmp_path, "me/x", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    [(path, body)] = _Hub.asked
    assert path == "/api/repos/create"
    assert (body["name"], body["organization"], body["visibility"]) == ("x", "me", "private")


# --- from the command line


@pytest.mark.slow
def test_the_command_says_what_it_measured(trained: Path, tmp_path: Path) -> None:
    """`medgrpo export` prints digest and difference; a push without a token is refused before anything is written."""
    done = CliRunner().invoke(app, ["export", str(trained), "--to", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert describe(trained / "train" / "model").sha256 in done.output
    assert "largest difference of a logit from base and adapter: " in done.output
    refused = CliRunner().invoke(app, ["export", str(trained), "--to", str(tmp_path / "two"), "--push", "a/b/c"])
    assert isinstance(refused.exception, InputError)
    assert not (tmp_path / "two").exists()
