"""The Transformer of 2017: an encoder reads the source, a decoder writes the target and looks back at what was read.

    encoder block:  x = norm(x + attention(x));  x = norm(x + feed_forward(x))
    decoder block:  the same, with y = norm(y + attention(y, memory)) between the two
    logits = y · embeddingᵀ, where the embedding is one for source, target and output

Source: Vaswani et al. 2017. Post-LN, ReLU, sinusoidal positions added to √D · embedding, dropout on those sums and on what
each sublayer adds. `norm_place` "pre" norms in front of each sublayer instead, and once more at each stack's end.
"""

import math
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lamoid.models.checks import check_choice, check_fields, check_heads
from lamoid.models.initialise import draw
from lamoid.nn.absolute_positions import SinusoidalPositions
from lamoid.nn.attention import Attention, AttentionPath
from lamoid.nn.feed_forward import FeedForward
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.linear import Linear
from lamoid.nn.masks import causal_mask, check_covers, padding_mask, token_positions
from lamoid.nn.norms import LayerNorm
from lamoid.nn.residual import add_sublayer


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer. `n_layers` of each stack; `max_seq_len` bounds data and decoding, not the positions.

    `bos_id` begins a target, `eos_id` ends it, `pad_id` fills rows up.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int
    max_seq_len: int = 512
    norm_place: str = "post"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        check_heads(self)
        check_choice(self, "norm_place", ("pre", "post"))


class Block(nn.Module):
    """One layer of either stack; with a memory it has cross-attention between its two other sublayers."""

    def __init__(self, config: TransformerConfig, attention_path: AttentionPath, *, is_decoder: bool) -> None:
        super().__init__()
        c, head_dim = config, config.d_model // config.n_heads

        def attention(*, causal: bool) -> Attention:
            return Attention(c.d_model, c.n_heads, c.n_heads, head_dim, bias=True, path=attention_path, causal=causal)

        self.place = c.norm_place
        self.attention = attention(causal=is_decoder)
        self.attention_norm = LayerNorm(c.d_model, c.norm_eps)
        if is_decoder:
            self.cross_attention = attention(causal=False)
            self.cross_attention_norm = LayerNorm(c.d_model, c.norm_eps)
        self.feed_forward = FeedForward(c.d_model, c.d_ff)
        self.feed_forward_norm = LayerNorm(c.d_model, c.norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "#B 1 #T S"] | None,
        memory: Float[Tensor, "B M D"] | None = None,
        memory_mask: Bool[Tensor, "#B 1 1 N"] | None = None,
        cache: "TransformerCache | None" = None,
        layer: int = 0,
    ) -> Float[Tensor, "B T D"]:
        own, other = (cache.own, cache.memory) if cache is not None else (None, None)
        parts = [(self.attention_norm, lambda h: self.attention(h, None, mask, own, layer))]
        if memory is not None:
            parts.append(
                (
                    self.cross_attention_norm,
                    lambda h: self.cross_attention(h, None, memory_mask, other, layer, memory=memory),
                )
            )
        parts.append((self.feed_forward_norm, self.feed_forward))
        for norm, sublayer in parts:
            x = add_sublayer(x, sublayer, norm, self.dropout, self.place)  # type: ignore[arg-type]
        return x


@dataclass
class TransformerCache:
    """Keys and values between decoding steps: of the target so far, and of the memory, which are made once."""

    n_layers: int
    own: KVCache = field(init=False)
    memory: KVCache = field(init=False)

    def __post_init__(self) -> None:
        self.own, self.memory = KVCache(self.n_layers), KVCache(self.n_layers)

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these rows of the batch alone, in this order; a row may come twice."""
        self.own.keep_rows(rows)
        self.memory.keep_rows(rows)


class Transformer(nn.Module):
    """An encoder-decoder: source and target ids in, logits of the next target token out."""

    def __init__(self, config: TransformerConfig, *, attention_path: AttentionPath = "fused") -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        self.positions = SinusoidalPositions(c.d_model)
        self.dropout = nn.Dropout(c.dropout)
        self.encoder_layers = nn.ModuleList(Block(c, attention_path, is_decoder=False) for _ in range(c.n_layers))
        self.decoder_layers = nn.ModuleList(Block(c, attention_path, is_decoder=True) for _ in range(c.n_layers))
        is_pre = c.norm_place == "pre"
        self.encoder_norm = LayerNorm(c.d_model, c.norm_eps) if is_pre else nn.Identity()
        self.decoder_norm = LayerNorm(c.d_model, c.norm_eps) if is_pre else nn.Identity()
        self.lm_head = Linear(c.d_model, c.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """One matrix embeds the source, embeds the target, and makes the logits (section 3.4)."""
        self.lm_head.weight = self.embedding.weight

    def initialise(self, seed: int) -> "Transformer":
        """Embeddings from N(0, 1/D), since √D multiplies them; the others from N(0, 2/(in + out)) (Glorot). Returns the model."""

        def std_of(name: str, matrix: Tensor) -> float:
            return matrix.shape[1] ** -0.5 if "embedding" in name else math.sqrt(2 / sum(matrix.shape))

        draw(self, std_of, seed)
        return self

    def forward(
        self,
        source_ids: Int[Tensor, "B S"],
        target_ids: Int[Tensor, "B T"],
        source_mask: Int[Tensor, "B S"] | None = None,
        target_mask: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token after each target position. Masks: 1 for tokens, 0 for padding, on either side."""
        return self.lm_head(self.hidden_states(source_ids, target_ids, source_mask, target_mask))

    def hidden_states(
        self,
        source_ids: Int[Tensor, "B S"],
        target_ids: Int[Tensor, "B T"],
        source_mask: Int[Tensor, "B S"] | None = None,
        target_mask: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The decoder's output: what `lm_head` turns into logits. Arguments as in `forward`."""
        return self.decode(target_ids, self.encode(source_ids, source_mask), source_mask, target_mask)

    def encode(
        self, source_ids: Int[Tensor, "B S"], source_mask: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S D"]:
        """The memory: the encoder's output for each source token."""
        x = self._embed(source_ids, token_positions(source_ids, 0, source_mask, None))
        for block in self.encoder_layers:
            x = block(x, padding_mask(source_mask))
        return self.encoder_norm(x)

    def decode(
        self,
        target_ids: Int[Tensor, "B T"],
        memory: Float[Tensor, "B S D"],
        source_mask: Int[Tensor, "B S"] | None = None,
        target_mask: Int[Tensor, "B U"] | None = None,
        *,
        cache: TransformerCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """The decoder's output for each target token. With a cache, `target_ids` are the new ones; it is extended in place."""
        n_cached, n_new = cache.own.length if cache is not None else 0, target_ids.shape[1]
        check_covers(target_mask, None, n_cached, n_new)
        y = self._embed(target_ids, token_positions(target_ids, n_cached, target_mask, None)[:, n_cached:])
        mask, memory_mask = causal_mask(n_new, n_cached, target_mask, None), padding_mask(source_mask)
        new_memory = memory if cache is None else memory[:, cache.memory.length :]  # later steps add nothing to it
        for layer, block in enumerate(self.decoder_layers):
            y = block(y, mask, new_memory, memory_mask, cache, layer)
        if cache is not None:
            cache.own.length, cache.memory.length = n_cached + n_new, memory.shape[1]
        return self.decoder_norm(y)

    def _embed(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "#B T"]) -> Float[Tensor, "B T D"]:
        x = self.embedding(ids) * math.sqrt(self.config.d_model)
        return self.dropout(x + self.positions(positions).to(x.dtype))


PRESETS = {
    "transformer-tiny": TransformerConfig(37_000, 128, 2, 4, 512),
    "transformer-small": TransformerConfig(37_000, 256, 3, 4, 1024),
    "transformer-base": TransformerConfig(37_000, 512, 6, 8, 2048),
    "transformer-big": TransformerConfig(37_000, 1024, 6, 16, 4096, dropout=0.3),
}
"""The paper's two sizes (table 3: 65M and 213M; 37,000 byte pairs for English and German), and two small ones."""
