"""Byte-level BPE against transformers and tiktoken, which share no code with the training loop here."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import tiktoken
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.bpe import SPECIAL_TOKENS, affordable_bytes, merge_steps, readable, train_bpe

# Meta's pattern, as its llama3 repository has it; and with each digit alone.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def tiktoken_twin(tokenizer, pattern):
    byte_of = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    ranks = {bytes(byte_of[c] for c in token): index for token, index in vocabulary.items()}
    specials = {token: tokenizer.backend.token_to_id(token) for token in SPECIAL_TOKENS}
    return tiktoken.Encoding("twin", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)


def test_ids_equal_tiktokens(bpe, stress):
    twin = tiktoken_twin(bpe, LLAMA3_SPLIT)
    ids = bpe.encode(stress, add_special_tokens=False)
    assert ids == twin.encode(stress, disallowed_special=())
    assert twin.decode(ids) == stress


def test_ids_equal_tiktokens_with_digits_alone(digits_alone, stress):
    twin = tiktoken_twin(digits_alone, DIGITS_SPLIT)
    assert digits_alone.encode(stress, add_special_tokens=False) == twin.encode(stress, disallowed_special=())


@TEXTS
@given(text=st.text())
def test_ids_equal_tiktokens_on_any_text(bpe, text):
    twin = tiktoken_twin(bpe, LLAMA3_SPLIT)
    assert bpe.encode(text, add_special_tokens=False) == twin.encode(text, disallowed_special=())


@pytest.mark.parametrize("kind", [transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast])
def test_the_written_directory_opens_in_transformers(bpe, write_files, kind, training):
    twin = kind.from_pretrained(write_files(bpe))
    for text in training[-60:]:
        assert twin(text, split_special_tokens=True)["input_ids"] == bpe.encode(text), text
        assert twin.decode(bpe.encode(text), skip_special_tokens=True) == text
    assert (twin.bos_token_id, twin.eos_token_id, twin.pad_token_id) == tuple(
        bpe.special_id(role) for role in ("bos", "eos", "pad")
    )
    assert len(twin) == bpe.vocab_size


def test_every_stress_text_survives(bpe, digits_alone, stress):
    for tokenizer in (bpe, digits_alone):
        assert tokenizer.decode(tokenizer.encode(stress)) == stress


@TEXTS
@given(text=st.text())
def test_every_text_survives(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert all(0 <= index < bpe.vocab_size for index in ids)


@TEXTS
@given(text=st.text(st.characters(min_codepoint=0x300, exclude_categories=("Cs",)), min_size=1))
def test_every_text_beyond_latin_survives(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("ab\udfffc", 2), ("😀\ud83d", 1)])
def test_a_lone_surrogate_is_named_with_its_position(bpe, text, position):
    calls = (
        lambda: bpe.encode(text),
        lambda: bpe.encode("fine", text),
        lambda: bpe.encode_many(["fine", text]),
        lambda: bpe.encode_batch([text]),
        lambda: bpe.encode_batch(["fine"], [text]),
    )
    for call in calls:
        with pytest.raises(DataError, match=f"U\\+{ord(text[position]):04X} at position {position}"):
            call()


def test_special_tokens_in_a_text_stay_text(bpe):
    special = {bpe.backend.token_to_id(token) for token in SPECIAL_TOKENS}
    for token in SPECIAL_TOKENS:
        text = f"a{token}b {token}"
        ids = bpe.encode(text)
        assert [i for i in ids if i in special] == [bpe.special_id("bos")] == ids[:1]
        assert bpe.decode(ids) == text
        assert not special & set(bpe.encode_many([text])[0])
        assert [i for i in bpe.encode_batch([text]).ids[0].tolist() if i in special] == ids[:1]


def test_digits_go_alone_or_in_threes(bpe, digits_alone):
    text = "12345 and 678 x9"
    alone = [digits_alone.decode([i]) for i in digits_alone.encode(text, add_special_tokens=False)]
    assert [t for t in alone if any(c.isdigit() for c in t)] == list("123456789")
    threes = [bpe.decode([i]) for i in bpe.encode("1" * 30, add_special_tokens=False)]
    assert max(len(t) for t in threes) <= 3


def test_digits_are_joined_at_all_where_they_may_be():
    tokenizer = train_bpe(["123 123 123 123"] * 10, 266)
    assert len(tokenizer.encode("123", add_special_tokens=False)) == 1
    tokenizer = train_bpe(["123 123 123 123"] * 10, 266, split_digits=True)
    assert len(tokenizer.encode("123", add_special_tokens=False)) == 3


@pytest.mark.parametrize("vocab_size", [262, 263, 300, 1000])
def test_the_vocabulary_has_the_size_asked_for(training, vocab_size):
    tokenizer = train_bpe(training, vocab_size)
    assert tokenizer.vocab_size == vocab_size == len(tokenizer.backend.get_vocab(with_added_tokens=True))


def test_a_vocabulary_too_small_for_the_bytes_is_refused(training):
    with pytest.raises(UsageError, match=r"vocab_size is 261; .* 262"):
        train_bpe(training, 261)


def test_the_first_merge_is_the_most_frequent_pair():
    tokenizer = train_bpe(["ab ab ab cd cd ab"], 263)
    assert json.loads(tokenizer.backend.to_str())["model"]["merges"] == [["a", "b"]]


def test_merge_steps_end_in_the_tokens(bpe, digits_alone, stress):
    for tokenizer in (bpe, digits_alone):
        symbols = []
        for start, merges in merge_steps(tokenizer, stress):
            before = start
            for merge in merges:
                assert "".join(merge.symbols) == "".join(start)
                assert len(merge.symbols) < len(before)
                assert "".join(merge.pair) in merge.symbols
                before = merge.symbols
            symbols += before
        ids = [tokenizer.backend.token_to_id(symbol) for symbol in symbols]
        assert ids == tokenizer.encode(stress, add_special_tokens=False)


def test_merge_steps_of_one_word_by_hand():
    tokenizer = train_bpe(["low " * 5 + "lower " * 2 + "newest " * 6 + "widest " * 3], 290)
    ranks = {tuple(pair): rank for rank, pair in enumerate(json.loads(tokenizer.backend.to_str())["model"]["merges"])}
    ((start, merges),) = merge_steps(tokenizer, "lowest")
    symbols = list("lowest")
    assert start == tuple(symbols)
    for merge in merges:
        pairs = list(pairwise(symbols))
        lowest = min((ranks[pair], pair) for pair in pairs if pair in ranks)
        assert (merge.rank, merge.pair) == lowest
        at = pairs.index(merge.pair)
        symbols[at : at + 2] = ["".join(merge.pair)]
        assert merge.symbols == tuple(symbols)
    assert not any(pair in ranks for pair in pairwise(symbols))
    assert merges


@pytest.mark.parametrize(
    ("symbol", "text"), [("Ġlow", " low"), ("Ċ", "\n"), ("Ã©", "é"), ("Ã", r"\xc3"), ("<0x0A>", "<0x0A>"), ("你", "你")]
)
def test_symbols_are_shown_as_what_they_stand_for(symbol, text):
    assert readable(symbol) == text


def test_training_is_deterministic(training, bpe):
    again = train_bpe((text for text in training), 1500)
    assert again.backend.to_str() == bpe.backend.to_str()
    assert again.fingerprint() == bpe.fingerprint()


def test_a_batch_is_a_rectangle(bpe):
    texts = ["a", "the quick brown fox", "", "Việt Nam"]
    batch = bpe.encode_batch(texts)
    rows = [bpe.encode(text) for text in texts]
    longest = max(map(len, rows))
    pad = bpe.special_id("pad")
    assert batch.ids.tolist() == [row + [pad] * (longest - len(row)) for row in rows]
    assert batch.mask.tolist() == [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    assert not batch.segments.any()
    assert {batch.ids.dtype, batch.mask.dtype, batch.segments.dtype} == {np.dtype(np.int64)}


def test_a_batch_of_pairs_has_segments(bpe):
    first, second = ["one", "a much longer first text"], ["two and more", "x"]
    batch = bpe.encode_batch(first, second)
    for row in range(2):
        a, b = bpe.encode(first[row]), bpe.encode(second[row])
        n_tokens = len(a) + len(b)
        assert batch.ids[row, :n_tokens].tolist() == a + b == bpe.encode(first[row], second[row])
        assert batch.segments[row].tolist() == [0] * len(a) + [1] * len(b) + [0] * (batch.ids.shape[1] - n_tokens)
        assert batch.mask[row].tolist() == [1] * n_tokens + [0] * (batch.ids.shape[1] - n_tokens)


def test_a_batch_of_nothing_and_of_unequal_pairs(bpe):
    assert bpe.encode_batch([]).ids.shape == (0, 0)
    with pytest.raises(DataError, match="2 texts but 1 pairs"):
        bpe.encode_batch(["a", "b"], ["c"])


def test_many_texts_equal_one_by_one(bpe, training):
    texts = training[-60:]
    assert bpe.encode_many(texts) == [bpe.encode(text, add_special_tokens=False) for text in texts]
    assert bpe.encode_many(texts[:3], add_special_tokens=True) == [bpe.encode(text) for text in texts[:3]]


@pytest.mark.parametrize("index", [-1, 1500, 10**12])
def test_ids_outside_the_vocabulary_are_refused(bpe, index):
    with pytest.raises(DataError, match=rf"id {index} is outside the vocabulary; ids run from 0 to 1499"):
        bpe.decode([5, index])


def test_special_tokens_are_skipped_or_shown(bpe):
    ids = [*bpe.encode("hi"), bpe.special_id("eos")]
    assert bpe.decode(ids) == "hi"
    assert bpe.decode(ids, skip_special_tokens=False) == "<|begin_of_text|>hi<|end_of_text|>"
    assert bpe.decode([]) == ""


def test_decoding_id_by_id_equals_decoding_at_once(bpe, stress):
    step = bpe.decode_stream([])
    pieces = [step(index) for index in bpe.encode(stress + "|")]
    assert "".join(pieces) == stress + "|"


@TEXTS
@given(ids=st.lists(st.integers(0, 1499)))
def test_decoding_any_ids_one_by_one_equals_decoding_at_once(bpe, ids):
    ids = [*ids, *bpe.encode("|", add_special_tokens=False)]
    step = bpe.decode_stream([])
    assert "".join(step(index) for index in ids) == bpe.decode(ids)


@TEXTS
@given(before=st.text(max_size=8), after=st.text(max_size=8))
@example(before="a\ufffd", after="b")
@example(before="\ufffd", after="\ufffd\ufffdb")
def test_decoding_goes_on_behind_any_text(bpe, before, after):
    step = bpe.decode_stream(bpe.encode(before))
    ids = bpe.encode(after + "|", add_special_tokens=False)
    assert "".join(step(index) for index in ids) == after + "|"


def test_half_a_character_is_held_back(bpe):
    ids = bpe.encode("\U0010ffff", add_special_tokens=False)
    step = bpe.decode_stream([])
    assert [step(index) for index in ids] == [""] * (len(ids) - 1) + ["\U0010ffff"]
    assert len(ids) == 4


GROWTH = """
import random
from lamoid.tokenizers.bpe import train_bpe

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def texts(n):
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(3, 9))) for _ in range(2000)]
    for _ in range(n):
        yield " ".join(draw.choices(words, k=4700))

train_bpe(texts(256), 1000)
before = peak()
train_bpe(texts(1024), 1000)
print(peak() - before)
"""


def test_training_memory_does_not_grow_with_the_text():
    """34 MB of text instead of 8 MB, with the same 2,000 words: keeping it would cost 25 MiB, allocators waste up to 9."""
    output = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True).stdout
    assert int(output) < 16 * 1024


CHINESE = """
import random
from lamoid.tokenizers.bpe import affordable_bytes, train_bpe

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

def texts(n_bytes):
    draw, n = random.Random(0), 0
    while n < n_bytes:
        text = "".join("".join(map(chr, draw.choices(range(0x4E00, 0x5A00), k=19))) + "。" for _ in range(500))
        n += len(text.encode())
        yield text

n_bytes = affordable_bytes(texts(1_000_000))
assert 1_450_000 < n_bytes < 1_700_000, n_bytes
before = peak()
assert train_bpe(texts(n_bytes), 4000).vocab_size == 4000
print(peak() - before)
"""


def test_text_whose_words_all_differ_is_limited_to_what_fits():
    """Chinese without a repeated sentence, the worst case: 100 bytes of memory for each byte, about 220 MB in the end."""
    output = subprocess.run([sys.executable, "-c", CHINESE], capture_output=True, text=True, check=True).stdout
    assert int(output) * 1024 < 250_000_000


def test_text_whose_words_repeat_is_not_limited():
    assert affordable_bytes(["low lower low. "] * 100_000) == 50_000_000
    some = "".join(f"low {number} " for number in range(10_000))  # of 88,890 bytes 38,893 are in new words
    assert affordable_bytes([some]) == 1_500_000 * 88_890 // 38_893
    assert affordable_bytes([]) == 0
