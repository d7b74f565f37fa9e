"""Linear layers, and the matrix product under them.

In fp32 on a CPU the products are oneDNN's, which comes with torch. Left to itself torch gives them to MKL, which keeps
its AVX-512 code for Intel's processors: on an AMD Zen 5 oneDNN is 2 to 2.4 times as fast (docs/log.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

WORTHWHILE = 2**20
"""Multiplications below which calling oneDNN costs more than it gains: a few microseconds."""
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # some builds of torch have no oneDNN


class Linear(nn.Linear):
    """y = x Wᵀ + b with the products of `linear`; otherwise torch's layer, whose initialisation and names it has."""

    def forward(self, input: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        return linear(input, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*rest in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*rest out"]:
    """x Wᵀ + b, differentiable: dx = dy W, dW = dyᵀ x, db = Σ dy; what needs no gradient costs none."""
    if not _is_onednns(x, x.numel() * weight.shape[0]):
        return F.linear(x, weight, bias)
    (y,) = _Linears.apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], -1)


def add_linear(
    y: Float[Tensor, "rows out"], x: Float[Tensor, "rows in"], weight: Float[Tensor, "out in"]
) -> Float[Tensor, "rows out"]:
    """y + x Wᵀ, in y's own memory where the product is large: nothing else may need y as it was."""
    if not _is_onednns(x, x.numel() * weight.shape[0]):
        return y + F.linear(x, weight)
    return _Added.apply(y, x, weight)


def product(x: Float[Tensor, "rows inner"], weight: Float[Tensor, "columns inner"]) -> Float[Tensor, "rows columns"]:
    """x Wᵀ without gradients. oneDNN reads W in either layout, and copies an x that lies transposed."""
    if _ONEDNN is None or not _is_onednns(x, x.numel() * weight.shape[0]):
        return x @ weight.T
    return _ONEDNN(x, weight, None, "none", [], "")


def weight_gradient(upstream: Float[Tensor, "rows out"], x: Float[Tensor, "rows in"]) -> Float[Tensor, "out in"]:
    """dyᵀ x. Of the two that lie transposed here the smaller one is copied."""
    if upstream.shape[1] > x.shape[1]:
        return product(x.T, upstream.T).T
    return product(upstream.T, x.T)


def joined_linears(x: Float[Tensor, "*rest D"], layers: Sequence[nn.Module]) -> list[Tensor]:
    """[x W₁ᵀ + b₁, x W₂ᵀ + b₂, …]: one input, kept once for the backward pass, whose gradient is summed at once.

    Layers of another kind (an adapter's, for one), and layers with hooks, are called as they are.
    """
    plain = [layer for layer in layers if type(layer) is Linear and not has_hooks(layer)]
    if len(plain) < len(layers) or not _is_onednns(x, x.numel() * min(layer.out_features for layer in plain)):
        return [layer(x) for layer in layers]
    rows = _Linears.apply(x.reshape(-1, x.shape[-1]), *(part for layer in plain for part in (layer.weight, layer.bias)))
    return [y.view(*x.shape[:-1], -1) for y in rows]


def has_hooks(layer: nn.Module) -> bool:
    """Whether somebody looks at what goes into this layer or comes out of it."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)


def _is_onednns(x: Tensor, multiplications: int) -> bool:
    return _ONEDNN is not None and x.dtype == torch.float32 and x.device.type == "cpu" and multiplications >= WORTHWHILE


class _Linears(torch.autograd.Function):
    """x Wᵀ + b for one or several W and b, each of the products made by `product`; dx = Σ dy W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parts: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = [weight for weight in parts[::2] if weight is not None], parts[1::2]
        ctx.save_for_backward(x if any(ctx.needs_input_grad[1:]) else None, *weights)
        outputs = [product(x, weight) for weight in weights]
        for y, bias in zip(outputs, biases, strict=True):
            if bias is not None:
                y += bias
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        x_grad, wanted = None, ctx.needs_input_grad[1:]
        if ctx.needs_input_grad[0]:
            x_grad = product(upstream[0], weights[0].T)
            for dy, weight in zip(upstream[1:], weights[1:], strict=True):
                x_grad += product(dy, weight.T)
        gradients: list[Tensor | None] = []
        for i, dy in enumerate(upstream):
            gradients.append(weight_gradient(dy, x) if wanted[2 * i] else None)
            gradients.append(dy.sum(0) if wanted[2 * i + 1] else None)
        return x_grad, *gradients


class _Added(torch.autograd.Function):
    """y + x Wᵀ in y's memory; dy passes, dx = dy W, dW = dyᵀ x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.mark_dirty(y)
        return y.addmm_(x, weight.T)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_grad = product(upstream, weight.T) if ctx.needs_input_grad[1] else None
        return upstream, x_grad, weight_gradient(upstream, x) if ctx.needs_input_grad[2] else None
