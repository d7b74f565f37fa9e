"""The files of a Hugging Face directory: their names, and which of them hold the weights. No torch."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from lamoid.checkpoints.store import read_object
from lamoid.errors import CheckpointError

T = TypeVar("T")
CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory. Raises CheckpointError for a shard that lies outside of it."""
    if (directory / WEIGHTS_FILE).is_file():  # before the index, as transformers does where both are there
        return [directory / WEIGHTS_FILE]
    if (directory / INDEX_FILE).is_file():
        index = read_object(directory / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict):
            raise CheckpointError(f"{directory / INDEX_FILE}: weight_map is missing")
        names = sorted({str(name) for name in index.values()})
        for name in names:
            what = f"{directory / INDEX_FILE}: shard {name!r:.80}"
            if not _lies_inside(directory, name):
                raise CheckpointError(f"{what} lies outside the directory; put the file itself there")
            if not os.path.isfile(directory / name):  # a pipe, which one would wait for
                raise CheckpointError(f"{what} cannot be read: it is not there, or no file; get the whole model")
        return [directory / name for name in names]
    raise CheckpointError(f"{directory} has no {WEIGHTS_FILE}; a model is a Hugging Face directory with safetensors")


def gather(parts: Iterable[tuple[Path, Mapping[str, T]]]) -> dict[str, T]:
    """What the files of a model hold, by name. Raises CheckpointError for a name that is in two of them."""
    found: dict[str, T] = {}
    for file, tensors in parts:
        for name in tensors:
            if name in found:
                raise CheckpointError(f"{file}: {name:.200} is in another file of this model too; get the whole model")
        found |= tensors
    return found


def _lies_inside(directory: Path, name: str) -> bool:
    try:
        return (directory / name).resolve().parent == directory.resolve()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, links in a circle
        return False
