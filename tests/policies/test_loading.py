"""The policy model: where it comes from, and the sentences about what is wrong with it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medgrpo import policies
from medgrpo.config import EMBEDDED_MODEL, PolicyConfig
from medgrpo.errors import InputError, ServiceUnreachable
from medgrpo.testing import tiny_policy


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("tiny"))


def resolve(base: object) -> str:
    return policies.resolve_base(PolicyConfig(base=str(base)))


class TestResolveBase:
    """The setting `policy.base`."""

    def test_choices(self, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A Hugging Face id is passed on, a directory of a model becomes its path, also below the home directory."""
        assert resolve("google/gemma-3-1b-it") == "google/gemma-3-1b-it"
        assert resolve(tiny) == str(tiny)
        monkeypatch.setenv("HOME", str(tiny.parent))
        assert resolve(f"~/{tiny.name}") == str(tiny)

    def test_existing_relative_directory_goes_before_the_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name with one slash is a directory where there is one, and its sentence is about a directory."""
        (tmp_path / "models" / "x").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=r"models/x is not a model directory: it holds no config\.json"):
            resolve("models/x")

    @pytest.mark.parametrize("base", ["/no/such/place", "./none", "gpt2", "a/b/c"])
    def test_no_directory(self, base: str) -> None:
        """What is neither a directory nor an id is answered with the three choices."""
        with pytest.raises(InputError) as caught:
            resolve(base)
        for part in (f"policy.base {base!r} is not a directory", EMBEDDED_MODEL, "google/gemma-3-1b-it"):
            assert part in str(caught.value)

    def test_a_file(self, tiny: Path) -> None:
        """A file is not a directory of a model."""
        with pytest.raises(InputError, match="is not a directory"):
            resolve(tiny / "config.json")


@pytest.mark.slow
class TestLoading:
    """Loading models from directories and from the Hub, with a tiny model."""

    def test_tokenizer(self, tiny: Path) -> None:
        """Prompts are padded on the left, and a completion ends where a chat turn ends."""
        tokenizer = policies.load_tokenizer(tiny)
        assert (tokenizer.padding_side, tokenizer.eos_token, tokenizer.pad_token) == (
            "left",
            "<|im_end|>",
            "<|endoftext|>",
        )

    def test_end_of_turn_replaces_end_of_text(self, tiny: Path, tmp_path: Path) -> None:
        """A tokenizer that names another end, as Gemma's does, is set to the end of a turn; a missing pad follows."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tiny)
        tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", None
        tokenizer.save_pretrained(tmp_path)
        loaded = policies.load_tokenizer(tmp_path)
        assert loaded.eos_token == loaded.pad_token == "<|im_end|>"

    def test_model(self, tiny: Path) -> None:
        """A model comes in float32, in evaluation mode, with the tokenizer's end and padding."""
        model, tokenizer = policies.load_model(tiny)
        assert str(model.dtype) == "torch.float32"
        assert not model.training
        assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id

    def test_soft_capped_scores_are_not_left_out(self, tiny: Path, tmp_path: Path) -> None:
        """A Gemma 2 is loaded with the attention that caps its scores: transformers' default would ignore the cap."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        shutil.copytree(tiny, tmp_path / "gemma")
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vocabulary = AutoConfig.from_pretrained(tiny).vocab_size
        config = AutoConfig.for_model(
            "gemma2",
            **shape,
            num_key_value_heads=1,
            head_dim=16,
            vocab_size=vocabulary,
            attn_logit_softcapping=0.01,
            initializer_range=2.0,
        )
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gemma")
        loaded, _ = policies.load_model(tmp_path / "gemma")
        tokens = torch.arange(3, 15)[None]
        logits = {}
        for attention in ("eager", "sdpa"):
            loaded_so = AutoModelForCausalLM.from_pretrained(tmp_path / "gemma", attn_implementation=attention)
            with torch.inference_mode():
                logits[attention] = loaded_so.eval()(tokens).logits
        with torch.inference_mode():
            assert torch.allclose(loaded(tokens).logits, logits["eager"], atol=1e-5)
        assert not torch.allclose(logits["sdpa"], logits["eager"], atol=1e-2)

    def test_no_chat_template(self, tiny: Path, tmp_path: Path) -> None:
        """A base model without a chat template is refused with what to choose instead."""
        directory = Path(shutil.copytree(tiny, tmp_path / "base"))
        (directory / "chat_template.jinja").unlink()
        with pytest.raises(InputError, match=f"{directory}: its tokenizer has no chat template; choose"):
            policies.load_tokenizer(directory)

    @pytest.mark.parametrize("damage", ["gone", "cut", "empty", "a list"])
    @pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_damaged_model_directory(self, tiny: Path, tmp_path: Path, file: str, damage: str) -> None:
        """A model directory with a missing, cut or foreign file is one sentence that names the directory."""
        directory = Path(shutil.copytree(tiny, tmp_path / "damaged"))
        content = (directory / file).read_bytes()
        if damage == "gone":
            (directory / file).unlink()
        else:
            (directory / file).write_bytes({"cut": content[:100], "empty": b"", "a list": b"[1]"}[damage])
        with pytest.raises(InputError, match=f"{directory} is not a usable model directory: "):
            policies.load_model(directory)

    @pytest.mark.parametrize("error", [OSError("We couldn't connect"), ConnectionError("offline"), ValueError("odd")])
    def test_unreachable_hub(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model that is neither cached nor reachable is worth a retry; the sentence names it and what to check."""

        class Factory:
            @staticmethod
            def from_pretrained(*_: object, **__: object) -> None:
                raise error

        monkeypatch.setattr("transformers.AutoTokenizer", Factory)
        with pytest.raises(ServiceUnreachable, match=r"'some/model' is neither cached nor reachable.*local directory"):
            policies.load_tokenizer("some/model")

    def test_offline_and_not_cached(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """With the Hub switched off, an id that is not cached is refused at once."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ServiceUnreachable, match="'some-org/not-cached-here' is neither cached nor reachable"):
            policies.load_tokenizer("some-org/not-cached-here")

    def test_trainable(self, tiny: Path, tmp_path: Path) -> None:
        """A fresh adapter trains on all linear layers; a saved one is gone on with, and folds into the base."""
        import torch

        model, _ = policies.load_trainable(PolicyConfig(base=str(tiny), lora_rank=4))
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert all("lora_" in name for name in trained)
        assert {"q_proj", "down_proj"} <= {name.split(".lora_")[0].split(".")[-1] for name in trained}
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(weight, 0.1)
        model.save_pretrained(tmp_path)
        again, _ = policies.load_trainable(PolicyConfig(base=str(tiny), lora_rank=4), adapter=tmp_path)
        assert any(weight.requires_grad for weight in again.parameters())
        folded, _ = policies.load_model(tiny, adapter=tmp_path)
        words = torch.arange(12)[None]
        with torch.no_grad():
            assert torch.allclose(folded(words).logits, again(words).logits, atol=1e-5)
            assert not torch.allclose(folded(words).logits, policies.load_model(tiny)[0](words).logits, atol=1e-3)

    @pytest.mark.parametrize("load", ["load_model", "load_trainable"])
    def test_adapter_that_does_not_fit(self, tiny: Path, tmp_path: Path, load: str) -> None:
        """An adapter that is missing is named in a sentence, whichever way it was to be loaded."""
        loaders: dict[str, Callable[[], Any]] = {
            "load_model": lambda: policies.load_model(tiny, adapter=tmp_path / "none"),
            "load_trainable": lambda: policies.load_trainable(PolicyConfig(base=str(tiny)), adapter=tmp_path / "none"),
        }
        with pytest.raises(InputError, match=f"{tmp_path / 'none'} is not an adapter that fits this model"):
            loaders[load]()

    def test_transformers_loads_what_unsloth_trains(self, tiny: Path) -> None:
        """Whatever backend is set, this loads whole weights in float32: for a merge, an export, a comparison."""
        import torch

        settings = PolicyConfig(base=str(tiny), backend="unsloth", quantization="4bit")
        model, _ = policies.load_trainable(settings)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
