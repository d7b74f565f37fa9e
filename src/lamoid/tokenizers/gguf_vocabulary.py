"""The tokenizer inside a GGUF file: the `tokenizer.ggml.…` metadata -> Tokenizer. No torch.

Two kinds matter for Llamas: `llama`, SentencePiece with a score for each piece, and `gpt2`, byte-level BPE with merges
and the name of the pattern that splits a text into words. Source: ggml, docs/gguf.md, section "Tokenizer".
"""

from collections.abc import Mapping
from typing import Any

from lamoid.errors import DataError
from lamoid.tokenizers.byte_level import from_merges
from lamoid.tokenizers.sentencepiece import from_pieces
from lamoid.tokenizers.tokenizer import Tokenizer
from lamoid.tokenizers.vocabulary import TokenType

PREFIX = "tokenizer.ggml."
ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # so it is spelled there
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
_LLAMA_DEFAULTS = {"bos": 1, "eos": 2, "unk": 0}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that a file's metadata describe, None where they describe none.

    Tokens that only fill the vocabulary up to the model's size (`[PAD123]`, unused) are left out.
    Raises DataError, naming the key, for another kind and for a vocabulary that contradicts itself.
    """
    if PREFIX + "model" not in metadata:
        return None
    kind = metadata[PREFIX + "model"]
    if kind not in ("llama", "gpt2"):
        raise DataError(
            f"{PREFIX}model is {kind!r:.80}; only 'llama' (SentencePiece) and 'gpt2' (byte-level) can be read"
        )
    if len(metadata.get(PREFIX + "precompiled_charsmap", ())):
        raise DataError(f"{PREFIX}precompiled_charsmap rewrites texts; only files without it can be read")
    tokens, types = _strings(metadata, "tokens"), [int(t) for t in _numbers(metadata, "token_type")]
    types = types or [TokenType.NORMAL] * len(tokens)
    while tokens and types[len(tokens) - 1 :] == [TokenType.UNUSED] and tokens[-1] == filler(len(tokens) - 1):
        tokens, types = tokens[:-1], types[:-1]
    special_ids = {role: _id(metadata, key) for role, key in ROLE_KEYS.items() if PREFIX + key in metadata}
    add_eos = _flag(metadata, "add_eos_token") or False
    if kind == "gpt2":
        return from_merges(
            tokens,
            _strings(metadata, "merges"),
            types,
            split=str(metadata.get(PREFIX + "pre", "default")),
            special_ids=special_ids,
            add_bos=_flag(metadata, "add_bos_token"),
            add_eos=add_eos,
        )
    add_bos, add_space = _flag(metadata, "add_bos_token"), _flag(metadata, "add_space_prefix")
    return from_pieces(
        tokens,
        [float(score) for score in _numbers(metadata, "scores")[: len(tokens)]],
        types,
        special_ids={role: i for role, i in _LLAMA_DEFAULTS.items() if i < len(tokens)} | special_ids,
        add_bos=add_bos is not False,
        add_eos=add_eos,
        add_dummy_prefix=add_space is not False,
        remove_extra_whitespaces=_flag(metadata, "remove_extra_whitespaces") or False,
    )


def filler(index: int) -> str:
    """The token for an id that the model has and the tokenizer lacks."""
    return f"[PAD{index}]"


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(PREFIX + key)
    if not isinstance(value, list):
        raise DataError(f"{PREFIX}{key} is {'missing' if value is None else 'no list of texts'}; the file needs one")
    return value


def _numbers(metadata: Mapping[str, Any], key: str) -> list[float]:
    value = metadata.get(PREFIX + key, [])
    if isinstance(value, str | bool | int | float) or any(isinstance(item, str) for item in value[:1]):
        raise DataError(f"{PREFIX}{key} is {value!r:.80}; it must be an array of numbers")
    return list(value)


def _id(metadata: Mapping[str, Any], key: str) -> int:
    value = metadata[PREFIX + key]
    if type(value) is not int:
        raise DataError(f"{PREFIX}{key} is {value!r:.80}; it must be a whole number")
    return value


def _flag(metadata: Mapping[str, Any], key: str) -> bool | None:
    value = metadata.get(PREFIX + key)
    if value is not None and type(value) is not bool:
        raise DataError(f"{PREFIX}{key} is {value!r:.80}; it must be true or false")
    return value
