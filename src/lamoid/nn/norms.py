"""Normalisation over the feature dimension."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """y = (x − E[x]) / √(Var[x] + ε) · γ + β over the features, with γ (`weight`) initially 1 and β (`bias`) 0.

    The variance is the mean of (x − E[x])². The kernel is PyTorch's, which keeps x and two numbers per row for the
    backward pass: nothing that we could write in Python keeps less. Source: Ba et al. 2016, section 3.1.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class RMSNorm(nn.Module):
    """y = x / √(mean(x²) + ε) · g, with one gain g per feature, initially 1.

    Unlike LayerNorm it neither subtracts the mean nor adds a bias. The statistics are taken in fp32
    whatever the dtype of x, and the result is cast back before it is scaled, as Llama does.
    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", section 4.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        return _RMSNorm.apply(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class _RMSNorm(torch.autograd.Function):
    """Keeps x and one number per row for the backward pass, where autograd by itself would keep x three times.

    With r = 1 / √(mean(x²) + ε), n = x r and u = g · dy:   dx = r (u − n · mean(u n)),   dg = Σ dy n
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, gain, inverse_rms)
        return (wide * inverse_rms).to(x.dtype) * gain

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, gain, inverse_rms = ctx.saved_tensors
        wide = upstream[0].to(inverse_rms.dtype)
        normalised = x * inverse_rms
        x_grad = gain_grad = None
        if ctx.needs_input_grad[1]:
            gain_grad = (wide * normalised).flatten(0, -2).sum(0).to(gain.dtype)
        if ctx.needs_input_grad[0]:
            scaled = wide * gain
            along = (scaled * normalised).mean(-1, keepdim=True)
            x_grad = scaled.addcmul_(normalised, along, value=-1).mul_(inverse_rms).to(x.dtype)
        return x_grad, gain_grad, None
