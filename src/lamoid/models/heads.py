"""What sits on an encoder: masked tokens, the next sentence, classes, spans, labels of tokens, pooling.

A head is a module from hidden states to its output; `HeadedEncoder` puts one on a BERT or a RoBERTa. To train on a few
positions alone, hand those to the head: `model.head(hidden[is_masked])` for MLM makes no logits anywhere else.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lamoid.errors import UsageError
from lamoid.models.bert import Bert
from lamoid.models.initialise import draw
from lamoid.models.roberta import Roberta
from lamoid.nn.feed_forward import ACTIVATIONS
from lamoid.nn.linear import Linear
from lamoid.nn.norms import LayerNorm

Encoder = Bert | Roberta
HeadKind = Literal["mlm", "nsp", "pretraining", "sequence", "span", "token"]


class Pooler(nn.Module):
    """tanh(W h + b) of the first token's h, which stands for the whole text (BERT's `[CLS]`, RoBERTa's `<s>`)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.dense = Linear(d_model, d_model)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B D"]:
        return self.dense(hidden[:, 0]).tanh()


class MLMHead(nn.Module):
    """norm(f(W h + b)) · embeddingᵀ + c: logits of the token that was masked. Any leading shape (Devlin et al. 2019)."""

    def __init__(self, d_model: int, vocab_size: int, activation: str, norm_eps: float) -> None:
        super().__init__()
        self.dense = Linear(d_model, d_model)
        self.activation = ACTIVATIONS[activation]
        self.norm = LayerNorm(d_model, norm_eps)
        self.decoder = Linear(d_model, vocab_size)

    def features(self, hidden: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """What `decoder` turns into logits, for a loss that makes them in chunks."""
        return self.norm(self.activation(self.dense(hidden)))

    def forward(self, hidden: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest V"]:
        return self.decoder(self.features(hidden))


class NSPHead(nn.Module):
    """Whether the second text follows the first: logits of (yes, no) from the pooled first token."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.pooler = Pooler(d_model)
        self.linear = Linear(d_model, 2)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B 2"]:
        return self.linear(self.pooler(hidden))


class PretrainingHead(nn.Module):
    """BERT's two tasks at once: MLM logits of every position, NSP logits of every row."""

    def __init__(self, mlm: MLMHead, nsp: NSPHead) -> None:
        super().__init__()
        self.mlm, self.nsp = mlm, nsp

    def forward(self, hidden: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B 2"]]:
        return self.mlm(hidden), self.nsp(hidden)


class SequenceHead(nn.Module):
    """One class for a whole text: logits from the pooled first token. `labels` names the classes.

    Dropout stands behind the pooler, as in BERT; RoBERTa's own code has another one in front of it.
    """

    def __init__(self, d_model: int, labels: tuple[str, ...], dropout: float) -> None:
        super().__init__()
        self.labels = labels
        self.pooler = Pooler(d_model)
        self.dropout = nn.Dropout(dropout)
        self.linear = Linear(d_model, len(labels))

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B C"]:
        return self.linear(self.dropout(self.pooler(hidden)))


class SpanHead(nn.Module):
    """Where an answer begins and where it ends: two logits for each token (Devlin et al. 2019, section 4.2)."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = Linear(d_model, 2)

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T 2"]:
        return self.linear(hidden)


class TokenHead(nn.Module):
    """One class for each token. `labels` names the classes."""

    def __init__(self, d_model: int, labels: tuple[str, ...], dropout: float) -> None:
        super().__init__()
        self.labels = labels
        self.dropout = nn.Dropout(dropout)
        self.linear = Linear(d_model, len(labels))

    def forward(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T C"]:
        return self.linear(self.dropout(hidden))


Head = MLMHead | NSPHead | PretrainingHead | SequenceHead | SpanHead | TokenHead


class HeadedEncoder(nn.Module):
    """An encoder and the head that reads it. `model.encoder(…)` gives hidden states, `model(…)` the head's output."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        self.config = encoder.config
        self.tie_weights()

    def tie_weights(self) -> None:
        """Let an MLM head's output matrix be the embedding itself where the configuration says so."""
        mlm = self.head.mlm if isinstance(self.head, PretrainingHead) else self.head
        if isinstance(mlm, MLMHead) and self.config.tied_embeddings:
            mlm.decoder.weight = self.encoder.embedding.weight

    def initialise(self, seed: int) -> "HeadedEncoder":
        """Draw encoder and head anew. Returns the model."""
        draw(self, lambda name, _: self.config.init_std, seed)
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        segment_ids: Int[Tensor, "B T"] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        return self.head(self.encoder(input_ids, attention_mask, segment_ids))


class PooledEncoder(nn.Module):
    """An encoder that came with a pooler and no head, as sentence encoders do. Its output is the encoder's hidden states."""

    def __init__(self, encoder: Encoder, pooler: Pooler) -> None:
        super().__init__()
        self.encoder, self.pooler = encoder, pooler
        self.config = encoder.config

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"] | None = None,
        segment_ids: Int[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        return self.encoder(input_ids, attention_mask, segment_ids)


def make_head(encoder: Encoder, kind: HeadKind, labels: tuple[str, ...] = ()) -> Head:
    """A head that fits an encoder. Classes need at least one label. Raises UsageError where labels are missing or unwanted."""
    c = encoder.config
    if bool(labels) != (kind in ("sequence", "token")):
        raise UsageError(
            f"labels are {labels!r} for a head of kind {kind!r}; sequence and token need some, others none"
        )
    if kind in ("mlm", "pretraining"):
        activation = c.activation if isinstance(encoder, Bert) else "gelu"
        mlm = MLMHead(c.d_model, c.vocab_size, activation, c.norm_eps)
        return mlm if kind == "mlm" else PretrainingHead(mlm, NSPHead(c.d_model))
    if kind == "nsp":
        return NSPHead(c.d_model)
    if kind == "span":
        return SpanHead(c.d_model)
    return (SequenceHead if kind == "sequence" else TokenHead)(c.d_model, labels, c.head_dropout)


def attach_head(
    model: Encoder | PooledEncoder | HeadedEncoder, kind: HeadKind, seed: int, labels: tuple[str, ...] = ()
) -> HeadedEncoder:
    """Put a new head on an encoder, drawn from N(0, 0.02²); a pooler that the model came with is kept, an old head is not."""
    encoder = model if isinstance(model, Encoder) else model.encoder
    like = next(encoder.parameters())
    head = make_head(encoder, kind, labels).to(like.device, like.dtype)
    draw(head, lambda name, _: encoder.config.init_std, seed)
    old, new = _pooler_of(model), _pooler_of(head)
    if old is not None and new is not None:
        new.load_state_dict(old.state_dict())
    return HeadedEncoder(encoder, head)


def _pooler_of(module: nn.Module) -> Pooler | None:
    return next((part for part in module.modules() if isinstance(part, Pooler)), None)


def mean_pool(hidden: Float[Tensor, "B T D"], attention_mask: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The mean of the tokens' vectors, padding left out (Reimers & Gurevych 2019, section 3)."""
    mask = attention_mask[..., None].to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def first_pool(hidden: Float[Tensor, "B T D"], attention_mask: Int[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The vector of the first token that is no padding."""
    first = attention_mask.argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), first]
