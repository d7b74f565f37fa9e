"""BERT: an encoder that sees both sides of every token.

    x = norm(embedding(ids) + position_embedding(positions) + segment_embedding(segments))
    each block:  x = norm(x + attention(x));  x = norm(x + feed_forward(x))

Source: Devlin et al. 2019. Post-LN as in the Transformer, GELU, learned positions, dropout of 0.1. What sits on top of it
(MLM, NSP, classes, spans) is in `heads.py`.
"""

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
from lamoid.nn.masks import padding_mask
from lamoid.nn.norms import LayerNorm
from lamoid.nn.remade import keep_all


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT. `n_heads` divides `d_model`; a pair of texts has `n_segments` = 2 token types."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 512
    n_segments: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"
    tied_embeddings: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    init_std: float = 0.02
    pad_id: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_heads(self)
        check_choice(self, "activation", ACTIVATIONS)


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + feed_forward(x)), with dropout on what is added: Post-LN."""

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ff: int,
        *,
        activation: str,
        norm_eps: float,
        dropout: float,
        attention_dropout: float,
        attention_path: AttentionPath,
    ) -> None:
        super().__init__()
        self.attention = Attention(
            d_model,
            n_heads,
            n_heads,
            d_model // n_heads,
            bias=True,
            path=attention_path,
            causal=False,
            dropout=attention_dropout,
        )
        self.attention_norm = LayerNorm(d_model, norm_eps)
        self.feed_forward = FeedForward(d_model, d_ff, activation)
        self.feed_forward_norm = LayerNorm(d_model, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"], mask: Bool[Tensor, "#B 1 #T T"] | None) -> Float[Tensor, "B T D"]:
        x = self.attention_norm(x + self.dropout(self.attention(x, None, mask)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Bert(nn.Module):
    """Ids in, one vector for each token out."""

    def __init__(
        self, config: BertConfig, *, attention_path: AttentionPath = "fused", gradient_checkpointing: bool = False
    ) -> None:
        """`gradient_checkpointing` recomputes each block in the backward pass."""
        super().__init__()
        c = self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.position_embedding = LearnedPositions(c.max_seq_len, c.d_model)
        self.segment_embedding = nn.Embedding(c.n_segments, c.d_model)
        self.embedding_norm = LayerNorm(c.d_model, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        shape = dict(activation=c.activation, norm_eps=c.norm_eps)
        shares = dict(dropout=c.dropout, attention_dropout=c.attention_dropout, attention_path=attention_path)
        self.layers = nn.ModuleList(
            Block(c.d_model, c.n_heads, c.d_ff, **shape, **shares)  # type: ignore[arg-type]
            for _ in range(c.n_layers)
        )

    def initialise(self, seed: int) -> "Bert":
        """Every matrix from N(0, 0.02²); the same seed gives the same weights. Returns the model."""
        draw(self, lambda name, _: self.config.init_std, seed)
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        segment_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The output of the last block.

        attention_mask: 1 for tokens, 0 for padding. Positions are counted from the row's beginning, padding included,
        as BERT was trained: pad on the right.
        segment_ids: 0 for tokens of the first text, 1 for those of the second; all 0 where nothing is said.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        segments = torch.zeros_like(input_ids) if segment_ids is None else segment_ids
        x = self.embedding(input_ids) + self.segment_embedding(segments) + self.position_embedding(positions)
        x, mask = self.dropout(self.embedding_norm(x)), padding_mask(attention_mask)
        for block in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False, context_fn=keep_all)
            else:
                x = block(x, mask)
        return x


PRESETS = {
    "bert-tiny": BertConfig(30_522, 128, 2, 2, 512),
    "bert-small": BertConfig(30_522, 512, 4, 8, 2048),
    "bert-base": BertConfig(30_522, 768, 12, 12, 3072),
    "bert-large": BertConfig(30_522, 1024, 24, 16, 4096),
}
"""The paper's two sizes (110M and 340M with the pooler), and two of Turc et al. 2019."""
