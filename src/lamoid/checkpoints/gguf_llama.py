"""GGUF files of the `llama` architecture -> a model and its tokenizer (`gguf.py` reads the container).

What the metadata say and our Llama cannot be is refused by name. Source: ggml, docs/gguf.md, section "LLMs"; llama.cpp,
the `llama` architecture, whose Q and K have the pairs of RoPE interleaved.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamoid.checkpoints.gguf import GGUFTensor, dequantize, read_gguf
from lamoid.checkpoints.gguf_config import ROPE_FACTORS, config_from_gguf, end_ids
from lamoid.checkpoints.llama_tensors import check_tensors
from lamoid.checkpoints.name_maps import llama_to_gguf
from lamoid.checkpoints.source import DTYPES, Rows, Source, interleaved_rows, is_rotated, load
from lamoid.errors import CheckpointError, DataError
from lamoid.models.llama import Llama
from lamoid.models.llama_config import parameter_shapes
from lamoid.tokenizers.gguf_vocabulary import tokenizer_from_gguf
from lamoid.tokenizers.tokenizer import Tokenizer


def read_gguf_model(path: Path, *, dtype: torch.dtype | None = None) -> tuple[Llama, Tokenizer | None]:
    """The model of a GGUF file and its tokenizer, or None where it has none; quantized weights become float32.

    `dtype` None keeps what plain tensors have. Raises CheckpointError or DataError naming the key or tensor that is wrong.
    """
    source = open_gguf(path)
    with torch.no_grad():
        return load(source, dtype or _widest(source)), source.tokenizer


def open_gguf(path: Path) -> Source:
    """A GGUF file of the `llama` architecture as a Source; nothing but the metadata is read yet."""
    file = read_gguf(path)
    config = config_from_gguf(file)
    found = {name: tensor.shape for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
    check_tensors(path, config, llama_to_gguf, found)
    tensors = {name: file.tensors[llama_to_gguf(name)] for name in parameter_shapes(config)}

    def read(name: str, rows: Rows) -> Tensor:
        return _read(tensors[name], interleaved_rows(rows, config.head_dim) if is_rotated(name) else rows)

    try:
        tokenizer = tokenizer_from_gguf(file.metadata)
    except DataError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, the model only {config.vocab_size}; "
            f"they do not belong together"
        )
    formats = {name: tensor.type_name for name, tensor in tensors.items()}
    return Source(path, config, formats, read, tokenizer, end_ids(file))


def _read(tensor: GGUFTensor, rows: Rows) -> Tensor:
    """Rows of a tensor; plain numbers keep their dtype. Pages of the file that were needed are given back."""
    if len(tensor.shape) < 2:
        return torch.from_numpy(dequantize(tensor)[rows])
    if tensor.type_name in DTYPES:
        raw = np.ascontiguousarray(tensor.data[rows])
        weights = torch.from_numpy(raw).view(DTYPES[tensor.type_name])
    else:
        weights = torch.from_numpy(dequantize(tensor, rows))
    whole: Any = tensor.data
    while not isinstance(whole, mmap.mmap):
        whole = whole.base
    whole.madvise(mmap.MADV_DONTNEED)
    return weights


def _widest(source: Source) -> torch.dtype | None:
    """One dtype for all parameters: that of the matrices if they are plain (norms are always float32), else float32."""
    kinds = {source.formats[name] for name, shape in source.shapes.items() if len(shape) > 1}
    return DTYPES.get(kinds.pop(), torch.float32) if len(kinds) == 1 else torch.float32
