"""A decoder layer between its attention and its matrix products, with fewer passes over memory and fewer numbers kept.

Written out as single operations, a norm reads and writes its tensor seven times and keeps it three times for the
backward pass; a gated feed-forward keeps four tensors of its width. Here a norm keeps its input, and a feed-forward
its gate and its up-projection: the rest is computed again in the backward pass, where it is needed anyway. On a CPU,
where memory is slow, that is time as well. The numbers are the same up to the order of operations.
"""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from medgrpo.training.lora import LoraWeights, plain_weights

# Two computations of one norm in float32 differ by rounding alone.
TOLERANCE = 1e-5


def install(model: Any) -> None:
    """Let a model's root-mean-square norms and gated feed-forwards run lean; what is not exactly one stays as it is."""
    for module in model.modules():
        if "forward" in vars(module):
            continue
        offset = _norm_offset(module)
        if offset is not None:
            module.forward = MethodType(partial(_norm, offset=offset), module)
        elif _is_gated(module):
            module.forward = MethodType(_gated, module)


def _norm_offset(module: Any) -> float | None:
    """c if a module is x / rms(x) · (c + weight), asked of the module itself; else None."""
    weights, epsilon = dict(module.named_parameters()), _epsilon(module)
    if set(weights) != {"weight"} or weights["weight"].dim() != 1 or epsilon is None:
        return None
    # Any other weight than the module's own, which might hide a factor.
    weight = torch.linspace(0.5, 2, len(weights["weight"]), device=weights["weight"].device)
    probe = torch.linspace(-2, 3, len(weight), device=weight.device).repeat(2, 1)
    with torch.no_grad():
        found = torch.func.functional_call(module, {"weight": weight}, probe)
        for offset in (0.0, 1.0):
            same = found.shape == probe.shape and found.dtype == probe.dtype
            expected = probe * _inverse_rms(probe, epsilon) * (offset + weight)
            if same and torch.allclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE):
                return offset
    return None


def _epsilon(module: Any) -> float | None:
    found = [getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)]
    return found[0] if found else None


def _is_gated(module: Any) -> bool:
    """Whether a module is down(act(gate(x)) · up(x)), as Llama's, Qwen's and Gemma's are."""
    names = set(dict(module.named_children()))
    return names == {"gate_proj", "up_proj", "down_proj", "act_fn"} and not dict(module.named_parameters(recurse=False))


def _norm(module: Any, x: Tensor, *, offset: float) -> Tensor:
    """Stands in for a norm's forward."""
    if x.dtype != torch.float32 or module.weight.dtype != torch.float32:
        return type(module).forward(module, x)
    normalized: Tensor = RmsNorm.apply(x, module.weight + offset if offset else module.weight, _epsilon(module))
    return normalized


def _gated(module: Any, x: Tensor) -> Tensor:
    """Stands in for a feed-forward's forward."""
    weights = plain_weights(module.down_proj, x)
    if weights is None:
        return type(module).forward(module, x)
    gate, up = module.gate_proj(x), module.up_proj(x)
    output: Tensor = GatedDown.apply(gate, up, weights.a, weights.b, weights, module.act_fn)
    return output


def _inverse_rms(x: Tensor, epsilon: float) -> Tensor:
    """[..., 1] of [..., H], in one pass."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()


class RmsNorm(torch.autograd.Function):
    """x / rms(x) · f, for x [..., H] and a factor f [H] (Zhang and Sennrich, arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, epsilon: float) -> Tensor:
        """Two passes over x."""
        inverse = _inverse_rms(x, epsilon)
        ctx.save_for_backward(x, factor, inverse)
        return (x * inverse).mul_(factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With n = x / rms(x) and h = grad · f, the gradient of x is (h - n · mean(h · n)) / rms(x)."""
        x, factor, inverse = ctx.saved_tensors
        grad_x = grad_factor = None
        if ctx.needs_input_grad[1]:
            grad_factor = (grad * x * inverse).flatten(0, -2).sum(0)
        if ctx.needs_input_grad[0]:
            inner = grad * factor
            along = torch.linalg.vecdot(inner, x)[..., None].mul_(inverse.square()).div_(-x.shape[-1])
            grad_x = inner.addcmul_(x, along).mul_(inverse)
        return grad_x, grad_factor, None


class GatedDown(torch.autograd.Function):
    """The down-projection of act(gate) · up, [..., F], by a plain LoRA layer."""

    @staticmethod
    def forward(
        ctx: Any, gate: Tensor, up: Tensor, a: Tensor, b: Tensor, weights: LoraWeights, act: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Keeps gate and up; A and B are those of the weights."""
        output, low = weights.product((act(gate) * up).flatten(0, -2))
        ctx.save_for_backward(gate, up, low)
        ctx.weights, ctx.act = weights, act
        return output.view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        """Gradients of gate, up, A and B."""
        gate, up, low = ctx.saved_tensors
        weights: LoraWeights = ctx.weights
        grad = grad.flatten(0, -2)
        grad_low = weights.low_gradient(grad)
        grad_product = weights.input_gradient(grad, grad_low).view(gate.shape)
        with torch.enable_grad():
            leaf = gate.detach().requires_grad_()
            active = ctx.act(leaf)
        product = active.detach() * up
        grad_a, grad_b = weights.adapter_gradients(product.flatten(0, -2), low, grad, grad_low)
        grad_up = torch.mul(grad_product, active.detach(), out=product)
        [grad_gate] = torch.autograd.grad(active, leaf, grad_product.mul_(up))
        return grad_gate, grad_up, grad_a, grad_b, None, None
