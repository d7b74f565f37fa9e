"""Safetensors files, mapped: each tensor as the bytes that lie in the file. No torch.

A file is the length of a JSON header (u64), the header, and the tensors' bytes. The `safetensors` library checks it
first: that the header is whole, and that the tensors fill the rest of the file without gaps or overlaps.
Source: safetensors, README, section "Format".
"""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from lamoid.checkpoints.gguf import GGUFTensor
from lamoid.errors import CheckpointError

PLAIN = ("F32", "F16", "BF16")


def map_safetensors(file: Path) -> dict[str, GGUFTensor]:
    """The tensors of a file by their names. Raises CheckpointError for a damaged file and for other types than PLAIN."""
    try:
        with safe_open(file, framework="numpy"):
            pass
        mapped = np.memmap(file, np.uint8, mode="r")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    start = 8 + int(mapped[:8].view("<u8")[0])
    header = json.loads(bytes(mapped[8:start]))
    header.pop("__metadata__", None)
    odd = sorted({tensor["dtype"] for tensor in header.values()} - {*PLAIN})
    if odd:
        raise CheckpointError(f"{file} has tensors of type {', '.join(odd)}; allowed are {', '.join(PLAIN)}")
    tensors = {}
    for name, described in header.items():
        shape, (begin, end) = tuple(described["shape"]), described["data_offsets"]
        if end == begin:
            raise CheckpointError(f"{file}: tensor {name:.80} is empty; the model is damaged, get it again")
        data = mapped[start + begin : start + end].reshape(*shape[:-1], -1)
        tensors[name] = GGUFTensor(name, shape, described["dtype"], data)
    return tensors
