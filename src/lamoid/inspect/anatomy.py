"""What a model is made of, as far as costs go: its matrices, its heads and its norms, from the configuration alone.

Every architecture here is a few stacks of equal blocks. A block is a row of sublayers, each of which reads the residual
stream through some matrices, does something in between, and writes back through one more:

    attention:     q, k, v  ->  heads       ->  o
    feed-forward:  up (and gate)  ->  activation  ->  down
"""

from dataclasses import dataclass
from typing import Any, Literal

from lamoid.models.bert import BertConfig
from lamoid.models.gpt2 import GPT2Config
from lamoid.models.llama_config import LlamaConfig
from lamoid.models.roberta import RobertaConfig
from lamoid.models.transformer import TransformerConfig
from lamoid.models.variant import VariantConfig
from lamoid.nn.feed_forward import GATES
from lamoid.nn.relative_positions import T5Bias

Positions = Literal["trained", "rows", "tokens"]
"""Where a head is asked for something: at trained positions, once a row, or at every token."""


@dataclass(frozen=True)
class Matrix:
    """A linear layer from `n_in` features to `n_out`, with its path in the block (or in the head)."""

    path: str
    n_in: int
    n_out: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.n_in * self.n_out + self.bias * self.n_out


@dataclass(frozen=True)
class Heads:
    """H query heads on K key/value heads of E features; `shaw_rows` is how many relative distances have a learned vector."""

    n_heads: int
    n_kv_heads: int
    head_dim: int
    causal: bool
    is_cross: bool = False
    shaw_rows: int = 0


@dataclass(frozen=True)
class Sublayer:
    """`first` read the stream (keys and values of cross-attention read the memory), `last` writes to it.

    `heads` is what is between them in attention; elsewhere it is None and `activation` names the function.
    """

    first: tuple[Matrix, ...]
    last: Matrix
    heads: Heads | None = None
    activation: str = ""

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All of them, in the order in which they are used."""
        return (*self.first, self.last)

    @property
    def parameters(self) -> int:
        """Of the matrices, and Shaw's vectors for keys and values."""
        shaw = 2 * self.heads.shaw_rows * self.heads.head_dim if self.heads is not None else 0
        return sum(matrix.parameters for matrix in self.matrices) + shaw


@dataclass(frozen=True)
class Stack:
    """`n_layers` blocks under `path`. `side` says whose tokens pass through: the target's, or the source's."""

    path: str
    n_layers: int
    sublayers: tuple[Sublayer, ...]
    side: Literal["target", "source"] = "target"


@dataclass(frozen=True)
class Anatomy:
    """A model's parts. `norm` and `norm_place` hold for every sublayer; `dropout` is on what they add, `attention_dropout` on
    the weights of attention.

    `table_parameters` are looked up and not multiplied (embeddings, positions, T5's bias), `other_norms` counts the norms
    outside of the blocks; `norms_again` says that what a block's norm gave is made again in the backward pass. `head` makes
    the output from the last block's: with `ties`, its last matrix is the embedding.
    """

    d_model: int
    vocab_size: int
    stacks: tuple[Stack, ...]
    table_parameters: int
    norm: Literal["rmsnorm", "layernorm"]
    norm_place: Literal["pre", "post"]
    other_norms: int
    head: tuple[tuple[Matrix, Positions], ...]
    ties: bool
    head_norms: int = 0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    rope: bool = False
    norms_again: bool = False
    score_bias: Literal["", "fixed", "learned"] = ""

    @property
    def norm_parameters(self) -> int:
        """Of one norm: a gain for each feature, and LayerNorm's bias."""
        return self.d_model * (2 if self.norm == "layernorm" else 1)

    @property
    def embedding_norm(self) -> bool:
        """Whether the embeddings are normed before the first block, as in BERT."""
        return self.norm_place == "post" and self.other_norms == 1

    @property
    def n_norms(self) -> int:
        """All norms but the head's."""
        return self.other_norms + sum(stack.n_layers * len(stack.sublayers) for stack in self.stacks)

    def heads(self) -> list[Heads]:
        """The attentions of one block of each stack, in order."""
        return [part.heads for stack in self.stacks for part in stack.sublayers if part.heads is not None]


def anatomy(config: Any, head: str = "", n_labels: int = 2) -> Anatomy:
    """The parts of the model that a configuration describes.

    `head` is what sits on an encoder, one of heads.HeadKind, or nothing; `n_labels` are its classes.
    """
    if isinstance(config, TransformerConfig):
        return _of_transformer(config)
    if isinstance(config, BertConfig | RobertaConfig):
        return _of_encoder(config, head, n_labels)
    if isinstance(config, GPT2Config):
        return _of_gpt2(config)
    return _of_llama(config)


def _of_llama(c: LlamaConfig | VariantConfig) -> Anatomy:
    variant = c if isinstance(c, VariantConfig) else None
    attention_bias = c.attention_bias if isinstance(c, LlamaConfig) else c.bias
    feed_forward_bias = c.feed_forward_bias if isinstance(c, LlamaConfig) else c.bias
    positions = "rope" if variant is None else variant.positions
    shaw_rows = 2 * variant.shaw_distance + 1 if variant is not None and positions == "shaw" else 0
    heads = Heads(c.n_heads, c.n_kv_heads, c.head_dim, causal=True, shaw_rows=shaw_rows)
    kind = "swiglu" if variant is None else variant.feed_forward
    block = (
        _attention(c.d_model, heads, bias=attention_bias),
        _feed_forward(c.d_model, c.d_ff, kind, bias=feed_forward_bias),
    )
    place = "pre" if variant is None else variant.norm_place
    tables = c.vocab_size * c.d_model
    tables += c.max_seq_len * c.d_model if positions == "learned" else 0
    tables += T5Bias(c.n_heads).weight.numel() if positions == "t5" else 0
    return Anatomy(
        d_model=c.d_model,
        vocab_size=c.vocab_size,
        stacks=(Stack("layers", c.n_layers, block),),
        table_parameters=tables,
        norm="rmsnorm" if variant is None else variant.norm,  # type: ignore[arg-type]
        norm_place=place,  # type: ignore[arg-type]
        other_norms=1 if place == "pre" else 0,
        head=((Matrix("lm_head", c.d_model, c.vocab_size), "trained"),),
        ties=c.tied_embeddings,
        dropout=variant.dropout if variant is not None and variant.residual == "add" else 0.0,
        attention_dropout=0.0 if variant is None else variant.dropout,
        embedding_dropout=0.0 if variant is None else variant.dropout,
        rope=positions == "rope",
        norms_again=variant is None,
        score_bias={"alibi": "fixed", "t5": "learned"}.get(positions, ""),  # type: ignore[arg-type]
    )


def _of_gpt2(c: GPT2Config) -> Anatomy:
    heads = Heads(c.n_heads, c.n_heads, c.d_model // c.n_heads, causal=True)
    block = (_attention(c.d_model, heads, bias=True), _feed_forward(c.d_model, c.d_ff, c.activation, bias=True))
    return Anatomy(
        d_model=c.d_model,
        vocab_size=c.vocab_size,
        stacks=(Stack("layers", c.n_layers, block),),
        table_parameters=(c.vocab_size + c.max_seq_len) * c.d_model,
        norm="layernorm",
        norm_place="pre",
        other_norms=1,
        head=((Matrix("lm_head", c.d_model, c.vocab_size), "trained"),),
        ties=c.tied_embeddings,
        dropout=c.residual_dropout,
        attention_dropout=c.attention_dropout,
        embedding_dropout=c.embedding_dropout,
    )


def _of_encoder(c: BertConfig | RobertaConfig, head: str, n_labels: int) -> Anatomy:
    heads = Heads(c.n_heads, c.n_heads, c.d_model // c.n_heads, causal=False)
    block = (_attention(c.d_model, heads, bias=True), _feed_forward(c.d_model, c.d_ff, c.activation, bias=True))
    n_positions = c.max_seq_len + (c.pad_id + 1 if isinstance(c, RobertaConfig) else 0)
    dense = Matrix("dense", c.d_model, c.d_model, True)
    mlm: list[tuple[Matrix, Positions]] = [
        (dense, "trained"),
        (Matrix("decoder", c.d_model, c.vocab_size, True), "trained"),
    ]
    nsp: list[tuple[Matrix, Positions]] = [(dense, "rows"), (Matrix("linear", c.d_model, 2, True), "rows")]
    classes = Matrix("linear", c.d_model, n_labels, True)
    found: dict[str, list[tuple[Matrix, Positions]]] = {
        "": [],
        "mlm": mlm,
        "nsp": nsp,
        "pretraining": [*nsp, *mlm],
        "sequence": [(dense, "rows"), (classes, "rows")],
        "token": [(classes, "tokens")],
        "span": [(Matrix("linear", c.d_model, 2, True), "tokens")],
    }
    return Anatomy(
        d_model=c.d_model,
        vocab_size=c.vocab_size,
        stacks=(Stack("layers", c.n_layers, block),),
        table_parameters=(c.vocab_size + n_positions + c.n_segments) * c.d_model,
        norm="layernorm",
        norm_place="post",
        other_norms=1,
        head=tuple(found[head]),
        ties=c.tied_embeddings and head in ("mlm", "pretraining"),
        head_norms=1 if head in ("mlm", "pretraining") else 0,
        dropout=c.dropout,
        attention_dropout=c.attention_dropout,
        embedding_dropout=c.dropout,
    )


def _of_transformer(c: TransformerConfig) -> Anatomy:
    head_dim = c.d_model // c.n_heads
    own, looking_back = Heads(c.n_heads, c.n_heads, head_dim, causal=False), Heads(c.n_heads, c.n_heads, head_dim, True)
    cross = Heads(c.n_heads, c.n_heads, head_dim, causal=False, is_cross=True)
    feed_forward = _feed_forward(c.d_model, c.d_ff, "relu", bias=True)
    encoder = (_attention(c.d_model, own, bias=True), feed_forward)
    decoder = (
        _attention(c.d_model, looking_back, bias=True),
        _attention(c.d_model, cross, bias=True, path="cross_attention"),
        feed_forward,
    )
    return Anatomy(
        d_model=c.d_model,
        vocab_size=c.vocab_size,
        stacks=(
            Stack("encoder_layers", c.n_layers, encoder, "source"),
            Stack("decoder_layers", c.n_layers, decoder),
        ),
        table_parameters=c.vocab_size * c.d_model,
        norm="layernorm",
        norm_place=c.norm_place,  # type: ignore[arg-type]
        other_norms=2 if c.norm_place == "pre" else 0,
        head=((Matrix("lm_head", c.d_model, c.vocab_size), "trained"),),
        ties=True,
        dropout=c.dropout,
        embedding_dropout=c.dropout,
    )


def _attention(d_model: int, heads: Heads, *, bias: bool, path: str = "attention") -> Sublayer:
    width, kv_width = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
    widths = {"q": width, "k": kv_width, "v": kv_width}
    first = tuple(Matrix(f"{path}.{name}_proj", d_model, n_out, bias) for name, n_out in widths.items())
    return Sublayer(first, Matrix(f"{path}.o_proj", width, d_model, bias), heads)


def _feed_forward(d_model: int, d_ff: int, kind: str, *, bias: bool) -> Sublayer:
    names = ("gate_proj", "up_proj") if kind in GATES else ("up_proj",)
    first = tuple(Matrix(f"feed_forward.{name}", d_model, d_ff, bias) for name in names)
    return Sublayer(first, Matrix("feed_forward.down_proj", d_ff, d_model, bias), None, kind)
