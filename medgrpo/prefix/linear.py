"""Products with a weight matrix by oneDNN, where PyTorch's default for float32 is slower.

PyTorch multiplies float32 matrices with the BLAS that it was built with, and half-precision ones with oneDNN. On
processors that this BLAS does not know well (MKL and any but Intel's), oneDNN is 1.1 to 2 times faster in float32, and
for the few rows of decoding it is faster everywhere once the weight is reordered into blocks. `torch.compile` uses the
same operators for CPUs.
Where they are missing (a GPU, another build), everything here is `torch.nn.functional.linear`.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CPU_INFO = Path("/proc/cpuinfo")
# Rows that the blocks are laid out for: those of a decoding step. For the many of a prefill they are as fast.
DECODED_ROWS = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, without a gradient.

    Shapes: x [..., in], W [out, in] (also a transposed view), b [out] or None.
    """
    usual = torch.is_autocast_enabled(x.device.type) or x.dtype != weight.dtype or not x.numel()
    if not usual and _is_fast(x) and not (x.dtype == torch.float32 and _blas_is_at_home()):
        return _pointwise(x, weight, bias)
    return torch.nn.functional.linear(x, weight, bias)


@contextlib.contextmanager
def reordered_weights(model: Any) -> Iterator[None]:
    """Generate with every linear layer's weight in oneDNN's blocks, without a gradient; does nothing on other devices.

    Takes the weights as they are on entry, folded and cast ones too. Costs a second copy of them while it lasts. A
    folded weight is given up instead, because `folded_adapters`, which made it, brings the trained weight back anyway.
    """
    replaced: list[tuple[torch.nn.Module, Any]] = []
    try:
        for layer, weights in _linear_layers(model):
            forward = _reordered(weights)
            if forward is not None:
                replaced.append((layer, vars(layer).get("forward")))
                layer.forward = forward
                if layer is not weights:
                    weights.weight.data = weights.weight.data.new_empty(0)
        yield
    finally:
        for layer, forward in replaced:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _linear_layers(model: Any) -> Iterator[tuple[torch.nn.Module, torch.nn.Linear]]:
    """Layers whose forward is one product, and the layer that holds its weight."""
    from peft.tuners.lora import Linear as LoraLinear

    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, LoraLinear) and module.merged and type(module.base_layer) is torch.nn.Linear:
            inside.add(id(module.base_layer))
            yield module, module.base_layer
        elif type(module) is torch.nn.Linear and id(module) not in inside:
            yield module, module


def _reordered(layer: torch.nn.Linear) -> Callable[[Tensor], Tensor] | None:
    weight = layer.weight.detach()
    if not _is_fast(weight):
        return None
    bias = None if layer.bias is None else layer.bias.detach().to(weight.dtype)
    return partial(_pointwise, weight=torch.ops.mkldnn._reorder_linear_weight(weight, DECODED_ROWS), bias=bias)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _is_fast(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and _has_operators(tensor.dtype)


@cache
def _blas_is_at_home() -> bool:
    """Whether PyTorch's BLAS is MKL on a processor of Intel's, where it beats oneDNN by a tenth."""
    try:
        processor = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return False
    return torch.backends.mkl.is_available() and "GenuineIntel" in processor


@cache
def _has_operators(dtype: torch.dtype) -> bool:
    """Whether oneDNN is built in, multiplies this type natively, and the two operators do what is asked here."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        reordered = torch.ops.mkldnn._reorder_linear_weight(weight, DECODED_ROWS)
        return all(torch.equal(_pointwise(x, w, None), x @ weight.T) for w in (weight, reordered))
    except (AttributeError, RuntimeError):
        return False
