"""The weights a model generates with, adapters folded in and in a type of their own; the trained ones come back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def folded_adapters(model: Any) -> Iterator[None]:
    """Run with W + B·A in the place of W wherever that is exact; the weights are the very same tensors afterwards.

    Every token of a generation otherwise pays for two more matrix products in each layer. Weights that are not float32
    (rounding would move them), quantised layers and other kinds of adapters stay unfolded. Costs a second copy of
    the adapted weights while it lasts.
    """
    from peft.tuners.lora import Linear

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear) and _foldable(layer)]
    replaced: list[tuple[Any, torch.Tensor]] = []
    try:
        for layer in layers:
            replaced.append((layer, layer.base_layer.weight.data))
            for name in _active(layer):
                layer.base_layer.weight.data = _folded(layer, name)
                layer.merged_adapters.append(name)
        yield
    finally:
        for layer, weight in replaced:
            layer.base_layer.weight.data = weight
            layer.merged_adapters.clear()


@contextlib.contextmanager
def cast_weights(model: Any, dtype: torch.dtype | None) -> Iterator[None]:
    """Run with the frozen weights in another type (None: as they are); the very same tensors are back afterwards.

    Trained ones stay: a parameter whose type changes loses the gradient hooks that data-parallel training puts on it.
    Those of a folded adapter are not read anyway.
    """
    if dtype is None:
        yield
        return
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    kept = [(parameter, parameter.data) for parameter in frozen]
    try:
        for parameter, weight in kept:
            parameter.data = weight.to(dtype)
        yield
    finally:
        for parameter, weight in kept:
            parameter.data = weight


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def is_plain(layer: Any) -> bool:
    """Whether a LoRA layer adds B·A to a float32 matrix that is not trained, and nothing else."""
    base, names = layer.base_layer, _active(layer)
    frozen = type(base) is torch.nn.Linear and base.weight.dtype == torch.float32 and not base.weight.requires_grad
    return frozen and not any(name in layer.lora_variant or layer.lora_bias[name] for name in names)


@torch.no_grad()
def _folded(layer: Any, name: str) -> torch.Tensor:
    """W + s·B·A, in one pass over the weight."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return torch.addmm(layer.base_layer.weight.data, b, a, alpha=layer.scaling[name])


def _foldable(layer: Any) -> bool:
    return is_plain(layer) and not (layer.merged or layer.disable_adapters)
