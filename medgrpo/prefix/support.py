"""Whether a model computes the same with shared prompts: asked of the model itself, not of a list of names."""

import logging
from typing import Any

import torch
from torch import Tensor

from medgrpo.prefix.attention import NAME, install, layout_inputs
from medgrpo.prefix.generation import Batch, Sampling, evaluation_mode
from medgrpo.prefix.packing import Packing

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# Largest difference of a logit, relative to the largest logit; what these types' rounding alone explains.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
COARSE_TOLERANCE = 0.05
# A window longer than this is never reached by a prompt and a completion, so the probe need not reach it.
LONGEST_WINDOW = 1024

logger = logging.getLogger(__name__)


def prepare(model: Any) -> bool:
    """Make a model ready for shared prompts if it gives the same logits with them; else log why not, and leave it.

    Args:
        model: a causal language model, with or without adapters.

    Returns:
        Whether `Packing` and `generate_completions` may be used with it.
    """
    usual = model.config._attn_implementation
    if usual == NAME:
        return True
    reason = _structural_reason(model)
    if reason is None:
        install(model)
        reason = _numerical_reason(model)
        if reason is not None:
            model.set_attn_implementation(usual)
    if reason is not None:
        log_unshared(reason)
    return reason is None


def log_unshared(reason: str) -> None:
    """Say why prompts are computed once per completion."""
    logger.warning("prompts are not shared between completions, which is slower but computes the same: %s", reason)


def _structural_reason(model: Any) -> str | None:
    config = model.config.get_text_config()
    if config is not model.config:
        return f"{model.config.model_type} is not a text-only model"
    if model.config._attn_implementation != "sdpa":
        return f"its attention is {model.config._attn_implementation!r}, not 'sdpa'"
    unknown = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS
    if unknown:
        return f"it has layers of the kind {', '.join(sorted(unknown))}"
    return None


def _numerical_reason(model: Any) -> str | None:
    """Compare logits of two prompts with two completions each: whole sequences, packed, and decoded token by token."""
    window = getattr(model.config, "sliding_window", None) or 0
    reach = window if window <= LONGEST_WINDOW else 0
    tokens = torch.arange(2 * reach + 40, device=model.device) * 7919 % model.config.vocab_size
    prompts = [tokens[: reach + 5], tokens[reach + 5 : 2 * reach + 14]]
    branches = [[tokens[-4:], tokens[-9:-4]], [tokens[-13:-9], tokens[-17:-12]]]
    with torch.no_grad(), evaluation_mode(model):
        try:
            expected = _whole(model, prompts, branches)
            differences = [
                float((logits - expected).abs().max() / expected.abs().max())
                for logits in (_packed(model, prompts, branches), _decoded(model, prompts, branches))
            ]
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError) as error:
            return f"a first try ended with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    tolerance = TOLERANCE.get(expected.dtype, COARSE_TOLERANCE)
    # "Not at most" rather than "more than", so that a NaN counts as a difference.
    for difference in differences:
        if not difference <= tolerance:
            return f"its logits would differ by {difference:.1e} of the largest"
    return None


def _whole(model: Any, prompts: list[Tensor], branches: list[list[Tensor]]) -> Tensor:
    """[tokens, V] logits at the branches' tokens, each sequence in a forward of its own, transformers' way."""
    rows = [(prompt, branch) for prompt, group in zip(prompts, branches, strict=True) for branch in group]
    return torch.cat([model(input_ids=torch.cat(row)[None]).logits[0, -len(row[1]) :] for row in rows])


def _packed(model: Any, prompts: list[Tensor], branches: list[list[Tensor]]) -> Tensor:
    lengths = tuple(tuple(map(len, group)) for group in branches)
    packing = Packing(tuple(map(len, prompts)), lengths, model.device)
    ids = torch.cat([part for prompt, group in zip(prompts, branches, strict=True) for part in (prompt, *group)])
    logits = model(input_ids=ids[None], use_cache=False, **layout_inputs(packing, packing.positions())).logits[0]
    return logits[packing.branch_places()]


def _decoded(model: Any, prompts: list[Tensor], branches: list[list[Tensor]]) -> Tensor:
    """The same logits from feeding the branches' tokens one by one, rows leaving as they end."""
    rows = [branch for group in branches for branch in group]
    batch = Batch(
        model, [p.tolist() for p in prompts], [len(group) for group in branches], Sampling(max(map(len, rows)))
    )
    logits: list[list[Tensor]] = [[] for _ in rows]
    for step in range(max(map(len, rows))):
        batch.live = [step < len(rows[row]) for row in batch.rows]
        if not all(batch.live):
            batch.compact()
        output = batch.advance(torch.stack([rows[row][step] for row in batch.rows]))
        for row, row_logits in zip(batch.rows, output, strict=True):
            logits[row].append(row_logits)
    return torch.cat([torch.stack(row) for row in logits])
