"""The layers of any model by their paths, such as `layers.0.attention.q_proj`: found by name, and replaced."""

from collections.abc import Sequence

from torch import nn

from lamoid.errors import UsageError

ALL_LINEAR = "all-linear"
OUTPUT_LAYERS = ("lm_head",)
"""What makes the logits: it is adapted only where it is named, and never quantized."""
FROZEN = "linear"
"""Under this name an adapted layer keeps the one that it was made from."""


def find_layers(model: nn.Module, kinds: tuple[type[nn.Module], ...], targets: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of these kinds whose path is a target or ends in `.target`, in the order of the model.

    `all-linear` stands for all but OUTPUT_LAYERS. Raises UsageError for a target that no layer has, listing the names
    that exist (fault F16).
    """
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, kinds)}
    if any(path.endswith(f".{FROZEN}") for path in layers):
        raise UsageError("the model is adapted already; merge it first, with: lamoid merge ADAPTER --out DIR")
    named = {target: {path for path in layers if _matches(path, target)} for target in targets}
    missing = [target for target, paths in named.items() if not paths]
    if missing or not named:
        names = list(dict.fromkeys(path.rpartition(".")[2] for path in layers))
        raise UsageError(
            f"targets {missing} match no linear layer of this model; there are {', '.join(names) or 'none'}; "
            f"give some of these, or {ALL_LINEAR}"
        )
    chosen = set().union(*named.values())
    return {path: layer for path, layer in layers.items() if path in chosen}


def replace_layer(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Put a layer where another one is."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def _matches(path: str, target: str) -> bool:
    if target == ALL_LINEAR:
        return path.rpartition(".")[2] not in OUTPUT_LAYERS
    return path == target or path.endswith(f".{target}")
