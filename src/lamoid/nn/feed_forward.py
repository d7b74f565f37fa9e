"""The position-wise network between attention layers, with and without a gate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.nn.linear import Linear, joined_linears
from lamoid.nn.remade import made_again

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}
"""max(0, z); z · Φ(z); and what GPT-2 takes for it, z/2 · (1 + tanh(√(2/π) (z + 0.044715 z³))) (Hendrycks & Gimpel 2016)."""

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": torch.sigmoid,
    "bilinear": lambda z: z,
    "reglu": F.relu,
    "geglu": F.gelu,
    "swiglu": F.silu,
}


class FeedForward(nn.Module):
    """f(x W₁ + b₁) W₂ + b₂, with f one of ACTIVATIONS. W₁ is `up_proj`, W₂ is `down_proj`.

    Source: Vaswani et al. 2017, section 3.3 (ReLU); GELU: GPT, BERT.
    """

    def __init__(self, d_model: int, d_ff: int, activation: str = "relu", *, bias: bool = True) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up_proj = Linear(d_model, d_ff, bias=bias)
        self.down_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        up = self.up_proj(x)
        active = self.activation(up)
        if self.activation is F.relu:  # which keeps its output for itself
            return self.down_proj(active)
        with made_again(active, partial(self.activation, up)):
            return self.down_proj(active)


class GatedFeedForward(nn.Module):
    """(f(x W₁) ⊗ x V) W₂, with f one of GATES. W₁ is `gate_proj`, V is `up_proj`, W₂ is `down_proj`.

    GLU has the sigmoid, Bilinear nothing, ReGLU, GEGLU and SwiGLU are named after their f. Two thirds of the width of
    an ungated network give the same number of parameters.
    Source: Shazeer 2020, "GLU Variants Improve Transformer", equations 5 and 6.
    """

    def __init__(self, d_model: int, d_ff: int, gate: str, *, bias: bool = False) -> None:
        super().__init__()
        self.gate = GATES[gate]
        self.gate_proj = Linear(d_model, d_ff, bias=bias)
        self.up_proj = Linear(d_model, d_ff, bias=bias)
        self.down_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        gate, up = joined_linears(x, (self.gate_proj, self.up_proj))
        gated = self.gate(gate) * up
        with made_again(gated, lambda: self.gate(gate) * up):
            return self.down_proj(gated)


class SwiGLU(nn.Module):
    """(Swish(x W₁) ⊗ x V) W₂, with Swish(z) = z · sigmoid(z): what Llama has, with less kept for the backward pass.

    W₁ is `gate_proj`, V is `up_proj`, W₂ is `down_proj`. Source: Shazeer 2020, equation 6.
    """

    def __init__(self, d_model: int, d_ff: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(d_model, d_ff, bias=bias)
        self.up_proj = Linear(d_model, d_ff, bias=bias)
        self.down_proj = Linear(d_ff, d_model, bias=bias)

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        gate, up = joined_linears(x, (self.gate_proj, self.up_proj))
        gated = _SwishGate.apply(gate, up)
        with made_again(gated, partial(_swish_gate, gate, up)):
            return self.down_proj(gated)


def _swish_gate(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a).mul_(b)


class _SwishGate(torch.autograd.Function):
    """Swish(a) · b, keeping a and b alone for the backward pass; Swish(a) is made again there.

    With s = sigmoid(a):   da = dy · b · s (1 + a (1 − s)),   db = dy · a s
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _swish_gate(a, b)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return torch.ops.aten.silu_backward(upstream[0] * b, a), F.silu(a).mul_(upstream[0])
