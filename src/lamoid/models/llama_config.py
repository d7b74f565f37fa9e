"""The shape of a Llama: sizes, RoPE, what is tied; and the shapes of its parameters. No torch."""

import math
from dataclasses import dataclass

from lamoid.errors import UsageError
from lamoid.nn.rope_scaling import RopeScaling, check_rope

_MOST = {"n_layers": 2**10, "vocab_size": 2**24, "max_seq_len": 2**31}
"""Largest sizes that are believed, 2^20 where nothing is said: a damaged file must not ask for 10^9 layers."""


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a Llama. `head_dim` is free of d_model / n_heads; `n_kv_heads` divides `n_heads`."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False
    attention_bias: bool = False
    feed_forward_bias: bool = False
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "max_seq_len"):
            value, most = getattr(self, name), _MOST.get(name, 2**20)
            if type(value) is not int or not 1 <= value <= most:
                raise UsageError(f"{name} is {value!r:.80}; it must be a whole number from 1 to {most}")
        if self.n_heads % self.n_kv_heads:
            raise UsageError(f"n_kv_heads is {self.n_kv_heads}; it must divide n_heads, which is {self.n_heads}")
        if self.head_dim % 2:
            raise UsageError(f"head_dim is {self.head_dim}; RoPE turns pairs of features, so it must be even")
        for name in ("norm_eps", "rope_base", "init_std"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}; it must be finite and above 0")
        check_rope(self.head_dim, self.rope_base, self.rope_scaling, self.max_seq_len + 1)


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of a Llama, in the model's order; what is tied is there once, as the embedding."""
    c = config
    q_width, kv_width = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    attention = {"q": (q_width, c.d_model), "k": (kv_width, c.d_model), "v": (kv_width, c.d_model)}
    attention["o"] = (c.d_model, q_width)
    feed_forward = {"gate": (c.d_ff, c.d_model), "up": (c.d_ff, c.d_model), "down": (c.d_model, c.d_ff)}
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (c.vocab_size, c.d_model)}
    for layer in range(c.n_layers):
        at = f"layers.{layer}"
        shapes[f"{at}.attention_norm.weight"] = (c.d_model,)
        shapes |= _linears(f"{at}.attention", attention, c.attention_bias)
        shapes[f"{at}.feed_forward_norm.weight"] = (c.d_model,)
        shapes |= _linears(f"{at}.feed_forward", feed_forward, c.feed_forward_bias)
    shapes["norm.weight"] = (c.d_model,)
    return shapes if c.tied_embeddings else shapes | {"lm_head.weight": (c.vocab_size, c.d_model)}


def _linears(at: str, linears: dict[str, tuple[int, int]], has_bias: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linears.items():
        shapes[f"{at}.{name}_proj.weight"] = shape
        if has_bias:
            shapes[f"{at}.{name}_proj.bias"] = shape[:1]
    return shapes
