"""Llama 3's `tokenizer.model`: a line for each token, its bytes in base64 and its rank, which is its id.

The file has no merges. Its rule: of all neighbouring tokens whose bytes together are a token, join those that make
the one with the lowest rank, and keep a word whole that is a token itself. So every way to cut a token into two tokens
is a merge, and its rank is the whole's. Source: Meta's reference implementation (llama3, tokenizer.py), tiktoken.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Any

import tokenizers as runtime

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.bpe import BYTE_OF_SYMBOL, N_BYTES
from lamoid.tokenizers.byte_level import byte_level, split_into_words
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.tokenizers.vocabulary import MAX_FILE_BYTES, MAX_TOKENS, NATIVE_FILE, check_tokens, every_cut, surround

N_SPECIAL_TOKENS = 256


def _reserved(first: int, names: Sequence[str]) -> tuple[str, ...]:
    """Names, filled up to 256 with reserved tokens that are numbered from `first`."""
    return (*names, *(f"<|reserved_special_token_{first + i}|>" for i in range(N_SPECIAL_TOKENS - len(names))))


LLAMA_3_SPECIAL_TOKENS = _reserved(
    5,
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|reserved_special_token_2|>",
        "<|reserved_special_token_3|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
    ),
)
# Llama 3.1 to 3.3 come with the same file and other names; nothing in the file says which.
LLAMA_3_1_SPECIAL_TOKENS = _reserved(
    2,
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|step_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ),
)
_ROLES = {
    "<|begin_of_text|>": "bos",
    "<|end_of_text|>": "eos",
    "<|pad|>": "pad",
    "<|finetune_right_pad_id|>": "pad",
}
_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,9})")
_SYMBOL_OF_BYTE = {byte: symbol for symbol, byte in BYTE_OF_SYMBOL.items()}


def is_tiktoken(data: bytes) -> bool:
    """Whether a `tokenizer.model` is of this kind: its first line is base64, a space and a number."""
    return _LINE.fullmatch(data[:4096].split(b"\n", 1)[0].rstrip(b"\r")) is not None


def read_tiktoken(
    data: bytes,
    *,
    special_tokens: Sequence[str] = LLAMA_3_SPECIAL_TOKENS,
    add_bos: bool = True,
    add_eos: bool = False,
) -> Tokenizer:
    """The tokenizer of such a file. The special tokens get the ids after the last rank, in their order.

    Raises DataError for a line of another form, a token or a rank that comes twice, a gap in the ranks, a byte that
    is no token, or a file that is too large.
    """
    ranks = _read_ranks(data)
    vocabulary = {_symbols(token): rank for token, rank in ranks.items()}
    check_tokens([*vocabulary, *special_tokens])
    merges = [(_symbols(left), _symbols(right)) for left, right in every_cut(ranks, ranks)]
    backend = byte_level(vocabulary, merges, "llama-bpe")
    backend.add_special_tokens([runtime.AddedToken(t, special=True, normalized=False) for t in special_tokens])
    specials = {_ROLES[token]: token for token in special_tokens if token in _ROLES}
    surround(backend, specials, add_bos=add_bos, add_eos=add_eos)
    return Tokenizer(backend, specials, {NATIVE_FILE: data})


def write_tiktoken(tokenizer: Tokenizer) -> bytes:
    """The file of a tokenizer of `train_bpe`, from which `read_tiktoken` makes one that gives the same ids.

    The special tokens are not in it: name them again when reading, SPECIAL_TOKENS for ids that are the same throughout.
    Raises UsageError where that file would give other ids. It gives the same if the merges, in their order, make the
    tokens in theirs, one each, and every token taken by itself comes out whole. For let X and Y be neighbours that
    together spell a token which was learned as another pair. No merge of a lower rank crossed their borders, so within
    them all went as in the token by itself, and they are that pair.
    """
    if is_tiktoken(tokenizer.native.get(NATIVE_FILE, b"")):
        return tokenizer.native[NATIVE_FILE]
    state = json.loads(tokenizer.backend.to_str())
    words = json.loads(split_into_words("llama-bpe").__getstate__())
    if state["model"]["type"] != "BPE" or state["normalizer"] is not None or state["pre_tokenizer"] != words:
        raise UsageError("only byte-level BPE that splits a text into words as Llama 3 does has a tiktoken file")
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    ids = {token: index for token, index in state["model"]["vocab"].items() if token not in special}
    tokens = sorted(ids, key=ids.__getitem__)
    if len(special) != len(state["added_tokens"]) or not _is_in_learned_order(tokens, state["model"], tokenizer):
        raise UsageError(
            "a tiktoken file would give other ids than this tokenizer; only those of train_bpe, whose ids are the "
            "bytes and then one token for each merge, have one"
        )
    lines = [b"%s %d\n" % (base64.b64encode(bytes(BYTE_OF_SYMBOL[c] for c in t)), ids[t]) for t in tokens]
    return b"".join(lines)


def _is_in_learned_order(tokens: list[str], model: dict[str, Any], tokenizer: Tokenizer) -> bool:
    made = [left + right for left, right in model["merges"]]
    if set(tokens[:N_BYTES]) != set(BYTE_OF_SYMBOL) or tokens[N_BYTES:] != made or model["ignore_merges"]:
        return False
    rank = {token: index for index, token in enumerate(tokens)}
    if any(rank[token] != model["vocab"][token] for token in tokens):
        return False
    if not all(rank.keys() >= {left, right} for left, right in model["merges"]):
        return False
    if any(max(rank[left], rank[right]) >= rank[left + right] for left, right in model["merges"]):
        return False
    return all([t.id for t in tokenizer.backend.model.tokenize(token)] == [rank[token]] for token in tokens)


def _read_ranks(data: bytes) -> dict[bytes, int]:
    """The tokens with their ranks, lowest rank first."""
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"the file has {len(data)} bytes; a tiktoken file has at most {MAX_FILE_BYTES}")
    n_lines = data.count(b"\n")
    if n_lines > MAX_TOKENS:
        raise DataError(f"the file has {n_lines} lines; a vocabulary has at most {MAX_TOKENS} tokens")
    token_of_rank: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise DataError(f"line {number} is {line[:80]!r}; it must be a token in base64, a space, and its rank")
        try:
            token, rank = base64.b64decode(match[1], validate=True), int(match[2])
        except binascii.Error as error:
            raise DataError(f"line {number} is {line[:80]!r}, which is not base64: {error}") from error
        if rank in token_of_rank:
            raise DataError(f"line {number} gives rank {rank} a second time; each token has a rank of its own")
        token_of_rank[rank] = token
    n_tokens = len(token_of_rank)
    if token_of_rank and max(token_of_rank) >= n_tokens:
        raise DataError(
            f"rank {max(token_of_rank)} is out of range; {n_tokens} tokens have the ranks 0 to {n_tokens - 1}"
        )
    tokens = [token_of_rank[rank] for rank in range(n_tokens)]
    check_tokens(tokens)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    missing = [byte for byte in range(N_BYTES) if bytes([byte]) not in ranks]
    if missing:
        raise DataError(
            f"{len(missing)} of the 256 bytes are no token, the first being {missing[0]}; add a line for each"
        )
    return ranks


def _symbols(token: bytes) -> str:
    return "".join(_SYMBOL_OF_BYTE[byte] for byte in token)
