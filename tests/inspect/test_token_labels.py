"""Tokens as they are shown: any script, bytes that are no text, what cannot be seen."""

import functools
from pathlib import Path

import pytest
import tokenizers as runtime
from tests.tokenizers.conftest import STRESS, TRAINING
from tokenizers import decoders, models, pre_tokenizers

from lamoid.inspect.token_labels import TokenLabels
from lamoid.recipes.load import load_named_tokenizer
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.char import train_char
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.tokenizers.wordpiece import train_wordpiece


def byte_level(*tokens: bytes) -> Tokenizer:
    """A byte-level vocabulary of these tokens, with the library's own stand-ins for bytes."""
    before = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = {bytes([b]): chr(s) for b, s in stand_ins().items()}
    assert before.pre_tokenize_str("中 a")[0][0] == "".join(symbols[bytes([b])] for b in "中 a".encode())
    names = ["".join(symbols[token[i : i + 1]] for i in range(len(token))) for token in tokens]
    backend = runtime.Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = before, decoders.ByteLevel()
    return Tokenizer(backend, {})


def stand_ins() -> dict[int, int]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = (b for b in range(256) if b not in shown)
    return {b: b for b in shown} | {b: 256 + n for n, b in enumerate(rest)}


SHOWN = {
    b" the": "␣the", b"\n\n": "⏎⏎", b"\t": "⇥", b" ": "␣", "中".encode(): "中", "한국".encode(): "한국",
    "ệ".encode(): "ệ", b"\xe5": "‹E5›", b"\xb8\xad": "‹B8 AD›", b" \xc4": "␣‹C4›", "là".encode() + b"\xe1\xbb": "là‹E1 BB›",
    b"\xad," : "‹AD›,", b"<script>": "<script>", b"\x1b[31m": "\\x1b[31m", b"\x00": "\\x00",
    "\u200b".encode(): "\\u200b", "\u00a0".encode(): "\\xa0", "\u202e".encode(): "\\u202e", "\u0301".encode(): "◌\u0301",
    "\u2028".encode(): "\\u2028", "é".encode(): "é", "👩‍💻".encode(): "👩‍💻",
}  # fmt: skip


def test_byte_level_tokens_are_text_and_bytes():
    label = TokenLabels(byte_level(*SHOWN))
    assert {token: label(i) for i, token in enumerate(SHOWN)} == SHOWN
    assert label(len(SHOWN)) == f"‹id {len(SHOWN)}›"


@functools.cache
def trained(train) -> Tokenizer:
    return train(TRAINING, 400)


@pytest.mark.parametrize("train", [train_bpe, train_char, train_wordpiece])
@pytest.mark.parametrize("text", STRESS)
def test_a_text_can_be_read_from_its_labels(train, text: str):
    """Every label is one line without anything that steers; where no byte is shown, the labels spell what decoding gives."""
    tokenizer = trained(train)
    label, ids = TokenLabels(tokenizer), tokenizer.encode(text, add_special_tokens=False)
    labels = [label(i) for i in ids]
    assert all((shown and shown.isprintable()) or "\u200d" in shown for shown in labels)
    if train is not train_wordpiece and not any(mark in "".join(labels) for mark in "‹\\◌␣⏎⇥"):
        assert "".join(labels) == tokenizer.decode(ids)


def test_special_tokens_and_sentencepiece_and_wordpiece(minilm: Path):
    minilm_label = TokenLabels(load_named_tokenizer(str(minilm)))
    ids = load_named_tokenizer(str(minilm)).encode("unbelievably")
    assert [minilm_label(i) for i in ids] == ["[CLS]", "un", "##bel", "##ie", "##va", "##bly", "[SEP]"]
    backend = runtime.Tokenizer(models.BPE(vocab={"▁và": 0, "<0xE5>": 1, "<0x0A>": 2, "é": 3}, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    label = TokenLabels(Tokenizer(backend, {}))
    assert [label(i) for i in range(4)] == ["␣và", "‹E5›", "⏎", "é"]
