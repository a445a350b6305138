"""What memory a training will take, reckoned before it starts from its settings and the model's config.json alone.

A training has phases that follow one another: warm-up, then in each step of GRPO a rollout and a loss, then the merge
of the adapter. Each holds the weights and something of its own; the plan lists the parts of each, and its peak is that
of the largest phase. It reckons with the longest records that `data.max_length` lets through and with completions that
run to their cap, so that shorter ones take less.

For the transformers backend the parts are those of medgrpo's own code, and are compared with measured trainings
(`benchmarks/memory.py`). What holds of unsloth, of 4-bit weights, of bfloat16 autocast, of 8-bit AdamW and of a
CUDA device in general is an estimate that nothing was measured for.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from medgrpo.config import RunConfig
from medgrpo.errors import InputError

GB = 1e9
FLOAT, HALF = 4, 2
"""Bytes of a number in float32 and in bfloat16."""
NF4 = 0.5 + 1 / 64 + 1 / 4096
"""Bytes of a weight in 4 bits, with the doubly quantised scale of each 64 (Dettmers et al., arXiv 2305.14314)."""
RUNTIME_CPU = 600_000_000
"""Python, PyTorch, transformers, TRL and datasets in one process, measured."""
RUNTIME_CUDA = 500_000_000
"""A CUDA context and the workspaces of its libraries; an estimate."""
HEAP_GAPS = 0.75
"""What glibc's heap, told to keep freed memory (see `medgrpo.training.launch`), cannot use again, as a share of what a
forward and backward pass holds: measured, 0.5 to 0.9, reached by the second pass."""
LOGITS_AT_ONCE, LOGITS_COPIES = 128, 3
"""Tokens whose logits the loss holds at once (see `medgrpo.training.logprobs`), and how often."""
DRAWING = 28
"""Bytes that drawing a token takes for each entry of the vocabulary: logits, probabilities, their sum in float64."""
ROWS_LEAVE = 1.8
"""The completions' cache is copied when rows that have ended leave, first when a fifth of them has."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, from its config.json.

    Attributes:
        vocabulary: V.
        hidden: width h of the residual stream.
        layers: L.
        queries: width of all query heads together.
        keys: width of all key heads together; that of the values too.
        inner: width F of the feed-forward.
        tied: whether the head is the embedding.
        norms: norms of a layer, those of queries and keys left out.
        query_norms: whether queries and keys have norms of their own.
        longest: positions that the model knows.
    """

    vocabulary: int
    hidden: int
    layers: int
    queries: int
    keys: int
    inner: int
    tied: bool
    norms: int
    query_norms: bool
    longest: int

    @classmethod
    def of(cls, model_config: Mapping[str, Any]) -> Self:
        """Read a config.json; what it leaves out is as transformers has it.

        Raises:
            InputError: it does not describe a decoder.
        """
        text = model_config.get("text_config") or model_config
        kind = str(text.get("model_type", ""))
        if text.get("num_experts") or text.get("num_local_experts"):
            raise InputError(f"the model ({kind}) is made of experts, for which memory cannot be planned.")
        try:
            heads = int(text["num_attention_heads"])
            width = int(text.get("head_dim") or text["hidden_size"] // heads)
            return cls(
                vocabulary=int(text["vocab_size"]),
                hidden=int(text["hidden_size"]),
                layers=int(text["num_hidden_layers"]),
                queries=heads * width,
                keys=int(text.get("num_key_value_heads") or heads) * width,
                inner=int(text["intermediate_size"]),
                tied=bool(text.get("tie_word_embeddings", kind.startswith("gemma"))),
                norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
                query_norms=kind.startswith(("gemma3", "qwen3")),
                longest=int(text.get("max_position_embeddings") or 2**17),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"the model's config.json ({kind or 'without a model_type'}) does not say how large it is: {error!s} "
                "is missing or no number. Memory can be planned for decoders such as Llama, Gemma, Qwen and Mistral."
            ) from error

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the matrices of a layer: queries, keys, values, output, gate, up, down."""
        h = self.hidden
        attention = ((h, self.queries), (h, self.keys), (h, self.keys), (self.queries, h))
        return (*attention, (h, self.inner), (h, self.inner), (self.inner, h))

    @property
    def matrices(self) -> int:
        """Weights that the adapter stands beside."""
        return self.layers * sum(rows * columns for rows, columns in self.products)

    @property
    def embedding(self) -> int:
        """Weights of the embedding, or of the head."""
        return self.vocabulary * self.hidden

    @property
    def others(self) -> int:
        """Weights outside the matrices: embedding, head, norms."""
        return (1 if self.tied else 2) * self.embedding + (self.norms * self.layers + 1) * self.hidden

    def low_rank(self, rank: int) -> int:
        """Weights of a LoRA adapter on all matrices: A [r, in] and B [out, r] of each."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.products)


@dataclass(frozen=True)
class MemoryPlan:
    """What each phase of a training holds.

    Attributes:
        phases: phase -> part -> bytes.
    """

    phases: Mapping[str, Mapping[str, int]]

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return sum(self.parts.values())

    @property
    def largest(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def parts(self) -> Mapping[str, int]:
        """part -> bytes of the largest phase."""
        return self.phases[self.largest]

    def in_gb(self) -> dict[str, Any]:
        """The peak, and each phase's parts, in GB."""
        phases = {
            phase: {name: round(size / GB, 3) for name, size in parts.items()} for phase, parts in self.phases.items()
        }
        return {"peak": round(self.peak / GB, 3), "largest": self.largest, "phases": phases}

    def sentence(self) -> str:
        """The largest phase and its parts in one line.

        >>> MemoryPlan({"merge": {"weights": 8_000_000_000, "runtime": 500_000_000}}).sentence()
        '8.5 GB in the merge: weights 8.0, runtime 0.5'
        """
        parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in self.parts.items() if size >= GB / 20)
        return f"{self.peak / GB:.1f} GB in the {self.largest}: {parts}"


def plan_memory(config: RunConfig, model_config: Mapping[str, Any], cuda: bool = False) -> MemoryPlan:
    """Reckon what one process of a training takes.

    Args:
        config: the run's settings; `auto` counts as float32, which takes more.
        model_config: content of the base's config.json.
        cuda: whether it trains on a CUDA device; then it is the device's memory.

    Raises:
        InputError: the config.json does not describe a decoder.

    >>> llama = {"model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "num_hidden_layers": 30}
    >>> llama |= {"num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1_536}
    >>> plan = plan_memory(RunConfig(), {**llama, "tie_word_embeddings": True})
    >>> list(plan.phases), round(plan.parts["weights"] / 1e9, 2)
    (['warm-up', 'rollout', 'loss', 'merge'], 0.54)
    """
    shape = Shape.of(model_config)
    runtime = {"runtime": RUNTIME_CUDA if cuda else RUNTIME_CPU}
    held = {"weights": weights(config, shape), **trained(config, shape)}

    def gaps(passes_of: Callable[[RunConfig, Shape], Mapping[str, int]]) -> dict[str, int]:
        return {} if cuda else {"heap gaps": heap_gaps(passes_of, config, shape)}

    phases: dict[str, Mapping[str, int]] = {}
    if config.warmup.enabled:
        phases["warm-up"] = held | warmup_batch(config, shape) | gaps(warmup_batch)
    reference = {"reference": shape.low_rank(config.policy.lora_rank) * FLOAT} if config.grpo.beta else {}
    phases["rollout"] = held | reference | rollout(config, shape, cuda)
    phases["loss"] = held | reference | loss(config, shape) | gaps(loss)
    if not cuda:
        # The merge is on the processor.
        phases["merge"] = merge(config, shape)
    return MemoryPlan({phase: {**parts, **runtime} for phase, parts in phases.items()})


def weights(config: RunConfig, shape: Shape) -> int:
    """Bytes of the frozen base while training: float32, or as unsloth holds them."""
    half = config.policy.backend == "unsloth" and config.policy.autocast == "bfloat16"
    number = HALF if half else FLOAT
    matrix = NF4 if config.policy.quantization == "4bit" else number
    return int(shape.matrices * matrix + shape.others * number)


def trained(config: RunConfig, shape: Shape) -> dict[str, int]:
    """Bytes of the adapter, its gradients, and AdamW's two moments of each weight; 8-bit ones have a byte each."""
    adapter = shape.low_rank(config.policy.lora_rank)
    moment = 1 if config.grpo.optimizer == "adamw_8bit" else FLOAT
    return {"adapter": adapter * FLOAT, "gradients": adapter * FLOAT, "optimiser": 2 * adapter * moment}


def rollout(config: RunConfig, shape: Shape, cuda: bool) -> dict[str, int]:
    """Bytes that writing a step's completions takes beside weights and adapter."""
    rows = config.grpo.prompts_per_step * config.grpo.group_size // config.processes
    number = HALF if config.grpo.rollout_dtype == "bfloat16" else FLOAT
    return {
        "weight copies": copies(config, shape, cuda),
        "cache": cache(config, shape, rows, number),
        "logits": rows * shape.vocabulary * DRAWING,
    }


def copies(config: RunConfig, shape: Shape, cuda: bool) -> int:
    """Bytes of the weights that a rollout makes for itself (`medgrpo.prefix.adapters` and `linear`).

    The matrices with the adapter folded in, unless they are in 4 bits; all frozen weights in the rollout's type,
    where it is another; on a CPU matrices and head once more in oneDNN's blocks, for which what was folded is given up.
    """
    if config.policy.backend == "unsloth" or config.policy.quantization != "none":
        return 0
    cast = config.grpo.rollout_dtype == "bfloat16"
    folded = shape.matrices * FLOAT
    if cuda:
        return folded + (HALF * (shape.matrices + shape.others) if cast else 0)
    number = HALF if cast else FLOAT
    # Folded and in another type, a matrix is kept until the weights are brought back.
    return (folded + HALF * shape.others if cast else 0) + number * (shape.matrices + shape.embedding)


def cache(config: RunConfig, shape: Shape, rows: int, number: int) -> int:
    """Bytes of keys and values: of each prompt once, and of each completion, which has its prompt's with unsloth."""
    prompt, completion = lengths(config)
    token = 2 * shape.keys * shape.layers * number
    if config.policy.backend == "unsloth":
        return rows * (prompt + completion) * token
    prompts = math.ceil(rows / config.grpo.group_size)
    return int((prompts * prompt + ROWS_LEAVE * rows * completion) * token)


def loss(config: RunConfig, shape: Shape) -> dict[str, int]:
    """Bytes that GRPO's forward and backward passes over a micro-batch take beside weights and adapter."""
    policy = config.policy
    lean = policy.backend != "unsloth" and policy.autocast != "bfloat16" and not policy.lora_dropout
    per_token = kept_by_lean(config, shape) if lean else kept_by_autograd(config, shape)
    return passes(config, shape, loss_tokens(config), per_token)


def warmup_batch(config: RunConfig, shape: Shape) -> dict[str, int]:
    """Bytes that a micro-batch of the warm-up takes beside weights and adapter: rows padded to the longest."""
    tokens = config.warmup.micro_batch * config.data.max_length
    return passes(config, shape, tokens, kept_by_autograd(config, shape))


def passes(config: RunConfig, shape: Shape, tokens: int, per_token: int) -> dict[str, int]:
    """Bytes of one forward and backward pass.

    Args:
        config: the run's settings.
        shape: of the model.
        tokens: in the pass.
        per_token: bytes kept of each token in a layer for the backward pass.
    """
    layers, cast = shape.layers * per_token, cast_weights(config, shape)
    if config.grpo.gradient_checkpointing:
        # Each layer's input, and all of the one that is computed again.
        layers, cast = shape.layers * shape.hidden * FLOAT + per_token, cast // shape.layers
    chunk = LOGITS_COPIES * min(LOGITS_AT_ONCE, tokens) * shape.vocabulary * FLOAT
    return {
        "activations": tokens * layers + cast,
        "layer": tokens * transient(shape) * FLOAT,
        "logits": chunk + 2 * tokens * shape.hidden * FLOAT,
    }


def cast_weights(config: RunConfig, shape: Shape) -> int:
    """Bytes of the matrices in bfloat16 that autocast makes of float32 ones, and keeps for the backward pass."""
    policy = config.policy
    whole = policy.backend != "unsloth" and policy.quantization == "none"
    return shape.matrices * HALF if whole and policy.autocast == "bfloat16" else 0


def heap_gaps(passes_of: Callable[[RunConfig, Shape], Mapping[str, int]], config: RunConfig, shape: Shape) -> int:
    """Bytes between the parts of a pass that the heap of a training process on a CPU cannot use.

    Recomputed activations leave as many as kept ones: each layer's input stays amid what was freed around it.
    """
    kept = config.model_copy(update={"grpo": config.grpo.model_copy(update={"gradient_checkpointing": False})})
    return int(HEAP_GAPS * sum(passes_of(kept, shape).values()))


def loss_tokens(config: RunConfig) -> int:
    """Tokens that GRPO's largest micro-batch holds at most: the budget, filled by groups of shorter prompts; of a group
    that is longer, the prompt and a piece, which has one completion or a quarter of the budget at least."""
    prompt, completion = lengths(config)
    groups = math.ceil(config.grpo.prompts_per_step / config.processes)
    if config.policy.backend == "unsloth":
        # Whole groups, each completion with its prompt, in pieces of about the budget.
        rows = max(1, config.grpo.micro_batch_tokens // config.data.max_length)
        return min(rows, groups * config.grpo.group_size) * config.data.max_length
    budget = config.grpo.micro_batch_tokens
    at_once = max(budget, prompt + max(completion, budget // 4))
    return min(at_once, groups * (prompt + config.grpo.group_size * completion))


def lengths(config: RunConfig) -> tuple[int, int]:
    """Tokens of the longest prompt and the longest completion."""
    return config.data.max_length - config.grpo.max_completion_length, config.grpo.max_completion_length


def kept_by_lean(config: RunConfig, shape: Shape) -> int:
    """Bytes kept of a token and layer by `medgrpo.training.lean`, in float32.

    Each norm's input; the two norms' outputs that matrices read; queries, keys, values and the attention's output;
    gate and up-projection; and the low-rank part of each of the seven products.
    """
    norms = shape.norms * shape.hidden + shape.query_norms * (shape.queries + shape.keys)
    attention = 2 * shape.queries + 2 * shape.keys
    return FLOAT * (norms + 2 * shape.hidden + attention + 2 * shape.inner + 7 * config.policy.lora_rank)


def kept_by_autograd(config: RunConfig, shape: Shape) -> int:
    """Bytes kept of a token and layer by autograd, operation by operation; an estimate with bfloat16 autocast.

    Each norm's input; the two norms' outputs that matrices read; queries and the attention's output, and keys and
    values repeated for each query head; of the feed-forward gate, active gate, up-projection and their product; the
    low-rank parts; and a row of the mask, for each layer has one of its own where rows are padded. With autocast what
    a product reads is bfloat16.
    """
    number = HALF if config.policy.autocast == "bfloat16" else FLOAT
    norms = shape.norms * shape.hidden + shape.query_norms * (shape.queries + shape.keys)
    read = 2 * shape.hidden + 4 * shape.queries + 4 * shape.inner + 7 * config.policy.lora_rank
    return FLOAT * norms + number * (read + config.data.max_length)


def transient(shape: Shape) -> int:
    """Numbers a token that the backward pass of one layer holds for a moment: gradients of gate, up, product and what
    is computed again, and of the residual stream around them."""
    return 4 * shape.inner + 4 * shape.hidden


def merge(config: RunConfig, shape: Shape) -> dict[str, int]:
    """Bytes of the merge: the merged model and, to compare it with, base and adapter, all float32."""
    whole = (shape.matrices + shape.others) * FLOAT
    return {"weights": whole, "adapter": shape.low_rank(config.policy.lora_rank) * FLOAT, "merged": whole}
