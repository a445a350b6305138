"""What tests of medgrpo, and of what is built on it, need: a tiny model, tiny records, a tiny run."""

from pathlib import Path
from typing import Any

from medgrpo.config import RunConfig, parse_config
from medgrpo.prompts import SYSTEM, gold_completion
from medgrpo.records import Record

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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


def tiny_policy(directory: Path) -> Path:
    """Save a random two-layer Llama with a byte-level tokenizer and a chat template; returns the directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer()
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
    LlamaForCausalLM(settings).save_pretrained(directory)
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
        "evaluation": {"cases": 6, "resamples": 50},
        "tracking": {"uri": f"sqlite:///{directory / 'mlflow.db'}"},
    }
    for section, settings in changes.items():
        values[section] = {**values[section], **settings} if isinstance(settings, dict) else settings
    return parse_config(values)


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
    record = tiny_record()
    core.train_from_iterator([SYSTEM, record.question, *record.contexts, gold_completion(record)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
