"""What tests of medgrpo, and of what is built on it, need: tiny models, tiny records, a tiny run, a tiny version."""

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo import domains
from medgrpo.completions import Verdict
from medgrpo.config import RunConfig, parse_config, resolve_mlflow_uri
from medgrpo.manifests import describe, write_text
from medgrpo.prompts import gold_completion, render_prompt
from medgrpo.records import Record

if TYPE_CHECKING:
    from datasets import Dataset
    from mlflow import MlflowClient

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set told = messages[0].content | trim %}"
    "{% set turns = messages[1:] %}{% else %}{% set told = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n"
    "{{ told ~ '\n\n' if told and loop.first else '' }}{{ turn.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA_LAYERS: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "num_hidden_layers": 3,
}
"""What makes a tiny Gemma 3 one: heads of a width of their own, and a window that is shorter than any prompt."""


def tiny_record(record_id: str = "1", verdict: str = "yes", **changes: Any) -> Record:
    """A small valid record."""
    fields: dict[str, Any] = {
        "id": record_id,
        "question": f"Does treatment {record_id} lower pain after surgery?",
        "contexts": (
            f"We randomised 120 adults to treatment {record_id} or placebo.",
            "Mean pain fell by 2.4 points with treatment and by 0.9 points with placebo (p=0.003).",
        ),
        "verdict": verdict,
        "long_answer": "The treatment relieves pain better than placebo.",
    }
    return Record.model_validate(fields | changes)


def tiny_rows(verdicts: Sequence[Verdict]) -> "Dataset":
    """Prepared training rows of tiny records r0, r1, ... with these verdicts."""
    from datasets import Dataset

    records = [tiny_record(f"r{i}", verdict) for i, verdict in enumerate(verdicts)]
    return Dataset.from_list(
        [
            {
                "record_id": record.id,
                "prompt": render_prompt(record),
                "completion": gold_completion(record),
                "verdict": record.verdict,
                "record": record.model_dump_json(),
            }
            for record in records
        ]
    )


def tiny_policy(directory: Path) -> Path:
    """Save a random two-layer Llama with a byte-level tokenizer and a chat template; returns the directory."""
    tokenizer = _tokenizer()
    _small_llama(tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_gemma(directory: Path) -> Path:
    """Save a random three-layer Gemma 3 with a tokenizer and settings of its real form; returns the directory.

    Control tokens have the numbers that they have in Gemma's tokenizer, which adds <bos> by itself and takes <eos> for
    the end. As in the published models embeddings are tied, <eos> and <end_of_turn> end a text, and generation samples
    unless told otherwise.
    """
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = _gemma_tokenizer()
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    torch.manual_seed(0)
    settings = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends,
        **GEMMA_LAYERS,
    )
    model = Gemma3ForCausalLM(settings)
    model.generation_config.update(do_sample=True, top_k=64, top_p=0.95, eos_token_id=ends)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _small_llama(tokenizer: Any) -> Any:
    """A random Llama for a tokenizer's vocabulary, the same one each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(settings)


def talking_policy(directory: Path, *verdicts: Verdict) -> Path:
    """Save a small random Llama that speaks in tokens, each a whole answer with one of the verdicts.

    With one verdict it gives that to every question. `grpo.max_completion_length = 1` lets it say one token.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    thought = "<thought>It fell by 6, and 99 died.</thought>"
    spoken = [f"{thought}<answer>{verdict}</answer>" for verdict in verdicts]
    if len(verdicts) == 1:
        spoken.append(f"{spoken[0]} ")
    words = ["<pad>", "<|im_end|>", "<unk>", *spoken, *(chr(code) for code in range(33, 127))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} <|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    model = _small_llama(tokenizer)
    said = slice(3, 3 + len(spoken))
    with torch.no_grad():
        answers = model.lm_head.weight[said].clone()
        if len(verdicts) == 1:
            # Of an answer and its mirror image one is always likelier than silence.
            answers[1] = -answers[0]
        model.lm_head.weight.zero_()[said] = 20 * answers
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_config(directory: Path, **changes: Any) -> RunConfig:
    """A run of seconds in `directory`, on synthetic records with a tiny policy; sections in `changes` are merged in."""
    policy = directory / "tiny-policy"
    if not policy.is_dir():
        tiny_policy(policy)
    values: dict[str, Any] = {
        "profile": "tiny",
        "runs_dir": directory / "runs",
        "data": {"synthetic_pool": 60, "synthetic_test": 30},
        "policy": {"base": str(policy), "lora_rank": 4},
        "warmup": {"epochs": 0.2, "batch_size": 4, "learning_rate": 1e-3},
        "grpo": {
            "steps": 2,
            "prompts_per_step": 2,
            "group_size": 2,
            "micro_batch_tokens": 500,
            "save_steps": 1,
            "max_completion_length": 24,
        },
        "evaluation": {"cases": 6, "resamples": 50, "near_duplicate": 0.8},
        "tracking": {"uri": f"sqlite:///{directory / 'mlflow.db'}"},
    }
    for section, settings in changes.items():
        values[section] = {**values.get(section, {}), **settings} if isinstance(settings, dict) else settings
    return parse_config(values)


def tiny_version(config: RunConfig, gate: str = "pass", weights: str = "1", **tags: str) -> int:
    """Register a version whose model is one small file; where the gate passed it is under review. Returns its number.

    It was measured against the champion of the moment, unless the tags say otherwise.

    Args:
        config: names the MLflow store and the model; the files lie in its `runs_dir`.
        gate: outcome of the gate; empty for a version without one.
        weights: content of the model's file.
        tags: further tags, `medgrpo.` left out.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    from medgrpo.registry import VERSION_TAG, connect, registered_name
    from medgrpo.registry.lookup import files_digest

    client, name = connect(config), registered_name(config, config.data.domain)
    with contextlib.suppress(MlflowException):
        client.create_registered_model(name)
    known, place = client.get_experiment_by_name(name), config.runs_dir.absolute() / "mlartifacts"
    served = resolve_mlflow_uri(config).startswith("http")
    experiment = known.experiment_id if known else client.create_experiment(name, None if served else place.as_uri())
    run_id = client.create_run(experiment).info.run_id
    logged = client.create_logged_model(experiment, "policy", run_id)
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        write_text(files / "artifacts" / "model" / "config.json", "{}")
        write_text(files / "artifacts" / "model" / "weights.txt", weights)
        flavor = {"artifacts": {"model": {"path": "artifacts/model"}}}
        Model(flavors={"python_function": flavor}).save(files / "MLmodel")
        digests = {"compared_with": _champion_digest(client, name)}
        digests |= {"digest": describe(files / "artifacts" / "model").sha256, "files_digest": files_digest(files)}
        client.log_model_artifacts(logged.model_id, scratch)
    client.finalize_logged_model(logged.model_id, "READY")
    named = {f"medgrpo.{key}": value for key, value in {**digests, "gate": gate, **tags}.items() if value}
    source = logged.artifact_location
    version = client.create_model_version(name, source, run_id, named, model_id=logged.model_id)
    if gate == "pass":
        client.set_registered_model_alias(name, config.tracking.alias, version.version)
    client.set_tag(run_id, VERSION_TAG, str(version.version))
    return int(version.version)


def _champion_digest(client: "MlflowClient", name: str) -> str:
    champion = client.get_registered_model(name).aliases.get("champion")
    return str(client.get_model_version(name, champion).tags["medgrpo.digest"]) if champion else "none"


def _seen(record: Record) -> list[str]:
    """What a tokenizer learns from: the parts of a record's prompt, and its gold completion."""
    return [domains.get(record.domain).system, record.question, *record.contexts, gold_completion(record)]


def _tokenizer() -> Any:
    """A byte-level tokenizer that has seen a prompt, so that prompts are not too many tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_seen(tiny_record()) * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _gemma_tokenizer() -> Any:
    """A tokenizer of Gemma's class, layout and habits, that has seen a prompt."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    control += [f"<unused{i}>" for i in range(105 - len(control))] + ["<start_of_turn>", "<end_of_turn>"]
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Replace(" ", "▁")
    # Only here: no token is to reach into the next word.
    words = pre_tokenizers.Split("▁", behavior="merged_with_next")
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", behavior="isolated"), words])
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=[*control, "\n", *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    core.train_from_iterator(_seen(tiny_record()) * 4, trainer)
    learnt = json.loads(core.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learnt["merges"]]
    return GemmaTokenizer(
        vocab=learnt["vocab"],
        merges=merges,
        add_bos_token=True,
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
        chat_template=GEMMA_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
