"""Rows of several examples: each once an epoch, none mixed with another, the same batch at the same position."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamoid.data.conversations import Conversation
from lamoid.data.instruct import Example
from lamoid.data.packing import PackedConversations, first_fit
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED

NOTHING = Conversation((), "text", "a")


def example(n_tokens: int, first_id: int = 1, trained: list[bool] | None = None) -> Example:
    ids = np.arange(first_id, first_id + n_tokens, dtype=np.int32)
    mask = np.array(trained if trained is not None else [False] + [True] * (n_tokens - 1))
    return Example(ids, mask, NOTHING)


def some_examples(n: int = 23, longest: int = 9, seed: int = 0) -> list[Example]:
    """Examples whose ids say which they are: example i has the ids 100 i, 100 i + 1, …"""
    lengths = np.random.default_rng(seed).integers(2, longest + 1, n)
    return [example(int(length), 100 * i) for i, length in enumerate(lengths, start=1)]


def packed(examples=None, row_tokens=16, batch_rows=3, seed=0) -> PackedConversations:
    return PackedConversations(examples or some_examples(), row_tokens, batch_rows, seed)


def documents(batch) -> list[list[list[int]]]:
    """The ids of every segment of every row, in order, padding included."""
    rows = []
    for ids, segments in zip(batch.input_ids.tolist(), batch.segment_ids.tolist(), strict=True):
        assert segments == sorted(segments) and set(segments) == set(range(max(segments) + 1))
        rows.append(
            [[i for i, s in zip(ids, segments, strict=True) if s == number] for number in range(max(segments) + 1)]
        )
    return rows


def epoch_of(packing: PackedConversations, epoch: int) -> list[int]:
    """The numbers of the examples of an epoch, in the order in which they come."""
    found, position = [], (epoch, 0)
    while position[0] == epoch:
        batch, position = packing(position)
        found += [ids[0] // 100 for row in documents(batch) for ids in row if ids[0] > 0]
    return found


# ---- one row


def test_labels_are_the_next_tokens_of_the_same_example():
    first, second = example(4, 10, [False, False, True, True]), example(3, 20, [False, True, False])
    batch, _ = PackedConversations([first, second], 9, 1, 0, pad_id=7)((0, 0))
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 20, 21, 22]]
    assert batch.labels.tolist() == [[IGNORED, 12, 13, IGNORED, 21, IGNORED, IGNORED]]
    assert batch.segment_ids.tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert batch.input_ids.dtype == batch.labels.dtype == batch.segment_ids.dtype == torch.int64


def test_padding_has_a_segment_of_its_own_and_no_label():
    batch, _ = PackedConversations([example(4, 10), example(2, 20)], 4, 2, 0, pad_id=7)((0, 0))
    rows = sorted(zip(batch.input_ids.tolist(), batch.labels.tolist(), batch.segment_ids.tolist(), strict=True))
    assert rows[0] == ([10, 11, 12, 13], [11, 12, 13, IGNORED], [0, 0, 0, 0])
    assert rows[1] == ([20, 21, 7, 7], [21, IGNORED, IGNORED, IGNORED], [0, 0, 1, 1])


def test_no_token_predicts_another_examples_first():
    packing = packed()
    position = (0, 0)
    for _ in range(20):
        batch, position = packing(position)
        inside = batch.labels != IGNORED
        assert torch.equal(batch.labels[inside], batch.input_ids[inside] + 1)  # ids of an example follow each other
        lasts = batch.segment_ids[:, 1:] != batch.segment_ids[:, :-1]
        assert (batch.labels[:, :-1][lasts] == IGNORED).all() and (batch.labels[:, -1] == IGNORED).all()


def test_examples_stay_whole():
    packing = packed()
    expected = {e.ids[0]: e.ids.tolist() for e in packing.examples}
    position = (0, 0)
    for _ in range(20):
        batch, position = packing(position)
        for row in documents(batch):
            for ids in row:
                assert set(ids) == {0} or expected[ids[0]] == ids


# ---- epochs and positions


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 7, 50])
def test_an_epoch_has_every_example_once(batch_rows):
    packing = packed(batch_rows=1)
    for epoch in (0, 1, 6):
        assert sorted(epoch_of(packing, epoch)) == list(range(1, 24))
    larger, n_rows = packed(batch_rows=batch_rows), 0
    position, seen = (0, 0), []
    while n_rows < 3 * larger.rows_per_epoch:
        batch, position = larger(position)
        n_rows += batch_rows
        seen += [ids[0] // 100 for row in documents(batch) for ids in row if ids[0] > 0]
    one_by_one = [number for epoch in range(3 + batch_rows) for number in epoch_of(packing, epoch)]
    assert seen == one_by_one[: len(seen)]


def test_a_batch_depends_on_its_position_alone():
    """Also after another epoch was asked for, and after the position went through JSON."""
    packing, positions = packed(), [(0, 0)]
    batches = []
    for _ in range(25):
        batch, position = packing(positions[-1])
        batches.append(batch)
        positions.append(position)
    assert positions[-1][0] > 3
    for index in (24, 3, 17, 0, 9):
        again, position = packed()(tuple(json.loads(json.dumps(positions[index]))))
        assert position == positions[index + 1]
        for name in ("input_ids", "labels", "segment_ids"):
            assert torch.equal(getattr(again, name), getattr(batches[index], name))
        assert torch.equal(packing(positions[index])[0].input_ids, batches[index].input_ids)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        epoch_of(packed(batch_rows=1), 0),
        epoch_of(packed(batch_rows=1), 1),
        epoch_of(packed(batch_rows=1, seed=1), 0),
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[0] != sorted(orders[0])


def test_rows_per_epoch_is_the_same_in_every_epoch():
    packing = packed(some_examples(200), batch_rows=1)
    for epoch in range(5):
        position, n_rows = (epoch, 0), 0
        while position[0] == epoch:
            _, position = packing(position)
            n_rows += 1
        assert n_rows == packing.rows_per_epoch


def test_the_examples_of_a_batch_can_be_seen():
    packing = packed()
    for position in ((0, 0), (1, 2)):
        rows, behind = packing.rows_at(position)
        batch, then = packing(position)
        assert behind == then
        assert [[e.ids.tolist() for e in row] for row in rows] == [
            [ids for ids in row if set(ids) != {0}] for row in documents(batch)
        ]


# ---- first fit


def test_first_fit_takes_the_first_row_with_room():
    lengths = np.array([6, 5, 4, 3, 2, 1])
    assert first_fit(range(6), lengths, 10) == [[0, 2], [1, 3, 4], [5]]
    assert first_fit([5, 4, 3, 2, 1, 0], lengths, 10) == [[5, 4, 3, 2], [1], [0]]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 40), st.randoms())
def test_first_fit_is_first_fit(lengths, row_tokens, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    expected: list[list[int]] = []
    for index in order:  # the definition, row by row
        for row in expected:
            if sum(lengths[i] for i in row) + lengths[index] <= row_tokens:
                row.append(index)
                break
        else:
            expected.append([index])
    assert first_fit(order, np.array(lengths), row_tokens) == expected


@given(st.lists(st.integers(2, 30), min_size=1, max_size=80), st.integers(0, 5))
def test_few_rows(lengths, seed):
    """Longest first, first fit: at most 11/9 of the fewest rows possible + 2/3 (Dósa 2007)."""
    packing = PackedConversations([example(n) for n in lengths], 30, 1, seed)
    assert packing.rows_per_epoch <= 11 / 9 * fewest_rows_are_at_most(lengths, 30) + 2 / 3


def fewest_rows_are_at_most(lengths: list[int], row_tokens: int) -> int:
    """An upper bound of the optimum: best fit, longest first."""
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [i for i, free in enumerate(room) if free >= length]
        if fits:
            room[min(fits, key=lambda i: room[i])] -= length
        else:
            room.append(row_tokens - length)
    return len(room)


# ---- what is refused


def test_bad_examples():
    with pytest.raises(DataError, match="the longest of 2 examples has 10 tokens; a row takes 1 to 9"):
        PackedConversations([example(3), example(10)], 9, 1, 0)
    with pytest.raises(DataError, match="0 examples"):
        PackedConversations([], 9, 1, 0)
    with pytest.raises(DataError, match="none of 1 examples has a trained token"):
        PackedConversations([example(3, trained=[True, False, False])], 9, 1, 0)
