"""What a model is trained on: (model, batch) -> (sum of the loss, number of trained tokens).

The sum, not the mean: the loop divides by all trained tokens of a step, so that micro-batches of any size make the
same update as one batch.
"""

from torch import Tensor

from lamoid.data.packed import Batch
from lamoid.models.decoders import DecoderModel
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
