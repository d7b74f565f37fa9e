"""What every tokenizer that is read from a vocabulary has in common: is it sound, and which of its tokens are special.

SentencePiece files, tiktoken files and GGUF files all come down to a list of tokens whose place is their id. Those
files come from strangers, so everything is bounded and checked here before the Rust library sees it.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import AnyStr

import tokenizers as runtime
from tokenizers import processors

from lamoid.errors import DataError
from lamoid.tokenizers.tokenizer import SPECIAL_ROLES

NATIVE_FILE = "tokenizer.model"  # the name that Llama 1, 2 and 3 all use
MAX_FILE_BYTES = 32 * 2**20  # Llama 3's file has 2 MiB
MAX_TOKENS = 2**20
MAX_TOKEN_LENGTH = 1024  # Llama 3's longest has 128 bytes
MAX_MERGES_LENGTH = 32 * 2**20  # Llama 3's have about 3 MiB


class TokenType(IntEnum):
    """The kinds of tokens, numbered as SentencePiece and GGUF number them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # placed by the tokenizer alone: <s>, <|eot_id|>
    USER_DEFINED = 4  # found in a text before anything else, and never part of a merge
    UNUSED = 5
    BYTE = 6  # <0x0A>: one byte of a character that the vocabulary lacks


def check_tokens(tokens: Sequence[str | bytes]) -> None:
    """Raise DataError unless the tokens are few enough, short enough, not empty, and all different."""
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise DataError(f"the vocabulary has {len(tokens)} tokens; it must have 1 to {MAX_TOKENS}")
    ids: dict[str | bytes, int] = {}
    for index, token in enumerate(tokens):
        if not 0 < len(token) <= MAX_TOKEN_LENGTH:
            raise DataError(f"token {index} has length {len(token)}; it must have 1 to {MAX_TOKEN_LENGTH}")
        if token in ids:
            raise DataError(
                f"tokens {ids[token]} and {index} are both {token!r:.80}; a text must have one spelling in ids"
            )
        ids[token] = index


def check_types(types: Sequence[int], n_tokens: int) -> list[TokenType]:
    """The types by name. Raises DataError where there is none for a token, or where a number means nothing."""
    if len(types) != n_tokens:
        raise DataError(f"the vocabulary has {n_tokens} tokens but {len(types)} token types; each token has one")
    known = {int(kind) for kind in TokenType}
    for index, kind in enumerate(types):
        if kind not in known:
            raise DataError(f"token {index} has type {kind}; known are {sorted(known)}")
    return [TokenType(kind) for kind in types]


def name_specials(tokens: Sequence[str], special_ids: Mapping[str, int]) -> dict[str, str]:
    """The token of each role, from its id. Raises DataError for an unknown role and an id outside the vocabulary."""
    for role, index in special_ids.items():
        if role not in SPECIAL_ROLES:
            raise DataError(f"unknown role {role!r} of a special token; known are {', '.join(SPECIAL_ROLES)}")
        if not 0 <= index < len(tokens):
            raise DataError(f"the {role} token has id {index}; the ids run from 0 to {len(tokens) - 1}")
    return {role: tokens[index] for role, index in special_ids.items()}


def special_and_user_defined(
    tokens: Sequence[str], types: Sequence[TokenType], specials: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """The tokens that only the tokenizer places, and those that a text may spell out.

    A user-defined token in a role, such as an end of turn, is special. A normal token in a role stays text: files
    exist that name `!` as their unknown token.
    """
    roles = set(specials.values())
    special, user_defined = [], []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN) or (kind == TokenType.USER_DEFINED and token in roles):
            special.append(token)
        elif kind == TokenType.USER_DEFINED:
            user_defined.append(token)
    return special, user_defined


def every_cut(tokens: Iterable[AnyStr], known: Container[AnyStr]) -> list[tuple[AnyStr, AnyStr]]:
    """The merges of a vocabulary that lists none: every way to cut a token into two, in the order of the tokens.

    Raises DataError for a vocabulary so repetitive that they would fill the memory.
    """
    merges: list[tuple[AnyStr, AnyStr]] = []
    length = 0
    for token in tokens:
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in known and token[cut:] in known:
                merges.append((token[:cut], token[cut:]))
                length += len(token)
        if length > MAX_MERGES_LENGTH:
            raise DataError(f"the merges have more than {MAX_MERGES_LENGTH} characters; the tokens repeat each other")
    return merges


def surround(backend: runtime.Tokenizer, specials: Mapping[str, str], *, add_bos: bool, add_eos: bool) -> None:
    """Put the begin-of-text token in front of every text and the end-of-text token behind it, where they are wanted."""
    for wanted, role in ((add_bos, "bos"), (add_eos, "eos")):
        if wanted and role not in specials:
            raise DataError(f"every text is to get a {role} token, but the vocabulary names none")
    before, after = [specials["bos"]] if add_bos else [], [specials["eos"]] if add_eos else []
    if before or after:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in after)],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(before + after)],
        )
