"""GRPO that computes each prompt once per group instead of once per completion, with TRL's numbers.

TRL's GRPOTrainer generates a prompt G times side by side, and trains on it G times. `GroupedGRPOTrainer` overrides the
three methods where that happens: generation prefills a prompt once; log-probabilities of policy, old policy and
reference come from one packed row per group, or, where that is longer than memory allows, from the prompt and then its
completions in pieces; and a step is cut into micro-batches by a budget of tokens, leaving out completions that teach
nothing. Loss, advantages and clipping stay TRL's; logged entropies and clip ratios are means
over the micro-batches, without the completions left out.

Of several processes each cuts its share of a step as it likes. TRL's loss exchanges numbers with the others, and would
wait for ever where they have fewer micro-batches, so here nothing is exchanged until all have finished: then the
gradients, which are the adapter's alone and small, are averaged at once.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from medgrpo.prefix.adapters import cast_weights, folded_adapters
from medgrpo.prefix.attention import layout_inputs
from medgrpo.prefix.generation import Sampling, generate_completions
from medgrpo.prefix.linear import reordered_weights
from medgrpo.prefix.packing import Packing
from medgrpo.prefix.pieces import KeptPrompt, Piece
from medgrpo.prefix.support import log_unshared, prepare
from medgrpo.training import lean, lora

Inputs = dict[str, Any]
Rows = Sequence[tuple[list[int], list[int]]]
"""Prompt and completion of each row, in tokens."""
Plan = list[list[list[int]]]
"""What is computed one after another: the rows of one forward and backward pass; or those of several, the pieces of one
group, whose prompt is computed once."""


class GroupedGRPOTrainer(GRPOTrainer):
    """TRL's trainer with shared prompts; whatever cannot be shared exactly takes TRL's own path.

    Args:
        args: TRL's; the whole step must be one batch (`gradient_accumulation_steps` and `steps_per_generation` 1).
        micro_batch_tokens: most tokens held at once in forward and backward passes, a prompt and a quarter of this at
            least; a single longer completion still goes alone.
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
        self._kept: KeptPrompt | None = None
        # These terms are computed over a whole batch.
        self._cuts_steps = not (self.aux_loss_enabled or self.top_entropy_quantile < 1)
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
        for pieces in [[_with_tokens(rows)]] if self._kept else _plan(rows, self._budget):
            # With a gradient, and outside a training step of ours, nobody would take it back through a kept prompt.
            alone = bool(self._kept) or torch.is_grad_enabled()
            with contextlib.nullcontext() if alone else self._keeping(model, rows, pieces):
                for chunk in pieces:
                    places, packed, outputs = self._packed_forward(model, rows, chunk, input_ids.device)
                    logps = logps.index_put(places, outputs.log_probs[packed].float())
                    if entropies is not None:
                        entropies = entropies.index_put(places, outputs.entropy[packed].float())
        return logps, entropies, None

    @contextmanager
    def _keeping(self, model: Any, rows: Rows, pieces: Sequence[Sequence[int]]) -> Iterator[None]:
        """Where a group comes in pieces, run its prompt before them, and take their gradients back through it after."""
        if len(pieces) == 1:
            yield
            return
        prompt = rows[pieces[0][0]][0][:-1]
        policy = self.accelerator.unwrap_model(model)
        inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        kept = KeptPrompt(len(prompt), self.accelerator.device)
        with self.accelerator.autocast():
            ids = torch.tensor([prompt], device=kept.device)
            inner.get_decoder()(input_ids=ids, use_cache=False, **layout_inputs(kept, kept.positions()))
        kept.close()
        self._kept = kept
        try:
            yield
        finally:
            self._kept = None
        kept.backward()

    def _packed_forward(
        self, model: Any, rows: Rows, chunk: Sequence[int], device: torch.device
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Any]:
        """One forward over the groups of some rows, or over the completions alone where their prompt is kept.

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
            if not self._kept:
                ids += prompt[:-1]
                labels += [-100] * (len(prompt) - 1)
            for row in (chunk[member] for member in members):
                ids += [prompt[-1], *rows[row][1][:-1]]
                labels += rows[row][1]
                order += [(row, place) for place in range(len(rows[row][1]))]
        lengths = [tuple(len(rows[chunk[member]][1]) for member in members) for members in groups.values()]
        layout: Packing | Piece = Packing(tuple(len(prompt) - 1 for prompt in groups), tuple(lengths), device)
        if self._kept:
            layout = Piece(self._kept, lengths[0])
        shift_labels = torch.tensor([labels], device=device)
        with self.accelerator.autocast():
            outputs = model(
                input_ids=torch.tensor([ids], device=device),
                shift_labels=shift_labels,
                fused_lm_head=True,
                **layout_inputs(layout, layout.positions()),
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
        rows, plan = self._micro_batches(batch)
        # Without the wrapper that would average each micro-batch's gradients.
        model = self.accelerator.unwrap_model(model)
        with self._alone():
            for pieces in plan:
                with self._keeping(model, rows, pieces):
                    for chunk in pieces:
                        micro_batch = {name: _rows_of(value, chunk, len(rows)) for name, value in batch.items()}
                        with self.compute_loss_context_manager():
                            loss = self.compute_loss(model, micro_batch) * self._share(batch, chunk)
                        self.accelerator.backward(loss)
                        total += loss.detach()
        _fill_gradients(model)
        self._average_gradients(model)
        self._step += 1
        self._metrics["train"]["step_time"].append(time.perf_counter() - started)
        return total

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Compute without the other processes; afterwards each has what all logged meanwhile."""
        together = self.accelerator
        if together.num_processes == 1:
            yield
            return
        logged = self._metrics["train"]
        self.accelerator, self._metrics["train"] = _Alone(together), defaultdict(list)
        try:
            yield
        finally:
            own = dict(self._metrics["train"])
            self.accelerator, self._metrics["train"] = together, logged
        for each in gather_object([own]):
            for name, values in each.items():
                logged[name].extend(values)

    def _average_gradients(self, model: Any) -> None:
        """Give every process the mean of all processes' gradients."""
        if self.accelerator.num_processes == 1:
            return
        gradients = [parameter.grad for parameter in _trainable(model) if parameter.grad is not None]
        flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def _micro_batches(self, batch: Inputs) -> tuple[Rows, Plan]:
        """The batch's rows, and which are computed together; without those whose gradient is exactly zero."""
        mask = batch["completion_mask"]
        teaches = mask.any(1)
        if self.beta == 0:
            teaches &= batch["advantages"] != 0
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        rows = _tokens(ids, torch.cat([batch["prompt_mask"], mask], 1), mask.shape[1])
        taught = [(prompt, own if used else []) for (prompt, own), used in zip(rows, teaches.tolist(), strict=True)]
        return rows, _plan(taught, self._budget, None if self._shares else ids.shape[1])

    def _share(self, batch: Inputs, rows: Sequence[int]) -> float:
        """Weight of a micro-batch's loss: TRL averages over its rows or tokens, and the step's are the whole."""
        if self.loss_type in ("grpo", "dr_grpo", "sapo", "luspo"):
            return len(rows) / len(batch["advantages"])
        if self.loss_type == "bnpo":
            mask = batch["completion_mask"]
            return float(mask[rows].sum().clamp(min=1) / mask.sum().clamp(min=1))
        return 1.0


class _Alone:
    """An accelerator that has nobody to exchange numbers with."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, value: Any) -> Any:
        """What this process has."""
        return value

    def reduce(self, value: Any, **_: Any) -> Any:
        """The sum over this process."""
        return value


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


def _plan(rows: Rows, budget: int, padded: int | None = None) -> Plan:
    """Which rows are computed together: packed rows of whole groups, and the pieces of groups that are longer.

    A packed row has at most `budget` tokens. Of a longer group, prompt and piece have at most as many, but a piece may
    have a quarter of them whatever the prompt's length: smaller ones would not be worth a forward pass each. A single
    longer completion goes alone. Rows without a completion are left out.

    Args:
        rows: prompt and completion of each.
        budget: see above.
        padded: tokens of a row where each row is computed by itself, padding included; None where prompts are shared.

    >>> rows = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6]), ([7, 8], [9])]
    >>> _plan(rows, 7), _plan(rows, 4), _plan(rows, 10, padded=5)
    ([[[0, 1, 2]]], [[[2]], [[0], [1]]], [[[0, 1]], [[2]]])
    """
    kept = _with_tokens(rows)
    if padded:
        return [[[kept[i] for i in run]] for run in _runs([padded] * len(kept), budget)]
    whole: list[tuple[list[int], int]] = []
    cut: Plan = []
    for prompt, members in _by_prompt([rows[row][0] for row in kept]).items():
        group = [kept[member] for member in members]
        own = [len(rows[row][1]) for row in group]
        if len(prompt) - 1 + sum(own) <= budget:
            whole.append((group, len(prompt) - 1 + sum(own)))
            continue
        pieces = [[group[i] for i in run] for run in _runs(own, max(budget - len(prompt) + 1, budget // 4))]
        # A prompt of one token is its branches' first, so there is nothing to keep.
        cut += [pieces] if len(prompt) > 1 else [[piece] for piece in pieces]
    runs = _runs([cost for _, cost in whole], budget)
    return [[[row for i in run for row in whole[i][0]]] for run in runs] + cut


def _with_tokens(rows: Rows) -> list[int]:
    return [row for row, (_, completion) in enumerate(rows) if completion]


def _runs(costs: Sequence[int], most: int) -> list[list[int]]:
    """Consecutive numbers of costs that sum to at most `most`; a higher one is alone.

    >>> _runs([2, 2, 3, 9, 1], 4)
    [[0, 1], [2], [3], [4]]
    """
    runs: list[list[int]] = []
    used = 0
    for number, cost in enumerate(costs):
        if not runs or used + cost > most:
            runs.append([])
            used = 0
        runs[-1].append(number)
        used += cost
    return runs


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
