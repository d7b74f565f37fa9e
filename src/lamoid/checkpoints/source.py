"""A Llama that lies in files, whatever their format: its configuration, its tokenizer, and its tensors by blocks of rows.

Every reader (`hf_stream.py`, `gguf_llama.py`, `meta.py`) makes a `Source`; every writer takes one. Nothing here holds
more than a block, so a model of any size passes through a little memory. Names and layout are those of our `Llama`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lamoid.errors import CheckpointError
from lamoid.models.llama import Llama
from lamoid.models.llama_config import LlamaConfig, parameter_shapes
from lamoid.tokenizers.tokenizer import Tokenizer

Rows = NDArray[np.int64]
BLOCK_WEIGHTS = 2**21

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The formats whose weights are plain numbers, by their names in GGUF and safetensors."""
_HALF = 65504.0
LARGEST = {"F32": 3.4e38, "BF16": 3.38e38, "F16": _HALF, "Q8_0": 127 * _HALF, "Q4_0": 8 * _HALF, "Q4_1": _HALF}
"""The largest weight, by amount, of each format that is written; blocks have a float16 scale (and minimum, in Q4_1)."""


@dataclass(frozen=True, eq=False)
class Source:
    """What an opened model offers.

    `formats` gives the format of each parameter as the file has it, such as "BF16" or "Q4_1"; tied embeddings are one.
    `read(name, rows)` returns those rows of it (elements, if it is a vector), in the file's own dtype, or float32 where
    that is quantized. Rows are in the split layout of RoPE, whatever the file's. `end_ids` end a text beside the
    tokenizer's own end.
    """

    path: Path
    config: LlamaConfig
    formats: dict[str, str]
    read: Callable[[str, Rows], Tensor]
    tokenizer: Tokenizer | None = None
    end_ids: tuple[int, ...] = ()

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, in the order of the model."""
        return parameter_shapes(self.config)

    def blocks(self, name: str) -> Iterator[tuple[Rows, Tensor]]:
        """A parameter by blocks of at most BLOCK_WEIGHTS weights: row numbers and rows."""
        for rows in row_blocks(self.shapes[name]):
            yield rows, self.read(name, rows)


def load(source: Source, dtype: torch.dtype | None = None) -> Llama:
    """The model itself, in memory; `dtype` None keeps the file's (float32 where it is quantized)."""
    with torch.device("meta"):
        model = Llama(source.config)
    state = {}
    for name, shape in source.shapes.items():
        state[name] = torch.empty(shape, dtype=dtype or DTYPES.get(source.formats[name], torch.float32))
        for rows, block in source.blocks(name):
            state[name][rows[0] : rows[-1] + 1] = block
    if source.config.tied_embeddings:
        state["lm_head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.requires_grad_(True).eval()


def row_blocks(shape: tuple[int, ...]) -> Iterator[Rows]:
    """The row numbers of a tensor, in runs of at most BLOCK_WEIGHTS weights (at least one row each)."""
    step = max(BLOCK_WEIGHTS // math.prod(shape[1:]), 1)
    for start in range(0, shape[0], step):
        yield np.arange(start, min(start + step, shape[0]))


def interleaved_rows(rows: Rows, head_dim: int) -> Rows:
    """Where rows of the split layout of RoPE lie in the interleaved one: feature i + j·E/2 of a head at 2i + j.

    Meta's files and GGUF interleave the pairs that are rotated together; Hugging Face and `nn.positions.rotate` keep
    them half a head apart. Only the rows of Q and K are affected.
    """
    head, feature = np.divmod(rows, head_dim)
    j, i = np.divmod(feature, head_dim // 2)
    return head * head_dim + 2 * i + j


def split_rows(rows: Rows, head_dim: int) -> Rows:
    """Where rows of the interleaved layout lie in the split one: the inverse of `interleaved_rows`."""
    head, feature = np.divmod(rows, head_dim)
    i, j = np.divmod(feature, 2)
    return head * head_dim + j * (head_dim // 2) + i


def is_rotated(name: str) -> bool:
    """Whether a parameter makes queries or keys, whose rows RoPE pairs."""
    return ".q_proj." in name or ".k_proj." in name


def to_dtype(weights: Tensor, dtype: str, name: str) -> Tensor:
    """Weights in a dtype of DTYPES. Raises CheckpointError for those that it cannot hold."""
    converted = weights.to(DTYPES[dtype])
    if not bool(converted.isfinite().all()):
        check_range(weights.float().numpy(), dtype, name)
    return converted


def check_range(weights: NDArray[np.float32], kind: str, name: str) -> None:
    """Raise CheckpointError for weights that are not finite, or too large for a format whose scale is a float16."""
    largest = float(np.abs(weights).max(initial=0))
    if not largest <= LARGEST[kind]:
        advice = "take bf16 or f32" if math.isfinite(largest) else "the model is damaged"
        raise CheckpointError(f"{name} holds a weight of {largest:g}; {kind} holds up to {LARGEST[kind]:g}: {advice}")
