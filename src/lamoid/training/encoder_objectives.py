"""What an encoder is trained on: (model, batch) -> (sum of the loss, number of trained things), as in objectives.py.

The model is an encoder with the head for the task; its encoder runs once, and the head where there is something to say.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lamoid.data.padded import EncoderBatch
from lamoid.models.heads import HeadedEncoder, PretrainingHead, SpanHead
from lamoid.nn.losses import IGNORED

Loss = tuple[Tensor, int]


def masked_tokens(model: HeadedEncoder, batch: EncoderBatch) -> Loss:
    """Σ −log p(the hidden token), in nats; logits are made at hidden positions and nowhere else.

    Where the batch says whether its second texts are next ones and the head asks for it, that is trained too. The loss is
    BERT's, mean MLM + mean NSP: as the loop divides one sum by the hidden tokens N, row r with its n_r of them adds
    n_r · NSP_r,

        (Σ MLM + Σ_r n_r NSP_r) / N = mean MLM + Σ_r (n_r / N) NSP_r,

    whatever the micro-batches. Rows of one length weigh the same, as in BERT; a longer row weighs more.
    """
    hidden, labels = _hidden(model, batch), batch.labels.to(_device(model))
    chosen = labels != IGNORED
    mlm = model.head.mlm if isinstance(model.head, PretrainingHead) else model.head
    logits = mlm(hidden[chosen])
    loss = F.cross_entropy(logits.float(), labels[chosen], reduction="sum")
    if batch.next_sentence is not None and isinstance(model.head, PretrainingHead):
        answers = batch.next_sentence.to(labels.device)
        loss = loss + (F.cross_entropy(model.head.nsp(hidden).float(), answers, reduction="none") * chosen.sum(1)).sum()
    return loss, int(chosen.sum())


def class_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Loss:
    """Σ −w[class] log p(class), over rows, or over tokens where each has a label.

    `weights` (C,), such as those of `balanced_weights`, are 1 on average over the data: the sum is divided by the number
    of labels, not by their weights.
    """
    labels = labels.to(logits.device).flatten()
    w = None if weights is None else weights.to(logits.device)
    loss = F.cross_entropy(logits.flatten(0, -2), labels, w, ignore_index=IGNORED, reduction="sum")
    return loss, int((labels != IGNORED).sum())


def span_loss(logits: Tensor, labels: Tensor) -> Loss:
    """Σ over rows of −½ (log p(first token) + log p(last token)) (Devlin et al. 2019, section 4.2)."""
    labels, ends = labels.to(logits.device), logits.transpose(1, 2).flatten(0, 1)
    loss = F.cross_entropy(ends, labels.flatten(), ignore_index=IGNORED, reduction="sum") / 2
    return loss, int((labels[:, 0] != IGNORED).sum())


def on_labels(loss: Callable[[Tensor, Tensor], Loss]) -> Callable[[HeadedEncoder, EncoderBatch], Loss]:
    """The objective `loss(logits, labels)` of what the head says about a batch."""
    return lambda model, batch: loss(head_logits(model, batch), batch.labels)


def head_logits(model: HeadedEncoder, batch: EncoderBatch) -> Tensor:
    """What the head says about a batch, in float32; of spans (B, T, 2), where padding can be no end: −∞ there."""
    said = model.head(_hidden(model, batch)).float()
    if not isinstance(model.head, SpanHead):
        return said
    return said.masked_fill(batch.attention_mask.to(said.device)[..., None] == 0, -torch.inf)


def _device(model: HeadedEncoder) -> torch.device:
    return next(model.parameters()).device


def _hidden(model: HeadedEncoder, batch: EncoderBatch) -> Tensor:
    device = _device(model)
    return model.encoder(*(part.to(device) for part in (batch.input_ids, batch.attention_mask, batch.segment_ids)))
