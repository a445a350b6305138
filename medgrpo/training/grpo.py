"""GRPO, group relative policy optimisation (Shao et al., arXiv 2402.03300); every value comes from config."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgrpo.config import RunConfig
from medgrpo.records import Record
from medgrpo.rewards import reward_functions
from medgrpo.training.callbacks import Alarms, CompleteCheckpoints, MetricsFile, last_complete_checkpoint
from medgrpo.training.warmup import balanced_order

if TYPE_CHECKING:
    from datasets import Dataset


def train_grpo(model: Any, tokenizer: Any, rows: "Dataset", config: RunConfig, directory: Path, metrics: Path) -> None:
    """Train the adapter with GRPO and the three pillars as separate reward functions.

    Args:
        model: a PEFT model with a trainable adapter.
        tokenizer: its tokenizer.
        rows: prepared training rows (`record_id`, `prompt`, `verdict`, `record`).
        config: the run's settings.
        directory: where checkpoints go; training resumes from the last complete one in it.
        metrics: the `metrics.jsonl` to append to.

    Raises:
        TrainingAlarm: a loss that is not finite, or completions that stay empty.
    """
    import torch

    from medgrpo.training.grouped import GroupedGRPOTrainer

    grpo = config.grpo
    order = balanced_order(rows["verdict"], grpo.steps * grpo.prompts_per_step, grpo.balance, config.seed)
    records = {record.id: record for record in map(Record.model_validate_json, rows["record"])}
    trainer = GroupedGRPOTrainer(
        micro_batch_tokens=grpo.micro_batch_tokens,
        rollout_dtype=torch.bfloat16 if grpo.rollout_dtype == "bfloat16" else None,
        model=model,
        reward_funcs=reward_functions(records, config.rewards, grpo.max_completion_length),
        args=_arguments(config, directory),
        train_dataset=rows.select(order).select_columns(["prompt", "record_id"]),
        processing_class=tokenizer,
        callbacks=[MetricsFile(metrics, "grpo"), CompleteCheckpoints(), Alarms(grpo.alarm_patience)],
    )
    checkpoint = last_complete_checkpoint(directory)
    if checkpoint:
        # Where beta puts a reference adapter beside the policy's, transformers resumes the reference alone.
        model.load_adapter(str(checkpoint), "default", is_trainable=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _arguments(config: RunConfig, directory: Path) -> Any:
    import torch
    from trl import GRPOConfig

    grpo = config.grpo
    return GRPOConfig(
        output_dir=str(directory),
        max_steps=grpo.steps,
        # A step is one batch; the trainer cuts it into micro-batches by tokens.
        per_device_train_batch_size=grpo.prompts_per_step * grpo.group_size // config.processes,
        gradient_accumulation_steps=1,
        steps_per_generation=1,
        num_generations=grpo.group_size,
        num_iterations=grpo.num_iterations,
        # The order of the prompts is ours: class-balanced in every stretch.
        shuffle_dataset=False,
        max_completion_length=grpo.max_completion_length,
        temperature=grpo.temperature,
        top_p=grpo.top_p,
        top_k=grpo.top_k,
        repetition_penalty=grpo.repetition_penalty,
        beta=grpo.beta,
        epsilon=grpo.epsilon,
        epsilon_high=grpo.epsilon_high,
        loss_type=grpo.loss_type,
        scale_rewards=grpo.scale_rewards,
        importance_sampling_level=grpo.importance_sampling_level,
        mask_truncated_completions=grpo.mask_truncated_completions,
        use_vllm=grpo.use_vllm,
        learning_rate=grpo.learning_rate,
        lr_scheduler_type=grpo.schedule,
        warmup_steps=grpo.warmup_ratio,
        optim=grpo.optimizer,
        adam_beta1=grpo.adam_beta1,
        adam_beta2=grpo.adam_beta2,
        weight_decay=grpo.weight_decay,
        max_grad_norm=grpo.max_grad_norm,
        gradient_checkpointing=grpo.gradient_checkpointing,
        bf16=config.policy.autocast == "bfloat16",
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        save_strategy="steps",
        save_steps=grpo.save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
