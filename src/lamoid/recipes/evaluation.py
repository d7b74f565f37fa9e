"""What a run's model is measured by on held-out data, between steps of training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
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


def on_answers(model: Llama, rows: PackedConversations) -> Evaluate:
    """Loss of a trained token over all examples once; the perplexity beside it."""

    @torch.no_grad()
    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        was_training, position = model.training, (0, 0)
        model.eval()
        loss_sum, n_trained = 0.0, 0
        while position[0] == 0 and not should_stop():
            batch, position = rows(position)
            loss, count = next_token(model, batch)
            loss_sum, n_trained = loss_sum + float(loss), n_trained + count
        model.train(was_training)
        loss_mean = loss_sum / max(n_trained, 1)
        return None if should_stop() else Evaluation(loss_mean, {"perplexity": math.exp(min(loss_mean, 700.0))})

    return evaluate


def on_masked(model: HeadedEncoder, rows: FullSentences | NextSentencePairs) -> Evaluate:
    """MLM loss and accuracy at hidden positions of up to MOST_ROWS rows, and NSP accuracy where there are pairs."""

    @torch.no_grad()
    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        was_training, position, head = model.training, (0, 0), model.head
        mlm, nsp = (head.mlm, head.nsp) if isinstance(head, PretrainingHead) else (head, None)
        model.eval()
        loss_sum, n_hidden, n_right, n_pairs, n_pairs_right = 0.0, 0, 0, 0, 0
        while position[0] == 0 and position[1] < MOST_ROWS and not should_stop():
            batch, position = rows(position)
            hidden = model.encoder(batch.input_ids, batch.attention_mask, batch.segment_ids)
            chosen = batch.labels != IGNORED
            logits, labels = mlm(hidden[chosen]), batch.labels[chosen]
            loss_sum += float(F.cross_entropy(logits.float(), labels, reduction="sum"))
            n_hidden, n_right = n_hidden + len(labels), n_right + int((logits.argmax(-1) == labels).sum())
            if nsp is not None and batch.next_sentence is not None:
                answers = nsp(hidden).argmax(-1)
                n_pairs, n_pairs_right = (
                    n_pairs + len(answers),
                    n_pairs_right + int((answers == batch.next_sentence).sum()),
                )
        model.train(was_training)
        if should_stop():
            return None
        figures = {"masked_accuracy": n_right / n_hidden}
        return Evaluation(loss_sum / n_hidden, figures | ({"nsp_accuracy": n_pairs_right / n_pairs} if n_pairs else {}))

    return evaluate


def on_pairs(
    model: Transformer, rows: PairRows, score_translations: Callable[[Callable[[], bool]], dict[str, float]]
) -> Evaluate:
    """Loss of a target token, without label smoothing, over all pairs; and what `score_translations(should_stop)` says."""

    @torch.no_grad()
    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        was_training, objective = model.training, target_tokens(label_smoothing=0.0)
        model.eval()
        loss_sum, n_trained = 0.0, 0
        for batch in rows.in_order():
            if should_stop():
                break
            loss, count = objective(model, batch)
            loss_sum, n_trained = loss_sum + float(loss), n_trained + count
        figures = score_translations(should_stop)
        model.train(was_training)
        return None if should_stop() else Evaluation(loss_sum / max(n_trained, 1), figures)

    return evaluate
