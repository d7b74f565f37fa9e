"""An adapter and the base that it names -> the adapted model."""

from pathlib import Path
from typing import TYPE_CHECKING

from lamoid.errors import CheckpointError, DataError
from lamoid.recipes.catalogue import is_name, models_path

if TYPE_CHECKING:
    import torch

    from lamoid.checkpoints.peft import SavedAdapter
    from lamoid.models.llama import Llama


def load_adapted(directory: Path, *, dtype: "torch.dtype | None" = None) -> "tuple[Llama, Path]":
    """The base with the adapter in place, unmerged, and the directory of the base.

    Raises CheckpointError where the base is another one than the adapter was trained on (fault F29).
    """
    from lamoid.checkpoints.hf import read_model
    from lamoid.checkpoints.hf_stream import open_hf
    from lamoid.checkpoints.peft import attach, read_adapter
    from lamoid.checkpoints.source import fingerprint
    from lamoid.models.llama import Llama

    saved = read_adapter(directory)
    base = find_base(saved)
    if saved.fingerprint is not None and saved.fingerprint != fingerprint(open_hf(base)):
        raise CheckpointError(
            f"{directory} was trained on another model than the one that is in {base} now; restore that"
        )
    quantized = saved.quantization
    model = read_model(base, dtype=quantized.weight_dtype if quantized else dtype)
    if not isinstance(model, Llama):
        raise CheckpointError(f"{base} is a {type(model).__name__}; adapters are for Llamas")
    return attach(model, saved, dtype=dtype), base


def find_base(saved: "SavedAdapter") -> Path:
    """The directory of an adapter's base, which it names by path or by its name on the Hugging Face Hub."""
    path, name = Path(saved.base).expanduser(), f"hf:{saved.base}"
    if path.is_dir():
        return path
    if is_name(name):
        return models_path(name)
    raise DataError(
        f"{saved.base}, the base of {saved.directory}, is not there; "
        f"put it back, or write where it is into base_model_name_or_path of adapter_config.json"
    )
