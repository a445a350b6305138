"""What is special about Gemma 3, end to end on a tiny random one: turns, their end, windows, tied embeddings."""

import contextlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medgrpo.config import PolicyConfig
from medgrpo.domains.abstracts import EXAMPLE, SYSTEM
from medgrpo.evaluation.generate import generate, sample
from medgrpo.export import TOLERANCE, export
from medgrpo.manifests import write_json
from medgrpo.policies import load_model, load_tokenizer, load_trainable
from medgrpo.prefix import support
from medgrpo.prefix.attention import install
from medgrpo.prefix.generation import Sampling
from medgrpo.preparation import load_records, prepare
from medgrpo.prompts import render_prompt
from medgrpo.serving import AnswerSettings, answer
from medgrpo.testing import GEMMA_LAYERS, tiny_config, tiny_gemma, tiny_record
from tests.prefix.conftest import with_lora
from tests.prefix.test_packing import packed
from tests.training.test_grouped import difference

pytestmark = pytest.mark.slow

EOS, BOS, START_OF_TURN, END_OF_TURN = 1, 2, 105, 106
RESULT = {"value": 0.62, "low": 0.55, "high": 0.69, "n": 200}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gemma(tmp_path_factory.mktemp("gemma") / "policy")


@contextmanager
def recorded() -> Iterator[list[list[int]]]:
    """Every row of tokens that a Gemma reads meanwhile and that holds a turn."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding as Embedding

    rows: list[list[int]] = []
    forward = Embedding.forward

    def reading(module: Any, input_ids: torch.Tensor) -> Any:
        rows.extend(row for row in input_ids.tolist() if START_OF_TURN in row)
        return forward(module, input_ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Embedding, "forward", reading)
        yield rows


def varied(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """A reward that random completions earn differently."""
    return [len(set(completion[-1]["content"])) / 40 for completion in completions]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of the tiny Gemma, prepared and trained with the training process's own main, and what it read."""
    import datasets

    from medgrpo.training import __main__ as process
    from medgrpo.training import grpo

    directory = tmp_path_factory.mktemp("gemma-run")
    tiny_gemma(directory / "tiny-policy")
    config = tiny_config(directory, data={"synthetic_pool": 24, "synthetic_test": 6}, grpo={"learning_rate": 1e-2})
    run = directory / "runs" / "night"
    prepared = prepare(config, run / "data")
    write_json(run / "train" / "job.json", {"config": config.model_dump(mode="json"), "data": str(run / "data")})
    with recorded() as rows, pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "disable_caching", lambda: None)
        patch.setattr(grpo, "reward_functions", lambda *_: [varied])
        patch.setattr(process, "_without_collector", contextlib.nullcontext)
        assert process.main(run / "train") == 0
    metrics = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(config=config, run=run, prepared=prepared, rows=rows, metrics=metrics)


def prompt_ids(tokenizer: Any, *, number: int = 1) -> list[int]:
    ids: list[int] = tokenizer.apply_chat_template(
        render_prompt(tiny_record(str(number))), add_generation_prompt=True, return_dict=False
    )
    return ids


# --- Turns -------------------------------------------------------------------------------------------------------


def test_the_tiny_gemma_has_the_layout_of_the_real_one(base: Path) -> None:
    """The tokenizer, as it is published, adds <bos> by itself and ends at <eos>, and its control tokens have Gemma's
    numbers; embeddings are tied, queries and keys normalised, and most layers see a window shorter than a prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, EOS, BOS, 3, START_OF_TURN, END_OF_TURN]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, EOS, BOS)
    text = "Pain fell by 2.4 points – naïvely\n\nso."
    assert tokenizer("a").input_ids[0] == BOS
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.config.layer_types.count("sliding_attention") == 2
    assert model.config.sliding_window == GEMMA_LAYERS["sliding_window"] < len(prompt_ids(tokenizer)) / 4
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.layers[0].self_attn.q_norm.weight.shape == (GEMMA_LAYERS["head_dim"],)
    assert model.model.embed_tokens.scalar_embed_scale == model.config.hidden_size**0.5


def test_the_system_text_is_folded_into_the_users_turn(base: Path) -> None:
    """A prompt is one turn of the user, which starts with what the system says, and the opening of the model's."""
    tokenizer = load_tokenizer(base)
    text = tokenizer.decode(prompt_ids(tokenizer))
    assert text.startswith(f"<bos><start_of_turn>user\n{SYSTEM}\n\nAbstract: ")
    assert text.endswith("<end_of_turn>\n<start_of_turn>model\n")
    assert text.count("<start_of_turn>") == 2
    assert "system" not in text


def test_end_of_turn_is_the_end_everywhere(base: Path, trained: SimpleNamespace) -> None:
    """Loaded, and loaded again from what a training wrote, tokenizer and both settings of the model end at 106."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = load_model(base)
    merged = trained.run / "train" / "model"
    plain = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    for loaded, with_it in ((model, tokenizer), plain):
        assert with_it.eos_token_id == loaded.config.eos_token_id == loaded.generation_config.eos_token_id
        assert with_it.eos_token_id == END_OF_TURN
        assert with_it.pad_token_id == loaded.config.pad_token_id == loaded.generation_config.pad_token_id == 0


def test_a_sequence_begins_once(trained: SimpleNamespace) -> None:
    """In preparation, warm-up, rollouts and loss, evaluation and serving <bos> opens a prompt and is never doubled."""
    tokenizer = load_tokenizer(trained.config.policy.base)
    records = [record for split in ("train", "dev", "test") for record in load_records(trained.run / "data", split)]
    lengths = [
        len(tokenizer.apply_chat_template(render_prompt(record), add_generation_prompt=True)["input_ids"])
        for record in records
    ]
    assert trained.prepared["max_prompt_tokens"] == max(lengths)
    model, _ = load_model(trained.run / "train" / "model")
    with recorded() as later:
        generate(model, tokenizer, [render_prompt(records[0])], 4, 10_000)
        answer(model, tokenizer, [EXAMPLE], AnswerSettings(max_new_tokens=4, samples=2))
    for rows, least in ((trained.rows, 10), (later, 2)):
        assert len(rows) >= least
        for row in rows:
            opened = [place for place, token in enumerate(row) if token == BOS]
            assert opened
            assert all(row[place + 1] == START_OF_TURN for place in opened), tokenizer.decode(row)


def test_the_warmup_teaches_the_end_of_turn(trained: SimpleNamespace) -> None:
    """What is learnt ends with the gold completion's <end_of_turn> and the template's line break."""
    line_break = load_tokenizer(trained.config.policy.base).convert_tokens_to_ids("\n")
    taught = [[token for token in row if token] for row in trained.rows]
    taught = [row for row in taught if row[-2:] == [END_OF_TURN, line_break]]
    assert taught
    assert all(row.count(END_OF_TURN) == 2 for row in taught)


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "transformers"])
def test_a_completion_ends_with_its_turn(base: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    """However it is generated, what follows <end_of_turn> is cut, and the text does not show it."""
    if not shared:
        monkeypatch.setattr(support, "prepare", lambda model: False)
    model, tokenizer = load_model(base)
    drawn = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: drawn.append(list(ids)) or decode(ids, **options))
    torch.manual_seed(0)
    [answers] = sample(model, tokenizer, [render_prompt(tiny_record())], 64, Sampling(60, 1.0), 100_000)
    ended = [each for each in answers if each.tokens < 60]
    assert ended
    assert not any("<end_of_turn>" in each.text or "<pad>" in each.text for each in answers)
    assert not any(END_OF_TURN in ids[:-1] for ids in drawn)


# --- Windows -----------------------------------------------------------------------------------------------------


def test_the_window_matters_to_these_prompts(base: Path) -> None:
    """Without it the last token of a prompt would have other logits, so the tests below can fail."""
    model, tokenizer = load_model(base)
    ids = torch.tensor([prompt_ids(tokenizer)])
    with torch.inference_mode():
        windowed = model(ids).logits[0, -1]
        model.config.sliding_window = 4096
        for layer in model.model.layers:
            layer.self_attn.sliding_window = layer.self_attn.sliding_window and 4096
        whole = model(ids).logits[0, -1]
    assert (windowed - whole).abs().max() > 0.05 * windowed.std()


def test_shared_prompts_longer_than_the_window_generate_what_transformers_does(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy answers to prompts many windows long are the same, token for token, as transformers' own."""
    model, tokenizer = load_model(base)
    prompts = [render_prompt(tiny_record(number)) for number in "123"]
    with monkeypatch.context() as patch:
        patch.setattr(support, "prepare", lambda model: False)
        plain = generate(model, tokenizer, prompts, 30, 10_000)
    assert generate(model, tokenizer, prompts, 30, 10_000) == plain
    assert max(each.tokens for each in plain) == 30


def test_a_packed_group_longer_than_the_window_has_the_logits_of_its_rows(base: Path) -> None:
    """Prompt once and completions side by side: each token has the logits that it has in a row of its own."""
    model, tokenizer = load_model(base)
    prompt = prompt_ids(tokenizer)
    branches = [prompt_ids(tokenizer, number=2)[:length] for length in (40, 13, 1)]
    with torch.no_grad():
        rows = [model(torch.tensor([prompt + branch])).logits[0, len(prompt) :] for branch in branches]
        install(model)
        logits, _ = packed(model, [prompt], [branches])
    torch.testing.assert_close(logits[len(prompt) :], torch.cat(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 40, 10_000], ids=["row by row", "in parts", "at once"])
def test_the_packed_loss_is_trls(base: Path, tmp_path: Path, budget: int) -> None:
    """Loss and gradients of a step are those of TRL, which computes each completion with its prompt."""
    import datasets

    from medgrpo.training import logprobs

    logprobs.install()
    rows = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": f"Question {i}?"}]} for i in range(6)])
    setting = SimpleNamespace(tokenizer=load_tokenizer(base), rows=rows, directory=tmp_path)
    found = difference(setting, lambda: with_lora(load_model(base)[0]), budget)
    assert max(found.loss, found.gradients) <= 1e-4
    assert found.largest_gradient > 1e-6


# --- Tied embeddings ---------------------------------------------------------------------------------------------


def test_lora_leaves_the_tied_embeddings_alone(base: Path) -> None:
    """All linear layers are adapted, but not the head, which is the embeddings: both stay one frozen tensor."""
    model, _ = load_trainable(PolicyConfig(base=str(base), lora_rank=4))
    adapted = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    inner = model.get_base_model()
    assert inner.lm_head.weight is inner.model.embed_tokens.weight
    assert not inner.lm_head.weight.requires_grad


def test_the_merged_model_is_tied_and_says_what_the_adapter_says(base: Path, trained: SimpleNamespace) -> None:
    """After a training the merged files hold the embeddings once, unchanged, and the logits are the adapter's."""
    from safetensors.torch import load_file

    work = trained.run / "train"
    stored = load_file(work / "model" / "model.safetensors")
    assert "model.embed_tokens.weight" in stored
    assert "lm_head.weight" not in stored
    merged, tokenizer = load_model(work / "model")
    adapted, _ = load_trainable(trained.config.policy, work / "grpo" / "adapter")
    before, _ = load_model(base)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert torch.equal(merged.lm_head.weight, before.lm_head.weight)
    ids = torch.tensor([prompt_ids(tokenizer)])
    with torch.inference_mode():
        ours, theirs, old = (model.eval()(ids).logits for model in (merged, adapted, before))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - old).abs().max() > 1e-3


def test_an_exported_gemma_is_the_trained_one(trained: SimpleNamespace, tmp_path: Path) -> None:
    """The export compares merged model and adapter, and plain transformers loads it tied, with its end of turn."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = trained.run
    write_json(run / "config.json", trained.config.model_dump(mode="json"))
    write_json(run / "evaluation" / "metrics.json", {"models": {"tuned": {"accuracy": RESULT}}})
    write_json(run / "evaluation" / "gate.json", {"outcome": "fail", "summary": "It is no better.", "checks": []})
    write_json(run / "summary.json", {"git_commit": "abc123"})
    exported = export(str(run), tmp_path / "exported", trained.config)
    assert exported.difference is not None
    assert exported.difference < TOLERANCE
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.eos_token_id, prompt_ids(tokenizer).count(BOS)) == (END_OF_TURN, 1)


def test_a_training_of_gemma_has_finite_numbers_and_moves(trained: SimpleNamespace) -> None:
    """Warm-up and two GRPO steps of the training process: every number is finite, and the policy is another one."""
    assert [row["step"] for row in trained.metrics if row["phase"] == "grpo"] == [1, 2]
    for row in trained.metrics:
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float)), row
    summary = json.loads((trained.run / "train" / "training.json").read_text())
    assert summary["adapter_change"] > 1e-3
    assert summary["merge_difference"] < 1e-4
