"""Tokens on disk, and rows of them: every position of every row is trained.

A store is one flat array of ids, each document between its begin- and end-of-text tokens. A row is a window of
T + 1 of them: T inputs, and the same shifted by one as labels.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lamoid.data.sources import Passage
from lamoid.errors import DataError
from lamoid.tokenizers.tokenizer import Tokenizer

ENCODE_BYTES = 1 << 20
"""Text that is encoded at once: enough to keep all cores busy, little enough to stay small (a token takes 100 bytes)."""

Position = tuple[int, int]
"""Where a run stands in its data: (epoch, rows of it that were used)."""


def id_type(vocab_size: int) -> type[np.unsignedinteger]:
    """The smallest unsigned type that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def write_tokens(
    file: Path,
    passages: Iterable[Passage],
    tokenizer: Tokenizer,
    on_bytes: Callable[[int], object] = lambda n: None,
    *,
    separator: int | None = None,
) -> int:
    """Encode passages in order, on all cores, into a flat file of ids; returns how many.

    A document stands between its begin- and end-of-text tokens; a `separator`, an encoder's [SEP], stands behind it instead.
    """
    dtype, n_tokens = id_type(tokenizer.vocab_size), 0
    with file.open("wb") as out:
        for group in group_passages(passages):
            encoded = tokenizer.encode_many([passage.text for passage in group])
            rows = [_with_ends(p, ids, tokenizer, separator) for p, ids in zip(group, encoded, strict=True)]
            tokens = np.concatenate([np.asarray(row, dtype=dtype) for row in rows])
            tokens.tofile(out)
            n_tokens += len(tokens)
            on_bytes(sum(len(p.text.encode()) for p in group))
    return n_tokens


def group_passages(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Passages in groups of about ENCODE_BYTES."""
    group: list[Passage] = []
    n_bytes = 0
    for passage in passages:
        group.append(passage)
        n_bytes += len(passage.text.encode())
        if n_bytes >= ENCODE_BYTES:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group


def _with_ends(passage: Passage, ids: list[int], tokenizer: Tokenizer, separator: int | None) -> list[int]:
    begin, end = tokenizer.special_id("bos"), tokenizer.special_id("eos")
    if separator is not None or begin == end:  # GPT-2 has one token for both: once between two documents is enough
        begin, end = None, end if separator is None else separator
    before = [begin] if passage.starts and begin is not None else []
    after = [end] if passage.ends and end is not None else []
    return before + ids + after


@dataclass(frozen=True)
class Batch:
    """Rows of ids and what each position should predict: both (B, T), int64.

    `segment_ids`, of the same shape, numbers the documents of a row that must not see each other; None where all may.
    """

    input_ids: Tensor
    labels: Tensor
    segment_ids: Tensor | None = None


@dataclass(frozen=True)
class PackedRows:
    """Batches of rows from a token store, each epoch in an order and from an offset of its own.

    The order is a permutation drawn from (seed, epoch); the offset moves the windows' borders, so that no token
    stands at the beginning of its row in every epoch. The batch at a position depends on nothing else.
    """

    tokens: np.ndarray
    row_tokens: int
    batch_rows: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.row_tokens:
            raise DataError(
                f"the text has {len(self.tokens)} tokens; a row takes {self.row_tokens} + 1: give more text or a shorter row"
            )

    @property
    def rows_per_epoch(self) -> int:
        return max((len(self.tokens) - self.row_tokens) // self.row_tokens, 1)

    def __call__(self, position: Position) -> tuple[Batch, Position]:
        """The batch at a position, and the position behind it. An epoch's last batch is filled up from the next one."""
        chosen, position = rows_at(position, self.batch_rows, lambda epoch: self._epoch(epoch)[0])
        rows = [self._row(index * self.row_tokens + self._epoch(epoch)[1]) for epoch, index in chosen]
        table = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Batch(table[:, :-1].contiguous(), table[:, 1:].contiguous()), position

    def _row(self, start: int) -> np.ndarray:
        return self.tokens[start : start + self.row_tokens + 1]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        spare = len(self.tokens) - 1 - self.rows_per_epoch * self.row_tokens
        return epoch_order(self.seed, epoch, self.rows_per_epoch, spare)


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n_rows: int, spare: int = 0) -> tuple[np.ndarray, int]:
    """The order of an epoch's rows, and the offset, at most `spare`, by which its windows are moved."""
    generator = np.random.default_rng((seed, epoch))
    return generator.permutation(n_rows), int(generator.integers(spare + 1))


def rows_at(
    position: Position, batch_rows: int, order: Callable[[int], np.ndarray]
) -> tuple[list[tuple[int, int]], Position]:
    """The rows of the batch at a position as (epoch, row), and the position behind it.

    `order` gives the order of an epoch's rows. An epoch's last batch is filled up from the next one.
    """
    epoch, used = position
    rows: list[tuple[int, int]] = []
    while len(rows) < batch_rows:
        chosen = order(epoch)[used : used + batch_rows - len(rows)]
        rows += [(epoch, int(row)) for row in chosen]
        used += len(chosen)
        if used == len(order(epoch)):
            epoch, used = epoch + 1, 0
    return rows, (epoch, used)
