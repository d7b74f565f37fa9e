"""More tokens for a tokenizer that exists, learned from a text in a language that it cuts into small pieces.

Its own tokens are the symbols to begin with, and the new merges stand behind all of its own. So a text is first cut as
before, and then some neighbours are joined: every new token replaced by its old pieces gives the old ids. Old tokens
keep their ids; the new ones follow behind the last. Merges are learned as in `merges.py`.

Byte-level BPE (GPT-2, Llama 3, SmolLM2, `train_bpe`) learns inside the words into which it splits a text. SentencePiece
BPE (Llama 1 and 2) has no words; here neighbours are joined only inside runs of letters or of signs, as its own training
would have it, and a character that it lacks and writes as bytes can become a token too.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any
from unicodedata import category

import numpy as np
import tokenizers as runtime
from jaxtyping import Int32

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.gguf_vocabulary import BYTE_TOKENS, PROBE
from lamoid.tokenizers.merges import GAP, Learned, learn
from lamoid.tokenizers.sentencepiece import SPACE
from lamoid.tokenizers.tokenizer import Tokenizer, runtime_errors
from lamoid.tokenizers.vocabulary import MAX_TOKENS, every_cut

SAMPLE_BYTES = 10_000_000
"""Text to learn from: enough for some thousand tokens, and 0.8 GB of memory where most tokens are a byte or two."""
ENCODED_AT_ONCE_BYTES = 1 << 18
_SPACE, _LETTER, _SIGN, _DIGIT = range(4)


def grow(
    tokenizer: Tokenizer,
    texts: Iterable[str],
    n_tokens: int,
    *,
    on_bytes: Callable[[int], object] = lambda n: None,
    on_tokens: Callable[[int], object] = lambda n: None,
) -> Tokenizer:
    """The tokenizer with up to `n_tokens` more, learned from the texts (about SAMPLE_BYTES at most); fewer if they yield no more.

    Raises UsageError for a tokenizer that does not work by merges or a number out of range, DataError for texts in which
    no two tokens ever meet twice. The files from which the tokenizer was read are not among those of the new one.
    """
    state = json.loads(tokenizer.backend.to_str())
    model = state["model"]
    _check_growable(model, tokenizer)
    most = MAX_TOKENS - tokenizer.vocab_size
    if not 1 <= n_tokens <= most:
        raise UsageError(f"{n_tokens} tokens are to be added; it must be 1 to {most}")
    texts = list(texts)
    learned: list[Learned] = []
    for token in islice(_learn(tokenizer, state, texts, on_bytes), n_tokens):
        learned.append(token)
        on_tokens(1)
    if not learned:
        raise DataError("no two tokens stand beside each other twice in the text; give more of it")
    model["vocab"] |= {token["content"]: token["id"] for token in state["added_tokens"]}  # else they would get new ids
    first, known = tokenizer.vocab_size, set(model["vocab"])
    new = [token.token for token in learned]
    model["vocab"] |= {token: first + i for i, token in enumerate(new)}
    if model["byte_fallback"]:  # a SentencePiece vocabulary joins whatever makes a piece
        model["merges"] += map(list, every_cut(new, known.union(new)))
    else:
        model["merges"] += [list(token.pair) for token in learned if token.pair]
    with runtime_errors("the vocabulary with its new tokens makes no tokenizer"):
        backend = runtime.Tokenizer.from_str(json.dumps(state))
    grown = Tokenizer(backend, tokenizer.specials, chat_template=tokenizer.chat_template)
    added = [token["content"] for token in state["added_tokens"]]
    _check_meaning(tokenizer, grown, [PROBE, *added, *(text[:1000] for text in texts[:100])])
    return grown


def old_pieces(tokenizer: Tokenizer, grown: Tokenizer) -> list[list[int]]:
    """For each new id of a grown tokenizer, the old ids that stood in its place, in order."""
    new = [grown.backend.id_to_token(index) for index in range(tokenizer.vocab_size, grown.vocab_size)]
    return [[piece.id for piece in tokenizer.backend.model.tokenize(token)] for token in new]


def tokens_per_character(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Tokens of the texts, divided by their Unicode characters."""
    return sum(map(len, tokenizer.encode_many(texts))) / max(sum(map(len, texts)), 1)


def _check_growable(model: dict[str, Any], tokenizer: Tokenizer) -> None:
    if model["type"] != "BPE":
        raise UsageError(
            f"the tokenizer is a {model['type']}, which has no merges to go on with; only BPE can be grown"
        )
    if not model["merges"]:
        raise UsageError(
            "the tokenizer has no merges: each of its tokens is one character; train a BPE tokenizer on the text instead"
        )
    if any(model[field] for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        raise UsageError("the tokenizer marks its pieces or drops merges; only plain BPE can be grown")
    if not (model["byte_fallback"] or "ByteLevel" in repr(tokenizer.backend.pre_tokenizer)):
        raise UsageError("the tokenizer neither works on bytes nor falls back on them; it has no pieces to start from")


def _learn(
    tokenizer: Tokenizer, state: dict[str, Any], texts: Sequence[str], on_bytes: Callable[[int], object]
) -> Iterator[Learned]:
    backend, model = tokenizer.backend, state["model"]
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = {token["content"] for token in state["added_tokens"]}
    if not model["byte_fallback"]:
        spelled = {index: token for token, index in vocabulary.items()}
        ids = _encode(backend, texts, on_bytes, lambda ids: ids)
        ids[np.isin(ids, [vocabulary[token] for token in added])] = GAP
        return learn(ids, spelled, lambda token: True)
    normalize = backend.normalizer.normalize_str if backend.normalizer is not None else str
    lacked = sorted({c for text in texts for c in set(normalize(text))} - vocabulary.keys() - {SPACE})
    characters = {max(vocabulary.values()) + 1 + i: c for i, c in enumerate(lacked)}
    model = model | {"vocab": model["vocab"] | {c: index for index, c in characters.items()}}
    spelled = {index: token for token, index in vocabulary.items()} | characters
    cut = _Cuts(spelled, added | BYTE_TOKENS)
    ids = _encode(runtime.Tokenizer.from_str(json.dumps(state | {"model": model})), texts, on_bytes, cut)
    pieces = vocabulary.keys() - added - BYTE_TOKENS
    parts = {part for piece in pieces for i in range(1, len(piece)) for part in (piece[:i], piece[i:])}
    # A part of an old piece would be a new way to make that piece, where SentencePiece joins whatever makes one.
    return learn(
        ids, spelled, lambda token: token not in parts, {i: len(c.encode()) - 1 for i, c in characters.items()}
    )


def _encode(
    backend: runtime.Tokenizer,
    texts: Sequence[str],
    on_bytes: Callable[[int], object],
    cut: Callable[[Int32[np.ndarray, " n"]], Int32[np.ndarray, " m"]],
) -> Int32[np.ndarray, " N"]:
    """The ids of all texts in a row, GAP between two words; `cut` puts more gaps into the ids of one text."""
    chunks = [np.full(1, GAP, dtype=np.int32)]
    for group in _groups(texts):
        for encoding in backend.encode_batch(group, add_special_tokens=False):
            ids = np.array(encoding.ids, dtype=np.int32)
            words = np.array(encoding.word_ids, dtype=np.float64)
            chunks += [cut(np.insert(ids, np.flatnonzero(np.diff(words)) + 1, GAP)), chunks[0]]
        on_bytes(sum(len(text.encode()) for text in group))
    return np.concatenate(chunks)


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    group: list[str] = []
    n_bytes = 0
    for text in texts:
        group.append(text)
        n_bytes += len(text.encode())
        if n_bytes >= ENCODED_AT_ONCE_BYTES:
            yield group
            group, n_bytes = [], 0
    yield group


class _Cuts:
    """Gaps where SentencePiece's training would not join: before a space, between letters and signs, around digits."""

    def __init__(self, spelled: dict[int, str], never: set[str]) -> None:
        n_ids = max(spelled) + 1
        self._first, self._last = np.zeros((2, n_ids), dtype=np.int8)
        self._after_space, self._never = np.zeros((2, n_ids), dtype=bool)
        for index, token in spelled.items():
            self._after_space[index], self._never[index] = token[0] in (SPACE, " "), token in never
            self._first[index], self._last[index] = _kind(token[0]), _kind(token[-1])

    def __call__(self, ids: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " m"]:
        ids = np.where(self._never[ids], GAP, ids).astype(np.int32)
        left, right = self._last[ids[:-1]], self._first[ids[1:]]
        is_cut = ((left != right) & (left != _SPACE)) | (right == _DIGIT) | self._after_space[ids[1:]]
        return np.insert(ids, np.flatnonzero(is_cut) + 1, GAP)


def _kind(character: str) -> int:
    if character in (SPACE, " "):
        return _SPACE
    return {"L": _LETTER, "M": _LETTER, "N": _DIGIT}.get(category(character)[0], _SIGN)


def _check_meaning(tokenizer: Tokenizer, grown: Tokenizer, texts: Sequence[str]) -> None:
    """Raise DataError unless the new ids, with every new token replaced by its old pieces, are the old ids."""
    pieces = dict(enumerate(old_pieces(tokenizer, grown), tokenizer.vocab_size))
    for text, old, new in zip(texts, tokenizer.encode_many(texts), grown.encode_many(texts), strict=True):
        if old != [piece for index in new for piece in pieces.get(index, [index])]:
            raise DataError(
                f"the tokenizer would cut {text[:40]!r} differently beside its new tokens; it cannot be grown"
            )
