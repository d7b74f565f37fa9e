"""`lamoid.load`: a model or adapter directory, a GGUF file or the name of a fetched model -> (model, tokenizer)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lamoid.checkpoints.hf_files import CONFIG_FILE
from lamoid.checkpoints.store import read_object
from lamoid.errors import DataError, UsageError
from lamoid.recipes.catalogue import is_name, known_names, models_path
from lamoid.tokenizers.load import has_tokenizer, load_tokenizer
from lamoid.tokenizers.tokenizer import TOKENIZER_FILE, Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lamoid.models.decoders import DecoderModel
    from lamoid.models.llama import Llama


def load(path: str | Path, *, dtype: "torch.dtype | None" = None) -> "tuple[nn.Module, Tokenizer | None]":
    """Load the model of a Hugging Face directory, a GGUF file or a fetched model, and its tokenizer, or None where it has none.

    The directory of an adapter gives its base with the adapter in place, unmerged. `dtype` None keeps what the files
    have; quantized weights become float32. Raises CheckpointError or DataError naming the file or field that is wrong.
    """
    if is_gguf(path):
        from lamoid.checkpoints.gguf_llama import read_gguf_model

        return read_gguf_model(Path(path).expanduser(), dtype=dtype)
    from lamoid.checkpoints.hf import read_model
    from lamoid.checkpoints.store import is_adapter
    from lamoid.recipes.adapted import load_adapted

    directory = model_directory(path)
    if is_adapter(directory):
        model, base = load_adapted(directory, dtype=dtype)
        return model, find_tokenizer(directory) or find_tokenizer(base)
    return read_model(directory, dtype=dtype), find_tokenizer(directory)


def load_config(path: str | Path) -> Any:
    """The configuration of the model that an argument names. No weights are read. Raises CheckpointError for an adapter."""
    found = resolve(path)
    if is_gguf(found):
        from lamoid.checkpoints.gguf_llama import open_gguf

        return open_gguf(found).config
    from lamoid.checkpoints.hf import read_config

    return read_config(found)


def is_gguf(path: str | Path) -> bool:
    """Whether a model argument names a GGUF file."""
    return Path(path).suffix.lower() == ".gguf"


def resolve(path: str | Path) -> Path:
    """The directory or GGUF file that a model argument names, by its path or, where there is none, by its name."""
    found = Path(path).expanduser()
    if found.is_dir() or is_gguf(found):
        return found
    if is_name(str(path)):
        return models_path(str(path))
    raise DataError(
        f"{path} is no model: there is no such directory, it is no .gguf file, and lamoid get fetches {known_names()}"
    )


def keep_apart(model: str | Path, out: str | Path) -> None:
    """Raise UsageError where a run would write into the directory of the model that it begins from."""
    if resolve(model).resolve() == Path(out).expanduser().resolve():
        raise UsageError(f"--out is {out}, which holds the model to begin from; choose another directory")


def model_directory(path: str | Path) -> Path:
    """The directory that a model argument names."""
    directory = resolve(path)
    if not directory.is_dir():
        raise DataError(f"{path} is a file; give a model directory")
    return directory


def find_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a model directory, None where it has none."""
    return load_tokenizer(directory) if has_tokenizer(directory) else None


def is_transformer(path: str | Path) -> bool:
    """Whether a model argument names the directory of an encoder–decoder. No torch is imported."""
    found = resolve(path)
    if is_gguf(found) or not (found / CONFIG_FILE).is_file():
        return False
    return read_object(found / CONFIG_FILE).get("model_type") == "lamoid_transformer"


def load_named_tokenizer(path: str) -> Tokenizer:
    """The tokenizer that an argument names: a directory, a file of its own, or a fetched model."""
    is_path = Path(path).exists() or not is_name(path)
    return load_tokenizer(path if is_path else models_path(path))


def load_with_tokenizer(path: str | Path, threads: int | None) -> "tuple[Llama, Tokenizer]":
    """As `load_decoder`, for a verb that changes a model: it takes whole Llamas alone."""
    from lamoid.checkpoints.store import refuse_adapter
    from lamoid.models.llama import Llama

    refuse_adapter(resolve(path))
    model, tokenizer = load_decoder(path, threads)
    if not isinstance(model, Llama):
        raise UsageError(f"{path} is a {type(model).__name__}; this verb takes a Llama")
    return model, tokenizer


def load_decoder(path: str | Path, threads: int | None) -> "tuple[DecoderModel, Tokenizer]":
    """Load a decoder in fp32 for a verb that works on text, after setting the number of threads."""
    import torch

    from lamoid.models.decoders import DecoderModel

    set_threads(threads)
    model, tokenizer = load(path, dtype=torch.float32)
    if not isinstance(model, DecoderModel):
        raise UsageError(f"{path} is a {type(model).__name__}, which writes no text; take a decoder, or lamoid embed")
    if tokenizer is None:
        raise DataError(f"{path} has no tokenizer; put a {TOKENIZER_FILE} beside the model")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} ids, the model only {model.config.vocab_size}; "
            f"they do not belong together"
        )
    return model, tokenizer


def set_threads(threads: int | None) -> None:
    """Compute and tokenize on this many cores; None leaves the libraries' choice, all of them."""
    import torch

    if threads is None:
        return
    if threads < 1:
        raise UsageError(f"threads is {threads}; at least 1 is needed")
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # read by the tokenizers' runtime when it is first used


def check_device(device: str) -> str:
    """The device, if this machine has it."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device is {device!r}, which this machine does not have ({str(error).splitlines()[0]})"
        ) from error
    return device
