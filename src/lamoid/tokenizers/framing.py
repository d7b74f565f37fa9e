"""Texts, and pairs of texts, with the special tokens that an encoder expects around them, within a number of tokens.

Cut is only the text itself, never a special token. `frame_many` drops what is too much; `windows` keeps all of a long
second text, in pieces that overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers as runtime

from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.tokenizer import CANNOT_ENCODE, Tokenizer, check_encodable, runtime_errors

SPECIAL = -1
ENCODED_AT_ONCE = 1024
"""Texts whose encodings are held at a time: the runtime's take ten times the memory of the rows made of them."""


@dataclass(frozen=True, eq=False)
class Framed:
    """One row of an encoder's input, before padding: arrays with one entry for each of its T tokens.

    `sources` says which text a token comes from: 0, 1, or SPECIAL; `offsets` (T, 2) where its characters begin and end
    there; `n_cut` how many tokens of the texts found no room.
    """

    ids: np.ndarray
    segments: np.ndarray
    sources: np.ndarray
    offsets: np.ndarray
    n_cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


def frame_many(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_tokens: int
) -> list[Framed]:
    """Each text (or pair) in its frame, cut to `max_tokens`: of a pair the longer text first, as `share` says."""
    frame = _frame(tokenizer, is_pair=pairs is not None)
    room = _room(frame, max_tokens)
    rows: list[Framed] = []
    for start in range(0, len(texts), ENCODED_AT_ONCE):
        group = slice(start, start + ENCODED_AT_ONCE)
        firsts = _encode(tokenizer, texts[group])
        if pairs is None:
            rows += [_fill(frame, [_cut(first, 0, room)], len(first.ids)) for first in firsts]
            continue
        for first, second in zip(firsts, _encode(tokenizer, pairs[group]), strict=True):
            n_first, n_second = share(len(first.ids), len(second.ids), room)
            pieces = [_cut(first, 0, n_first), _cut(second, 0, n_second)]
            rows.append(_fill(frame, pieces, len(first.ids) + len(second.ids)))
    return rows


def share(n_first: int, n_second: int, room: int) -> tuple[int, int]:
    """How much of two texts stays where `room` tokens are: the longer one is cut until both are equally long, then both.

    This is `longest_first` of transformers, odd rooms included: the longer text (of equals the second) gets the odd token.
    """
    half, other_half = room // 2, room - room // 2
    if n_first + n_second <= room:
        return n_first, n_second
    if min(n_first, n_second) <= half:
        return (n_first, room - n_first) if n_first <= n_second else (room - n_second, n_second)
    return (other_half, half) if n_first > n_second else (half, other_half)


def windows(tokenizer: Tokenizer, first: str, second: str, *, max_tokens: int, overlap: int) -> list[Framed]:
    """A pair whose second text is cut into as many windows as it takes, each behind the whole first text.

    Neighbouring windows share `overlap` tokens; transformers calls that `stride`, and the cut `only_second`.
    Raises DataError where the first text leaves no more than `overlap` tokens of room.
    """
    if overlap < 0:
        raise UsageError(f"overlap is {overlap}; it must be at least 0")
    frame = _frame(tokenizer, is_pair=True)
    encoded, context = _encode(tokenizer, [first, second])
    room = _room(frame, max_tokens) - len(encoded.ids)
    if room <= overlap:
        raise DataError(
            f"{first[:40]!r} has {len(encoded.ids)} tokens, which leaves {room} of {max_tokens} for the other text; "
            f"more than the overlap of {overlap} are needed: shorten it, or allow more tokens"
        )
    head = _cut(encoded, 0, len(encoded.ids))
    last = max(len(context.ids) - overlap, 1)
    return [_fill(frame, [head, _cut(context, start, start + room)]) for start in range(0, last, room - overlap)]


_Piece = tuple[np.ndarray, np.ndarray]
"""Ids and offsets of a part of a text."""


def _cut(encoding: runtime.Encoding, start: int, end: int) -> _Piece:
    offsets = np.array(encoding.offsets[start:end], dtype=np.int32).reshape(-1, 2)
    return np.array(encoding.ids[start:end], dtype=np.int32), offsets


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[runtime.Encoding]:
    for text in texts:
        check_encodable(text)
    with runtime_errors(CANNOT_ENCODE):
        return list(tokenizer.backend.encode_batch(list(texts), add_special_tokens=False))


@dataclass(frozen=True)
class _Slot:
    """A place in a frame: a special token, or one of the texts."""

    source: int
    index: int
    segment: int


def _frame(tokenizer: Tokenizer, *, is_pair: bool) -> list[_Slot]:
    """Where the tokenizer puts texts and special tokens, found by looking at how it frames a text of one letter."""
    with runtime_errors(CANNOT_ENCODE):
        encoding = tokenizer.backend.encode("a", "a" if is_pair else None)
    slots: list[_Slot] = []
    for index, segment, source in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
        if source is None or not (slots and slots[-1].source == source):
            slots.append(_Slot(SPECIAL if source is None else source, index, segment))
    if sum(slot.source != SPECIAL for slot in slots) != 1 + is_pair:
        raise DataError("the tokenizer frames texts in a way that is not known here; an encoder's is needed")
    return slots


def _room(frame: list[_Slot], max_tokens: int) -> int:
    room = max_tokens - sum(slot.source == SPECIAL for slot in frame)
    if room < 1:
        raise UsageError(f"max_tokens is {max_tokens}; the special tokens and one token need {max_tokens - room + 1}")
    return room


def _fill(frame: list[_Slot], pieces: list[_Piece], n_tokens: int = 0) -> Framed:
    parts = [
        (np.array([slot.index]), np.zeros((1, 2), np.int32)) if slot.source == SPECIAL else pieces[slot.source]
        for slot in frame
    ]
    lengths = [len(ids) for ids, _ in parts]
    return Framed(
        np.concatenate([ids for ids, _ in parts]).astype(np.int32),
        np.repeat([slot.segment for slot in frame], lengths).astype(np.int8),
        np.repeat([slot.source for slot in frame], lengths).astype(np.int8),
        np.concatenate([offsets for _, offsets in parts]),
        max(n_tokens - sum(len(ids) for ids, _ in pieces), 0),
    )
