"""What a model is trained on: (model, batch) -> (sum of the loss, number of trained tokens).

The sum, not the mean: the loop divides by all trained tokens of a step, so that micro-batches of any size make the
same update as one batch.
"""

from collections.abc import Callable

from torch import Tensor

from lamoid.data.packed import Batch
from lamoid.data.pairs import PairBatch
from lamoid.models.decoders import DecoderModel
from lamoid.models.transformer import Transformer
from lamoid.nn.losses import IGNORED, chunked_cross_entropy


def next_token(model: DecoderModel, batch: Batch) -> tuple[Tensor, int]:
    """Σ −log p(next token | the tokens before it), in nats, over the positions whose label is not IGNORED.

    Documents that share a row are kept apart. No logits are made for the other positions.
    """
    device = model.embedding.weight.device
    segments = None if batch.segment_ids is None else batch.segment_ids.to(device)
    hidden = model.hidden_states(batch.input_ids.to(device), segment_ids=segments)
    labels = batch.labels.flatten().to(device)
    loss_sum = chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, labels)
    return loss_sum, int((labels != IGNORED).sum())


def target_tokens(label_smoothing: float = 0.1) -> Callable[[Transformer, PairBatch], tuple[Tensor, int]]:
    """The objective Σ −log p(target token | the source, the tokens before it), in nats, the target's end included.

    With label smoothing ε each token is a distribution: 1 − ε on it, and ε spread over the vocabulary (Vaswani et al. 2017,
    section 5.4). Logits are made in chunks, and for no padding.
    """

    def objective(model: Transformer, batch: PairBatch) -> tuple[Tensor, int]:
        device = model.embedding.weight.device
        source, mask, target = (part.to(device) for part in (batch.source_ids, batch.source_mask, batch.target_ids))
        hidden, labels = model.hidden_states(source, target, mask), batch.labels.flatten().to(device)
        loss_sum = chunked_cross_entropy(
            hidden.flatten(0, 1), model.lm_head.weight, labels, label_smoothing=label_smoothing
        )
        return loss_sum, int((labels != IGNORED).sum())

    return objective
