"""The Transformer and the laboratory's variant, for which transformers has no class: our own names in the same kind of files."""

import dataclasses
import difflib
from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn

from lamoid.checkpoints.config_fields import make_config, read_fields
from lamoid.checkpoints.spelling import Spelling, Tensors
from lamoid.errors import CheckpointError
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import Variant, VariantConfig

_OTHERS = {"model_type", "architectures", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id"}


def _read_config(kind: type, raw: dict[str, Any]) -> Any:
    fields = dataclasses.fields(kind)
    names = {field.name: field.name for field in fields}
    unknown = sorted(raw.keys() - names.keys() - _OTHERS)
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.0)[0]
        raise CheckpointError(f"{unknown[0]:.80} is no field of {kind.__name__}; did you mean {near}?")
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    return make_config(kind, read_fields(kind, names, raw, required), names)


def _write_config(model_type: str, config: Any) -> dict[str, Any]:
    return {"model_type": model_type, **dataclasses.asdict(config)}


def _build(kind: type, config: Any, raw: dict[str, Any], names: Collection[str]) -> nn.Module:
    return kind(config)


def _clean(model: nn.Module, tensors: Tensors) -> Tensors:
    """Without the second copy of tied embeddings."""
    wanted = dict(model.named_parameters())
    return {name: t for name, t in tensors.items() if name != "lm_head.weight" or name in wanted}


TRANSFORMER, VARIANT = (
    Spelling(
        config=config,
        read_config=partial(_read_config, config),
        write_config=partial(_write_config, model_type),
        build=partial(_build, kind),
        describe=lambda model: {"architectures": [type(model).__name__]},
        rename=lambda model, name: name,
        clean=_clean,
    )
    for config, kind, model_type in (
        (TransformerConfig, Transformer, "lamoid_transformer"),
        (VariantConfig, Variant, "lamoid_variant"),
    )
)
