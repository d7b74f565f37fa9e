"""Tokens on disk and rows of them: each trained once an epoch, and a batch that depends on its position alone."""

import numpy as np
import pytest
import torch

from lamoid.data.packed import ENCODE_BYTES, PackedRows, id_type, write_tokens
from lamoid.data.sources import Passage
from lamoid.errors import DataError
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.tokenizer import Tokenizer

DOCUMENTS = ["Việt Nam", "你好，世界。", "a", "a longer text\n\nin two paragraphs"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS, 300)


def rows(n_tokens=1003, row_tokens=10, batch_rows=4, seed=0):
    return PackedRows(np.arange(n_tokens, dtype=np.uint16), row_tokens, batch_rows, seed)


def starts_of_epoch(packed, epoch):
    """The first token of each row of an epoch, in order; a token is its own place in the text."""
    starts, position = [], (epoch, 0)
    while position[0] == epoch:
        batch, position = packed(position)
        starts += batch.input_ids[:, 0].tolist()
    return starts[: packed.rows_per_epoch]


@pytest.mark.parametrize(("vocab_size", "kind"), [(1, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_ids_are_kept_in_the_smallest_type(vocab_size, kind):
    assert id_type(vocab_size) is kind
    assert np.iinfo(kind).max >= vocab_size - 1


def test_documents_are_written_between_their_ends(tmp_path, tokenizer):
    passages = [Passage(text, "a", True, True) for text in DOCUMENTS]
    n_tokens = write_tokens(tmp_path / "tokens.bin", passages, tokenizer)
    expected = [i for text in DOCUMENTS for i in [*tokenizer.encode(text), tokenizer.special_id("eos")]]
    assert np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16).tolist() == expected
    assert n_tokens == len(expected)


def test_a_document_in_passages_has_one_beginning_and_one_end(tmp_path, tokenizer):
    parts = ["one\n\n", "two\n\n", "three"]
    passages = [Passage(text, "a", i == 0, i == 2) for i, text in enumerate(parts)]
    write_tokens(tmp_path / "tokens.bin", passages, tokenizer)
    ids = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False)]
    expected = [tokenizer.special_id("bos"), *ids, tokenizer.special_id("eos")]
    assert np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16).tolist() == expected


def test_a_tokenizer_without_ends_places_none(tmp_path, tokenizer):
    bare = Tokenizer(tokenizer.backend, {})
    write_tokens(tmp_path / "tokens.bin", [Passage("abc", "a", True, True)], bare)
    ids = tokenizer.encode("abc", add_special_tokens=False)
    assert np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16).tolist() == ids


def test_groups_change_nothing_and_every_byte_is_reported(tmp_path, tokenizer):
    text = "Một đoạn văn. " * 4000
    passages = [Passage(f"{i} {text}", "a", True, True) for i in range(3 * ENCODE_BYTES // len(text.encode()))]
    reported = []
    n_tokens = write_tokens(tmp_path / "tokens.bin", passages, tokenizer, reported.append)
    assert len(reported) >= 3
    assert sum(reported) == sum(len(p.text.encode()) for p in passages)
    expected = [i for p in passages for i in [*tokenizer.encode(p.text), tokenizer.special_id("eos")]]
    assert np.fromfile(tmp_path / "tokens.bin", dtype=np.uint16).tolist() == expected
    assert n_tokens == len(expected)


def test_nothing_is_written_for_nothing(tmp_path, tokenizer):
    assert write_tokens(tmp_path / "tokens.bin", [], tokenizer) == 0
    assert (tmp_path / "tokens.bin").read_bytes() == b""


def test_labels_are_the_inputs_one_further():
    batch, _ = rows()((0, 0))
    assert batch.input_ids.shape == batch.labels.shape == (4, 10)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert torch.equal(batch.labels, batch.input_ids + 1)  # each token is its own place
    assert torch.equal(batch.input_ids[:, 1:], batch.labels[:, :-1])


def test_a_batch_depends_on_its_position_alone():
    positions, batches, position = [], [], (0, 0)
    packed = rows()
    for _ in range(60):
        positions.append(position)
        batch, position = packed(position)
        batches.append(batch)
    for i in reversed(range(60)):
        again, _ = rows()(positions[i])
        assert torch.equal(again.input_ids, batches[i].input_ids)
        assert torch.equal(again.labels, batches[i].labels)


@pytest.mark.parametrize("n_tokens", [11, 12, 20, 21, 29, 30, 31, 1000, 1003, 1009])
@pytest.mark.parametrize("batch_rows", [1, 4, 7, 250])
def test_an_epoch_has_every_row_once(n_tokens, batch_rows):
    packed = rows(n_tokens, batch_rows=batch_rows)
    for epoch in (0, 1, 7):
        starts = sorted(starts_of_epoch(packed, epoch))
        offset = starts[0]
        assert starts == [offset + 10 * row for row in range(packed.rows_per_epoch)]
        assert starts[-1] + 10 <= n_tokens - 1
    assert n_tokens - 1 - packed.rows_per_epoch * 10 < 20  # less than two rows are left over


def test_no_token_stands_first_in_every_epoch():
    packed = rows()
    offsets = [min(starts_of_epoch(packed, epoch)) for epoch in range(30)]
    assert len(set(offsets)) > 5
    assert {offset % 10 for offset in offsets} == set(range(10))


def test_over_some_epochs_every_token_is_trained():
    packed = rows(57)
    seen = {t for epoch in range(40) for s in starts_of_epoch(packed, epoch) for t in range(s + 1, s + 11)}
    assert seen == set(range(1, 57))


def test_epochs_and_seeds_have_orders_of_their_own():
    packed = rows()
    orders = [starts_of_epoch(packed, 0), starts_of_epoch(packed, 1), starts_of_epoch(rows(seed=1), 0)]
    orders = [[start // 10 for start in order] for order in orders]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != sorted(orders[0])


def test_a_batch_across_the_end_of_an_epoch_is_filled_up_from_the_next():
    packed = rows(41, batch_rows=2)  # three rows an epoch
    first, position = packed((0, 0))
    assert position == (0, 2)
    second, position = packed(position)
    assert position == (1, 1)
    third, position = packed(position)
    assert position == (2, 0)
    starts = torch.cat([b.input_ids[:, 0] for b in (first, second, third)]).tolist()
    assert starts == starts_of_epoch(rows(41, batch_rows=1), 0) + starts_of_epoch(rows(41, batch_rows=1), 1)


def test_a_batch_may_be_larger_than_an_epoch():
    packed = rows(41, batch_rows=7)
    batch, position = packed((0, 0))
    assert position == (2, 1)
    expected = [s for epoch in range(3) for s in starts_of_epoch(rows(41, batch_rows=1), epoch)][:7]
    assert batch.input_ids[:, 0].tolist() == expected


@pytest.mark.parametrize("n_tokens", [0, 1, 10])
def test_too_few_tokens_are_refused(n_tokens):
    with pytest.raises(DataError, match=rf"the text has {n_tokens} tokens; a row takes 10 \+ 1"):
        rows(n_tokens)


def test_ids_above_signed_sixteen_bits_stay_what_they_are():
    tokens = np.array([0, 40_000, 65_535, 3], dtype=np.uint16)
    batch, _ = PackedRows(tokens, 3, 1, 0)((0, 0))
    assert batch.input_ids.tolist() == [[0, 40_000, 65_535]]
    assert batch.labels.tolist() == [[40_000, 65_535, 3]]
