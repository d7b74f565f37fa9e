"""The ways to stretch RoPE's frequencies over longer texts than a model was trained on. No torch.

`scale` takes θᵢ = base^(−2i/E), i = 0 … E/2 − 1, as an array of numpy or a tensor of torch and gives back the same kind:
training and the native engine share the formulas.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamoid.errors import UsageError


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023, "Position Interpolation")."""

    factor: float
    magnitude = 1.0

    def scale(self, frequencies: Any, head_dim: int, base: float) -> Any:
        return frequencies / self.factor


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

    def grown_base(self, head_dim: int, base: float, seq_len: int) -> float:
        """The base for a sequence of this length."""
        if seq_len <= self.original_max_seq_len:
            return base
        growth = self.factor * seq_len / self.original_max_seq_len - (self.factor - 1)
        return float(base * growth ** (head_dim / (head_dim - 2)))


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

    def scale(self, frequencies: Any, head_dim: int, base: float) -> Any:
        low, high = (self._pair_index(turns, head_dim, base) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        pairs = (frequencies * 0 + 1).cumsum(0) - 1  # 0, 1, 2, …, as an array of the same kind
        kept = 1 - ((pairs - low) / max(high - low, 0.001)).clip(0, 1)
        interpolated = 1.0 / (self.factor * (1.0 / frequencies))
        return interpolated * (1 - kept) + frequencies * kept

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied by."""

        def temperature(m: float) -> float:
            return 0.1 * m * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return temperature(self.mscale) / temperature(self.mscale_all_dim)
        return temperature(1.0)

    def _pair_index(self, turns: float, head_dim: int, base: float) -> float:
        return head_dim * math.log(self.original_max_seq_len / (turns * 2 * math.pi)) / (2 * math.log(base))


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
    magnitude = 1.0

    def scale(self, frequencies: Any, head_dim: int, base: float) -> Any:
        turns = self.original_max_seq_len / (2 * math.pi / frequencies)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = (1 - kept) * frequencies / self.factor + kept * frequencies
        is_slow, is_fast = turns < self.low_freq_factor, turns > self.high_freq_factor
        between = ~(is_slow | is_fast)
        return is_slow * (frequencies / self.factor) + between * smooth + is_fast * frequencies


RopeScaling = LinearScaling | DynamicNTKScaling | YarnScaling | Llama3Scaling


def check_rope(head_dim: int, base: float, scaling: RopeScaling | None, seq_len: int) -> None:
    """Raise UsageError unless the frequencies, and what multiplies cos and sin, are finite for texts of this length."""
    try:
        magnitude, original = 1.0, getattr(scaling, "original_max_seq_len", 1)
        if isinstance(scaling, DynamicNTKScaling):
            base = scaling.grown_base(head_dim, base, seq_len)
        with np.errstate(all="ignore"):
            frequencies = numpy_frequencies(head_dim, base)
            if scaling is not None and not isinstance(scaling, DynamicNTKScaling):
                frequencies, magnitude = scaling.scale(frequencies, head_dim, base), scaling.magnitude
        is_finite = bool(np.isfinite(frequencies).all()) and math.isfinite(magnitude) and 1 <= original <= 2**31
    except (ArithmeticError, ValueError):
        is_finite = False
    if not is_finite:
        raise UsageError(
            f"rope_base {base:g} with rope_scaling {scaling!s:.300} gives frequencies that are not finite; "
            f"compare them with those of the published model"
        )


def rope_table(
    head_dim: int, base: float, scaling: RopeScaling | None, first: int, n_positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of m·θᵢ for positions m from `first` on, each (n_positions, E/2), as `nn.positions.RoPE` gives them.

    Not for frequencies that depend on the length (DynamicNTKScaling).
    """
    assert not isinstance(scaling, DynamicNTKScaling)
    frequencies = numpy_frequencies(head_dim, base)
    magnitude = 1.0
    if scaling is not None:
        frequencies, magnitude = scaling.scale(frequencies, head_dim, base), scaling.magnitude
    positions = np.arange(first, first + n_positions, dtype=np.float32)
    angles = positions[:, None] * frequencies.astype(np.float32)
    return np.cos(angles) * np.float32(magnitude), np.sin(angles) * np.float32(magnitude)


def numpy_frequencies(head_dim: int, base: float) -> NDArray[np.float32]:
    """θᵢ = base^(−2i/E), i = 0 … E/2 − 1, (E/2,)."""
    exponents = np.arange(0, head_dim, 2).astype(np.float32) / np.float32(head_dim)
    return np.float32(1) / np.float32(base) ** exponents
