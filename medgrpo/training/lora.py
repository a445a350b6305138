"""LoRA's linear layer with fewer passes over memory, for training in float32.

PEFT computes x·Wᵀ + ((x·Aᵀ)·Bᵀ)·s as five operations, three of which write a tensor as large as the output, and
autograd does as much on the way back. Here the low-rank part is added in place by the matrix product itself, forward
and backward. The numbers are the same up to the order of summation.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from medgrpo.prefix.adapters import is_plain
from medgrpo.prefix.linear import linear


@dataclass(frozen=True)
class LoraWeights:
    """A frozen matrix and the adapter beside it: W [out, in], bias [out] or None, A [r, in], B [out, r], scale s."""

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float

    def product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ, [rows, out], and the low-rank part x·Aᵀ, [rows, r]; x is [rows, in]."""
        low = linear(x, self.a)
        output = linear(x, self.weight, self.bias)
        return output.addmm_(low, self.b.T, alpha=self.scale), low

    def low_gradient(self, grad: Tensor) -> Tensor:
        """Gradient of the low-rank part, [rows, r], from that of the product, [rows, out]."""
        return linear(grad, self.b.T).mul_(self.scale)

    def input_gradient(self, grad: Tensor, grad_low: Tensor) -> Tensor:
        """Gradient of x, [rows, in]."""
        return linear(grad, self.weight.T).addmm_(grad_low, self.a)

    def adapter_gradients(self, x: Tensor, low: Tensor, grad: Tensor, grad_low: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of A and B."""
        return linear(grad_low.T, x.T), linear(low.T, grad.T).T.mul(self.scale)


def install(model: Any) -> None:
    """Let the plain LoRA layers of a model use `LoraLinear`; others, and half precision, keep PEFT's way."""
    from peft.tuners.lora import Linear

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear)]
    for layer in layers:
        if getattr(layer.forward, "__func__", None) is Linear.forward:
            layer.forward = MethodType(_forward, layer)


def plain_weights(layer: Any, x: Tensor) -> LoraWeights | None:
    """The weights of a layer that is a plain LoRA layer now, for x in float32; None where PEFT's way must be taken."""
    from peft.tuners.lora import Linear

    if not isinstance(layer, Linear) or layer.merged or layer.disable_adapters or not is_plain(layer):
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or type(layer.lora_dropout[names[0]]) is not torch.nn.Identity or _half_precision(x):
        return None
    base: Any = layer.base_layer
    a: Any = layer.lora_A[names[0]]
    b: Any = layer.lora_B[names[0]]
    return LoraWeights(base.weight, base.bias, a.weight, b.weight, layer.scaling[names[0]])


def _forward(layer: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Stands in for the layer's forward."""
    weights = None if args or options else plain_weights(layer, x)
    if weights is None:
        return type(layer).forward(layer, x, *args, **options)
    output: Tensor = LoraLinear.apply(x, weights.a, weights.b, weights)
    return output


def _half_precision(x: Tensor) -> bool:
    return x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)


class LoraLinear(torch.autograd.Function):
    """`LoraWeights.product` of x [..., in], with gradients of x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weights: LoraWeights) -> Tensor:
        """Two matrix products, and a third that adds to the first's result; A and B are those of the weights."""
        rows = x.reshape(-1, x.shape[-1])
        output, low = weights.product(rows)
        ctx.save_for_backward(rows, low)
        ctx.weights, ctx.shape = weights, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        """Gradients of x, A and B."""
        rows, low = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        grad_low = ctx.weights.low_gradient(grad)
        grad_x = ctx.weights.input_gradient(grad, grad_low).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return grad_x, *ctx.weights.adapter_gradients(rows, low, grad, grad_low), None
