"""Tensors that lie in shards, one file of safetensors for each process: torch.distributed.checkpoint, without its pickles.

What was written by any number of processes is read by any other number, by one, or from one whole file.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lamoid.errors import CheckpointError, RunError


def write_shards(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Write this process's shards into a folder that all of them see; all have to call it. Whole tensors are written once."""
    with _one_line(directory, RunError, "could not be written"):
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(directory), save_distributed=True))


def read_shards(directory: Path, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read `key/name` as the parameter of that name lies: this process's shard, or whole. Other tensors are read whole.

    Raises CheckpointError where a tensor has another shape than its parameter.
    """
    with _one_line(directory, CheckpointError, "cannot be read"):
        found = HuggingFaceStorageReader(str(directory)).read_metadata().state_dict_metadata
        tensors: dict[str, Tensor] = {}
        for name, described in found.items():
            assert isinstance(described, TensorStorageMetadata)
            parameter, dtype = parameters.get(name.partition("/")[2]), described.properties.dtype
            if parameter is not None and described.size == parameter.shape:
                tensors[name] = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
            elif "/" in name and len(described.size):
                raise CheckpointError(f"{directory}: {name} is {tuple(described.size)}, which fits no parameter")
            else:
                tensors[name] = torch.empty(described.size, dtype=dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads alone, and says so
            reader = HuggingFaceStorageReader(str(directory))
            load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
    return tensors


@contextmanager
def _one_line(directory: Path, kind: type[RunError] | type[CheckpointError], what: str) -> Iterator[None]:
    """The library raises on every process what went wrong on one of them, as a BaseException of many lines."""
    try:
        yield
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise kind(f"the shards in {directory} {what}: {reason}; free some space or choose another --out") from error
