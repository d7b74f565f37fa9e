"""What the heads of an encoder say about texts: a class for each, a tag for each word, or the span that answers a question."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamoid.data.padded import LabelledRows
from lamoid.data.records import read_records, text_of
from lamoid.data.spans import Question, encode_questions, extract_answers
from lamoid.data.tagged import first_tokens, frame_words
from lamoid.errors import DataError
from lamoid.models.heads import HeadedEncoder, SequenceHead, TokenHead
from lamoid.recipes.embed import read_lines
from lamoid.tokenizers.framing import Framed, frame_many
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.training.encoder_objectives import head_logits

BATCH_ROWS, SPAN_TOKENS, SPAN_OVERLAP = 32, 384, 128
Prediction = dict[str, Any]


def classes(model: HeadedEncoder, tokenizer: Tokenizer, file: Path) -> Iterator[Prediction]:
    """The likeliest class of each line and the probabilities of all; a tab stands between the two texts of a pair."""
    assert isinstance(model.head, SequenceHead)
    lines = read_lines(file)
    parts = [line.partition("\t") for line in lines]
    pairs = [pair for _, _, pair in parts] if any(tab for _, tab, _ in parts) else None
    rows = frame_many(tokenizer, [text for text, _, _ in parts], pairs, max_tokens=model.config.max_seq_len)
    for line, logits in zip(lines, _logits(model, tokenizer, rows), strict=True):
        shares = np.exp(logits - np.logaddexp.reduce(logits))
        probabilities = {name: float(share) for name, share in zip(model.head.labels, shares, strict=True)}
        yield {"text": line, "label": model.head.labels[int(shares.argmax())], "probabilities": probabilities}


def tags(model: HeadedEncoder, tokenizer: Tokenizer, file: Path) -> Iterator[Prediction]:
    """The likeliest tag of each word of each line, None for words beyond the model's length; words stand between spaces."""
    assert isinstance(model.head, TokenHead)
    texts = [line.split() for line in read_lines(file)]
    rows = frame_words(tokenizer, texts, model.config.max_seq_len)
    for words, row, logits in zip(texts, rows, _logits(model, tokenizer, rows), strict=True):
        best = logits.argmax(-1)
        places = first_tokens(row, words)
        found = [None if place is None else model.head.labels[int(best[place])] for place in places]
        yield {"words": words, "tags": found}


def answers(model: HeadedEncoder, tokenizer: Tokenizer, file: Path) -> Iterator[Prediction]:
    """The span of its context that answers each question, where it begins, and how sure that is beside no answer (nats)."""
    questions = _questions(file)
    length = min(model.config.max_seq_len, SPAN_TOKENS)
    made = encode_questions(tokenizer, questions, max_tokens=length, overlap=min(SPAN_OVERLAP, length // 3))
    begins, ends = [], []
    for logits in _logits(model, tokenizer, made.rows):
        begins.append(logits[:, 0])
        ends.append(logits[:, 1])
    found = extract_answers(questions, made, begins, ends)
    for question, answer in zip(questions, found, strict=True):
        yield {"question": question.question, "answer": answer.text, "start": answer.start, "margin": answer.margin}


def line(said: Prediction) -> str:
    """A prediction as one line to read."""
    if "label" in said:
        return f"{said['label']} {said['probabilities'][said['label']]:.3f}\t{said['text']}"
    if "tags" in said:
        return " ".join(f"{word}/{tag or '?'}" for word, tag in zip(said["words"], said["tags"], strict=True))
    return f"{said['answer']}\t{said['question']}"


def _questions(file: Path) -> list[Question]:
    questions = []
    for where, record in read_records(file):
        if isinstance(record, DataError):
            raise record
        questions.append(
            Question(where, text_of(record, "question", where), text_of(record, "context", where), (), where)
        )
    if not questions:
        raise DataError(f'{file} has no question; expected JSON lines with "question" and "context"')
    return questions


def _logits(model: HeadedEncoder, tokenizer: Tokenizer, rows: Sequence[Framed]) -> Iterator[np.ndarray]:
    """What the head says about each row, without padding where it speaks of tokens."""
    table = LabelledRows(rows, [[0]] * len(rows), BATCH_ROWS, 0, tokenizer.special_id("pad") or 0)
    number = 0
    for batch in table.in_order():
        with torch.no_grad():  # not around the whole: a generator leaves such a setting on for whoever reads it
            said = head_logits(model, batch)
        for logits in said.numpy(force=True):
            yield logits if logits.ndim == 1 else logits[: len(rows[number])]
            number += 1
