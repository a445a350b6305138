"""LoRA adapters folded into the weights for as long as a model generates."""

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
                with torch.no_grad():
                    layer.base_layer.weight.data = layer.base_layer.weight.data + layer.get_delta_weight(name)
                layer.merged_adapters.append(name)
        yield
    finally:
        for layer, weight in replaced:
            layer.base_layer.weight.data = weight
            layer.merged_adapters.clear()


def _active(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _foldable(layer: Any) -> bool:
    base, names = layer.base_layer, _active(layer)
    plain = type(base) is torch.nn.Linear and base.weight.dtype == torch.float32
    variants = any(name in layer.lora_variant or layer.lora_bias[name] for name in names)
    return plain and not (variants or layer.merged or layer.disable_adapters)
