"""Warm-up: supervised fine-tuning on gold completions, so that GRPO starts from a policy that knows the form."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo import domains
from medgrpo.config import RunConfig
from medgrpo.training.callbacks import CompleteCheckpoints, MetricsFile, TrimmedHeap, last_complete_checkpoint
from medgrpo.training.sampling import balanced_order
from medgrpo.training.watch import Watch

if TYPE_CHECKING:
    from datasets import Dataset


def train_warmup(
    model: Any, tokenizer: Any, rows: "Dataset", config: RunConfig, directory: Path, metrics: Path
) -> None:
    """Fine-tune the adapter with TRL's SFTTrainer; the loss counts the completion's tokens only, the verdict's more.

    Args:
        model: a PEFT model with a trainable adapter.
        tokenizer: its tokenizer.
        rows: prepared training rows (`prompt`, `completion`, `verdict`).
        config: the run's settings.
        directory: where checkpoints go; training resumes from the last complete one in it.
        metrics: the `metrics.jsonl` to append to.

    Raises:
        InputError: tokenizer and chat template do not fit together.
        TrainingAlarm: the loss is not finite, or a guard found what cannot work (see `medgrpo.training.guards`).
    """
    from medgrpo.training.guards import Guards
    from medgrpo.training.verdict_loss import VerdictWeightedTrainer

    form = domains.get(config.data.domain).form
    classes = [form.class_of(verdict) for verdict in rows["verdict"]]
    order = balanced_order(classes, len(rows), config.warmup.balance, config.seed)
    dataset = rows.select(order).map(_conversation, remove_columns=rows.column_names)
    watch = Watch(config)
    trainer = VerdictWeightedTrainer(
        verdict_weight=config.warmup.verdict_weight,
        labels=form.labels,
        model=model,
        args=_arguments(config, directory),
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[
            MetricsFile(metrics, "warmup", watch),
            Guards(rows[0]["prompt"], rows[0]["completion"]),
            CompleteCheckpoints(watch),
            TrimmedHeap(),
        ],
    )
    if config.policy.backend == "unsloth":
        from medgrpo.training.fast import require_autocast

        require_autocast(trainer.args, config)
    checkpoint = last_complete_checkpoint(directory)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": row["completion"]}]}


def _arguments(config: RunConfig, directory: Path) -> Any:
    import torch
    from trl import SFTConfig

    warmup = config.warmup
    return SFTConfig(
        output_dir=str(directory),
        num_train_epochs=warmup.epochs,
        per_device_train_batch_size=warmup.micro_batch,
        gradient_accumulation_steps=warmup.batch_size // (warmup.micro_batch * config.processes),
        learning_rate=warmup.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup.warmup_ratio,
        weight_decay=warmup.weight_decay,
        max_grad_norm=warmup.max_grad_norm,
        max_length=config.data.max_length,
        completion_only_loss=True,
        packing=False,
        # Completions of like length share a micro-batch, so that little is padded.
        train_sampling_strategy="group_by_length",
        optim="adamw_torch",
        gradient_checkpointing=config.grpo.gradient_checkpointing,
        bf16=config.policy.autocast == "bfloat16",
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        save_strategy="steps",
        save_steps=warmup.save_steps,
        save_total_limit=config.keep_checkpoints,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
