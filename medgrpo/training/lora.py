"""LoRA's linear layer with fewer passes over memory, for training in float32.

PEFT computes x·Wᵀ + ((x·Aᵀ)·Bᵀ)·s as five operations, three of which write a tensor as large as the output, and
autograd does as much on the way back. Here the low-rank part is added in place by the matrix product itself, forward
and backward. The numbers are the same up to the order of summation.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from medgrpo.prefix.adapters import is_plain
from medgrpo.prefix.linear import linear


def install(model: Any) -> None:
    """Let the plain LoRA layers of a model use `LoraLinear`; others, and half precision, keep PEFT's way."""
    from peft.tuners.lora import Linear

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear)]
    for layer in layers:
        if getattr(layer.forward, "__func__", None) is Linear.forward:
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Stands in for the layer's forward."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    usual = layer.merged or layer.disable_adapters or len(names) != 1 or args or options or not is_plain(layer)
    if usual or layer.lora_dropout[names[0]].__class__ is not torch.nn.Identity or _half_precision(x):
        return type(layer).forward(layer, x, *args, **options)
    name, base = names[0], layer.base_layer
    weights = (base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight)
    return LoraLinear.apply(x, *weights, layer.scaling[name])


def _half_precision(x: Tensor) -> bool:
    return x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)


class LoraLinear(torch.autograd.Function):
    """x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ with W and b frozen.

    Shapes: x [..., in], W [out, in], b [out] or None, A [r, in], B [out, r].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Two matrix products, and a third that adds to the first's result."""
        rows = x.reshape(-1, x.shape[-1])
        low = linear(rows, a)
        output = linear(rows, weight, bias)
        output.addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Gradients of x, A and B."""
        rows, low, weight, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = linear(grad, b.T).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = linear(grad, weight.T).addmm_(grad_low, a).view(ctx.shape)
        grad_a, grad_b = linear(grad_low.T, rows.T), linear(low.T, grad.T).T
        return grad_x, None, None, grad_a, grad_b.mul_(ctx.scale), None
