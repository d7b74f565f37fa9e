"""SentencePiece's file: pieces with scores and types, and a few settings, as a protobuf message.

Read without the library, because a stranger's file is safer in a few bounded lines, and so that only training needs it.
Source: sentencepiece_model.proto, whose field numbers stand below.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from lamoid.errors import DataError
from lamoid.tokenizers.vocabulary import MAX_FILE_BYTES, MAX_TOKENS, TokenType

_MODEL_TYPES = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
_BPE = 2
_LAST_FIELD = 53  # of sentencepiece_model.proto's messages; what lies above is an extension
_Message = dict[int, int | bytes]


@dataclass
class Pieces:
    """Pieces in the order of their ids, and what happens to spaces. The defaults are the file format's."""

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True


def read_pieces(data: bytes) -> Pieces:
    """The parts of a file that decide its ids: ModelProto's pieces (1), trainer_spec (2) and normalizer_spec (3).

    Raises DataError for files that are malformed, of another type than BPE, or with rules that cannot be followed.
    """
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"the file has {len(data)} bytes; a SentencePiece file has at most {MAX_FILE_BYTES}")
    pieces = Pieces()
    trainer: _Message = {}
    normalizer: _Message = {}
    for number, value in _fields(data):
        if number == 1:
            _read_piece(_message(value), pieces)
        elif number == 2:
            trainer |= _message(value)
        elif number == 3:
            normalizer |= _message(value)
    kind = trainer.get(3, 1)
    if kind != _BPE:
        name = _MODEL_TYPES.get(kind, kind) if isinstance(kind, int) else kind
        raise DataError(f"the SentencePiece file is of type {name!r:.80}; only BPE can be read")
    if normalizer.get(2):
        raise DataError(
            f"the SentencePiece file rewrites texts by rule {normalizer.get(1, b'')!r:.80}; only 'identity' can be followed"
        )
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise DataError("the SentencePiece file writes spaces behind words or as themselves; neither can be read")
    pieces.add_dummy_prefix = bool(normalizer.get(3, 1))
    pieces.remove_extra_whitespaces = bool(normalizer.get(4, 1))
    ids = {token: index for index, token in enumerate(pieces.tokens)}
    names = {"unk": (45, b"<unk>"), "bos": (46, b"<s>"), "eos": (47, b"</s>"), "pad": (48, b"<pad>")}
    for role, (number, default) in names.items():
        token = _text(trainer.get(number, default))
        if token in ids and pieces.types[ids[token]] in (TokenType.CONTROL, TokenType.UNKNOWN):
            pieces.special_ids[role] = ids[token]
    return pieces


def _read_piece(piece: _Message, pieces: Pieces) -> None:
    if len(pieces.tokens) >= MAX_TOKENS:
        raise DataError(f"the SentencePiece file has more than {MAX_TOKENS} pieces")
    score, kind = piece.get(2, bytes(4)), piece.get(3, TokenType.NORMAL)
    if not isinstance(score, bytes) or len(score) != 4 or not isinstance(kind, int):
        raise DataError(f"piece {len(pieces.tokens)} of the SentencePiece file is malformed")
    token = _text(piece.get(1, b""))
    if kind == TokenType.USER_DEFINED and " " in token:
        kind = TokenType.UNUSED  # it is looked for after spaces have become ▁, and so never found
    pieces.tokens.append(token)
    pieces.scores.append(struct.unpack("<f", score)[0])
    pieces.types.append(kind)


def _text(value: int | bytes) -> str:
    if not isinstance(value, bytes):
        raise DataError(f"the SentencePiece file has the number {value} where a text belongs; it is damaged")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the SentencePiece file has {value!r:.80} where a text belongs; it is damaged") from error


def _message(data: int | bytes) -> _Message:
    """The fields of a message that occurs in a file, the last of each number."""
    return {number: value for number, value in _fields(data) if number <= _LAST_FIELD}


def _fields(data: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message: an integer for a varint, else the bytes."""
    if not isinstance(data, bytes):
        raise DataError(f"the SentencePiece file has the number {data} where a message belongs; it is damaged")
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise DataError(f"byte {position} is no SentencePiece file's: wire type {wire_type} does not occur in one")
        if length > len(data) - position:
            raise DataError(f"the SentencePiece file ends early: a field at byte {position} should have {length} bytes")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the position after it."""
    value = 0
    for i in range(10):
        if position + i >= len(data):
            raise DataError(f"the SentencePiece file ends early, inside a number at byte {position}")
        byte = data[position + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise DataError(f"the SentencePiece file has a number of more than 64 bits at byte {position}; it is damaged")
