"""Byte-level byte-pair encoding: training, and the merges of one text step by step.

Every byte is a symbol, so every text can be written and nothing is unknown. Training counts neighbouring symbols
inside words and joins the most frequent pair, again and again; encoding replays those merges in their order.
Source: Sennrich et al. 2016; bytes as symbols: Radford et al. 2019 (GPT-2), section 2.2.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import tokenizers as runtime
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from lamoid.errors import UsageError
from lamoid.tokenizers.tokenizer import Tokenizer

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|pad|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
SPECIALS = {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "pad": "<|pad|>"}
N_BYTES = 256

# Llama 3's split into words (its tokenizer.py): contractions, letters, up to three digits, punctuation, line ends, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS_IN_THREES, DIGITS_ALONE = r"\p{N}{1,3}", r"\p{N}"


MAX_SAMPLE_BYTES, MAX_WORD_BYTES = 50_000_000, 1_500_000
_WORD = re.compile(r"\w+|[^\w\s]+")


def affordable_bytes(example: Iterable[str]) -> int:
    """How much text like the example `train_bpe` can be given, in bytes, if it is to take about 200 MB of memory; at most 50 MB.

    Each byte of a word that it has not seen before takes about 100. In English few words are new; in Chinese, where a word
    is all that stands between two punctuation marks, most are.
    """
    words: set[str] = set()
    n_bytes = 0
    for text in example:
        n_bytes += len(text.encode())
        words.update(_WORD.findall(text))
    n_word_bytes = sum(len(word.encode()) for word in words)
    return min(MAX_WORD_BYTES * n_bytes // max(n_word_bytes, 1), MAX_SAMPLE_BYTES)


def train_bpe(texts: Iterable[str], vocab_size: int, *, split_digits: bool = False) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids, special tokens included, from a stream of texts.

    The ids are 256 bytes, then the merges in their order, then SPECIAL_TOKENS. With `split_digits` each digit is a
    word of its own, as in Llama 1 and 2. Memory grows with the number of different words, not with the text.
    """
    n_learned = vocab_size - len(SPECIAL_TOKENS)
    if n_learned < N_BYTES:
        lowest = N_BYTES + len(SPECIAL_TOKENS)
        raise UsageError(f"vocab_size is {vocab_size}; the bytes and the special tokens alone need {lowest}")
    split = WORDS.format(digits=DIGITS_ALONE if split_digits else DIGITS_IN_THREES)
    words = [
        pre_tokenizers.Split(runtime.Regex(split), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    return finish(learn_merges(texts, n_learned, pre_tokenizers.Sequence(words)))


def learn_merges(texts: Iterable[str], n_tokens: int, words: pre_tokenizers.PreTokenizer) -> runtime.Tokenizer:
    """A runtime with `n_tokens` tokens, the 256 bytes among them and none special; `words` cuts the texts."""
    backend = runtime.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = words, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def finish(backend: runtime.Tokenizer) -> Tokenizer:
    """Give a freshly trained runtime its special tokens, and the begin-of-text token in front of every text."""
    backend.add_special_tokens([runtime.AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    begin = SPECIALS["bos"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    return Tokenizer(backend, SPECIALS)


@dataclass(frozen=True)
class Merge:
    """One step: the pair that was joined, its rank (0 is the first merge learned), and the symbols afterwards."""

    pair: tuple[str, str]
    rank: int
    symbols: tuple[str, ...]


def merge_steps(tokenizer: Tokenizer, text: str) -> Iterator[tuple[tuple[str, ...], list[Merge]]]:
    """For each word of the text: its first symbols, and every merge until none applies.

    The rule: of all neighbouring pairs, join every occurrence of the one with the lowest rank, left to right.
    The last symbols are the tokens that `Tokenizer.encode` gives.
    """
    model = json.loads(tokenizer.backend.to_str())["model"]
    if model["type"] != "BPE":
        raise UsageError(f"this tokenizer is a {model['type']}; only BPE works by merges")
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    words = [text]
    if tokenizer.backend.normalizer is not None:
        words = [tokenizer.backend.normalizer.normalize_str(text)]
    if tokenizer.backend.pre_tokenizer is not None:
        words = [word for word, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str(words[0])]
    for word in words:
        if model.get("ignore_merges") and word in model["vocab"]:
            yield (word,), []
            continue
        start = tuple(_first_symbols(word, model["vocab"], bool(model.get("byte_fallback"))))
        yield start, list(_merge(start, ranks))


def readable(symbol: str) -> str:
    """A byte-level symbol as the text it stands for; bytes that are no text by themselves as \\xNN."""
    try:
        raw = bytes(BYTE_OF_SYMBOL[c] for c in symbol)
    except KeyError:
        return symbol
    return raw.decode("utf-8", errors="backslashreplace")


def _first_symbols(word: str, vocab: dict[str, int], byte_fallback: bool) -> Iterator[str]:
    for character in word:
        if character in vocab or not byte_fallback:
            yield character
        else:
            yield from (f"<0x{byte:02X}>" for byte in character.encode())


def _merge(symbols: tuple[str, ...], ranks: dict[tuple[str, ...], int]) -> Iterator[Merge]:
    while True:
        known = [pair for pair in pairwise(symbols) if pair in ranks]
        if not known:
            return
        best = min(known, key=ranks.__getitem__)
        symbols = _join(symbols, best)
        yield Merge(best, ranks[best], symbols)


def _join(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def _byte_symbols() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: itself where it is printable, else the next code point from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(N_BYTES) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(N_BYTES + i): b for i, b in enumerate(others)}


BYTE_OF_SYMBOL = _byte_symbols()
