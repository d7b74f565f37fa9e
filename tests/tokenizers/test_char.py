"""The character tokenizer: its own round trip, counted by hand, and the same ids in transformers."""

import time
from collections import Counter

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lamoid.errors import UsageError
from lamoid.tokenizers.bpe import SPECIAL_TOKENS, merge_steps
from lamoid.tokenizers.char import train_char

TEXTS = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def id_of(tokenizer, character):
    (index,) = tokenizer.encode(character, add_special_tokens=False)
    return index


def test_the_ids_are_bytes_then_characters_by_frequency_then_special_tokens():
    tokenizer = train_char(["banana", "an 你"])
    # a 4, n 3, then ' ', 'b' and '你' once each, by code point
    assert [id_of(tokenizer, c) for c in "an b你"] == [256, 257, 258, 259, 260]
    assert [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)] == list(range(256))
    assert [tokenizer.backend.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(261, 267))
    assert tokenizer.vocab_size == 267


def test_the_vocabulary_is_that_of_the_text(training):
    tokenizer = train_char(training)
    counts = Counter("".join(training))
    assert tokenizer.vocab_size == 256 + len(counts) + len(SPECIAL_TOKENS)
    ids = [id_of(tokenizer, c) for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    assert ids == list(range(256, 256 + len(counts)))


def test_a_limited_vocabulary_keeps_the_most_frequent():
    tokenizer = train_char(["aaabbc"], vocab_size=264)
    assert tokenizer.vocab_size == 264
    assert [len(tokenizer.encode(c, add_special_tokens=False)) for c in "abc"] == [1, 1, 1]
    assert id_of(tokenizer, "a") == 256
    assert id_of(tokenizer, "b") == 257
    assert id_of(tokenizer, "c") == ord("c")  # cut off: its byte


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    assert train_char(["abc"], vocab_size=262).vocab_size == 262
    with pytest.raises(UsageError, match=r"vocab_size is 261; .* 262"):
        train_char(["abc"], vocab_size=261)


def test_unknown_characters_become_their_bytes(char):
    for unknown in ("\U0010ffff", "𠮷", "ภ", "\x05"):
        assert char.encode(unknown, add_special_tokens=False) == list(unknown.encode())
        assert char.decode(char.encode(f"a{unknown}b{unknown}{unknown}")) == f"a{unknown}b{unknown}{unknown}"


def test_every_stress_text_survives(char, stress):
    assert char.decode(char.encode(stress)) == stress


@TEXTS
@given(text=st.text())
def test_every_text_survives(char, text):
    assert char.decode(char.encode(text)) == text


def test_no_training_text_leaves_bytes():
    tokenizer = train_char([])
    assert tokenizer.vocab_size == 262
    assert tokenizer.encode("né", add_special_tokens=False) == list("né".encode())
    assert tokenizer.decode(tokenizer.encode("né")) == "né"


def test_the_written_directory_opens_in_transformers(char, write_files, training):
    twin = transformers.AutoTokenizer.from_pretrained(write_files(char))
    for text in [*training[-60:], "𠮷 \U0010ffff ภาษา"]:
        ids = twin(text, split_special_tokens=True)["input_ids"]
        assert ids == char.encode(text), text
        assert twin.decode(ids, skip_special_tokens=True) == text
    assert (twin.bos_token_id, twin.eos_token_id, twin.pad_token_id) == tuple(
        char.special_id(role) for role in ("bos", "eos", "pad")
    )


def test_special_tokens_in_a_text_stay_text(char):
    text = "".join(SPECIAL_TOKENS)
    assert len(char.encode(text, add_special_tokens=False)) == len(text)
    assert char.decode(char.encode(text)) == text


def test_merge_steps_have_no_merges(char, stress):
    words = list(merge_steps(char, stress))
    assert not any(merges for _, merges in words)
    ids = [char.backend.token_to_id(symbol) for start, _ in words for symbol in start]
    assert ids == char.encode(stress, add_special_tokens=False)


def test_decoding_id_by_id_equals_decoding_at_once(char, stress):
    step = char.decode_stream([])
    assert "".join(step(index) for index in char.encode(stress + "a")) == stress + "a"


@TEXTS
@given(before=st.text(max_size=8), after=st.text(max_size=8))
@example(before="a\ufffd", after="b")
@example(before="\ufffd", after="\ufffd\ufffdb")
def test_decoding_goes_on_behind_any_text(char, before, after):
    step = char.decode_stream(char.encode(before))
    assert "".join(step(index) for index in char.encode(after + "a", add_special_tokens=False)) == after + "a"


def test_a_stray_byte_does_not_take_back_what_was_shown(char):
    """A model may write a whole character and then half of one: 你, the first byte of two, and an a."""
    step = char.decode_stream([])
    ids = [0xE4, 0xBD, 0xA0, 0xC3, *char.encode("a", add_special_tokens=False)]
    assert [step(index) for index in ids] == ["", "", "你", "", "\ufffda"]


def test_big_text_is_no_burden():
    """16 MB are counted in well under the second or two that a Python loop over characters would take."""
    text = "Đây là một câu tiếng Việt. 这是中文。" * 250_000
    began = time.process_time()
    tokenizer = train_char([text[start : start + 32_768] for start in range(0, len(text), 32_768)])
    assert time.process_time() - began < 2
    piece = text[:200_000]
    began = time.process_time()
    assert len(tokenizer.encode(piece, add_special_tokens=False)) == len(piece)
    assert time.process_time() - began < 2
