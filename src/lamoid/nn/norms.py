"""Normalisation over the feature dimension."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


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
        wide = x.float()
        inverse_rms = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * inverse_rms).to(x.dtype) * self.weight

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"
