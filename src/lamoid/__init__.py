"""Lamoid raises Llamas. The public names; each is imported when it is first used, so that `import lamoid` needs no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamoid.errors import CheckpointError, DataError, LamoidError, MissingExtra, RunError, UsageError
    from lamoid.models.llama import Llama, LlamaConfig
    from lamoid.recipes.catalogue import models_path
    from lamoid.recipes.complete import generate
    from lamoid.recipes.engines import load_engine
    from lamoid.recipes.load import load
    from lamoid.tokenizers.load import load_tokenizer
    from lamoid.tokenizers.tokenizer import Tokenizer
    from lamoid.training.loop import Progress, train

_HOMES = {
    "CheckpointError": "lamoid.errors",
    "DataError": "lamoid.errors",
    "LamoidError": "lamoid.errors",
    "Llama": "lamoid.models.llama",
    "LlamaConfig": "lamoid.models.llama",
    "MissingExtra": "lamoid.errors",
    "Progress": "lamoid.training.loop",
    "RunError": "lamoid.errors",
    "Tokenizer": "lamoid.tokenizers.tokenizer",
    "UsageError": "lamoid.errors",
    "generate": "lamoid.recipes.complete",
    "load": "lamoid.recipes.load",
    "load_engine": "lamoid.recipes.engines",
    "load_tokenizer": "lamoid.tokenizers.load",
    "models_path": "lamoid.recipes.catalogue",
    "train": "lamoid.training.loop",
}

__all__ = [
    "CheckpointError",
    "DataError",
    "LamoidError",
    "Llama",
    "LlamaConfig",
    "MissingExtra",
    "Progress",
    "RunError",
    "Tokenizer",
    "UsageError",
    "generate",
    "load",
    "load_engine",
    "load_tokenizer",
    "models_path",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lamoid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
