"""Damage to safetensors, their index, and GGUF files, by someone who knows how they are built."""

import random
import struct
from typing import Any

from tests.fuzz.mutate import NUMBERS, TEXTS, Pairs, damaged_bytes, damaged_json, evil, find, put, write

DTYPES = ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "F33", ""]
SHARDS = [
    "../config.json", "/etc/passwd", "/dev/zero", "", ".", "..", "pipe", "folder", "folder/../config.json", "config.json",
    "model.bin", "a" * 300, "a/" * 3000, "\0", "\ud800", "model-00001-of-00002.safetensors", "MODEL-00001-OF-00002.SAFETENSORS",
]  # fmt: skip


def damaged_safetensors(content: bytes, dice: random.Random) -> bytes:
    """A header that says something else than the bytes behind it, or bytes that are another number than it says."""
    if dice.random() < 0.15:
        return damaged_bytes(content, dice)
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    if dice.random() < 0.85:
        header = damaged_json(header, dice, _damage_header)
    if dice.random() < 0.15:
        data = dice.choice([data[: dice.randrange(len(data))], data + bytes(dice.randrange(1, 100)), b"", data * 2])
    length = len(header)
    if dice.random() < 0.1:
        length = dice.choice([*NUMBERS, length + 1, length - 1, length + len(data)]) % 2**64
    return struct.pack("<Q", length) + header + data


def _damage_header(header: Any, dice: random.Random) -> None:
    if not (isinstance(header, Pairs) and len(header) > 1):
        return
    (name, first), (other_name, second) = dice.sample(header, 2)
    places = find(first, "data_offsets"), find(second, "data_offsets")
    match dice.randrange(8):
        case 0:
            put(first, "data_offsets", places[1])
            put(second, "data_offsets", places[0])
        case 1:
            put(first, "data_offsets", places[1])
        case 2 if isinstance(places[0], list) and [type(place) for place in places[0]] == [int, int]:
            low, high = places[0]
            by = dice.choice([1, 4, -4, 64, 2**32, 2**63, -(2**63)])
            put(
                first,
                "data_offsets",
                dice.choice([[high, low], [low + by, high + by], [low, high + by], [low + by, high]]),
            )
        case 3:
            put(first, "dtype", dice.choice(DTYPES))
        case 4:
            put(first, "shape", dice.choice([[], [0], [2**32, 2**32], [2**63], [-1, -16], [1] * 70, [16.0], NUMBERS]))
        case 5:
            header.insert(dice.randrange(len(header)), (name, second))
        case 6:
            header[:] = [(other_name if key == name else key, value) for key, value in header]
        case _:
            put(header, "__metadata__", evil(dice))


def damaged_index(content: bytes, dice: random.Random) -> bytes:
    """An index that names other files, or files outside of the directory."""

    def send_elsewhere(index: Any, dice: random.Random) -> None:
        weight_map = find(index, "weight_map")
        if isinstance(weight_map, Pairs) and weight_map:
            at = dice.randrange(len(weight_map))
            weight_map[at] = (weight_map[at][0], dice.choice(SHARDS))

    return damaged_json(content, dice, send_elsewhere)


# ---- GGUF

U8, F32_VALUE, STRING, ARRAY = 0, 6, 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class _Layout:
    """Where a file's keys and tensors lie, and every number in it that counts, measures or names a type."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 4
        self.numbers: list[tuple[int, int]] = []
        self.number(4)
        n_tensors, n_keys = self.number(8), self.number(8)
        self.keys = [self.span(self._key) for _ in range(n_keys)]
        self.tensors = [self.span(self._tensor) for _ in range(n_tensors)]

    def number(self, size: int) -> int:
        self.numbers.append((self.at, size))
        self.at += size
        return int.from_bytes(self.content[self.at - size : self.at], "little")

    def span(self, read: Any) -> bytes:
        start = self.at
        read()
        return self.content[start : self.at]

    def _text(self) -> None:
        length = self.number(8)
        self.at += length

    def _value(self, kind: int) -> None:
        if kind == STRING:
            self._text()
        elif kind == ARRAY:
            item, count = self.number(4), self.number(8)
            for _ in range(count if item == STRING else 0):
                self._text()
            self.at += 0 if item == STRING else count * _SIZES[item]
        else:
            self.number(_SIZES[kind])

    def _key(self) -> None:
        self._text()
        self._value(self.number(4))

    def _tensor(self) -> None:
        self._text()
        for _ in range(self.number(4)):
            self.number(8)
        self.number(4)
        self.number(8)


def damaged_gguf(content: bytes, dice: random.Random) -> bytes:
    """Numbers that count too much, keys and tensors twice, in other places, or with a value of another type."""
    if dice.random() < 0.2:
        return damaged_bytes(content, dice)
    layout = _Layout(content)
    if dice.random() < 0.4:
        return _with_other_numbers(content, layout.numbers, dice)
    keys, tensors, data = layout.keys, layout.tensors, content[-(-layout.at // 32) * 32 :]
    n_keys, n_tensors = len(keys), len(tensors)
    for _ in range(dice.choice([1, 1, 2, 3])):
        spans = dice.choice([keys, keys, tensors]) or keys
        at, other = (dice.randrange(len(spans)) for _ in range(2))
        match dice.randrange(7):
            case 0 if len(spans) > 1:
                del spans[at]
            case 1:
                spans[other:other] = [spans[at]] * min(dice.choice([1, 1, 2, 5000]), 10**6 // len(spans[at]) + 1)
            case 2:
                spans[at], spans[other] = spans[other], spans[at]
            case 3:
                spans[at] = damaged_bytes(spans[at], dice)
            case 4 if spans is keys:
                keys[at] = _with_another_value(keys[at], dice)
            case 5 if spans is tensors:  # where another tensor lies
                tensors[at] = tensors[at][:-8] + tensors[other][-8:]
            case _:
                text = write(dice.choice(TEXTS))[1:-1]
                old = int.from_bytes(spans[at][:8], "little")
                spans[at] = struct.pack("<Q", len(text)) + text + spans[at][8 + old :]
    if dice.random() < 0.8:
        n_keys, n_tensors = len(keys), len(tensors)
    header = content[:8] + struct.pack("<QQ", n_tensors, n_keys) + b"".join([*keys, *tensors])
    return header + bytes(-len(header) % 32) + data


def _with_other_numbers(content: bytes, numbers: list[tuple[int, int]], dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice([1, 1, 2])):
        at, size = dice.choice(numbers)
        old = int.from_bytes(changed[at : at + size], "little")
        there, n = dice.choice(numbers)
        theirs = int.from_bytes(content[there : there + n], "little")
        new = dice.choice([*NUMBERS, old + 1, old - 1, old * 2, old + 32, theirs, theirs])
        changed[at : at + size] = (new % 2 ** (8 * size)).to_bytes(size, "little")
    return bytes(changed)


def _with_another_value(key: bytes, dice: random.Random) -> bytes:
    name = key[: 8 + int.from_bytes(key[:8], "little")]
    text = write(dice.choice(TEXTS))[1:-1]
    string = struct.pack("<Q", len(text)) + text
    n = min(dice.choice([0, 1, 3, 5000]), 10**6 // len(string))
    kind, value = dice.choice(
        [
            *((kind, struct.pack("<Q", dice.choice(NUMBERS) % 2**64)[:size]) for kind, size in _SIZES.items()),
            (F32_VALUE, struct.pack("<f", dice.choice([0.0, -1.0, float("nan"), float("inf"), 1e-40, 3e38]))),
            (STRING, string),
            (ARRAY, struct.pack("<IQ", STRING, n) + string * n),
            (ARRAY, struct.pack("<IQ", F32_VALUE, n) + struct.pack("<f", float("nan")) * n),
            (ARRAY, struct.pack("<IQ", U8, n) + bytes(n)),
            (ARRAY, struct.pack("<IQ", ARRAY, 1) * 2000),
        ]
    )
    return name + struct.pack("<I", kind) + value
