"""GGUF files of the `gguf` package, with a tensor of every format."""

from pathlib import Path

import gguf
import numpy as np

from lamoid.checkpoints.gguf import GGUFTensor
from lamoid.checkpoints.quants import FORMATS

HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2]}
HALVES |= {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
"""Where the float16 numbers of a block lie, in bytes."""


def random_tensor(type_name: str, n_rows: int, n_blocks: int) -> GGUFTensor:
    """Random bytes with finite scales: NaN has many bit patterns, and processors choose among them."""
    block, dice = FORMATS[type_name], np.random.default_rng(n_rows)
    if block.n_weights == 1:
        weights = dice.normal(size=(n_rows, n_blocks)).astype(np.float16 if type_name == "F16" else np.float32)
        data = weights.view(np.uint8).reshape(n_rows, n_blocks, -1)[..., -block.n_bytes :]
        return GGUFTensor("x", (n_rows, n_blocks), type_name, data.reshape(n_rows, -1))
    data = dice.integers(0, 256, (n_rows, n_blocks, block.n_bytes), dtype=np.uint8)
    for at in HALVES[type_name]:
        scales = dice.normal(size=(n_rows, n_blocks, 1)).astype("<f2")
        data[..., at : at + 2] = scales.view(np.uint8)
    return GGUFTensor("x", (n_rows, n_blocks * block.n_weights), type_name, data.reshape(n_rows, -1))


def written_by_peer(folder: Path, alignment: int | None) -> tuple[Path, dict[str, GGUFTensor]]:
    path = folder / "peer.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("an.u8", 200)
    writer.add_int64("an.i64", -(2**40))
    writer.add_float64("an.f64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "„Grüße“\n🦙\0")
    writer.add_key_value("no.text", "", gguf.GGUFValueType.STRING)
    writer.add_array("texts", ["", "ä", "a b"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("bools", [True, False])
    writer.add_array("floats", [0.5, -0.25])
    tensors = {name: random_tensor(name, n_rows, n_blocks=2) for n_rows, name in enumerate(FORMATS, start=1)}
    for name, tensor in tensors.items():
        peer_type = gguf.GGMLQuantizationType[tensor.type_name]
        dtype = {"F32": np.float32, "F16": np.float16}.get(tensor.type_name, np.uint8)
        writer.add_tensor(name, np.ascontiguousarray(tensor.data).view(dtype), raw_dtype=peer_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors
