"""Byte-level BPE from a given vocabulary and its merges, as GGUF files of kind `gpt2` hold them.

Such a file names the pattern that splits a text into words; SPLITS says what each name means. Source: the
tokenizer.json of the models in question, and the table of pre-tokenizers in llama.cpp, whose names these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers as runtime
from tokenizers import decoders, models, pre_tokenizers

from lamoid.errors import DataError
from lamoid.tokenizers.bpe import DIGITS_ALONE, DIGITS_IN_THREES, WORDS
from lamoid.tokenizers.tokenizer import Tokenizer, runtime_errors
from lamoid.tokenizers.vocabulary import (
    TokenType,
    check_tokens,
    check_types,
    name_specials,
    special_and_user_defined,
    surround,
)


@dataclass(frozen=True)
class Split:
    """How a text becomes words: each pattern in turn cuts what the one before it left.

    `whole_words`: a word that is a token stays whole, whatever the merges would make of it. `add_bos`: whether the
    begin-of-text token comes first where the file does not say.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_LLAMA_3 = WORDS.format(digits=DIGITS_IN_THREES)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "llama-bpe": Split((_LLAMA_3,), whole_words=True, add_bos=True),  # Llama 3
    "llama3": Split((_LLAMA_3,), whole_words=True, add_bos=True),
    "llama-v3": Split((_LLAMA_3,), whole_words=True, add_bos=True),
    "falcon3": Split((_LLAMA_3,), whole_words=True, add_bos=True),
    "smaug-bpe": Split((_LLAMA_3,)),
    "qwen2": Split((WORDS.format(digits=DIGITS_ALONE),)),
    "deepseek-r1-qwen": Split((WORDS.format(digits=DIGITS_ALONE),)),
    "smollm": Split((DIGITS_ALONE, GPT_2)),  # SmolLM 1 and 2
    "starcoder": Split((DIGITS_ALONE, GPT_2)),
    "gpt-2": Split((GPT_2,)),
    "tekken": Split((_TEKKEN,), whole_words=True, add_bos=True),  # Mistral Nemo
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]")),  # files older than the names
}


def from_merges(
    tokens: Sequence[str],
    merges: Sequence[str],
    types: Sequence[int],
    *,
    split: str,
    special_ids: Mapping[str, int],
    add_bos: bool | None = None,
    add_eos: bool = False,
) -> Tokenizer:
    """A tokenizer from tokens in the order of their ids, merges "left right" in their order, and TokenType numbers.

    `split` is a name in SPLITS; `special_ids` gives the id of each role, such as {"bos": 1, "eos": 2}. Control tokens
    stay text where a user writes them out; user-defined tokens are found in a text before it is split into words.
    A byte that no token has (SmolLM2 lacks 21, most of which no text can have) gets no id, as in llama.cpp and
    transformers. Raises DataError for an unknown split, or a vocabulary that contradicts itself.
    """
    if split not in SPLITS:
        raise DataError(f"unknown way {split!r:.80} of splitting a text into words; known are {', '.join(SPLITS)}")
    check_tokens(tokens)
    kinds = check_types(types, len(tokens))
    specials = name_specials(tokens, special_ids)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    mergeable = {
        token for token, kind in zip(tokens, kinds, strict=True) if kind not in (TokenType.CONTROL, TokenType.UNKNOWN)
    }
    backend = byte_level(vocabulary, check_merges(merges, mergeable), split)
    special, user_defined = special_and_user_defined(tokens, kinds, specials)
    backend.add_special_tokens([runtime.AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([runtime.AddedToken(token, special=False, normalized=False) for token in user_defined])
    add_bos = SPLITS[split].add_bos and "bos" in specials if add_bos is None else add_bos
    surround(backend, specials, add_bos=add_bos, add_eos=add_eos)
    return Tokenizer(backend, specials)


def byte_level(vocabulary: dict[str, int], merges: list[tuple[str, str]], split: str) -> runtime.Tokenizer:
    """The runtime for a vocabulary of byte symbols, without special tokens."""
    with runtime_errors("the vocabulary with its merges makes no tokenizer"):
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=SPLITS[split].whole_words)
        backend = runtime.Tokenizer(model)
    backend.pre_tokenizer = split_into_words(split)
    backend.decoder = decoders.ByteLevel()
    return backend


def split_into_words(split: str) -> pre_tokenizers.PreTokenizer:
    """The runtime's form of a name in SPLITS, with each byte written as its symbol in the end."""
    cuts = [pre_tokenizers.Split(runtime.Regex(p), behavior="isolated") for p in SPLITS[split].patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def check_merges(merges: Sequence[str], mergeable: set[str]) -> list[tuple[str, str]]:
    """The two sides of each merge. Raises DataError unless both, and what they make, are tokens; and for repetitions.

    A merge always makes a longer token out of shorter ones, so merges that pass cannot go in a circle.
    """
    pairs: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= mergeable:
            raise DataError(f"merge {rank} is {merge!r:.80}; it must be two tokens, and together a third")
        if (left, right) in pairs:
            raise DataError(
                f"merges {pairs[left, right]} and {rank} are both {merge!r:.80}; each pair is merged at one rank"
            )
        pairs[left, right] = rank
    return list(pairs)
