"""The GGUF reader against the `gguf` package, and against files that are damaged or made to hurt (fault F26)."""

import os
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.checkpoints.gguf_files import HALVES, random_tensor, written_by_peer

from lamoid.checkpoints.gguf import (
    MAX_HEADER_BYTES,
    MAX_KEYS,
    MAX_STRINGS,
    MAX_TENSORS,
    GGUFTensor,
    dequantize,
    read_gguf,
)
from lamoid.checkpoints.quants import FORMATS
from lamoid.errors import CheckpointError, UsageError

pytestmark = pytest.mark.filterwarnings("error")

U8, BOOL, STRING, ARRAY, U32, F32_VALUE = 0, 7, 8, 9, 4, 6
F32, Q4_0, Q8_0, Q6_K = 0, 2, 8, 14


# ---- block formats


@pytest.mark.parametrize("type_name", FORMATS)
@pytest.mark.parametrize("n_rows", [1, 3, 7, 301])
def test_every_format_gives_the_bits_of_the_gguf_package(type_name: str, n_rows: int) -> None:
    tensor = random_tensor(type_name, n_rows, n_blocks=3 if FORMATS[type_name].n_weights > 1 else 5)
    ours = dequantize(tensor)
    assert ours.shape == tensor.shape and ours.dtype == np.float32 and ours.flags.writeable
    np.testing.assert_array_equal(ours.view(np.uint32), peers_weights(tensor).view(np.uint32))


@pytest.mark.parametrize("type_name", FORMATS)
def test_scales_that_are_not_finite_agree_with_the_gguf_package(type_name: str) -> None:
    block = FORMATS[type_name]
    data = np.random.default_rng(1).integers(0, 256, (513, 2 * block.n_bytes), dtype=np.uint8)
    for at in HALVES.get(type_name, []):
        data[::3, at : at + 2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
        data[1::3, at : at + 2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    tensor = GGUFTensor("x", (513, 2 * block.n_weights), type_name, data)
    np.testing.assert_array_equal(dequantize(tensor), peers_weights(tensor))


@pytest.mark.parametrize("type_name", FORMATS)
def test_type_numbers_and_block_sizes_are_those_of_the_gguf_package(type_name: str) -> None:
    block, peer = FORMATS[type_name], gguf.GGMLQuantizationType[type_name]
    assert block.type_id == peer and (block.n_weights, block.n_bytes) == gguf.GGML_QUANT_SIZES[peer]


def test_a_q4_0_block_by_hand() -> None:
    block = np.frombuffer(np.float16(0.5).tobytes() + bytes([0x9F] + [0x88] * 15), np.uint8)
    weights = dequantize(GGUFTensor("x", (32,), "Q4_0", block))
    assert weights[0] == 0.5 * (15 - 8) and weights[16] == 0.5 * (9 - 8) and np.count_nonzero(weights) == 2


@pytest.mark.parametrize("type_name", FORMATS)
def test_some_rows_are_the_same_rows_of_the_whole(type_name: str) -> None:
    tensor = random_tensor(type_name, 11, n_blocks=2)
    whole = dequantize(tensor).view(np.uint32)
    for rows in (slice(3, 8), slice(None, None, 4), slice(5, 5), np.array([7, 0, 7, -1]), [10], (0, 1)):
        expected = whole[list(rows) if isinstance(rows, tuple) else rows]
        np.testing.assert_array_equal(dequantize(tensor, rows).view(np.uint32), expected)


def test_a_stack_of_matrices_and_a_vector() -> None:
    matrix = random_tensor("Q5_K", 6, n_blocks=1)
    stack = GGUFTensor("x", (3, 2, 256), "Q5_K", matrix.data.reshape(3, 2, -1))
    np.testing.assert_array_equal(dequantize(stack, slice(1, 2)), dequantize(matrix)[2:4].reshape(1, 2, 256))
    vector = GGUFTensor("x", (256,), "Q5_K", matrix.data[0])
    np.testing.assert_array_equal(dequantize(vector), dequantize(matrix)[0])
    with pytest.raises(UsageError, match="vector"):
        dequantize(vector, slice(0, 1))
    with pytest.raises(IndexError):
        dequantize(matrix, [6])


def test_rows_of_a_large_tensor_need_little_memory() -> None:
    tensor = random_tensor("Q4_0", 20_000, n_blocks=18)
    tracemalloc.start()
    dequantize(tensor, [1, 19_999])
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.reset_peak()
    weights = dequantize(tensor)
    assert tracemalloc.get_traced_memory()[1] < weights.nbytes + 4 * 2**20
    tracemalloc.stop()


# ---- the container


@pytest.mark.parametrize("alignment", [None, 8, 64, 4096])
def test_a_file_of_the_gguf_package_reads_back(tmp_path: Path, alignment: int | None) -> None:
    path, tensors = written_by_peer(tmp_path, alignment)
    file = read_gguf(path)
    metadata = file.metadata
    assert metadata["general.architecture"] == "llama" and metadata["an.u8"] == 200 and metadata["an.i64"] == -(2**40)
    assert metadata["a.bool"] is True and type(metadata["an.f64"]) is float and metadata["an.f64"] == 1e300
    assert metadata["a.text"] == "„Grüße“\n🦙\0" and metadata["no.text"] == "" and metadata["texts"] == ["", "ä", "a b"]
    np.testing.assert_array_equal(metadata["integers"], np.array([1, -2, 3], np.int32))
    np.testing.assert_array_equal(metadata["bools"], np.array([True, False]))
    assert metadata["floats"].dtype == np.float32 and not metadata["floats"].flags.writeable
    assert list(file.tensors) == list(tensors)
    for name, tensor in file.tensors.items():
        wanted = tensors[name]
        assert (tensor.name, tensor.shape, tensor.type_name) == (name, wanted.shape, wanted.type_name)
        assert isinstance(tensor.data, np.memmap) and not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.data, wanted.data)
        np.testing.assert_array_equal(dequantize(tensor).view(np.uint32), dequantize(wanted).view(np.uint32))


def test_version_2_and_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(file_bytes(keys=[key("a.b", U32, struct.pack("<I", 7))], version=2))
    assert read_gguf(path).metadata == {"a.b": 7} and read_gguf(str(path)).tensors == {}


def test_tensors_may_leave_gaps_and_come_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "gaps.gguf"
    data = np.arange(64, dtype="<f4").tobytes()
    path.write_bytes(file_bytes([tensor("late", [8], F32, 192), tensor("early", [4, 2], F32, 0)], data=data))
    tensors = read_gguf(path).tensors
    np.testing.assert_array_equal(dequantize(tensors["late"]), np.arange(48, 56, dtype=np.float32))
    np.testing.assert_array_equal(dequantize(tensors["early"]), np.arange(8, dtype=np.float32).reshape(2, 4))


def test_a_vocabulary_opens_fast(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    texts = [f"Ġtoken{i}" for i in range(50_000)]
    tokens = array("tokens", STRING, len(texts), b"".join(string(text) for text in texts))
    merges = array("merges", STRING, len(texts), b"".join(string(f"Ġ {text}") for text in texts))
    scores = array("scores", F32_VALUE, len(texts), np.zeros(len(texts), "<f4").tobytes())
    path.write_bytes(file_bytes(keys=[tokens, merges, scores]))
    start = time.perf_counter()
    metadata = read_gguf(path).metadata
    assert time.perf_counter() - start < 0.3
    assert metadata["tokens"] == texts and len(metadata["merges"]) == len(metadata["scores"]) == len(texts)


def test_weights_outlive_the_file_object_and_the_name(tmp_path: Path) -> None:
    path, tensors = written_by_peer(tmp_path, None)
    opened = read_gguf(path).tensors["Q4_K"]
    path.unlink()
    np.testing.assert_array_equal(opened.data, tensors["Q4_K"].data)


def test_importing_the_reader_leaves_torch_alone() -> None:
    code = "import sys, lamoid.checkpoints.gguf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- F26: files that are damaged or made to hurt


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def key(name: str | bytes, type_id: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", type_id) + value


def array(name: str, item_type: int, count: int, values: bytes) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", item_type, count) + values)


def alignment(value: int) -> bytes:
    return key("general.alignment", U32, struct.pack("<I", value))


def tensor(name: str | bytes, sizes: list[int], type_id: int = F32, offset: int = 0) -> bytes:
    """`sizes` in the file's order: the length of a row comes first."""
    return string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, type_id, offset)


def file_bytes(
    tensors: list[bytes] | None = None,
    keys: list[bytes] | None = None,
    data: bytes = np.arange(64, dtype="<f4").tobytes(),
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    tensors, keys = tensors or [], keys or []
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_keys = len(keys) if n_keys is None else n_keys
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


FAULTS = {
    "empty file": (b"", "0 bytes"),
    "other magic": (b"PK\3\4" + bytes(60), "no GGUF file"),
    "version 1": (file_bytes(version=1), "version 1, allowed are 2 and 3"),
    "version 4": (file_bytes(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^40 tensors": (file_bytes(n_tensors=2**40), f"number of tensors is {2**40}"),
    "2^63 tensors": (file_bytes(n_tensors=2**63), f"number of tensors is {2**63}"),
    "2^64-1 keys": (file_bytes(n_keys=2**64 - 1), f"number of keys is {2**64 - 1}"),
    "one key too many": (file_bytes(keys=[alignment(32)], n_keys=2, data=b""), "key 1"),
    "name beyond the file": (file_bytes(keys=[string(b"a", 2**62) + bytes(64)]), "key 0 needs"),
    "name of 0 characters": (file_bytes(keys=[key("", U8, b"1")]), "has 0 characters"),
    "name of 2^16 characters": (file_bytes(keys=[key("a" * 2**16, U8, b"1")]), "has 65536 characters"),
    "name not UTF-8": (file_bytes(keys=[key(b"a\xff", U8, b"1")]), "allowed is UTF-8"),
    "string beyond the file": (file_bytes(keys=[key("a", STRING, string(b"text", 2**40))]), f"needs {2**40} bytes"),
    "string of 2^64-1": (file_bytes(keys=[key("a", STRING, string(b"text", 2**64 - 1))]), "allowed are"),
    "string not UTF-8": (file_bytes(keys=[key("a", STRING, string(b"ab\xed\xa0\x80"))]), "allowed is UTF-8"),
    "string in array not UTF-8": (file_bytes(keys=[array("a", STRING, 2, string("a") + string(b"\x80"))]), "UTF-8"),
    "string in array beyond": (file_bytes(keys=[array("a", STRING, 2, string("a") + string(b"b", 999))]), "needs 999"),
    "array ends in a length": (
        file_bytes(keys=[array("a", STRING, 2, string("a" * 56))], data=b"")[:116],
        "needs 8 bytes",
    ),
    "2^40 numbers": (file_bytes(keys=[array("a", F32_VALUE, 2**40, bytes(64))]), f"needs {2**42} bytes"),
    "2^64-1 numbers": (file_bytes(keys=[array("a", F32_VALUE, 2**64 - 1, bytes(64))]), "allowed are"),
    "2^40 strings": (file_bytes(keys=[array("a", STRING, 2**40, bytes(64))]), f"is {2**40}, allowed here are at most"),
    "2^64-1 strings": (file_bytes(keys=[array("a", STRING, 2**64 - 1, bytes(64))]), "allowed here are at most"),
    "array in array": (file_bytes(keys=[array("a", ARRAY, 1, struct.pack("<IQ", U8, 0))]), "array of arrays"),
    "arrays 10,000 deep": (file_bytes(keys=[array("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 10_000)]), "of arrays"),
    "unknown value type": (file_bytes(keys=[key("a", 13, bytes(8))]), "value type 13"),
    "unknown item type": (file_bytes(keys=[array("a", 2**32 - 1, 1, bytes(8))]), "value type 4294967295"),
    "truth value 2": (file_bytes(keys=[key("a", BOOL, b"\2")]), "truth value 2"),
    "truth value 255 in array": (file_bytes(keys=[array("a", BOOL, 3, b"\0\1\xff")]), "truth value 255"),
    "key twice": (file_bytes(keys=[key("a\n", U8, b"1"), key("a\n", U8, b"1")]), r"'a\\n' is there twice"),
    "alignment 0": (file_bytes(keys=[alignment(0)]), "general.alignment is 0,"),
    "alignment 33": (file_bytes(keys=[alignment(33)]), "general.alignment is 33,"),
    "alignment 4": (file_bytes(keys=[alignment(4)]), "general.alignment is 4,"),
    "alignment 2^31": (file_bytes(keys=[alignment(2**31)]), f"general.alignment is {2**31},"),
    "alignment a text": (file_bytes(keys=[key("general.alignment", STRING, string("32"))]), "is '32',"),
    "alignment a truth value": (file_bytes(keys=[key("general.alignment", BOOL, b"\1")]), "is True,"),
    "alignment an array": (file_bytes(keys=[array("general.alignment", U32, 1, bytes(4))]), r"is array\(\[0\]"),
    "0 dimensions": (file_bytes([tensor("a", [])]), "has 0 dimensions"),
    "5 dimensions": (file_bytes([tensor("a", [1, 1, 1, 1, 1])]), "has 5 dimensions"),
    "2^32-1 dimensions": (file_bytes([string("a") + struct.pack("<I", 2**32 - 1) + bytes(32)]), "has 4294967295 dim"),
    "size 0": (file_bytes([tensor("a", [4, 0])]), "needs 0 bytes"),
    "sizes overflow to 16 bytes": (file_bytes([tensor("a", [2**32, 2**32, 2**32])]), f"needs {2**98} bytes"),
    "size 2^63": (file_bytes([tensor("a", [2**63, 2])]), f"needs {2**66} bytes"),
    "larger than the file": (file_bytes([tensor("a", [65])]), "needs 260 bytes, allowed are 1 to 256"),
    "rows not whole blocks": (file_bytes([tensor("a", [33, 2], Q4_0)]), "multiples of 32"),
    "rows not whole K blocks": (file_bytes([tensor("a", [128, 2], Q6_K)]), "multiples of 256"),
    "unknown tensor type": (file_bytes([tensor("a", [4], 4)]), "has type 4, allowed are 0 .F32., 1"),
    "tensor type 2^32-1": (file_bytes([tensor("a", [4], 2**32 - 1)]), "has type 4294967295"),
    "offset behind the end": (file_bytes([tensor("a", [8], F32, 256)]), "begins at byte 256"),
    "end behind the end": (file_bytes([tensor("a", [16], F32, 224)]), "multiples of 32 up to 192"),
    "offset 2^64-32": (file_bytes([tensor("a", [8], F32, 2**64 - 32)]), f"begins at byte {2**64 - 32}"),
    "offset misaligned": (file_bytes([tensor("a", [8], F32, 4)]), "multiples of 32"),
    "offset misaligned to 64": (file_bytes([tensor("a", [8], F32, 32)], [alignment(64)]), "multiples of 64"),
    "overlap": (file_bytes([tensor("b", [8], F32, 32), tensor("a", [16])]), "allowed is byte 64 or later"),
    "the same place": (file_bytes([tensor("b", [8]), tensor("a", [8])]), "allowed is byte 32 or later"),
    "tensor twice": (file_bytes([tensor("a", [8]), tensor("a", [8], F32, 32)]), "is there twice"),
    "tensor name not UTF-8": (file_bytes([tensor(b"\xc3", [8])]), "allowed is UTF-8"),
    "tensor name of 0 characters": (file_bytes([tensor("", [8])]), "has 0 characters"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_at_once_in_little_memory(tmp_path: Path, fault: str) -> None:
    content, message = FAULTS[fault]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    seconds = seconds_to_refuse(path, message)
    tracemalloc.start()
    seconds_to_refuse(path, message)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert seconds < 1


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    keys = [alignment(32), array("words", STRING, 2, string("one") + string("two")), array("n", U32, 2, bytes(8))]
    content = file_bytes([tensor("a", [32, 2], Q8_0), tensor("b", [8], F32, 96)], keys, data=bytes(128))
    path = tmp_path / "cut.gguf"
    path.write_bytes(content)
    assert set(read_gguf(path).tensors) == {"a", "b"}
    for length in range(len(content)):
        path.write_bytes(content[:length])
        seconds_to_refuse(path, "allowed")


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing.gguf", tmp_path, tmp_path / "pipe"):
        seconds_to_refuse(path, "is not a file")


def test_large_headers_made_to_hurt_take_less_than_a_second(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    strings = array("a", STRING, MAX_STRINGS, bytes(8 * MAX_STRINGS))
    keys = [strings, *(key(f"{i}", U8, b"1") for i in range(MAX_KEYS - 1))]
    tensors = [tensor(f"{i}", [8], F32, 32 * i) for i in range(MAX_TENSORS - 1)]
    path.write_bytes(file_bytes([*tensors, tensor("last", [8])], keys, data=bytes(2**20)))
    code = (  # in a process of its own: here every call has its types checked, which doubles the time
        "import sys, time\nfrom lamoid.checkpoints.gguf import read_gguf\nfrom lamoid.errors import CheckpointError\n"
        "began = time.perf_counter()\n"
        "try:\n    read_gguf(sys.argv[1])\n"
        "except CheckpointError as error:\n    print(time.perf_counter() - began, error)\n"
    )
    output = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout
    assert "behind the tensor before it" in output
    assert float(output.split()[0]) < 1
    path.write_bytes(file_bytes(keys=[strings, array("b", STRING, 1, string("one more"))]))
    assert seconds_to_refuse(path, "is 1, allowed here are at most 0") < 1
    path.write_bytes(file_bytes(keys=[*keys, key("more", U8, b"1")]))
    assert seconds_to_refuse(path, f"at most {MAX_KEYS}") < 1
    path.write_bytes(file_bytes([*tensors, tensor("last", [8]), tensor("more", [8])]))
    assert seconds_to_refuse(path, f"at most {MAX_TENSORS}") < 1
    path.write_bytes(file_bytes(keys=[key("a", STRING, struct.pack("<Q", MAX_HEADER_BYTES))]))
    os.truncate(path, 2 * MAX_HEADER_BYTES)
    assert seconds_to_refuse(path, "that a header may have") < 1


def seconds_to_refuse(path: Path, message: str) -> float:
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=message) as caught:
        read_gguf(path)
    seconds = time.perf_counter() - start
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 1000
    return seconds


def peers_weights(tensor: GGUFTensor) -> np.ndarray:
    peer_type = gguf.GGMLQuantizationType[tensor.type_name]
    dtype = {"F32": np.float32, "F16": np.float16}.get(tensor.type_name, np.uint8)
    with np.errstate(all="ignore"):
        return np.asarray(gguf.quants.dequantize(tensor.data.view(dtype), peer_type), np.float32)
