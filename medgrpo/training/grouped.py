"""GRPO that computes each prompt once per group instead of once per completion, with TRL's numbers.

TRL's GRPOTrainer generates a prompt G times side by side, and trains on it G times. `GroupedGRPOTrainer` overrides the
three methods where that happens: generation prefills a prompt once; log-probabilities of policy, old policy and
reference come from one packed row per group; and a step is cut into micro-batches by a budget of tokens, leaving out
completions that teach nothing. Loss, advantages and clipping stay TRL's; logged entropies and clip ratios are means
over the micro-batches, without the completions left out.
"""

import time
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from medgrpo.prefix.adapters import cast_weights, folded_adapters
from medgrpo.prefix.attention import layout_inputs
from medgrpo.prefix.generation import Sampling, generate_completions
from medgrpo.prefix.linear import reordered_weights
from medgrpo.prefix.packing import Packing
from medgrpo.prefix.support import log_unshared, prepare
from medgrpo.training import lean, lora

Inputs = dict[str, Any]


class GroupedGRPOTrainer(GRPOTrainer):
    """TRL's trainer with shared prompts; whatever cannot be shared exactly takes TRL's own path.

    Args:
        args: TRL's; the whole step must be one batch (`gradient_accumulation_steps` and `steps_per_generation` 1).
        micro_batch_tokens: most tokens in one forward and backward pass; a single longer completion still goes alone.
        rollout_dtype: type of the weights that generate; None takes the policy's. In another type another policy
            generates, so its log-probabilities become those of the old policy in the importance ratio.
    """

    def __init__(
        self, *args: Any, micro_batch_tokens: int, rollout_dtype: torch.dtype | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._budget = micro_batch_tokens
        self._rollout_dtype = rollout_dtype
        if self._entropy_bonus_enabled:
            raise ValueError("an entropy bonus would have no gradient: none is kept for it under a frozen head.")
        self._shares = self._can_share()
        # These terms are computed over a whole batch, and several processes exchange numbers in every loss.
        whole = self.accelerator.num_processes > 1 or self.aux_loss_enabled or self.top_entropy_quantile < 1
        self._cuts_steps = not whole
        policy = self.accelerator.unwrap_model(self.model)
        lora.install(policy)
        if self._shares:
            lean.install(policy)

    def _can_share(self) -> bool:
        models = [self.accelerator.unwrap_model(model) for model in (self.model, self.ref_model) if model is not None]
        adapters = [adapter for model in models for adapter in getattr(model, "peft_config", {}).values()]
        if any(getattr(adapter, "lora_dropout", 0) for adapter in adapters):
            log_unshared("dropout in the adapter would fall on the one copy of a prompt instead of on each")
            return False
        if self.aux_loss_enabled:
            log_unshared("the balancing loss of its experts counts each copy of a prompt")
            return False
        if any(map(_has_dropout, models)):
            log_unshared("the model's own dropout would fall on the one copy of a prompt instead of on each")
            return False
        return all(prepare(model) for model in models)

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, multimodal_fields: Any, *args: Any, **options: Any
    ) -> Any:
        other = self.use_vllm or self.use_transformers_continuous_batching or self.min_p or self.args.generation_kwargs  # type: ignore[attr-defined]
        if not self._shares or other:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args, **options)
        groups = _by_prompt(prompt_ids)
        sampling = Sampling(
            max_new_tokens=self.args.max_completion_length,  # type: ignore[attr-defined]
            temperature=self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            log_probs=self._rollout_dtype is not None,
        )
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,  # type: ignore[attr-defined]
            ) as model,
            folded_adapters(model),
            cast_weights(model, self._rollout_dtype),
            reordered_weights(model),
        ):
            prompts, counts = list(groups), [len(rows) for rows in groups.values()]
            # The model inside the adapter's wrapper: training's autocast is on the wrapper.
            inner = model.get_base_model() if hasattr(model, "get_base_model") else model
            generated = generate_completions(inner, prompts, counts, sampling, self.eos_token_ids)
        order = [row for rows in groups.values() for row in rows]
        completions = [completion for _, completion in sorted(zip(order, generated, strict=True), key=itemgetter(0))]
        log_probs = [completion.log_probs for completion in completions] if sampling.log_probs else None
        return [completion.tokens for completion in completions], log_probs

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """[B, C] log-probabilities (and entropies) of the completions in [B, P + C] ids; 0 on padding."""
        if not self._shares:
            at_once = max(1, self._budget // input_ids.shape[1])
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, at_once, compute_entropy, **options
            )
        rows = _tokens(input_ids, attention_mask, logits_to_keep)
        shape = (len(rows), logits_to_keep)
        logps = torch.zeros(shape, device=input_ids.device)
        entropies = torch.zeros(shape, device=input_ids.device) if compute_entropy else None
        for chunk in _chunks(rows, self._budget):
            places, packed, outputs = self._packed_forward(model, rows, chunk, input_ids.device)
            logps = logps.index_put(places, outputs.log_probs[packed].float())
            if entropies is not None:
                entropies = entropies.index_put(places, outputs.entropy[packed].float())
        return logps, entropies, None

    def _packed_forward(
        self, model: Any, rows: "list[tuple[list[int], list[int]]]", chunk: list[int], device: torch.device
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Any]:
        """One forward over the groups of some rows.

        The last token of a prompt predicts a different token in each completion, so every branch begins with a copy of
        it and ends before its own last token: each of its positions then predicts exactly one token.

        Returns:
            Where the completions' tokens belong in [B, C]; the [1, T] mask of positions that predict one; the output.
        """
        groups = _by_prompt([rows[row][0] for row in chunk])
        ids: list[int] = []
        labels: list[int] = []
        order: list[tuple[int, int]] = []
        for prompt, members in groups.items():
            ids += prompt[:-1]
            labels += [-100] * (len(prompt) - 1)
            for row in (chunk[member] for member in members):
                ids += [prompt[-1], *rows[row][1][:-1]]
                labels += rows[row][1]
                order += [(row, place) for place in range(len(rows[row][1]))]
        packing = Packing(
            tuple(len(prompt) - 1 for prompt in groups),
            tuple(tuple(len(rows[chunk[member]][1]) for member in members) for members in groups.values()),
            device,
        )
        shift_labels = torch.tensor([labels], device=device)
        with self.accelerator.autocast():
            outputs = model(
                input_ids=torch.tensor([ids], device=device),
                shift_labels=shift_labels,
                fused_lm_head=True,
                **layout_inputs(packing, packing.positions()),
            )
        row_of, place_of = torch.tensor(order, device=device).T
        return (row_of, place_of), shift_labels != -100, outputs

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward over the step's micro-batches; the sum of their losses is TRL's loss of the step."""
        if not self._cuts_steps:
            return super().training_step(model, inputs, num_items_in_batch)
        started = time.perf_counter()
        model.train()
        batch = dict(self._prepare_inputs(inputs))
        if "sampling_per_token_logps" in batch and not self.use_vllm:
            batch["old_per_token_logps"] = batch["sampling_per_token_logps"]
        total = torch.zeros((), device=self.accelerator.device)
        for rows in self._micro_batches(batch):
            micro_batch = {name: _rows_of(value, rows, len(batch["advantages"])) for name, value in batch.items()}
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, micro_batch) * self._share(batch, rows)
            self.accelerator.backward(loss)
            total += loss.detach()
        _fill_gradients(model)
        self._step += 1
        self._metrics["train"]["step_time"].append(time.perf_counter() - started)
        return total

    def _micro_batches(self, batch: Inputs) -> list[list[int]]:
        """Rows of each micro-batch, without those whose gradient is exactly zero."""
        mask = batch["completion_mask"]
        teaches = mask.any(1)
        if self.beta == 0:
            teaches &= batch["advantages"] != 0
        kept = teaches.nonzero()[:, 0].tolist()
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        rows = _tokens(ids, torch.cat([batch["prompt_mask"], mask], 1), mask.shape[1])
        padded = None if self._shares else ids.shape[1]
        return [[kept[i] for i in chunk] for chunk in _chunks([rows[row] for row in kept], self._budget, padded)]

    def _share(self, batch: Inputs, rows: Sequence[int]) -> float:
        """Weight of a micro-batch's loss: TRL averages over its rows or tokens, and the step's are the whole."""
        if self.loss_type in ("grpo", "dr_grpo", "sapo", "luspo"):
            return len(rows) / len(batch["advantages"])
        if self.loss_type == "bnpo":
            mask = batch["completion_mask"]
            return float(mask[rows].sum().clamp(min=1) / mask.sum().clamp(min=1))
        return 1.0


def _has_dropout(model: Any) -> bool:
    layers = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return layers or bool(getattr(model.config, "attention_dropout", 0))


def _by_prompt(prompts: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """Rows of each distinct prompt, in order of first appearance."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    return groups


def _tokens(ids: Tensor, mask: Tensor, completion: int) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each [B, P + C] row, without padding."""
    split = ids.shape[1] - completion
    rows = zip(ids.tolist(), mask.bool().tolist(), strict=True)
    return [
        (
            [token for token, real in zip(row[:split], seen[:split], strict=True) if real],
            [token for token, real in zip(row[split:], seen[split:], strict=True) if real],
        )
        for row, seen in rows
    ]


def _chunks(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], budget: int, padded: int | None = None
) -> list[list[int]]:
    """Rows in chunks of at most `budget` tokens, a group together where it fits; empty completions are left out.

    Args:
        rows: (prompt, completion) tokens.
        budget: most tokens in a chunk.
        padded: tokens of a row where each row is computed by itself, padding included; None where prompts are shared.

    >>> group = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([7, 8], [9])]
    >>> _chunks(group, 6), _chunks(group, 4), _chunks(group, 10, padded=5)
    ([[0, 1], [2]], [[0], [1], [2]], [[0, 1], [2]])
    """
    chunks: list[list[int]] = []
    used = 0
    open_prompts: set[tuple[int, ...]] = set()
    for prompt, members in _by_prompt([prompt for prompt, _ in rows]).items():
        for row in members:
            length = len(rows[row][1])
            if not length:
                continue
            alone = padded or len(prompt) - 1 + length
            cost = padded or length + (0 if prompt in open_prompts else len(prompt) - 1)
            if not chunks or used + cost > budget:
                chunks.append([])
                used, open_prompts, cost = 0, set(), alone
            chunks[-1].append(row)
            open_prompts.add(prompt)
            used += cost
    return chunks


def _rows_of(value: Any, rows: list[int], batch_size: int) -> Any:
    """The rows of a value that has one entry per completion; any other value as it is."""
    per_row = isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch_size
    return value[rows] if per_row else value


def _fill_gradients(model: Any) -> None:
    """A parameter without a gradient would be skipped by the optimiser; with TRL it has one of zeros, and momentum."""
    for parameter in _trainable(model):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _trainable(model: Any) -> Iterator[Tensor]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
