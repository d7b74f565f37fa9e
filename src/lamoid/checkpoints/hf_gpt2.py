"""GPT-2 in Hugging Face directories. Its matrices lie transposed there, (in, out), and Q, K and V are one tensor."""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from lamoid.checkpoints.config_fields import allow_only, make_config, read_fields, rename
from lamoid.checkpoints.name_maps import GPT2_FIELDS, GPT2_TENSORS
from lamoid.checkpoints.spelling import Spelling, Tensors
from lamoid.errors import CheckpointError
from lamoid.models.gpt2 import GPT2, GPT2Config

_REQUIRED = ("vocab_size", "d_model", "n_layers", "n_heads", "max_seq_len")
_ONLY: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False, None),
    "reorder_and_upcast_attn": (False, True, None),  # the same result but for rounding
    "add_cross_attention": (False, None),
    "quantization_config": (None,),
}
ACTIVATION_NAMES = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu"}
"""Theirs -> ours; the first of ours is the one that is written."""
_TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$")


def read_activation(raw: dict[str, Any], field: str, default: str) -> str:
    """Our name of the activation that a config.json gives."""
    name = raw.get(field, default)
    if not isinstance(name, str) or name not in ACTIVATION_NAMES:
        raise CheckpointError(f"{field} is {name!r:.80}; known are {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def write_activation(name: str) -> str:
    """Their name of one of our activations."""
    return next(theirs for theirs, ours in ACTIVATION_NAMES.items() if ours == name)


def _read_config(raw: dict[str, Any]) -> GPT2Config:
    allow_only(raw, _ONLY, "GPT-2")
    fields = read_fields(GPT2Config, GPT2_FIELDS, raw, _REQUIRED)
    fields.setdefault("d_ff", 4 * fields["d_model"])
    fields["activation"] = read_activation(raw, "activation_function", "gelu_new")
    config: GPT2Config = make_config(GPT2Config, fields, GPT2_FIELDS)
    return config


def _write_config(config: GPT2Config) -> dict[str, Any]:
    fields = {theirs: getattr(config, ours) for ours, theirs in GPT2_FIELDS.items()}
    named = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    return {**named, "activation_function": write_activation(config.activation), **fields}


def _build(config: GPT2Config, raw: dict[str, Any], names: Collection[str]) -> nn.Module:
    return GPT2(config)


def _clean(model: nn.Module, tensors: Tensors) -> Tensors:
    """Without buffers and copies; the published files have no `transformer.` in front of their names."""
    kept = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.search(name)}
    if isinstance(model, GPT2) and model.config.tied_embeddings:
        kept.pop("lm_head.weight", None)
    is_bare = "transformer.wte.weight" not in kept
    return {
        name if not is_bare or name.startswith("lm_head.") else f"transformer.{name}": t for name, t in kept.items()
    }


def _pack(model: nn.Module, tensors: Tensors) -> Tensors:
    packed: Tensors = {}
    for name, tensor in tensors.items():
        if ".c_attn.q." in name:
            parts = [tensors[name.replace(".c_attn.q.", f".c_attn.{part}.")] for part in "qkv"]
            packed[name.replace(".c_attn.q.", ".c_attn.")] = torch.cat(parts)
        elif ".c_attn." not in name:
            packed[name] = tensor
    return {name: tensor.T if _TRANSPOSED.search(name) else tensor for name, tensor in packed.items()}


def _unpack(model: nn.Module, tensors: Tensors) -> Tensors:
    unpacked: Tensors = {}
    for name, tensor in tensors.items():
        tensor = tensor.T if _TRANSPOSED.search(name) else tensor
        if ".c_attn." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                unpacked[name.replace(".c_attn.", f".c_attn.{part}.")] = rows.contiguous()
        else:
            unpacked[name] = tensor.contiguous()
    return unpacked


GPT_2 = Spelling(
    config=GPT2Config,
    read_config=_read_config,
    write_config=_write_config,
    build=_build,
    describe=lambda model: {},
    rename=lambda model, name: rename(name, GPT2_TENSORS),
    clean=_clean,
    pack=_pack,
    unpack=_unpack,
)
