"""What an encoder is trained on: (model, batch) -> (sum of the loss, number of trained things), as in objectives.py.

The model has an `encoder(input_ids, attention_mask, segment_ids)` that gives hidden states (B, T, D), and a `head` that
reads them: those of models/heads.py. The batch is an EncoderBatch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lamoid.data.padded import EncoderBatch
from lamoid.nn.losses import IGNORED

Loss = tuple[Tensor, int]


def masked_tokens(model: Any, batch: EncoderBatch) -> Loss:
    """Σ −log p(the hidden token), in nats; logits are made at hidden positions and nowhere else.

    Where the batch says whether its second texts are next ones, that is trained too: the loss is BERT's, mean MLM + mean
    NSP. For the loop to divide one sum by the hidden tokens N, row r with its n_r of them adds n_r · NSP_r: so

        (Σ MLM + Σ_r n_r NSP_r) / N = mean MLM + Σ_r (n_r / N) NSP_r,

    whatever the micro-batches. Rows of one length weigh the same, as in BERT; a longer row weighs more.
    """
    hidden, labels = _hidden(model, batch), batch.labels.to(_device(model))
    chosen = labels != IGNORED
    logits = getattr(model.head, "mlm", model.head)(hidden[chosen])
    loss = F.cross_entropy(logits.float(), labels[chosen], reduction="sum")
    if batch.next_sentence is not None:
        answers = batch.next_sentence.to(labels.device)
        loss = loss + (F.cross_entropy(model.head.nsp(hidden).float(), answers, reduction="none") * chosen.sum(1)).sum()
    return loss, int(chosen.sum())


def classes(weights: Tensor | None = None) -> Callable[[Any, EncoderBatch], Loss]:
    """The objective Σ −w[class] log p(class), over rows, or over tokens where each has a label.

    `weights` (C,), such as those of `balanced_weights`, are 1 on average over the data: the sum is divided by the number
    of labels, not by their weights.
    """

    def objective(model: Any, batch: EncoderBatch) -> Loss:
        labels = batch.labels.to(_device(model)).flatten()
        logits = model.head(_hidden(model, batch)).flatten(0, -2).float()
        w = None if weights is None else weights.to(logits.device)
        loss = F.cross_entropy(logits, labels, w, ignore_index=IGNORED, reduction="sum")
        return loss, int((labels != IGNORED).sum())

    return objective


def spans(model: Any, batch: EncoderBatch) -> Loss:
    """Σ over rows of −½ (log p(first token) + log p(last token)); padding cannot be chosen (Devlin et al. 2019, 4.2)."""
    labels = batch.labels.to(_device(model))
    logits = span_logits(model, batch)
    loss = (
        F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        / 2
    )
    return loss, int((labels[:, 0] != IGNORED).sum())


def span_logits(model: Any, batch: EncoderBatch) -> Tensor:
    """(B, T, 2): how likely an answer begins and ends at each token; −∞ at padding."""
    padding = batch.attention_mask.to(_device(model))[..., None] == 0
    return model.head(_hidden(model, batch)).float().masked_fill(padding, -torch.inf)


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


def _hidden(model: Any, batch: EncoderBatch) -> Tensor:
    device = _device(model)
    return model.encoder(*(part.to(device) for part in (batch.input_ids, batch.attention_mask, batch.segment_ids)))
