"""Rows of unequal length -> the batches of an encoder, padded on the right to the longest row of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lamoid.data.packed import Position, epoch_order, rows_at
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.framing import Framed


@dataclass(frozen=True)
class EncoderBatch:
    """Inputs of an encoder, each (B, T) and int64, and what it should say about them.

    `attention_mask` is 1 for tokens and 0 for padding; `segment_ids` 0 for the first text and 1 for the second.
    `labels` with IGNORED where nothing is trained: masked tokens (B, T), tags (B, T), a class (B, 1), or the first and last
    token of a span (B, 2). `next_sentence` (B,): 0 where the second text follows the first, 1 where it is a random one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    segment_ids: Tensor
    labels: Tensor
    next_sentence: Tensor | None = None


def pad(rows: Sequence[Sequence[int] | np.ndarray], fill: int) -> Tensor:
    """Rows as a table (B, longest), int64, filled up on the right."""
    table = np.full((len(rows), max(map(len, rows), default=0)), fill, dtype=np.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(table)


@dataclass(frozen=True)
class LabelledRows:
    """Batches of labelled rows, each epoch in an order drawn from (seed, epoch).

    `labels` holds, for each row: [class]; or [first, last] of a span; or a tag for each of its tokens.
    """

    rows: Sequence[Framed]
    labels: Sequence[Sequence[int]]
    batch_rows: int
    seed: int
    pad_id: int

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError("there are no rows to train on")

    def __call__(self, position: Position) -> tuple[EncoderBatch, Position]:
        """The batch at a position, and the position behind it."""
        chosen, position = rows_at(position, self.batch_rows, self._order)
        return self._batch([row for _, row in chosen]), position

    def in_order(self) -> Iterator[EncoderBatch]:
        """All rows once, as they stand, the last batch smaller: to evaluate and to predict."""
        for start in range(0, len(self.rows), self.batch_rows):
            yield self._batch(range(start, min(start + self.batch_rows, len(self.rows))))

    def _order(self, epoch: int) -> np.ndarray:
        return epoch_order(self.seed, epoch, len(self.rows))[0]

    def _batch(self, numbers: Sequence[int]) -> EncoderBatch:
        rows = [self.rows[number] for number in numbers]
        return EncoderBatch(
            pad([row.ids for row in rows], self.pad_id),
            pad([np.ones_like(row.ids) for row in rows], 0),
            pad([row.segments for row in rows], 0),
            pad([self.labels[number] for number in numbers], IGNORED),
        )
