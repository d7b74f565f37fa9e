"""The shape of a Llama: sizes, RoPE, what is tied; and the shapes of its parameters. No torch."""

from dataclasses import dataclass

from lamoid.errors import UsageError
from lamoid.models.checks import check_fields, check_groups
from lamoid.nn.rope_scaling import RopeScaling, check_rope


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
        check_fields(self, max_seq_len=2**31)
        check_groups(self)
        if self.head_dim % 2:
            raise UsageError(f"head_dim is {self.head_dim}; RoPE turns pairs of features, so it must be even")
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
