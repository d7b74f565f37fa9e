"""The position-wise network between attention layers."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


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
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
