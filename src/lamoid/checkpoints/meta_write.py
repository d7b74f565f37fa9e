"""A Llama -> a directory in Meta's format (see `meta.py`), in blocks of rows.

The container of the weights is torch's: a zip file whose `data.pkl` describes the tensors. It is written first, with
room for the weights, and then they are filled in.
"""

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lamoid.checkpoints.meta import (
    HIGH,
    LOW,
    ORIGINAL,
    OWN_FILE,
    PARAMS_FILE,
    REFERENCE_FACTOR,
    SHARDS,
    feed_forward_size,
)
from lamoid.checkpoints.name_maps import llama_to_meta
from lamoid.checkpoints.source import DTYPES, Source, is_rotated, row_blocks, split_rows, to_dtype
from lamoid.errors import UsageError
from lamoid.models.llama import LlamaConfig
from lamoid.nn.rope_scaling import Llama3Scaling


def write_meta(directory: Path, source: Source, dtype: str, on_weights: Callable[[int], object]) -> None:
    """Write one `consolidated.00.pth` with its parameters and the tokenizer's files, in a dtype of DTYPES.

    Tied embeddings are there under both names and once on disk. Raises UsageError for what the format cannot say.
    """
    params = params_to_meta(source.config)
    own = {"max_seq_len": source.config.max_seq_len}
    for file, value in ((PARAMS_FILE, params), (OWN_FILE, own)):
        (directory / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    for name, content in (source.tokenizer.files() if source.tokenizer is not None else {}).items():
        (directory / name).write_bytes(content)
    _write_weights(directory / SHARDS.replace("*", "00"), source, dtype, on_weights)


def params_to_meta(config: LlamaConfig) -> dict[str, Any]:
    """The params.json of a configuration. Raises UsageError naming the field that Meta's code cannot represent."""
    c, s = config, config.rope_scaling
    if c.attention_bias or c.feed_forward_bias:
        raise UsageError("attention_bias or feed_forward_bias is True; Meta's format has no biases")
    if c.head_dim * c.n_heads != c.d_model:
        raise UsageError(
            f"head_dim is {c.head_dim}; Meta's format can only have d_model / n_heads, {c.d_model / c.n_heads:g}"
        )
    if s is not None and not (isinstance(s, Llama3Scaling) and s == Llama3Scaling(s.factor, LOW, HIGH, ORIGINAL)):
        raise UsageError(
            f"rope_scaling is {s}; Meta's format can only have llama3 with {LOW:g}, {HIGH:g} and {ORIGINAL}"
        )
    multiple_of, multiplier = _size_rule(c.d_model, c.d_ff)
    params: dict[str, Any] = {
        "dim": c.d_model,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads,
    }
    params |= {"vocab_size": c.vocab_size, "multiple_of": multiple_of}
    params |= {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
    params |= {"norm_eps": c.norm_eps, "rope_theta": c.rope_base}
    if isinstance(s, Llama3Scaling):
        params |= {"use_scaled_rope": True}
        params |= {} if s.factor == REFERENCE_FACTOR else {"rope_scaling_factor": s.factor}
    return params


def _write_weights(file: Path, source: Source, dtype: str, on_weights: Callable[[int], object]) -> None:
    """A torch file in two passes: the container with room for the weights, then the weights, block by block."""
    state = {llama_to_meta(name): torch.empty(s, dtype=DTYPES[dtype]) for name, s in source.shapes.items()}
    if source.config.tied_embeddings:
        state["output.weight"] = state["tok_embeddings.weight"]
    with torch.serialization.skip_data():  # nor is the memory ever touched
        torch.save(state, file)
    del state
    with FakeTensorMode():
        fakes = torch.load(file, weights_only=True)
        starts = {name: t.untyped_storage()._checkpoint_offset for name, t in fakes.items()}
    checksums: dict[int, int] = {}
    with file.open("r+b") as opened:
        for name, shape in source.shapes.items():
            start = starts[llama_to_meta(name)]
            opened.seek(start)
            for rows in row_blocks(shape):
                mine = split_rows(rows, source.config.head_dim) if is_rotated(name) else rows
                block = to_dtype(source.read(name, mine), dtype, name).contiguous().view(torch.uint8).numpy()
                opened.write(block.data)
                checksums[start] = zlib.crc32(block.data, checksums.get(start, 0))
                on_weights(math.prod((len(rows), *shape[1:])))
    _set_checksums(file, checksums)


def _set_checksums(file: Path, checksums: dict[int, int]) -> None:
    """Give the zip entries whose data begin at these bytes their CRC-32, which torch does not read but others do.

    It stands in the central directory, 16 bytes into the entry, and behind the data after a mark of 4 bytes.
    """
    with zipfile.ZipFile(file) as opened:
        entries, at = opened.infolist(), opened.start_dir
    with file.open("r+b") as raw:
        for entry in entries:
            raw.seek(entry.header_offset + 26)
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4)))
            for place in (at + 16, start + entry.file_size + 4) if start in checksums else ():
                raw.seek(place)
                raw.write(struct.pack("<I", checksums[start]))
            raw.seek(at + 28)
            at += 46 + sum(struct.unpack("<HHH", raw.read(6)))


def _size_rule(d_model: int, d_ff: int) -> tuple[int, float | None]:
    """`multiple_of` and `ffn_dim_multiplier` that give a width: those of a published model if they do."""
    for multiple_of, multiplier in product((256, 1024, 4096), (None, 1.3, 1.5, 1.2, 1.0, 1.4)):
        if feed_forward_size(d_model, multiple_of, multiplier) == d_ff:
            return multiple_of, multiplier
    return 1, (d_ff + 0.5) / int(2 * 4 * d_model / 3)
