"""Pairs for next-sentence prediction: true ones are true, random ones come from elsewhere, half and half."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from lamoid.data.masked import make_masking
from lamoid.data.sentences import NextSentencePairs, SentenceStore, open_sentences, split_sentences, write_sentences
from lamoid.data.sources import Passage
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.wordpiece import train_wordpiece


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Pi is 3.14 or so. e.g. this", ["Pi is 3.14 or so.", "e.g.", "this"]),
        ('He said "no." Then left.', ['He said "no."', "Then left."]),
        ("a line\nanother\n\n  third  ", ["a line", "another", "third"]),
        ("大型模型。它们很大！是吗？是", ["大型模型。", "它们很大！", "是吗？", "是"]),
        ("「行く。」と言った。終", ["「行く。」と言った。", "終"]),
        ("Một câu. Hai câu… Ba", ["Một câu.", "Hai câu…", "Ba"]),
        ("안녕하세요. 반갑습니다.", ["안녕하세요.", "반갑습니다."]),
        ("كيف حالك؟ بخير.", ["كيف حالك؟", "بخير."]),
        ("नमस्ते। ठीक है।", ["नमस्ते।", "ठीक है।"]),
        ("", []),
        (" \n\t ", []),
        ("...", ["..."]),
    ],
)
def test_sentences_of_many_scripts(text, sentences):
    assert split_sentences(text) == sentences


def test_nothing_but_space_is_lost():
    text = 'A "quoted one." (And another.) 中文。 x\n\ny  z. \u3000 w'
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_long_runs_of_space_take_no_time():
    """As tables in plain text have them: a run is looked at once, not again from each of its characters."""
    began = time.process_time()
    assert split_sentences("a." + " " * 100_000 + "b" + "\t" * 100_000 + "\n c") == ["a.", "b", "c"]
    assert split_sentences("a" + " " * 100_000 + "b") == ["a" + " " * 100_000 + "b"]
    assert time.process_time() - began < 5  # seconds of computing; 20 or more where it is quadratic


# ---- the store

DOCUMENTS = ["Một câu. Hai câu. Ba.", "生成文本。它们！", "lonely", "", "a. b. c. d. e."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(DOCUMENTS * 3, 300)


def test_a_store_holds_ids_and_borders(tmp_path, tokenizer):
    n_bytes = []
    passages = [Passage(text, "x", True, True) for text in DOCUMENTS]
    n_tokens = write_sentences(tmp_path, passages, tokenizer, n_bytes.append)
    store = open_sentences(tmp_path, tokenizer)
    assert n_tokens == len(store.tokens)
    assert sum(n_bytes) == sum(len(text.encode()) for text in DOCUMENTS)
    assert store.document_ends.tolist() == [3, 5, 6, 11]  # the empty one is left out
    sentences = [s for text in DOCUMENTS for s in split_sentences(text)]
    begins = [0, *store.sentence_ends[:-1]]
    for sentence, begin, end in zip(sentences, begins, store.sentence_ends, strict=True):
        assert store.tokens[begin:end].tolist() == tokenizer.encode(sentence, add_special_tokens=False)


@pytest.mark.parametrize("name", ["tokens.bin", "sentences.bin", "documents.bin"])
def test_a_damaged_store_is_named(tmp_path, tokenizer, name):
    write_sentences(tmp_path, [Passage(text, "x", True, True) for text in DOCUMENTS], tokenizer)
    content = (tmp_path / name).read_bytes()
    for damaged in (content[:-8], content[:-3] if name != "tokens.bin" else content[:-1], b""):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match="is damaged"):
            open_sentences(tmp_path, tokenizer)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match="is damaged"):
        open_sentences(tmp_path, tokenizer)


# ---- pairs: tokens are their own places, so that one sees where a text comes from


def numbered_store(n_documents=40, seed=0, max_sentences=12, max_tokens=9):
    random = np.random.default_rng(seed)
    counts = random.integers(1, max_sentences + 1, n_documents)
    lengths = random.integers(1, max_tokens + 1, counts.sum())
    tokens = np.arange(1000, 1000 + lengths.sum(), dtype=np.uint16)
    return SentenceStore(tokens, np.cumsum(lengths), np.cumsum(counts))


def pairs_of(tokenizer, store, row_tokens=32, dynamic=True, seed=0, batch_rows=3):
    masking = make_masking(tokenizer, dynamic=dynamic, seed=seed)
    masking = type(masking)(**{**vars(masking), "is_special": np.arange(5000) < 5})  # numbers of up to 5000 are tokens
    return NextSentencePairs(store, row_tokens, batch_rows, seed, masking, cls_id=2, sep_id=3, pad_id=0)


def document_of(store, token):
    sentence = np.searchsorted(store.sentence_ends, token - 1000, side="right")
    return int(np.searchsorted(store.document_ends, sentence, side="right"))


@pytest.fixture(scope="module")
def store():
    return numbered_store()


def test_true_pairs_follow_and_random_ones_come_from_another_document(tokenizer, store):
    pairs = pairs_of(tokenizer, store)
    kinds = []
    begins = {1000, *(1000 + store.sentence_ends[:-1]).tolist()}
    for epoch in range(20):
        for row in range(pairs.rows_per_epoch):
            first, second, is_random = pairs.pair(epoch, row)
            kinds.append(is_random)
            assert len(first) and len(second) and len(first) + len(second) <= 29
            assert (np.diff(first) == 1).all() and (np.diff(second) == 1).all()
            assert len({document_of(store, token) for token in (first[0], first[-1])}) == 1
            assert len({document_of(store, token) for token in (second[0], second[-1])}) == 1
            assert second[0] in begins
            if is_random:
                assert document_of(store, first[0]) != document_of(store, second[0])
            else:
                assert second[0] == first[-1] + 1
    assert abs(np.mean(kinds) - 0.5) < 4 * 0.5 / len(kinds) ** 0.5


def test_random_texts_are_spread_over_all_other_sentences(tokenizer):
    store = numbered_store(n_documents=6, seed=3)
    pairs = pairs_of(tokenizer, store)
    found = set()
    for epoch in range(400):
        _, second, is_random = pairs.pair(epoch, 0)
        if is_random:
            found.add(int(second[0]))
    own = document_of(store, pairs.pair(0, 0)[0][0])
    begins = [1000 + int(b) for b in (0, *store.sentence_ends[:-1])]
    assert found == {b for b in begins if document_of(store, b) != own}


def test_random_texts_are_about_as_long_as_true_ones(tokenizer, store):
    """Otherwise the length would give the answer away."""
    pairs = pairs_of(tokenizer, store)
    lengths = {True: [], False: []}
    for epoch in range(30):
        for row in range(pairs.rows_per_epoch):
            _, second, is_random = pairs.pair(epoch, row)
            lengths[is_random].append(len(second))
    assert abs(np.mean(lengths[True]) - np.mean(lengths[False])) < 2


def test_every_sentence_of_documents_with_two_is_used_once_an_epoch(tokenizer, store):
    pairs = pairs_of(tokenizer, store, row_tokens=24)
    covered = [s for begin, end, _ in pairs._chunks for s in range(begin, end)]
    counts = np.diff(store.document_ends, prepend=0)
    expected = [s for end, n in zip(store.document_ends, counts, strict=True) if n > 1 for s in range(end - n, end)]
    assert covered == expected
    assert all(end - begin >= 2 for begin, end, _ in pairs._chunks)


def test_chunks_fill_a_row_and_not_much_more(tokenizer, store):
    pairs = pairs_of(tokenizer, store, row_tokens=24)
    for (begin, end, document), (_, _, following) in pairwise(pairs._chunks.tolist()):
        start = int(store.sentence_ends[begin - 1]) if begin else 0
        n_tokens = int(store.sentence_ends[end - 1]) - start
        if document == following:
            assert n_tokens >= 21
        if end - begin > 3:
            assert int(store.sentence_ends[end - 3]) - start < 21


def test_a_batch_is_framed_segmented_and_padded(tokenizer, store):
    batch, position = pairs_of(tokenizer, store)((0, 0))
    assert position == (0, 3)
    ids = torch.where(batch.labels == IGNORED, batch.input_ids, batch.labels)
    n_tokens = batch.attention_mask.sum(1)
    assert ids.shape[1] == n_tokens.max() <= 32
    for row, n in enumerate(n_tokens.tolist()):
        line, segments = ids[row, :n].tolist(), batch.segment_ids[row, :n].tolist()
        middle = line.index(3)
        assert line[0] == 2 and line[-1] == 3 and line.count(3) == 2
        assert segments == [0] * (middle + 1) + [1] * (n - middle - 1)
        assert not ids[row, n:].any() and (batch.labels[row, n:] == IGNORED).all()
        assert not batch.attention_mask[row, n:].any() and not batch.segment_ids[row, n:].any()
        follows = line[middle + 1] == line[middle - 1] + 1
        assert batch.next_sentence[row] == (0 if follows else 1)
    n_eligible = n_tokens - 3
    assert (batch.labels != IGNORED).sum(1).tolist() == [max(round(0.15 * n), 1) for n in n_eligible.tolist()]


def test_a_batch_depends_on_its_position_alone(tokenizer, store):
    first, again = pairs_of(tokenizer, store), pairs_of(tokenizer, store)
    position, trail = (0, 0), []
    while position[0] < 3:
        batch, following = first(position)
        trail.append((position, batch))
        position = following
    for position, batch in reversed(trail):
        same, _ = again(position)
        assert all(torch.equal(a, b) for a, b in zip(vars(same).values(), vars(batch).values(), strict=True))


def test_dynamic_pairs_change_each_epoch_and_static_ones_do_not(tokenizer, store):
    dynamic, static = pairs_of(tokenizer, store), pairs_of(tokenizer, store, dynamic=False)
    rows = range(static.rows_per_epoch)
    assert all(np.array_equal(static.pair(0, r)[1], static.pair(5, r)[1]) for r in rows)
    assert sum(np.array_equal(dynamic.pair(0, r)[1], dynamic.pair(5, r)[1]) for r in rows) < len(rows) / 2


@pytest.mark.parametrize("row_tokens", [5, 6, 7, 8, 512])
def test_rows_of_any_length_hold_a_pair(tokenizer, store, row_tokens):
    pairs = pairs_of(tokenizer, store, row_tokens=row_tokens)
    for row in range(pairs.rows_per_epoch):
        first, second, _ = pairs.pair(1, row)
        assert len(first) and len(second) and len(first) + len(second) <= row_tokens - 3


def test_what_holds_no_pair_is_refused(tokenizer, store):
    with pytest.raises(DataError, match="a row of 4 tokens cannot hold a pair; 5"):
        pairs_of(tokenizer, store, row_tokens=4)
    one = SentenceStore(np.arange(1000, 1010), np.array([5, 10]), np.array([2]))
    with pytest.raises(DataError, match="1 documents and 1 pairs"):
        pairs_of(tokenizer, one)
    lonely = SentenceStore(np.arange(1000, 1010), np.array([5, 10]), np.array([1, 2]))
    with pytest.raises(DataError, match="2 documents and 0 pairs"):
        pairs_of(tokenizer, lonely)


def test_tokens_stay_on_disk(tmp_path, tokenizer):
    """A store is mapped; only the borders of the chunks are held."""
    write_sentences(tmp_path, [Passage(text, "x", True, True) for text in DOCUMENTS * 5], tokenizer)
    store = open_sentences(tmp_path, tokenizer)
    assert all(isinstance(part, np.memmap) for part in vars(store).values())
    masking = make_masking(tokenizer)
    batch, _ = NextSentencePairs(store, 20, 4, 0, masking, cls_id=2, sep_id=3, pad_id=0)((0, 0))
    assert batch.input_ids.shape[0] == 4
