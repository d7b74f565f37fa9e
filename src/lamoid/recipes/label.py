"""`lamoid finetune --task`: an encoder learns classes of texts, tags of words, or spans that answer questions."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamoid.checkpoints.store import refuse_adapter
from lamoid.data.labelled import balanced_weights, encode_labelled, hold_out, read_labelled
from lamoid.data.padded import EncoderBatch, LabelledRows
from lamoid.data.spans import Question, Windows, encode_questions, extract_answers, read_questions
from lamoid.data.tagged import encode_tagged, read_tagged
from lamoid.errors import UsageError
from lamoid.models.heads import Encoder, HeadedEncoder, PooledEncoder, SequenceHead, TokenHead, attach_head
from lamoid.nn.losses import IGNORED
from lamoid.recipes.evaluation import Evaluate, Evaluation, evaluating, mean_loss
from lamoid.recipes.load import check_device, load, model_directory, set_threads
from lamoid.recipes.methods import LEARNING_RATES, adapt, describe, form_of
from lamoid.recipes.ready import Training
from lamoid.recipes.resume import identity
from lamoid.recipes.settings import FinetuneSettings
from lamoid.recipes.sizes import fill_course
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.encoder_objectives import Loss, class_loss, head_logits, on_labels, span_loss
from lamoid.training.scores import accuracy, answer_f1, exact_match, macro_f1

CONTEXT, BATCH_ROWS, OVERLAP_SHARE = 128, 16, 1 / 3
HEADS = {"classify": "sequence", "tokens": "token", "span": "span"}


@dataclass(frozen=True)
class Task:
    """Rows to train on and rows to measure by, the names of the labels, the loss of (logits, labels), and what is measured
    beside it: `figures(predictions)` takes, for each batch of held-out rows, what the head said about it.
    """

    training: LabelledRows
    heldout: LabelledRows
    labels: tuple[str, ...]
    loss: Callable[[Tensor, Tensor], Loss]
    figures: Callable[[Sequence[Tensor]], dict[str, float]]


def ready(recipe: FinetuneSettings, notify: Callable[[str], object]) -> Training:
    """Read the data of the task, put its head on the encoder, adapt it."""
    set_threads(recipe.threads)
    origin = model_directory(recipe.model).absolute()
    refuse_adapter(origin)
    found, tokenizer = load(origin, dtype=torch.float32)
    if tokenizer is None or not isinstance(found, Encoder | PooledEncoder | HeadedEncoder):
        raise UsageError(
            f"task {recipe.task} needs an encoder with a tokenizer, such as minilm; {recipe.model} is none"
        )
    context = recipe.context or min(CONTEXT if recipe.task != "span" else 3 * CONTEXT, found.config.max_seq_len)
    if context > found.config.max_seq_len:
        raise UsageError(f"context is {context}; the model reads at most {found.config.max_seq_len} tokens")
    rows = recipe.batch_rows or BATCH_ROWS
    own = replace(recipe, context=context, batch_rows=rows)
    task = _TASKS[recipe.task](own, tokenizer, _labels_of(found), notify)
    model = _with_head(found, own, task)
    chosen = _choose(own, task)
    model.to(check_device(chosen.device), getattr(torch, chosen.dtype))
    adapt(model.encoder, chosen)
    model.encoder.gradient_checkpointing = chosen.gradient_checkpointing
    notify(f"method: {chosen.method}; {describe(model)}")
    notify(f"schedule: {chosen.max_steps:,} steps of {rows} rows; an epoch has {len(task.training.rows):,} rows")
    assert chosen.max_steps
    return Training(
        chosen,
        model,
        form_of(chosen.method, model, tokenizer, origin),
        task.training,
        on_labels(task.loss),
        _evaluate(model, task),
        None,
        identity(chosen, _key(task), tokenizer),
        n_epochs=chosen.max_steps * rows * chosen.accumulate / len(task.training.rows),
        hint=f"lamoid predict {chosen.out} texts.txt",
        counted="labelled tok" if chosen.task == "tokens" else "rows",
    )


def _labels_of(model: Any) -> tuple[str, ...]:
    head = getattr(model, "head", None)
    return head.labels if isinstance(head, SequenceHead | TokenHead) else ()


def _with_head(model: Any, s: FinetuneSettings, task: Task) -> HeadedEncoder:
    """The model itself where it has such a head already, with a new one otherwise."""
    new = attach_head(model, HEADS[s.task], s.seed, task.labels)  # type: ignore[arg-type]
    is_same = (
        isinstance(model, HeadedEncoder) and type(model.head) is type(new.head) and _labels_of(model) == task.labels
    )
    return model if is_same else new


def _choose(s: FinetuneSettings, task: Task) -> FinetuneSettings:
    method = s.method or "full"
    steps = s.max_steps or max(
        math.ceil(s.epochs * len(task.training.rows) / (task.training.batch_rows * s.accumulate)), 1
    )
    return fill_course(replace(s, method=method), steps, LEARNING_RATES[method], evaluations=5, samples=0)


def _classify(s: FinetuneSettings, tokenizer: Tokenizer, known: Sequence[str], notify: Callable[[str], object]) -> Task:
    assert s.context and s.batch_rows
    found = read_labelled(
        s.data,
        text_column=s.text_column,
        pair_column=s.pair_column,
        label_column=s.label_column,
        label_names=known,
        skip_bad=s.skip_bad,
        notify=notify,
    )
    parts = hold_out(found.examples, s.heldout_share, s.seed, lambda e: (e.text, e.pair or ""), lambda e: e.label)
    rows = [_rows(s, tokenizer, *encode_labelled(tokenizer, part, found.label_names, s.context)) for part in parts]
    return _labelled_task(s, rows, found.label_names, notify)


def _tokens(s: FinetuneSettings, tokenizer: Tokenizer, known: Sequence[str], notify: Callable[[str], object]) -> Task:
    assert s.context
    found = read_tagged(s.data, skip_bad=s.skip_bad, notify=notify)
    parts = hold_out(found.examples, s.heldout_share, s.seed, lambda example: example.words)
    rows = [_rows(s, tokenizer, *encode_tagged(tokenizer, part, found.tag_names, s.context)) for part in parts]
    return _labelled_task(s, rows, found.tag_names, notify)


def _labelled_task(
    s: FinetuneSettings, rows: Sequence[LabelledRows], names: Sequence[str], notify: Callable[[str], object]
) -> Task:
    """Classes of rows or of tokens: measured by accuracy and macro F1 over all that have a label."""
    training, heldout = rows
    notify(f"{len(training.rows):,} rows to train on, {len(heldout.rows):,} held out")
    labels = np.concatenate([np.asarray(row) for row in training.labels])
    counts = np.bincount(labels[labels != IGNORED], minlength=len(names))
    weights = torch.tensor(balanced_weights(counts), dtype=torch.float32) if s.balance else None

    def figures(logits: Sequence[Tensor]) -> dict[str, float]:
        true = torch.cat([batch.labels.flatten() for batch in heldout.in_order()]).numpy()
        said = torch.cat([part.argmax(-1).flatten() for part in logits]).cpu().numpy()
        has_label = true != IGNORED
        return {
            "accuracy": accuracy(said[has_label], true[has_label]),
            "macro_f1": macro_f1(said[has_label], true[has_label]),
        }

    return Task(training, heldout, tuple(names), partial(class_loss, weights=weights), figures)


def _span(s: FinetuneSettings, tokenizer: Tokenizer, known: Sequence[str], notify: Callable[[str], object]) -> Task:
    assert s.context
    found = read_questions(s.data, skip_bad=s.skip_bad, notify=notify)
    parts = hold_out(found.questions, s.heldout_share, s.seed, lambda question: (question.context,))
    overlap = int(s.context * OVERLAP_SHARE)
    made = [encode_questions(tokenizer, part, max_tokens=s.context, overlap=overlap) for part in parts]
    notify(
        f"{len(parts[0]):,} questions in {len(made[0].rows):,} windows to train on, {len(parts[1]):,} questions held out"
    )
    rows = [_rows(s, tokenizer, windows.rows, windows.labels) for windows in made]
    return Task(rows[0], rows[1], (), span_loss, lambda logits: _span_figures(parts[1], made[1], logits))


def _span_figures(questions: Sequence[Question], made: Windows, logits: Sequence[Tensor]) -> dict[str, float]:
    lines = [line for batch in logits for line in batch.cpu().numpy()]
    begins, ends = ([line[: len(row), i] for line, row in zip(lines, made.rows, strict=True)] for i in (0, 1))
    answers = extract_answers(questions, made, begins, ends)
    true = [[text for text, _ in question.answers] for question in questions]
    return {
        name: float(np.mean([score(answer.text, texts) for answer, texts in zip(answers, true, strict=True)]))
        for name, score in (("exact_match", exact_match), ("f1", answer_f1))
    }


_TASKS = {"classify": _classify, "tokens": _tokens, "span": _span}


def _rows(s: FinetuneSettings, tokenizer: Tokenizer, rows: Any, labels: Any) -> LabelledRows:
    return LabelledRows(rows, labels, s.batch_rows or BATCH_ROWS, s.seed, tokenizer.special_id("pad") or 0)


def _evaluate(model: HeadedEncoder, task: Task) -> Evaluate:
    def evaluate(should_stop: Callable[[], bool]) -> Evaluation | None:
        said: list[Tensor] = []

        def loss_of(model: HeadedEncoder, batch: EncoderBatch) -> tuple[Tensor, int]:
            said.append(head_logits(model, batch))
            return task.loss(said[-1], batch.labels)

        with evaluating(model):
            loss = mean_loss(model, loss_of, task.heldout.in_order(), should_stop)
        return None if should_stop() else Evaluation(loss, task.figures(said))

    return evaluate


def _key(task: Task) -> str:
    digest = hashlib.sha256(repr(task.labels).encode())
    for part in (task.training, task.heldout):
        for row, labels in zip(part.rows, part.labels, strict=True):
            digest.update(np.asarray(row.ids, dtype=np.int64).tobytes() + np.asarray(labels, dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]
