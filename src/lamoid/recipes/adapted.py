"""An adapter and the base that it names -> the adapted model, and the whole model that it amounts to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lamoid.checkpoints.store import ADAPTER_FILE, read_object
from lamoid.errors import CheckpointError, DataError, EngineUnavailable, UsageError
from lamoid.recipes.catalogue import is_name, models_path
from lamoid.tokenizers.chat import read_end_ids
from lamoid.tokenizers.load import has_tokenizer, load_tokenizer
from lamoid.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lamoid.checkpoints.peft import SavedAdapter
    from lamoid.inference.weights import Weights


def load_adapted(directory: Path, *, dtype: "torch.dtype | None" = None) -> "tuple[nn.Module, Path]":
    """The base with the adapter in place, unmerged, and the directory of the base.

    Raises CheckpointError where the base is another one than the adapter was trained on (fault F29).
    """
    from lamoid.checkpoints.hf import read_model
    from lamoid.checkpoints.peft import attach, read_adapter

    saved = read_adapter(directory)
    base = find_base(saved)
    model = read_model(base)
    check_base(saved, base, model)
    if saved.quantization is not None:
        model.to(saved.quantization.weight_dtype)
    return attach(model, saved, dtype=dtype), base


def check_base(saved: "SavedAdapter", base: Path, model: "nn.Module") -> None:
    """Raise CheckpointError where the model of `base` is not the one that the adapter was trained on, if that is known."""
    from lamoid.checkpoints.peft import fingerprint

    if saved.fingerprint is not None and saved.fingerprint != fingerprint(model):
        raise CheckpointError(
            f"{saved.directory} was trained on another model than the one that is in {base} now; restore that"
        )


def open_mergeable(directory: Path) -> "tuple[nn.Module, Tokenizer | None, tuple[int, ...]]":
    """An adapted model in float32, its tokenizer, and the ids that end a text beside the tokenizer's own end.

    Raises UsageError for a directory that is no adapter, and for Houlsby adapters.
    """
    import torch

    from lamoid.adapt.adapters import AdaptedLinear
    from lamoid.checkpoints.store import is_adapter

    if not is_adapter(directory):
        raise UsageError(f"{directory} holds no adapter that could be merged; it is a whole model, or none")
    model, base = load_adapted(directory, dtype=torch.float32)
    if any(isinstance(layer, AdaptedLinear) for layer in model.modules()):
        raise UsageError(
            f"{directory} holds Houlsby adapters, which cannot be merged: each has a GELU between its two matrices, and no "
            f"matrix of the base amounts to that; use the directory as it is, like a model"
        )
    places = [place for place in (directory, base) if has_tokenizer(place)]
    tokenizer = load_tokenizer(places[0]) if places else None
    own_end = tokenizer.special_id("eos") if tokenizer is not None else None
    return model, tokenizer, tuple(i for i in read_end_ids(directory) or read_end_ids(base) if i != own_end)


def merged_weights(directory: Path) -> "tuple[Weights, Tokenizer | None]":
    """The merged model of a LoRA or QLoRA for the native engine, in memory and in float32, and its tokenizer.

    Raises EngineUnavailable for other adapters.
    """
    kind = read_object(directory / ADAPTER_FILE).get("peft_type")
    if kind != "LORA":
        raise EngineUnavailable(f"peft_type of the adapter is {kind!r:.80}; the engine runs LORA, merged")
    import numpy as np

    from lamoid.checkpoints.merged import merged_source
    from lamoid.inference.weights import weights_of_arrays
    from lamoid.models.llama import Llama

    model, tokenizer, end_ids = open_mergeable(directory)
    if not isinstance(model, Llama):
        raise EngineUnavailable(f"{directory} is for a {type(model).__name__}; the engine runs Llamas")
    source = merged_source(model, directory, tokenizer, end_ids)
    arrays = {name: source.read(name, np.arange(shape[0])).numpy() for name, shape in source.shapes.items()}
    return weights_of_arrays(source.config, arrays, directory), source.tokenizer


def find_base(saved: "SavedAdapter") -> Path:
    """The directory of an adapter's base, which it names by path or by its name on the Hugging Face Hub."""
    path, name = os.path.expanduser(saved.base), f"hf:{saved.base}"  # whatever it says, these do not raise
    if os.path.isdir(path):
        return Path(path)
    if is_name(name):
        return models_path(name)
    raise DataError(
        f"{saved.base:.200}, the base of {saved.directory}, is not there; "
        f"put it back, or write where it is into base_model_name_or_path of adapter_config.json"
    )
