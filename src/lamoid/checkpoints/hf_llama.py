"""Llama in Hugging Face directories."""

from collections.abc import Collection
from typing import Any

from torch import nn

from lamoid.checkpoints.hf_llama_config import llama_config_from_hf, llama_config_to_hf
from lamoid.checkpoints.name_maps import llama_to_hf
from lamoid.checkpoints.spelling import Spelling, Tensors
from lamoid.models.llama import Llama, LlamaConfig


def _clean(model: nn.Module, tensors: Tensors) -> Tensors:
    """Without the frequencies that old files carry, and without the second copy of tied embeddings."""
    is_tied = isinstance(model, Llama) and model.config.tied_embeddings
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("rotary_emb.inv_freq") and not (is_tied and name == "lm_head.weight")
    }


def _build(config: LlamaConfig, raw: dict[str, Any], names: Collection[str]) -> nn.Module:
    return Llama(config)


LLAMA = Spelling(
    config=LlamaConfig,
    read_config=llama_config_from_hf,
    write_config=llama_config_to_hf,
    build=_build,
    describe=lambda model: {},
    rename=lambda model, name: llama_to_hf(name),
    clean=_clean,
)
