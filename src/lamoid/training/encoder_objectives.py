"""What an encoder is trained on: (model, batch) -> (sum of the loss, number of trained things), as in objectives.py.

The model is an encoder with the head for the task; its encoder runs once, and the head where there is something to say.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lamoid.data.padded import EncoderBatch
from lamoid.models.heads import HeadedEncoder, PretrainingHead
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


def classes(weights: Tensor | None = None) -> Callable[[HeadedEncoder, EncoderBatch], Loss]:
    """The objective Σ −w[class] log p(class), over rows, or over tokens where each has a label.

    `weights` (C,), such as those of `balanced_weights`, are 1 on average over the data: the sum is divided by the number
    of labels, not by their weights.
    """

    def objective(model: HeadedEncoder, batch: EncoderBatch) -> Loss:
        labels = batch.labels.to(_device(model)).flatten()
        logits = model.head(_hidden(model, batch)).flatten(0, -2).float()
        w = None if weights is None else weights.to(logits.device)
        loss = F.cross_entropy(logits, labels, w, ignore_index=IGNORED, reduction="sum")
        return loss, int((labels != IGNORED).sum())

    return objective


def spans(model: HeadedEncoder, batch: EncoderBatch) -> Loss:
    """Σ over rows of −½ (log p(first token) + log p(last token)); padding cannot be chosen (Devlin et al. 2019, 4.2)."""
    labels = batch.labels.to(_device(model))
    logits = span_logits(model, batch)
    loss = (
        F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        / 2
    )
    return loss, int((labels[:, 0] != IGNORED).sum())


def span_logits(model: HeadedEncoder, batch: EncoderBatch) -> Tensor:
    """(B, T, 2): how likely an answer begins and ends at each token; −∞ at padding."""
    padding = batch.attention_mask.to(_device(model))[..., None] == 0
    return model.head(_hidden(model, batch)).float().masked_fill(padding, -torch.inf)


def _device(model: HeadedEncoder) -> torch.device:
    return next(model.parameters()).device


def _hidden(model: HeadedEncoder, batch: EncoderBatch) -> Tensor:
    device = _device(model)
    return model.encoder(*(part.to(device) for part in (batch.input_ids, batch.attention_mask, batch.segment_ids)))
