"""Tokens on disk, and rows of them: every position of every row is trained.

A store is one flat array of ids, each document between its begin- and end-of-text tokens. A row is a window of
T + 1 of them: T inputs, and the same shifted by one as labels.
"""

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
    file: Path, passages: Iterable[Passage], tokenizer: Tokenizer, on_bytes: Callable[[int], object] = lambda n: None
) -> int:
    """Encode passages in order, on all cores, into a flat file of ids; returns how many."""
    dtype, n_tokens = id_type(tokenizer.vocab_size), 0
    with file.open("wb") as out:
        for group in _groups(passages):
            rows = [_with_ends(p, ids, tokenizer) for p, ids in zip(group, _encode(group, tokenizer), strict=True)]
            tokens = np.concatenate([np.asarray(row, dtype=dtype) for row in rows])
            tokens.tofile(out)
            n_tokens += len(tokens)
            on_bytes(sum(len(p.text.encode()) for p in group))
    return n_tokens


def _encode(group: list[Passage], tokenizer: Tokenizer) -> list[list[int]]:
    return tokenizer.encode_many([passage.text for passage in group])


def _groups(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
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


def _with_ends(passage: Passage, ids: list[int], tokenizer: Tokenizer) -> list[int]:
    begin, end = tokenizer.special_id("bos"), tokenizer.special_id("eos")
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
        epoch, used = position
        rows: list[np.ndarray] = []
        while len(rows) < self.batch_rows:
            order, offset = self._epoch(epoch)
            chosen = order[used : used + self.batch_rows - len(rows)]
            rows += [self._row(int(index) * self.row_tokens + offset) for index in chosen]
            used += len(chosen)
            if used == len(order):
                epoch, used = epoch + 1, 0
        table = torch.from_numpy(np.stack(rows).astype(np.int64))
        return Batch(table[:, :-1].contiguous(), table[:, 1:].contiguous()), (epoch, used)

    def _row(self, start: int) -> np.ndarray:
        return self.tokens[start : start + self.row_tokens + 1]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, int]:
        generator = np.random.default_rng((self.seed, epoch))
        spare = len(self.tokens) - 1 - self.rows_per_epoch * self.row_tokens
        return generator.permutation(self.rows_per_epoch), int(generator.integers(spare + 1))
