"""What a run's model is measured by on held-out data, between steps of training."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lamoid.data.masked import FullSentences
from lamoid.data.packing import PackedConversations
from lamoid.data.pairs import PairRows
from lamoid.data.sentences import NextSentencePairs
from lamoid.inference.score import score
from lamoid.models.decoders import DecoderModel
from lamoid.models.heads import HeadedEncoder, PretrainingHead
from lamoid.models.llama import Llama
from lamoid.models.transformer import Transformer
from lamoid.nn.losses import IGNORED
from lamoid.training.loop import Batches, Objective
from lamoid.training.objectives import next_token, target_tokens

MOST_ROWS = 512


@dataclass(frozen=True)
class Evaluation:
    """The loss, by which the best model is chosen, and other figures by name."""

    loss: float
    figures: dict[str, float] = field(default_factory=dict)


Evaluate = Callable[[Callable[[], bool]], Evaluation | None]
"""From a function that says whether to stop to the evaluation, or None where it was stopped."""


def on_text(model: DecoderModel, documents: Sequence[Sequence[int]], n_bytes: int, context: int) -> Evaluate:
    """Loss and bits per byte on documents of ids that stand for `n_bytes` bytes."""

    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        result = score(model, documents, n_bytes, context=context, should_stop=should_stop)
        return Evaluation(result.loss, {"bits_per_byte": result.bits_per_byte}) if result is not None else None

    return evaluate


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def mean_loss(model: nn.Module, objective: Objective, batches: Iterable[Any], should_stop: Callable[[], bool]) -> float:
    """The objective's loss for each trained token of all batches, or of those before `should_stop()`."""
    loss_sum, n_trained = 0.0, 0
    for batch in batches:
        if should_stop():
            break
        loss, count = objective(model, batch)
        loss_sum, n_trained = loss_sum + float(loss), n_trained + count
    return loss_sum / max(n_trained, 1)


def first_epoch(batches: Batches, most_rows: float = math.inf) -> Iterator[Any]:
    """The batches of the first epoch, or those that begin before `most_rows`."""
    position = (0, 0)
    while position[0] == 0 and position[1] < most_rows:
        batch, position = batches(position)
        yield batch


def on_answers(model: Llama, rows: PackedConversations) -> Evaluate:
    """Loss of a trained token over all examples once; the perplexity beside it."""

    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        with evaluating(model):
            loss = mean_loss(model, next_token, first_epoch(rows), should_stop)
        return None if should_stop() else Evaluation(loss, {"perplexity": math.exp(min(loss, 700.0))})

    return evaluate


def on_masked(model: HeadedEncoder, rows: FullSentences | NextSentencePairs) -> Evaluate:
    """MLM loss and accuracy at hidden positions of up to MOST_ROWS rows, and NSP accuracy where there are pairs."""

    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        head, device = model.head, next(model.parameters()).device
        mlm, nsp = (head.mlm, head.nsp) if isinstance(head, PretrainingHead) else (head, None)
        loss_sum, hidden_right, pairs_right = 0.0, list[Tensor](), list[Tensor]()
        with evaluating(model):
            for batch in first_epoch(rows, MOST_ROWS):
                if should_stop():
                    return None
                inputs = (batch.input_ids, batch.attention_mask, batch.segment_ids)
                hidden, labels = model.encoder(*(part.to(device) for part in inputs)), batch.labels.to(device)
                chosen = labels != IGNORED
                logits = mlm(hidden[chosen])
                loss_sum += float(F.cross_entropy(logits.float(), labels[chosen], reduction="sum"))
                hidden_right.append(logits.argmax(-1) == labels[chosen])
                if nsp is not None and batch.next_sentence is not None:
                    pairs_right.append(nsp(hidden).argmax(-1) == batch.next_sentence.to(device))
        right = torch.cat(hidden_right)
        figures = {"masked_accuracy": float(right.float().mean())}
        figures |= {"nsp_accuracy": float(torch.cat(pairs_right).float().mean())} if pairs_right else {}
        return Evaluation(loss_sum / len(right), figures)

    return evaluate


def on_pairs(
    model: Transformer, rows: PairRows, score_translations: Callable[[Callable[[], bool]], dict[str, float]]
) -> Evaluate:
    """Loss of a target token, without label smoothing, over all pairs; and what `score_translations(should_stop)` says."""

    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        with evaluating(model):
            loss = mean_loss(model, target_tokens(label_smoothing=0.0), rows.in_order(), should_stop)
            figures = score_translations(should_stop)
        return None if should_stop() else Evaluation(loss, figures)

    return evaluate
