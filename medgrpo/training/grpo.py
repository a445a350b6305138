"""GRPO, group relative policy optimisation (Shao et al., arXiv 2402.03300); every value comes from config."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from trl import GRPOConfig, GRPOTrainer

from medgrpo import domains
from medgrpo.config import RunConfig
from medgrpo.records import Record
from medgrpo.rewards import reward_functions
from medgrpo.training.callbacks import (
    ORDER,
    CompleteCheckpoints,
    KeptOrder,
    MetricsFile,
    TrimmedHeap,
    last_complete_checkpoint,
)
from medgrpo.training.grouped import GroupedGRPOTrainer
from medgrpo.training.guards import Guards
from medgrpo.training.resumable import Moment, Resumable
from medgrpo.training.sampling import LatePlaces, SpreadOrder, balanced_order
from medgrpo.training.watch import Watch, completion_facts

if TYPE_CHECKING:
    from datasets import Dataset

# Rewards of a group that differ by less than this are the same, summed in another order.
SAME = 1e-6


class Watched(Resumable, GRPOTrainer):
    """TRL's trainer, or what took its place, with prompts in an order that may depend on what they earned, and facts
    on the completions.

    Args:
        order: the row of each prompt, in the order of the steps.
        records: id -> Record.
    """

    def __init__(self, *args: Any, order: Sequence[int], records: Mapping[str, Record], **options: Any) -> None:
        super().__init__(*args, **options)
        self._order, self._records = order, records

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        places: Any = super()._get_train_sampler(range(len(self._order)))
        return LatePlaces(places, self._order)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        """[B, pillars] rewards of the completions of all processes, as TRL's; what they are like is logged."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        groups = rewards.sum(1).view(-1, self.num_generations)
        spread = (groups.amax(1) - groups.amin(1) > SAME).tolist()
        if isinstance(self._order, SpreadOrder):
            self._order.learn(spread)
        facts = completion_facts(
            [self._records[row["record_id"]] for row in inputs], [text[-1]["content"] for text in completions]
        )
        for name, value in {**facts, "watch/no_spread": 1 - sum(spread) / len(spread)}.items():
            self._log_metric(name, value)
        return rewards

    def _is_exact(self, step: int) -> bool:
        # A checkpoint holds no completions.
        return step % self.num_iterations == 0

    def _remember(self) -> Moment:
        order = self._order.state() if isinstance(self._order, SpreadOrder) else None
        return {**super()._remember(), "order": order}

    def _wind_back(self, moment: Moment) -> None:
        super()._wind_back(moment)
        if isinstance(self._order, SpreadOrder):
            self._order.restore(moment["order"])


class WatchedGRPOTrainer(Watched, GroupedGRPOTrainer):
    """What trains with the transformers backend."""


def train_grpo(model: Any, tokenizer: Any, rows: "Dataset", config: RunConfig, directory: Path, metrics: Path) -> None:
    """Train the adapter with GRPO and the three pillars as separate reward functions.

    Args:
        model: a PEFT model with a trainable adapter.
        tokenizer: its tokenizer.
        rows: prepared training rows (`record_id`, `prompt`, `completion`, `verdict`, `record`).
        config: the run's settings.
        directory: where checkpoints go; training resumes from the last complete one in it.
        metrics: the `metrics.jsonl` to append to.

    Raises:
        InputError: tokenizer and chat template do not fit together.
        TrainingAlarm: going on is pointless, or `watch.action` is "stop" and an alarm rings (see `WatchConfig`).
    """
    grpo, watch = config.grpo, Watch(config)
    records = {record.id: record for record in map(Record.model_validate_json, rows["record"])}
    checkpoint = last_complete_checkpoint(directory)
    form = domains.get(config.data.domain).form
    order = _order([form.class_of(verdict) for verdict in rows["verdict"]], config, checkpoint)
    trainer_class, options = _trainer(config)
    trainer = trainer_class(
        **options,
        order=order,
        records=records,
        model=model,
        reward_funcs=reward_functions(records, config.rewards, grpo.max_completion_length),
        args=_arguments(config, directory),
        train_dataset=rows.select_columns(["prompt", "record_id"]),
        processing_class=tokenizer,
        callbacks=[
            MetricsFile(metrics, "grpo", watch),
            Guards(rows[0]["prompt"], rows[0]["completion"]),
            *([KeptOrder(order)] if isinstance(order, SpreadOrder) else []),
            CompleteCheckpoints(watch),
            TrimmedHeap(),
        ],
    )
    if checkpoint:
        # Where beta puts a reference adapter beside the policy's, transformers resumes the reference alone.
        model.load_adapter(str(checkpoint), "default", is_trainable=True)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _trainer(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """The class that trains with the backend, and what it takes beside TRL's arguments."""
    if config.policy.backend == "unsloth":
        from medgrpo.training.fast import FastGRPOTrainer

        return FastGRPOTrainer, {"config": config}
    options = {
        "micro_batch_tokens": config.grpo.micro_batch_tokens,
        "rollout_dtype": torch.bfloat16 if config.grpo.rollout_dtype == "bfloat16" else None,
    }
    return WatchedGRPOTrainer, options


def _batches(config: RunConfig) -> dict[str, Any]:
    """How the completions of a step come to the trainer that `_trainer` names."""
    if config.policy.backend == "unsloth":
        from medgrpo.training.fast import batches

        return batches(config)
    completions = config.grpo.prompts_per_step * config.grpo.group_size // config.processes
    # A step is one batch; the trainer cuts it into micro-batches by tokens.
    return {"per_device_train_batch_size": completions, "gradient_accumulation_steps": 1, "steps_per_generation": 1}


def _order(verdicts: Sequence[str], config: RunConfig, checkpoint: Path | None) -> Sequence[int]:
    """The row of each prompt of the training, as `grpo.sampling` says; where it depends on rewards, as it was."""
    grpo = config.grpo
    if grpo.sampling == "balanced":
        return balanced_order(verdicts, grpo.steps * grpo.prompts_per_step, grpo.balance, config.seed)
    order = SpreadOrder(verdicts, grpo.steps, grpo.prompts_per_step, grpo.balance, config.seed)
    if checkpoint:
        order.restore(json.loads((checkpoint / ORDER).read_text()))
    return order


def _arguments(config: RunConfig, directory: Path) -> Any:
    grpo = config.grpo
    return GRPOConfig(
        output_dir=str(directory),
        max_steps=grpo.steps,
        **_batches(config),
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
        # A checkpoint holds no completions: resumed between two passes over the same ones, others would be written.
        save_steps=math.ceil(grpo.save_steps / grpo.num_iterations) * grpo.num_iterations,
        save_total_limit=config.keep_checkpoints,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )
