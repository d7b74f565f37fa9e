"""The kinds of tokenizers that can be trained, by the name that `--kind` gives them."""

from collections.abc import Callable, Iterator

from lamoid.tokenizers import bpe, char, gpt2, sentencepiece, tiktoken, wordpiece
from lamoid.tokenizers.tokenizer import Tokenizer

DEFAULT_SIZES = {"sentencepiece": 32_000}
DEFAULT_SIZE = 8192


def train(kind: str, texts: Iterator[str], vocab_size: int | None, *, split_digits: bool, cased: bool) -> Tokenizer:
    """A tokenizer of this kind from the texts; `vocab_size` None takes the kind's default (char: every character)."""
    size = vocab_size or DEFAULT_SIZES.get(kind, DEFAULT_SIZE)
    ways: dict[str, Callable[[], Tokenizer]] = {
        "bpe": lambda: bpe.train_bpe(texts, size, split_digits=split_digits),
        "char": lambda: char.train_char(texts, vocab_size),
        "sentencepiece": lambda: sentencepiece.train_sentencepiece(texts, size),
        "tiktoken": lambda: _train_tiktoken(texts, size),
        "wordpiece": lambda: wordpiece.train_wordpiece(texts, size, cased=cased),
        "roberta": lambda: gpt2.train_roberta(texts, size),
        "gpt2": lambda: gpt2.train_gpt2(texts, size),
    }
    return ways[kind]()


def _train_tiktoken(texts: Iterator[str], size: int) -> Tokenizer:
    """Llama 3's special tokens in place of ours."""
    n_more = len(tiktoken.LLAMA_3_SPECIAL_TOKENS) - len(bpe.SPECIAL_TOKENS)
    return tiktoken.read_tiktoken(tiktoken.write_tiktoken(bpe.train_bpe(texts, size - n_more)))
