"""RoBERTa: BERT's blocks, with one segment, positions that are counted without padding, and no next-sentence task.

Source: Liu et al. 2019. What makes it better than BERT is how it is trained: on more text with larger batches, dynamic
masking and byte-level BPE. Positions begin behind the padding's id, as in the authors' code (fairseq).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lamoid.models.bert import Block
from lamoid.models.checks import check_choice, check_fields, check_heads
from lamoid.models.initialise import draw
from lamoid.nn.absolute_positions import LearnedPositions
from lamoid.nn.attention import AttentionPath
from lamoid.nn.feed_forward import ACTIVATIONS
from lamoid.nn.masks import padding_mask
from lamoid.nn.norms import LayerNorm
from lamoid.nn.remade import keep_all


@dataclass(frozen=True)
class RobertaConfig:
    """The shape of a RoBERTa. The table of positions has `max_seq_len + pad_id + 1` rows, of which the first are unused."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 512
    n_segments: int = 1
    norm_eps: float = 1e-5
    activation: str = "gelu"
    tied_embeddings: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.1
    init_std: float = 0.02
    pad_id: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        check_heads(self)
        check_choice(self, "activation", ACTIVATIONS)


class Roberta(nn.Module):
    """Ids in, one vector for each token out."""

    def __init__(
        self, config: RobertaConfig, *, attention_path: AttentionPath = "fused", gradient_checkpointing: bool = False
    ) -> None:
        """`gradient_checkpointing` recomputes each block in the backward pass."""
        super().__init__()
        c = self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.position_embedding = LearnedPositions(c.max_seq_len + c.pad_id + 1, c.d_model)
        self.segment_embedding = nn.Embedding(c.n_segments, c.d_model)
        self.embedding_norm = LayerNorm(c.d_model, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)
        shape = dict(activation=c.activation, norm_eps=c.norm_eps)
        shares = dict(dropout=c.dropout, attention_dropout=c.attention_dropout, attention_path=attention_path)
        self.layers = nn.ModuleList(
            Block(c.d_model, c.n_heads, c.d_ff, **shape, **shares)  # type: ignore[arg-type]
            for _ in range(c.n_layers)
        )

    def initialise(self, seed: int) -> "Roberta":
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

        attention_mask: 1 for tokens, 0 for padding, on either side; padding has the id `pad_id`, which positions skip.
        segment_ids: token types, all 0 in the published models.
        """
        is_token = input_ids != self.config.pad_id
        positions = is_token.cumsum(dim=1) * is_token + self.config.pad_id
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
    "roberta-small": RobertaConfig(50_265, 512, 4, 8, 2048),
    "roberta-base": RobertaConfig(50_265, 768, 12, 12, 3072),
    "roberta-large": RobertaConfig(50_265, 1024, 24, 16, 4096),
}
"""The paper's two sizes (125M and 355M), and a small one of bert-small's shape."""
