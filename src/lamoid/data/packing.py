"""Examples -> rows: several conversations share a row, and none of them sees another."""

from collections.abc import Sequence

import numpy as np
import torch

from lamoid.data.instruct import Example
from lamoid.data.packed import Batch, Position
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED


class PackedConversations:
    """Batches of rows of at most `row_tokens`, into which examples are packed, the longest first, each where it first fits.

    Every epoch has each example once; the order of the rows, and which of several examples of one length goes where, is
    drawn from (seed, epoch). The batch at a position depends on nothing else. A position's label is the token
    behind it in the same example if that is trained, IGNORED otherwise; `segment_ids` numbers a row's examples from 0,
    and what fills up a row has the number after the last. Rows are as long as the longest of their batch.
    """

    def __init__(
        self, examples: Sequence[Example], row_tokens: int, batch_rows: int, seed: int, pad_id: int = 0
    ) -> None:
        longest = max(map(len, examples), default=0)
        if not examples or longest > row_tokens:
            raise DataError(
                f"the longest of {len(examples)} examples has {longest} tokens; a row takes 1 to {row_tokens}"
            )
        if not any(example.trained[1:].any() for example in examples):
            raise DataError(f"none of {len(examples)} examples has a trained token; is there an answer in them?")
        self.examples, self.row_tokens, self.batch_rows, self.seed = list(examples), row_tokens, batch_rows, seed
        self.pad_id = pad_id
        self._lengths = np.array([len(example) for example in examples])
        self._plan: tuple[int, list[list[int]]] = (-1, [])

    @property
    def rows_per_epoch(self) -> int:
        """How many rows an epoch takes; the same in all of them, as the lengths are."""
        return len(self._epoch(max(self._plan[0], 0)))

    def __call__(self, position: Position) -> tuple[Batch, Position]:
        """The batch at a position, and the position behind it. An epoch's last batch is filled up from the next one."""
        rows, position = self.rows_at(position)
        n_tokens = max(sum(map(len, row)) for row in rows)
        batch = [self._row(row, n_tokens) for row in rows]
        input_ids, labels, segment_ids = (torch.from_numpy(np.stack(part)) for part in zip(*batch, strict=True))
        return Batch(input_ids, labels, segment_ids), position

    def rows_at(self, position: Position) -> tuple[list[list[Example]], Position]:
        """The examples in each row of the batch at a position, and the position behind it."""
        epoch, used = position
        rows: list[list[Example]] = []
        while len(rows) < self.batch_rows:
            order = self._epoch(epoch)
            chosen = order[used : used + self.batch_rows - len(rows)]
            rows += [[self.examples[i] for i in row] for row in chosen]
            used += len(chosen)
            if used == len(order):
                epoch, used = epoch + 1, 0
        return rows, (epoch, used)

    def _row(self, examples: Sequence[Example], n_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels and segments, filled up to `n_tokens`."""
        ids, labels = np.full(n_tokens, self.pad_id, dtype=np.int64), np.full(n_tokens, IGNORED, dtype=np.int64)
        segments, start = np.full(n_tokens, len(examples), dtype=np.int64), 0
        for number, example in enumerate(examples):
            end = start + len(example)
            ids[start:end], segments[start:end] = example.ids, number
            labels[start : end - 1] = np.where(example.trained[1:], example.ids[1:], IGNORED)
            start = end
        return ids, labels, segments

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The indices of the examples in each row of an epoch; the last plan is kept."""
        if self._plan[0] != epoch:
            generator = np.random.default_rng((self.seed, epoch))
            shuffled = generator.permutation(len(self.examples))
            longest_first = shuffled[np.argsort(-self._lengths[shuffled], kind="stable")]
            rows = first_fit([int(i) for i in longest_first], self._lengths, self.row_tokens)
            self._plan = (epoch, [rows[i] for i in generator.permutation(len(rows))])
        return self._plan[1]


def first_fit(order: Sequence[int], lengths: np.ndarray, row_tokens: int) -> list[list[int]]:
    """Put each index of `order`, in turn, into the first row that has room for its length, or into a new one."""
    rows: list[list[int]] = []
    room = np.zeros(len(order), dtype=np.int64)
    shortest, first_open = int(lengths.min()), 0
    for index in order:
        while first_open < len(rows) and room[first_open] < shortest:
            first_open += 1
        fits = room[first_open : len(rows)] >= lengths[index]
        row = first_open + int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            room[row] = row_tokens
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows
