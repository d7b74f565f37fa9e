"""Where a token stands, as a vector added to its embedding: sinusoidal and learned."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamoid.errors import UsageError


class SinusoidalPositions(nn.Module):
    """PE(pos, 2i) = sin(pos / 10000^(2i/D)), PE(pos, 2i + 1) = cos of the same. Nothing is learned, no length is too long.

    Source: Vaswani et al. 2017, section 3.5.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        if d_model % 2:
            raise UsageError(f"d_model is {d_model}; sinusoidal positions are pairs of sine and cosine: make it even")
        self.d_model = d_model

    def forward(self, positions: Int[Tensor, "#B T"]) -> Float[Tensor, "#B T D"]:
        exponents = torch.arange(0, self.d_model, 2, device=positions.device).float() / self.d_model
        angles = positions[..., None].float() / 10_000.0**exponents
        return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class LearnedPositions(nn.Module):
    """A learned vector for each position up to `max_seq_len` (Gehring et al. 2017; GPT-2, BERT).

    Raises UsageError for a position that has none.
    """

    def __init__(self, max_seq_len: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(max_seq_len, d_model))

    def forward(self, positions: Int[Tensor, "#B T"]) -> Float[Tensor, "#B T D"]:
        if positions.numel() and int(positions.max()) >= len(self.weight):
            raise UsageError(
                f"the input reaches position {int(positions.max())}; this model has learned {len(self.weight)}, "
                f"counted from 0: shorten the text"
            )
        return self.weight[positions]
