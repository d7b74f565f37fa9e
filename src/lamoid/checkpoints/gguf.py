"""GGUF files, versions 2 and 3 -> metadata and tensors, in numpy, no torch. `quants.py` knows the blocks.

A file is "GGUF", the version (u32), two counts (u64), the metadata, a description of each tensor, padding, and the
tensors' bytes. All numbers are little-endian.

    string  length (u64), UTF-8
    key     name (string), type (u32), value
    array   type (u32), count (u64), values
    tensor  name (string), n (u32), n sizes (u64), type (u32), offset from the end of the padding (u64)

Files come from strangers: no number in one is believed before it has been compared with the bytes that are left.
Source: ggml, docs/gguf.md. Stricter than that: no arrays of arrays (llama.cpp takes none either), limits on the counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from lamoid.checkpoints.quants import FORMATS, dequantize_blocks
from lamoid.errors import CheckpointError, UsageError

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT_BYTES = 32

# At least twice what the largest models need (Gemma 3: 262,144 tokens, about 515,000 merges); with them a file that is
# large and made to hurt still takes less than a second, and a few hundred megabytes.
MAX_HEADER_BYTES = 64 * 2**20
MAX_KEYS, MAX_TENSORS, MAX_STRINGS = 2**12, 2**13, 2**20
MAX_NAME_CHARACTERS = 2**16 - 1
MAX_ALIGNMENT_BYTES = 2**16
MAX_DIMENSIONS = 4

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = dict(enumerate(["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<u1"])) | {10: "<u8", 11: "<i8", 12: "<f8"}
_TENSOR_TYPES = {block.type_id: name for name, block in FORMATS.items()}
_U32, _U64 = Struct("<I"), Struct("<Q")
_LEAST_KEY_BYTES, _LEAST_TENSOR_BYTES, _LEAST_STRING_BYTES = 14, 33, 8


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """A tensor as it lies in the file; `dequantize` makes numbers of it.

    `shape` is in numpy's order, the last axis contiguous (the file states it the other way round).
    `data` is a read-only view of the mapped file, uint8, of shape (*shape[:-1], bytes per row): rows are whole blocks.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    data: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class GGUFFile:
    """What `read_gguf` found, in the file's order.

    In the metadata an array of strings is a list and any other a read-only numpy array; the rest are plain values.
    The file stays mapped as long as one of its arrays is alive, so there is nothing to close.
    """

    path: Path
    metadata: dict[str, object]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: str | Path) -> GGUFFile:
    """Map a file and describe it; weights are read from disk when they are used, and never copied here.

    Raises CheckpointError, naming the file and the first thing wrong with it. While it is mapped the file must not be
    shortened: the operating system ends a process that reads beyond its end.
    """
    path = Path(path)
    mapped = _map(path)
    header = _Header(path, mapped)
    n_tensors, n_keys = header.counts()
    metadata = header.metadata(n_keys)
    alignment = _alignment(path, metadata)
    descriptions = header.descriptions(n_tensors)
    data_start = -(-header.at // alignment) * alignment
    return GGUFFile(path, metadata, _tensors(path, mapped[data_start:], descriptions, alignment))


def dequantize(
    tensor: GGUFTensor, rows: slice | Sequence[int] | NDArray[np.integer] | None = None
) -> NDArray[np.float32]:
    """The weights as float32, in memory of their own; `rows` picks along the first axis and reads no other row.

    `rows` is a slice or row numbers; the result has the shape of `weights[rows]`.
    Raises UsageError for rows of a vector, which has none, and IndexError for a row that is not there.
    """
    data = np.asarray(tensor.data)
    if rows is not None:
        if len(tensor.shape) < 2:
            raise UsageError(f"tensor {_shown(tensor.name)} is a vector and has no rows to pick; leave out rows")
        data = data[rows if isinstance(rows, slice) else np.asarray(rows)]
    blocks = data.reshape(-1, FORMATS[tensor.type_name].n_bytes)
    return dequantize_blocks(blocks, tensor.type_name).reshape(*data.shape[:-1], tensor.shape[-1])


@dataclass(frozen=True)
class _Description:
    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


class _Header:
    """Reads a header from front to back; every read is checked against `end` first."""

    def __init__(self, path: Path, mapped: NDArray[np.uint8]) -> None:
        self.path = path
        self.is_cut = len(mapped) > MAX_HEADER_BYTES
        self.view = mapped.data[:MAX_HEADER_BYTES]
        self.at, self.end = 0, len(self.view)
        self.n_strings = 0

    def counts(self) -> tuple[int, int]:
        """The numbers of tensors and of keys, which follow the magic and the version."""
        magic = bytes(self.view[self.skip("the magic", 4) : self.at])
        if magic != b"GGUF":
            raise CheckpointError(f"{self.path} begins with {magic!r}, allowed is b'GGUF'; it is no GGUF file")
        version = self.u32("the version")
        if version not in VERSIONS:
            order = " (big-endian?)" if version & 0xFFFF == 0 else ""
            raise CheckpointError(
                f"{self.path} has version {version}{order}, allowed are 2 and 3; convert the model anew"
            )
        n_tensors = self.count("the number of tensors", _LEAST_TENSOR_BYTES, MAX_TENSORS)
        return n_tensors, self.count("the number of keys", _LEAST_KEY_BYTES, MAX_KEYS)

    def metadata(self, n_keys: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for index in range(n_keys):
            name = self.name(f"key {index}")
            if name in found:
                raise _damage(self.path, f"key {_shown(name)} is there twice, allowed is once")
            found[name] = self.value(f"key {_shown(name)}")
        return found

    def descriptions(self, n_tensors: int) -> list[_Description]:
        found = []
        for index in range(n_tensors):
            name = self.name(f"tensor {index}")
            what = f"tensor {_shown(name)}"
            n_sizes = self.u32(what)
            if not 1 <= n_sizes <= MAX_DIMENSIONS:
                raise _damage(self.path, f"{what} has {n_sizes} dimensions, allowed are 1 to {MAX_DIMENSIONS}")
            sizes = [self.u64(what) for _ in range(n_sizes)]
            found.append(_Description(name, tuple(reversed(sizes)), self.u32(what), self.u64(what)))
        return found

    def value(self, what: str) -> object:
        value_type = self.u32(what)
        if value_type == _STRING:
            return self.strings(what, 1)[0]
        if value_type == _ARRAY:
            return self.array(what)
        return self.numbers(what, value_type, 1).item()

    def array(self, what: str) -> object:
        item_type = self.u32(what)
        if item_type == _ARRAY:
            raise _damage(self.path, f"{what} is an array of arrays, allowed are arrays of numbers or strings")
        if item_type != _STRING:
            return self.numbers(what, item_type, self.u64(what))
        count = self.count(f"the length of {what}", _LEAST_STRING_BYTES, MAX_STRINGS - self.n_strings)
        self.n_strings += count
        return self.strings(what, count)

    def numbers(self, what: str, number_type: int, count: int) -> NDArray[np.generic]:
        if number_type not in _NUMBERS:
            raise _damage(self.path, f"{what} has value type {number_type}, allowed are 0 to 12")
        dtype = np.dtype(_NUMBERS[number_type])
        numbers = np.frombuffer(self.view, dtype, count, self.skip(what, count * dtype.itemsize))
        if number_type != _BOOL:
            return numbers
        if count and numbers.max() > 1:
            raise _damage(self.path, f"{what} holds the truth value {numbers.max()}, allowed are 0 and 1")
        return numbers.view(np.bool_)

    def strings(self, what: str, count: int) -> list[str]:
        # A vocabulary has hundreds of thousands of these, so `u64` and `skip` are written out and called only to raise.
        found, view, at, end = [], self.view, self.at, self.end
        for _ in range(count):
            length = _U64.unpack_from(view, at)[0] if end - at >= 8 else end
            if length > end - at - 8:
                self.at = at
                self.skip(what, self.u64(what))
            try:
                found.append(str(view[at + 8 : at + 8 + length], "utf-8"))
            except UnicodeDecodeError as error:
                wrong = error.object[error.start : error.start + 4]
                raise _damage(self.path, f"{what} holds the bytes {wrong!r}, allowed is UTF-8") from None
            at += 8 + length
        self.at = at
        return found

    def name(self, what: str) -> str:
        name = self.strings(f"the name of {what}", 1)[0]
        if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
            limits = f"allowed are 1 to {MAX_NAME_CHARACTERS}"
            raise _damage(self.path, f"the name of {what} has {len(name)} characters, {limits}")
        return name

    def count(self, what: str, least_bytes: int, limit: int) -> int:
        """How many things follow, of at least so many bytes each."""
        count = self.u64(what)
        limit = min(limit, (self.end - self.at) // least_bytes)
        if count > limit:
            raise _damage(self.path, f"{what} is {count}, allowed here are at most {limit}")
        return count

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.view, self.skip(what, 4))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.view, self.skip(what, 8))[0])

    def skip(self, what: str, n_bytes: int) -> int:
        """Go on by so many bytes, if they are there; returns where they begin."""
        left = self.end - self.at
        if n_bytes > left:
            whole = f"the {MAX_HEADER_BYTES} that a header may have" if self.is_cut else "the file"
            raise _damage(
                self.path, f"{what} needs {n_bytes} bytes at byte {self.at}, allowed are {left}, the rest of {whole}"
            )
        self.at += n_bytes
        return self.at - n_bytes


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file; give the path of a .gguf file")
        if path.stat().st_size == 0:
            raise _damage(path, "it has 0 bytes, allowed are 24 or more")
        return np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _alignment(path: Path, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    allowed = [2**i for i in range(3, MAX_ALIGNMENT_BYTES.bit_length())]
    if type(alignment) is not int or alignment not in allowed:
        limits = f"allowed are powers of two from {allowed[0]} to {allowed[-1]}"
        raise _damage(path, f"general.alignment is {_shown(alignment)}, {limits}")
    return alignment


def _tensors(
    path: Path, data: NDArray[np.uint8], descriptions: list[_Description], alignment: int
) -> dict[str, GGUFTensor]:
    """Cut the data into tensors; they may leave gaps, but not overlap."""
    found: dict[str, GGUFTensor] = {}
    for description in descriptions:
        if description.name in found:
            raise _damage(path, f"tensor {_shown(description.name)} is there twice, allowed is once")
        found[description.name] = _tensor(path, data, description, alignment)
    free = 0
    for description in sorted(descriptions, key=lambda d: d.offset):
        if description.offset < free:
            what = f"tensor {_shown(description.name)} begins at byte {description.offset}"
            raise _damage(path, f"{what}, allowed is byte {free} or later, behind the tensor before it")
        free = description.offset + found[description.name].data.nbytes
    return found


def _tensor(path: Path, data: NDArray[np.uint8], description: _Description, alignment: int) -> GGUFTensor:
    what = f"tensor {_shown(description.name)}"
    if description.type_id not in _TENSOR_TYPES:
        known = ", ".join(f"{i} ({name})" for i, name in sorted(_TENSOR_TYPES.items()))
        raise CheckpointError(
            f"{path}: {what} has type {description.type_id}, allowed are {known}; quantize the model anew"
        )
    type_name, shape = _TENSOR_TYPES[description.type_id], description.shape
    block = FORMATS[type_name]
    if shape[-1] % block.n_weights:
        limits = f"allowed for {type_name} are multiples of {block.n_weights}"
        raise _damage(path, f"{what} has rows of {shape[-1]} weights, {limits}")
    row_bytes = shape[-1] // block.n_weights * block.n_bytes
    n_bytes = math.prod(shape[:-1]) * row_bytes
    if not 0 < n_bytes <= len(data):
        raise _damage(path, f"{what} of shape {shape} needs {n_bytes} bytes, allowed are 1 to {len(data)}")
    start, last_start = description.offset, len(data) - n_bytes
    if start % alignment or start > last_start:
        limits = f"allowed are multiples of {alignment} up to {last_start}"
        raise _damage(path, f"{what} begins at byte {start} of the data, {limits}")
    raw = data[start : start + n_bytes].reshape(*shape[:-1], row_bytes)
    return GGUFTensor(description.name, shape, type_name, raw)


def _damage(path: Path, message: str) -> CheckpointError:
    return CheckpointError(f"{path}: {message}; the file is damaged, get it again")


def _shown(value: object) -> str:
    """A value from the file, for a message: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
