"""The position-wise network between attention layers."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.nn.linear import joined_linears


class SwiGLU(nn.Module):
    """(Swish(x W₁) ⊗ x V) W₂, with Swish(z) = z · sigmoid(z).

    W₁ is `gate_proj`, V is `up_proj`, W₂ is `down_proj`. Two thirds of the width of an ungated network
    give the same number of parameters. Source: Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        return self.down_proj(_SwishGate.apply(*joined_linears(x, (self.gate_proj, self.up_proj))))


class _SwishGate(torch.autograd.Function):
    """Swish(a) · b, keeping a and b alone for the backward pass; Swish(a) is made again there.

    With s = sigmoid(a):   da = dy · b · s (1 + a (1 − s)),   db = dy · a s
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return torch.ops.aten.silu_backward(upstream[0] * b, a), F.silu(a).mul_(upstream[0])
