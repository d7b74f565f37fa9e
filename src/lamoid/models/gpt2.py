"""GPT-2: a decoder with learned positions, LayerNorm before each sublayer, GELU and biases everywhere.

    x = embedding(ids) + position_embedding(positions)
    each block:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
    logits = norm(x) · embeddingᵀ

Source: Radford et al. 2019, section 2.3. Dropout of 0.1 as in GPT (Radford et al. 2018, section 4.1).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lamoid.models.checks import check_choice, check_fields, check_heads
from lamoid.models.initialise import draw
from lamoid.nn.absolute_positions import LearnedPositions
from lamoid.nn.attention import Attention, AttentionPath
from lamoid.nn.feed_forward import ACTIVATIONS, FeedForward
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.linear import Linear
from lamoid.nn.masks import Documents, causal_mask, check_covers, token_positions
from lamoid.nn.norms import LayerNorm
from lamoid.nn.remade import keep_all


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2. `n_heads` divides `d_model`; the three dropouts are shares."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    tied_embeddings: bool = True
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    init_std: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        check_heads(self)
        check_choice(self, "activation", ACTIVATIONS)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), with dropout on what is added."""

    def __init__(self, config: GPT2Config, attention_path: AttentionPath) -> None:
        super().__init__()
        c = config
        self.attention_norm = LayerNorm(c.d_model, c.norm_eps)
        self.attention = Attention(
            c.d_model,
            c.n_heads,
            c.n_heads,
            c.d_model // c.n_heads,
            bias=True,
            path=attention_path,
            dropout=c.attention_dropout,
        )
        self.feed_forward_norm = LayerNorm(c.d_model, c.norm_eps)
        self.feed_forward = FeedForward(c.d_model, c.d_ff, c.activation)
        self.dropout = nn.Dropout(c.residual_dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "#B 1 T S"] | Documents | None,
        cache: KVCache | None,
        layer: int,
    ) -> Float[Tensor, "B T D"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), None, mask, cache, layer))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class GPT2(nn.Module):
    """A decoder-only language model: ids in, logits of the next token out."""

    def __init__(
        self, config: GPT2Config, *, attention_path: AttentionPath = "fused", gradient_checkpointing: bool = False
    ) -> None:
        """`gradient_checkpointing` recomputes each block in the backward pass."""
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = LearnedPositions(config.max_seq_len, config.d_model)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(Block(config, attention_path) for _ in range(config.n_layers))
        self.norm = LayerNorm(config.d_model, config.norm_eps)
        self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let the output matrix be the embedding itself where the configuration says so, as all published sizes do."""
        if self.config.tied_embeddings:
            self.lm_head.weight = self.embedding.weight

    def initialise(self, seed: int) -> "GPT2":
        """N(0, 0.02²); what is added to the residual stream gets 1/√(number of additions) of it. Returns the model."""
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
        """The normalised output of the last block: what `lm_head` turns into logits. Arguments as in `forward`.

        Raises UsageError for a text longer than the positions that were learned.
        """
        n_cached, n_new = cache.length if cache is not None else 0, input_ids.shape[1]
        check_covers(attention_mask, segment_ids, n_cached, n_new)
        positions = token_positions(input_ids, n_cached, attention_mask, segment_ids)[:, n_cached:]
        mask = causal_mask(n_new, n_cached, attention_mask, segment_ids)
        x = self.dropout(self.embedding(input_ids) + self.position_embedding(positions))
        for layer, block in enumerate(self.layers):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, cache, layer, use_reentrant=False, context_fn=keep_all)
            else:
                x = block(x, mask, cache, layer)
        if cache is not None:
            cache.length += n_new
        return self.norm(x)


def _preset(d_model: int, n_heads: int, n_layers: int) -> GPT2Config:
    return GPT2Config(50_257, d_model, n_layers, n_heads, 4 * d_model, 1024)


PRESETS = {
    "gpt2-small": _preset(768, 12, 12),
    "gpt2-medium": _preset(1024, 16, 24),
    "gpt2-large": _preset(1280, 20, 36),
    "gpt2-xl": _preset(1600, 25, 48),
}
"""The published sizes: 124M, 355M, 774M and 1.5B parameters (the paper's table 2 counts 117M, 345M, 762M, 1542M)."""
