"""Conversations in files -> what a run trains on, what it is measured by, and an answer to look at."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lamoid.data.conversations import read_conversations
from lamoid.data.instruct import Example, encode_conversations, split_heldout
from lamoid.data.packing import PackedConversations
from lamoid.errors import UsageError
from lamoid.inference.decoder import TorchDecoder
from lamoid.inference.generate import generate
from lamoid.inspect.batch_picture import legend, lines
from lamoid.inspect.batch_view import view_batch
from lamoid.models.llama import Llama
from lamoid.recipes.conversation import find_encoder, find_end_ids
from lamoid.recipes.evaluation import on_answers
from lamoid.recipes.load import check_device, load_with_tokenizer, model_directory
from lamoid.recipes.methods import LEARNING_RATES, adapt, describe, form_of
from lamoid.recipes.ready import Training
from lamoid.recipes.resume import identity
from lamoid.recipes.settings import FinetuneSettings
from lamoid.recipes.sizes import fill_course
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.objectives import next_token

S = TypeVar("S", bound=FinetuneSettings)
CONTEXT, BATCH_ROWS = 512, 4
MOST_HELDOUT = 200
"""Examples that an evaluation reads; more are held out where the share says so, but only looked at afterwards."""


@dataclass(frozen=True)
class InstructData:
    """Training and held-out conversations of one model, in rows; `key` is a hash of all their ids."""

    training: PackedConversations
    heldout: PackedConversations
    end_ids: list[int]
    key: str


def ready(recipe: FinetuneSettings, notify: Callable[[str], object]) -> Training:
    """Read and pack the conversations, fill in what was not given, adapt the model."""
    origin = model_directory(recipe.model).absolute()
    model, tokenizer = load_with_tokenizer(origin, recipe.threads)
    data = read_data(recipe, origin, tokenizer, model.config.max_seq_len, notify)
    show_first(data, tokenizer, notify)
    s = choose(recipe, data)
    assert s.max_steps
    adapt(model.to(check_device(s.device)), s)
    model.gradient_checkpointing = s.gradient_checkpointing
    rows = data.training
    notify(f"method: {s.method}; {describe(model)}")
    notify(f"schedule: {s.max_steps:,} steps; an epoch has {rows.rows_per_epoch:,} rows of {s.context}")
    return Training(
        s,
        model,
        form_of(s.method, model, tokenizer, origin),
        rows,
        next_token,
        on_answers(model, data.heldout),
        lambda: answer(model, tokenizer, data),
        identity(s, data.key, tokenizer),
        n_epochs=s.max_steps * rows.batch_rows * s.accumulate / rows.rows_per_epoch,
        hint=f"lamoid chat {s.out}",
    )


def read_data(
    s: FinetuneSettings, path: Path, tokenizer: Tokenizer, max_seq_len: int, notify: Callable[[str], object]
) -> InstructData:
    """Read, encode, hold out and pack the conversations of a run's settings for the model at `path`."""
    context = s.context or min(CONTEXT, max_seq_len)
    if context > max_seq_len:
        raise UsageError(f"context is {context}; the model reads at most {max_seq_len} tokens")
    found = read_conversations(s.data, skip_bad=s.skip_bad, notify=notify)
    encoder = find_encoder(tokenizer, s.template)
    encoded = encode_conversations(
        found.conversations,
        tokenizer,
        encoder,
        train_on=s.train_on,  # type: ignore[arg-type]
        context=context,
        long=s.long,  # type: ignore[arg-type]
        skip_bad=s.skip_bad,
    )
    notify(encoded.summary)
    training, heldout = split_heldout(encoded.examples, s.heldout_share, s.seed, notify)
    if not heldout:
        notify("warning: nothing is held out; the run is measured on what it is trained on")
    rows, pad = s.batch_rows or BATCH_ROWS, tokenizer.special_id("pad") or 0
    return InstructData(
        PackedConversations(training, context, rows, s.seed, pad),
        PackedConversations((heldout or training)[:MOST_HELDOUT], context, 1, s.seed, pad),
        find_end_ids(path, encoder) if encoder is not None else [],
        _key(encoded.examples),
    )


def _key(examples: list[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.ids.tobytes() + example.trained.tobytes() + b"|")
    return digest.hexdigest()[:16]


def show_first(data: InstructData, tokenizer: Tokenizer, notify: Callable[[str], object]) -> None:
    """The first example as the model will see it, what is trained marked."""
    example = data.training.examples[0]
    batch, _ = PackedConversations([example], len(example), 1, 0)((0, 0))
    assert batch.segment_ids is not None
    ids, labels, segments = (part.numpy() for part in (batch.input_ids, batch.labels, batch.segment_ids))
    view = view_batch(ids, labels, segments, tokenizer, [[example]])
    notify(f"the first example ({legend(colour=False)}):")
    for line in lines(view, colour=False):
        notify(line)


def choose(s: S, data: InstructData) -> S:
    """Fill in every setting that is None."""
    rows = data.training
    steps = s.max_steps or max(math.ceil(s.epochs * rows.rows_per_epoch / (rows.batch_rows * s.accumulate)), 1)
    method = s.method or "lora"
    filled = replace(s, method=method, context=rows.row_tokens, batch_rows=rows.batch_rows)
    return fill_course(filled, steps, LEARNING_RATES[method], evaluations=5, samples=5)


def answer(model: Llama, tokenizer: Tokenizer, data: InstructData, max_new_tokens: int = 48) -> str:
    """What the model says to the first held-out question, on one line."""
    example = data.heldout.examples[0]
    n_given = int(example.trained.argmax())
    question = tokenizer.decode([int(i) for i in example.ids[:n_given]])
    prompt = [int(i) for i in example.ids[:n_given]]
    max_new_tokens = min(max_new_tokens, model.config.max_seq_len - n_given)
    ends = data.end_ids or None
    done = generate(TorchDecoder(model), tokenizer, [prompt], max_new_tokens=max_new_tokens, end_ids=ends)[0]
    return f"{' '.join(question.split())[-80:]} -> {' '.join(done.text.split())}"
