"""Where a token stands: rotary position embeddings (RoPE) and the ways to stretch them."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


def rope_frequencies(head_dim: int, base: float) -> Float[Tensor, " half"]:
    """θᵢ = base^(−2i/E) for i = 0 … E/2 − 1, in radians per position.

    Source: Su et al. 2021, "RoFormer", section 3.2.2; base 10,000 there and in Llama 1 and 2, 500,000 in Llama 3.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    return 1.0 / base**exponents


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023, "Position Interpolation")."""

    factor: float

    def stretch(self, head_dim: int, base: float, seq_len: int) -> tuple[Tensor, float]:
        return rope_frequencies(head_dim, base) / self.factor, 1.0


@dataclass(frozen=True)
class DynamicNTKScaling:
    """A base that grows with the sequence once it is longer than the context the model was trained on:

        base · (factor · S / S₀ − (factor − 1))^(E / (E − 2))

    The frequencies depend on the length, so a cache has to keep its keys unrotated (see `Attention`). What deeper layers
    cached was still computed at the lengths of then: beyond S₀ a cached run of several layers differs from a rerun.
    Source: "Dynamically scaled RoPE", r/LocalLLaMA 2023; Peng et al. 2023 (YaRN), section 3.3.
    """

    factor: float
    original_max_seq_len: int

    def stretch(self, head_dim: int, base: float, seq_len: int) -> tuple[Tensor, float]:
        if seq_len > self.original_max_seq_len:
            growth = self.factor * seq_len / self.original_max_seq_len - (self.factor - 1)
            base = base * growth ** (head_dim / (head_dim - 2))
        return rope_frequencies(head_dim, base), 1.0


@dataclass(frozen=True)
class YarnScaling:
    """Slow pairs are interpolated, fast pairs are left alone, with a linear ramp between; the scores get a temperature.

    A pair that turns β times over the original context has index  E · ln(S₀ / 2πβ) / (2 ln base);
    the ramp runs from β = `beta_fast` to β = `beta_slow`. cos and sin are multiplied by
    0.1 · m · ln(factor) + 1, unless `attention_factor` says otherwise.
    Source: Peng et al. 2023, "YaRN", sections 3.2 and 3.4; `mscale` and `mscale_all_dim` come from DeepSeek-V2.
    """

    factor: float
    original_max_seq_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def stretch(self, head_dim: int, base: float, seq_len: int) -> tuple[Tensor, float]:
        low, high = (self._pair_index(turns, head_dim, base) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = (torch.arange(head_dim // 2).float() - low) / max(high - low, 0.001)
        kept = 1 - ramp.clamp(0, 1)
        frequencies = rope_frequencies(head_dim, base)
        interpolated = 1.0 / (self.factor * (1.0 / frequencies))
        return interpolated * (1 - kept) + frequencies * kept, self._magnitude()

    def _pair_index(self, turns: float, head_dim: int, base: float) -> float:
        return head_dim * math.log(self.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(base))

    def _magnitude(self) -> float:
        def temperature(m: float) -> float:
            return 0.1 * m * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return temperature(self.mscale) / temperature(self.mscale_all_dim)
        return temperature(1.0)


@dataclass(frozen=True)
class Llama3Scaling:
    """Wavelengths above S₀/`low_freq_factor` are stretched by `factor`, those below S₀/`high_freq_factor` kept, smooth between.

    The factor is 8 in Llama 3.1 and 32 in Llama 3.2: it comes from the config, never from here.
    Source: Grattafiori et al. 2024, "The Llama 3 Herd of Models", section 3.4.2; Meta's `apply_scaling`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int

    def stretch(self, head_dim: int, base: float, seq_len: int) -> tuple[Tensor, float]:
        frequencies = rope_frequencies(head_dim, base)
        turns = self.original_max_seq_len / (2 * math.pi / frequencies)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = (1 - kept) * frequencies / self.factor + kept * frequencies
        stretched = torch.where(turns < self.low_freq_factor, frequencies / self.factor, smooth)
        return torch.where(turns > self.high_freq_factor, frequencies, stretched), 1.0


RopeScaling = LinearScaling | DynamicNTKScaling | YarnScaling | Llama3Scaling


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
        if self.scaling is None:
            frequencies, magnitude = rope_frequencies(self.head_dim, self.base), 1.0
        elif self.depends_on_length:  # each row by its own length, so that a batch gets what its rows get alone
            lengths = (positions.amax(dim=1) + 1).tolist()
            rows = [self.scaling.stretch(self.head_dim, self.base, seq_len) for seq_len in lengths]
            frequencies, magnitude = torch.stack([row for row, _ in rows])[:, None, None], rows[0][1]
        else:
            frequencies, magnitude = self.scaling.stretch(self.head_dim, self.base, 0)
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
