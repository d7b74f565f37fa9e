"""llama.cpp's tokens of every text are ours, for each kind of tokenizer that we write."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import llama_cpp
import pytest
from tests.checkpoints.llamas import SHAPES, random_llama
from tests.peers.texts import PROMPTS
from tests.tokenizers.conftest import STRESS, TRAINING

from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.hf import write_model
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.char import train_char
from lamoid.tokenizers.gguf_vocabulary import PROBE, tokenizer_from_gguf, tokenizer_to_gguf
from lamoid.tokenizers.sentencepiece import SPACE, train_sentencepiece
from lamoid.tokenizers.tiktoken import read_tiktoken, write_tiktoken
from lamoid.tokenizers.tokenizer import Tokenizer

USER_DEFINED = ["<tool>", "the_", "한국말", "x=="]
TEXTS = [
    *STRESS.values(),
    *PROMPTS,
    PROBE,
    "",
    " ",
    "  a",
    "a  ",
    "<unk> <pad> <0x41>",
    f"a {SPACE} b{SPACE}{SPACE}c{SPACE}",
    "the <tool>x==1 <tool> 한국말은<tool>",
    "<tool><tool> a the_end",
    "the_",
]


def changed(tokenizer: Tokenizer, *tokens: str, **keys: Any) -> Tokenizer:
    """A tokenizer as GGUF has it, with user-defined tokens behind its own and other keys."""
    metadata = tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)
    prefix = "tokenizer.ggml."
    metadata[prefix + "tokens"] += tokens
    metadata[prefix + "token_type"] += [4] * len(tokens)
    metadata[prefix + "scores"] = metadata.get(prefix + "scores", []) + [0.0] * len(tokens)
    again = tokenizer_from_gguf(metadata | {prefix + key: value for key, value in keys.items()})
    assert again is not None
    return again


def pieces() -> Tokenizer:
    return train_sentencepiece(TRAINING, 2000)


def merges() -> Tokenizer:
    return train_bpe(TRAINING, 1500)


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": merges,
    "byte-level BPE, digits alone": lambda: train_bpe(TRAINING, 1000, split_digits=True),
    "byte-level BPE, user-defined tokens": lambda: changed(merges(), *USER_DEFINED),
    "tiktoken": lambda: read_tiktoken(write_tiktoken(merges())),
    "SentencePiece": pieces,
    "SentencePiece, a space in front as in Llama 2": lambda: changed(pieces(), add_space_prefix=True),
    "SentencePiece, user-defined tokens": lambda: changed(pieces(), *USER_DEFINED),
    "SentencePiece, both": lambda: changed(pieces(), *USER_DEFINED, add_space_prefix=True),
    "characters": lambda: train_char([text.replace("\0", "") for text in TRAINING], 500),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tokenizer, llama_cpp.Llama]]:
    """A tokenizer, and llama.cpp with the GGUF file that a model with that tokenizer became."""
    tokenizer, folder = TOKENIZERS[request.param](), tmp_path_factory.mktemp("tokens")
    write_model(folder, random_llama(replace(SHAPES["tied"], vocab_size=tokenizer.vocab_size + 3)), tokenizer)
    convert(open_model(folder), folder / "x.gguf")
    peer = llama_cpp.Llama(str(folder / "x.gguf"), vocab_only=True, verbose=False)
    yield tokenizer, peer
    peer.close()


def test_ids_are_ours(both: tuple[Tokenizer, llama_cpp.Llama]) -> None:
    tokenizer, peer = both
    for text in TEXTS:
        if tokenizer.backend.token_to_id(" ") is not None:
            text = text.replace(
                SPACE, " "
            )  # which is a piece's space in GGUF, so that llama.cpp cannot tell them apart
        assert ids_of(peer, text, around=True) == tokenizer.encode(text), text
        assert ids_of(peer, text, around=False) == tokenizer.encode(text, add_special_tokens=False), text


def test_special_tokens_spelled_out_stay_text(both: tuple[Tokenizer, llama_cpp.Llama]) -> None:
    tokenizer, peer = both
    special = {token.content: i for i, token in tokenizer.backend.get_added_tokens_decoder().items() if token.special}
    assert special
    for text in [*special, "".join(special), " ".join(special), f"a{'b'.join(special)}c"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids_of(peer, text, around=False) == ids
        assert not set(ids) & set(special.values())


def test_the_fillers_of_the_vocabulary_stay_text(both: tuple[Tokenizer, llama_cpp.Llama]) -> None:
    tokenizer, peer = both
    text = "".join(f"[PAD{tokenizer.vocab_size + i}]" for i in range(3))
    assert peer.n_vocab() == tokenizer.vocab_size + 3
    assert ids_of(peer, text, around=False) == tokenizer.encode(text, add_special_tokens=False)


def ids_of(peer: llama_cpp.Llama, text: str, *, around: bool) -> list[int]:
    """llama.cpp's ids of a text in which nothing is special, with or without what the model expects around it."""
    return peer.tokenize(text.encode(), add_bos=around, special=False)
