"""The laboratory's decoder: every part of it is a choice by name, so that two of them can differ in one alone.

The parts are those of `nn/`, where each names its paper. `CHOICES` lists what there is; the defaults make a Llama.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lamoid.errors import UsageError
from lamoid.models.checks import check_choice, check_fields, check_groups
from lamoid.models.initialise import draw
from lamoid.nn.absolute_positions import LearnedPositions, SinusoidalPositions
from lamoid.nn.attention import Attention, AttentionPath
from lamoid.nn.feed_forward import ACTIVATIONS, GATES, FeedForward, GatedFeedForward, SwiGLU
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.linear import Linear
from lamoid.nn.masks import Documents, causal_mask, check_covers, token_positions
from lamoid.nn.norms import LayerNorm, RMSNorm
from lamoid.nn.positions import RoPE
from lamoid.nn.relative_positions import ALiBi, ShawPositions, T5Bias
from lamoid.nn.remade import keep_all
from lamoid.nn.residual import add_sublayer

NORMS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}
CHOICES = {
    "norm": tuple(NORMS),
    "norm_place": ("pre", "post"),
    "positions": ("rope", "learned", "sinusoidal", "shaw", "t5", "alibi", "none"),
    "score_scaling": ("sqrt", "none", "linear"),
    "residual": ("add", "none"),
    "feed_forward": (*ACTIVATIONS, *GATES),
}
"""What each part can be. Scores are divided by √E, 1 or E; without the residual sum a sublayer's output is all there is."""


@dataclass(frozen=True)
class VariantConfig:
    """The shape and the parts of a decoder. `shaw_distance` is where Shaw's distances are clipped."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int
    norm: str = "rmsnorm"
    norm_place: str = "pre"
    positions: str = "rope"
    score_scaling: str = "sqrt"
    residual: str = "add"
    feed_forward: str = "swiglu"
    tied_embeddings: bool = False
    bias: bool = False
    dropout: float = 0.0
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    shaw_distance: int = 16
    init_std: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        for name, choices in CHOICES.items():
            check_choice(self, name, choices)
        check_groups(self)
        if self.positions == "rope" and self.head_dim % 2:
            raise UsageError(f"head_dim is {self.head_dim}; RoPE turns pairs of features, so it must be even")


class Block(nn.Module):
    """Attention and feed-forward, each with its norm before or behind it, and with its residual sum or without."""

    def __init__(self, config: VariantConfig, attention_path: AttentionPath) -> None:
        super().__init__()
        c = self.config = config
        self.attention_norm, self.feed_forward_norm = (NORMS[c.norm](c.d_model, c.norm_eps) for _ in range(2))
        self.attention = Attention(
            c.d_model,
            c.n_heads,
            c.n_kv_heads,
            c.head_dim,
            bias=c.bias,
            path="explicit" if c.positions == "shaw" else attention_path,
            scale={"sqrt": None, "none": 1.0, "linear": 1 / c.head_dim}[c.score_scaling],
            dropout=c.dropout,
            shaw=ShawPositions(c.head_dim, c.shaw_distance) if c.positions == "shaw" else None,
        )
        self.feed_forward = _feed_forward(c)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Tensor, Tensor] | None,
        score_bias: nn.Module | None,
        mask: Bool[Tensor, "#B 1 T S"] | Documents | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "B T D"]:
        def attend(h: Tensor) -> Tensor:
            return self.attention(h, rope, mask, cache, layer, bias=score_bias)

        for norm, sublayer in ((self.attention_norm, attend), (self.feed_forward_norm, self.feed_forward)):
            if self.config.residual == "add":
                x = add_sublayer(x, sublayer, norm, self.dropout, self.config.norm_place)  # type: ignore[arg-type]
            else:
                x = sublayer(norm(x)) if self.config.norm_place == "pre" else norm(sublayer(x))
        return x


class Variant(nn.Module):
    """A decoder-only language model: ids in, logits of the next token out."""

    def __init__(
        self, config: VariantConfig, *, attention_path: AttentionPath = "fused", gradient_checkpointing: bool = False
    ) -> None:
        """Arguments as in `Llama`; Shaw's positions take the explicit path whatever is said."""
        super().__init__()
        c = self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.rope = RoPE(c.head_dim, c.rope_base) if c.positions == "rope" else None
        self.position_embedding = _absolute_positions(c)
        self.score_bias = {"alibi": ALiBi, "t5": T5Bias}.get(c.positions, lambda n_heads: None)(c.n_heads)
        self.dropout = nn.Dropout(c.dropout)
        self.layers = nn.ModuleList(Block(c, attention_path) for _ in range(c.n_layers))
        self.norm = NORMS[c.norm](c.d_model, c.norm_eps) if c.norm_place == "pre" else nn.Identity()
        self.lm_head = Linear(c.d_model, c.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the output matrix be the embedding itself where the configuration says so."""
        if self.config.tied_embeddings:
            self.lm_head.weight = self.embedding.weight

    def initialise(self, seed: int) -> "Variant":
        """As Llama's: N(0, std²), and 1/√(2 · layers) of it for what is added to the residual stream. Returns the model."""
        std = self.config.init_std
        added = std / math.sqrt(2 * self.config.n_layers)
        draw(self, lambda name, _: added if "o_proj" in name or "down_proj" in name else std, seed)
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B S"] | None = None,
        segment_ids: Int[Tensor, "B T"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each position. Arguments as in `Llama.forward`."""
        return self.lm_head(self.hidden_states(input_ids, attention_mask, segment_ids, cache=cache))

    def hidden_states(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B S"] | None = None,
        segment_ids: Int[Tensor, "B T"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What `lm_head` turns into logits. Arguments as in `forward`."""
        n_cached, n_new = cache.length if cache is not None else 0, input_ids.shape[1]
        check_covers(attention_mask, segment_ids, n_cached, n_new)
        positions = token_positions(input_ids, n_cached, attention_mask, segment_ids)[:, n_cached:]
        mask = causal_mask(n_new, n_cached, attention_mask, segment_ids)
        x = self.embedding(input_ids)
        if self.config.positions == "sinusoidal":  # whose amplitude is 1, as that of √D · embedding (Vaswani, 3.4)
            x = x * math.sqrt(self.config.d_model)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions).to(x.dtype)
        x, rope = self.dropout(x), None if self.rope is None else self.rope(positions)
        for layer, block in enumerate(self.layers):
            arguments = (x, rope, self.score_bias, mask, cache, layer)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, use_reentrant=False, context_fn=keep_all)
            else:
                x = block(*arguments)
        if cache is not None:
            cache.length += n_new
        return self.norm(x)


def _absolute_positions(c: VariantConfig) -> nn.Module | None:
    if c.positions == "learned":
        return LearnedPositions(c.max_seq_len, c.d_model)
    return SinusoidalPositions(c.d_model) if c.positions == "sinusoidal" else None


def _feed_forward(c: VariantConfig) -> nn.Module:
    if c.feed_forward == "swiglu":
        return SwiGLU(c.d_model, c.d_ff, bias=c.bias)
    kind = FeedForward if c.feed_forward in ACTIVATIONS else GatedFeedForward
    return kind(c.d_model, c.d_ff, c.feed_forward, bias=c.bias)
