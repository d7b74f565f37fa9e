"""Where a token stands: rotary position embeddings (RoPE); `rope_scaling.py` has the ways to stretch them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamoid.nn.rope_scaling import DynamicNTKScaling, RopeScaling


def rope_frequencies(head_dim: int, base: float) -> Float[Tensor, " half"]:
    """θᵢ = base^(−2i/E) for i = 0 … E/2 − 1, in radians per position.

    Source: Su et al. 2021, "RoFormer", section 3.2.2; base 10,000 there and in Llama 1 and 2, 500,000 in Llama 3.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / base**exponents


def stretch(scaling: RopeScaling, head_dim: int, base: float, seq_len: int) -> tuple[Float[Tensor, " half"], float]:
    """The frequencies that a scaling gives for a sequence of this length, and what cos and sin are multiplied by."""
    if isinstance(scaling, DynamicNTKScaling):
        return rope_frequencies(head_dim, scaling.grown_base(head_dim, base, seq_len)), 1.0
    return scaling.scale(rope_frequencies(head_dim, base), head_dim, base), scaling.magnitude


class RoPE(nn.Module):
    """cos and sin of m·θᵢ for given positions m; `rotate` applies them to queries and keys.

    It owns no parameters and no buffers: the frequencies follow from the arguments, in fp32.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        self.head_dim, self.base, self.scaling = head_dim, base, scaling

    @property
    def depends_on_length(self) -> bool:
        """Whether a longer sequence changes the rotation of earlier positions."""
        return isinstance(self.scaling, DynamicNTKScaling)

    def forward(self, positions: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "B 1 T half"], Float[Tensor, "B 1 T half"]]:
        if self.scaling is None or positions.numel() == 0:
            frequencies, magnitude = rope_frequencies(self.head_dim, self.base), 1.0
        elif self.depends_on_length:  # each row by its own length, so that a batch gets what its rows get alone
            lengths = (positions.amax(dim=1) + 1).tolist()
            rows = [stretch(self.scaling, self.head_dim, self.base, seq_len) for seq_len in lengths]
            frequencies, magnitude = torch.stack([row for row, _ in rows])[:, None, None], rows[0][1]
        else:
            frequencies, magnitude = stretch(self.scaling, self.head_dim, self.base, 0)
        angles = positions[:, None, :, None].float() * frequencies.to(positions.device)
        return angles.cos() * magnitude, angles.sin() * magnitude

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, base={self.base}, scaling={self.scaling}"


def rotate(
    x: Float[Tensor, "B heads T E"], cos: Float[Tensor, "#B 1 T half"], sin: Float[Tensor, "#B 1 T half"]
) -> Float[Tensor, "B heads T E"]:
    """Rotate the pairs (xᵢ, xᵢ₊E/2) by the given angles: the split layout of Hugging Face and GPT-NeoX.

    y₁ = x₁ cos − x₂ sin,  y₂ = x₂ cos + x₁ sin
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_interleaved(
    x: Float[Tensor, "B heads T E"], cos: Float[Tensor, "#B 1 T half"], sin: Float[Tensor, "#B 1 T half"]
) -> Float[Tensor, "B heads T E"]:
    """Rotate the neighbouring pairs (x₂ᵢ, x₂ᵢ₊₁) as complex numbers: the layout of the paper and of Meta's weights.

        y = (x₂ᵢ + j·x₂ᵢ₊₁) · e^(j·m·θᵢ)

    Equal to `rotate` once the features are permuted from (even, odd) neighbours into two halves.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    turned = pairs * torch.complex(cos.float(), sin.float())
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
