"""Hugging Face directories of any size, read and written in blocks of rows (`hf.py` does it with the model in memory).

A safetensors file is the length of a JSON header (u64), the header, and the tensors' bytes in its order; with the header
written first, blocks are appended. Source: safetensors, README, section "Format".
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lamoid.checkpoints.hf import read_config, write_description
from lamoid.checkpoints.hf_files import INDEX_FILE, WEIGHTS_FILE, gather, weight_files
from lamoid.checkpoints.llama_tensors import check_tensors, listed
from lamoid.checkpoints.name_maps import llama_to_hf
from lamoid.checkpoints.source import DTYPES, Rows, Source, to_dtype
from lamoid.errors import CheckpointError
from lamoid.models.llama import LlamaConfig
from lamoid.tokenizers.load import has_tokenizer, load_tokenizer
from lamoid.tokenizers.tokenizer import read_config as read_json

GENERATION_FILE = "generation_config.json"
MAX_SHARD_BYTES = 5 * 10**9


def open_hf(directory: Path) -> Source:
    """A model directory as a Source; of the weights only the headers are read yet.

    Raises CheckpointError or DataError naming the file, field or tensor that is wrong.
    """
    config = read_config(directory)
    if not isinstance(config, LlamaConfig):
        raise CheckpointError(
            f"{directory} holds no Llama (its configuration is a {type(config).__name__}); this takes Llamas"
        )
    found = {
        name: header
        for name, header in gather((file, _headers(file)) for file in weight_files(directory)).items()
        if not name.endswith("rotary_emb.inv_freq") and not (config.tied_embeddings and name == "lm_head.weight")
    }
    check_tensors(directory, config, llama_to_hf, {name: shape for name, (_, shape, _) in found.items()})
    odd = [f"{name} is {kind}" for name, (_, _, kind) in found.items() if kind not in DTYPES]
    if odd:
        raise CheckpointError(f"{directory}: {listed(odd)}; allowed are {', '.join(DTYPES)}")

    def read(name: str, rows: Rows) -> Tensor:
        name, low, high = llama_to_hf(name), int(rows.min()), int(rows.max()) + 1
        with safe_open(found[name][0], framework="pt") as opened:
            if high - low > 2 * len(rows):  # scattered: the tensor is mapped, and other rows are not read
                return opened.get_tensor(name)[torch.from_numpy(rows)]
            block = opened.get_slice(name)[low:high]
        return block if (np.diff(rows) == 1).all() else block[torch.from_numpy(rows - low)]

    formats = {name: found[llama_to_hf(name)][2] for name in Source(directory, config, {}, read).shapes}
    tokenizer = load_tokenizer(directory) if has_tokenizer(directory) else None
    return Source(directory, config, formats, read, tokenizer, _end_ids(directory))


def write_hf(directory: Path, source: Source, dtype: str, on_weights: Callable[[int], object]) -> None:
    """Write a model directory, into a folder that the caller makes final, with all weights in one dtype of DTYPES.

    Weights beyond MAX_SHARD_BYTES go into several files with an index. `on_weights` hears how many were written.
    """
    torch_name = str(DTYPES[dtype]).removeprefix("torch.")
    write_description(directory, source.config, torch_name, source.tokenizer)
    if source.end_ids:
        _add_end_ids(directory / GENERATION_FILE, source.end_ids)
    sizes = {name: math.prod(shape) * DTYPES[dtype].itemsize for name, shape in source.shapes.items()}
    shards = _shards(sizes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(directory / file, source, names, dtype, on_weights)
        weight_map |= {llama_to_hf(name): file for name in names}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_safetensors(
    file: Path, source: Source, names: list[str], dtype: str, on_weights: Callable[[int], object]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in names:
        n_bytes = math.prod(source.shapes[name]) * DTYPES[dtype].itemsize
        header[llama_to_hf(name)] = {"dtype": dtype, "shape": source.shapes[name], "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for _, block in source.blocks(name):
                opened.write(to_dtype(block, dtype, name).contiguous().view(torch.uint8).numpy().data)
                on_weights(block.numel())


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > MAX_SHARD_BYTES:
            shards.append([])
        shards[-1].append(name)
    return shards


def _headers(file: Path) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """File, shape and type of each tensor."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {name: (file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {str(error)[:300]}") from error


def _end_ids(directory: Path) -> tuple[int, ...]:
    ids = read_json(directory / GENERATION_FILE).get("eos_token_id")
    return tuple(i for i in ids if type(i) is int) if isinstance(ids, list) else ()


def _add_end_ids(file: Path, end_ids: tuple[int, ...]) -> None:
    settings = read_json(file)
    first = [settings["eos_token_id"]] if "eos_token_id" in settings else []
    settings["eos_token_id"] = list(dict.fromkeys([*first, *end_ids]))
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
