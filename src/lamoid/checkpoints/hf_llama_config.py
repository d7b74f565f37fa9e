"""LlamaConfig <-> the config.json of a Hugging Face directory. No torch.

RoPE is written in both spellings: `rope_parameters` (transformers 5), `rope_theta` and `rope_scaling` (4).
"""

import dataclasses
from typing import Any

from lamoid.checkpoints.config_fields import allow_only, as_kind, make_config, read_fields
from lamoid.checkpoints.name_maps import LLAMA_FIELDS
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama_config import LlamaConfig
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling


def llama_config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """A LlamaConfig in Hugging Face's words. Raises UsageError for what they cannot say."""
    scaling = config.rope_scaling
    if isinstance(scaling, DynamicNTKScaling) and scaling.original_max_seq_len != config.max_seq_len:
        raise UsageError(
            f"original_max_seq_len of DynamicNTKScaling is {scaling.original_max_seq_len}; transformers measures the "
            f"growth from max_position_embeddings, so it must be max_seq_len, {config.max_seq_len}"
        )
    fields = {theirs: getattr(config, ours) for ours, theirs in LLAMA_FIELDS.items()}
    rope = _scaling_to_hf(scaling)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **fields,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"} | (rope or {}),
        "rope_theta": config.rope_base,
        "rope_scaling": rope,
    }


def llama_config_from_hf(raw: dict[str, Any]) -> LlamaConfig:
    """The LlamaConfig that a config.json means. Fields that Llama cannot represent are refused, never ignored."""
    allow_only(raw, _ONLY, "Llama")
    fields = read_fields(LlamaConfig, LLAMA_FIELDS, raw, _REQUIRED)
    fields.setdefault("n_kv_heads", fields["n_heads"])
    fields.setdefault("norm_eps", 1e-6)
    if "head_dim" not in fields:
        if fields["d_model"] % fields["n_heads"]:
            raise CheckpointError(
                f"num_attention_heads is {fields['n_heads']}; it must divide hidden_size {fields['d_model']}"
            )
        fields["head_dim"] = fields["d_model"] // fields["n_heads"]
    base, scaling = _rope_from_hf(raw, fields["max_seq_len"])
    fields |= {"rope_base": base, "rope_scaling": scaling}
    config: LlamaConfig = make_config(LlamaConfig, fields, LLAMA_FIELDS | {"rope_base": "rope_theta"})
    return config


_REQUIRED = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1.0, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "use_sliding_window": (False, None),
}
_SCALINGS: dict[str, tuple[type, dict[str, str]]] = {
    "linear": (LinearScaling, {"factor": "factor"}),
    "dynamic": (
        DynamicNTKScaling,
        {"factor": "factor", "original_max_seq_len": "original_max_position_embeddings"},
    ),
    "yarn": (
        YarnScaling,
        {
            "factor": "factor",
            "original_max_seq_len": "original_max_position_embeddings",
            **{n: n for n in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")},
        },
    ),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
            "original_max_seq_len": "original_max_position_embeddings",
        },
    ),
}


def _scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    for name, (kind, fields) in _SCALINGS.items():
        if isinstance(scaling, kind):
            values = {theirs: getattr(scaling, ours) for ours, theirs in fields.items()}
            return {"rope_type": name} | {key: value for key, value in values.items() if value is not None}
    return None


def _rope_from_hf(raw: dict[str, Any], max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from either spelling; where both are there, they have to agree."""
    spellings = [
        (field, raw[field]) for field in ("rope_parameters", "rope_scaling") if raw.get(field) not in (None, {})
    ]
    for field, value in spellings:
        if not isinstance(value, dict):
            raise CheckpointError(f"{field} is {value!r:.80}; it must be an object or null")
    scalings = [_scaling_from_hf(value, max_seq_len) for _, value in spellings]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise CheckpointError("rope_parameters and rope_scaling disagree; remove the one that is wrong")
    bases = [value["rope_theta"] for value in (raw, *(v for _, v in spellings)) if value.get("rope_theta") is not None]
    bases = [as_kind(float, "rope_theta", base) for base in bases] or [10_000.0]
    if bases[0] != bases[-1]:
        raise CheckpointError(f"rope_theta is both {bases[0]} and {bases[-1]}; remove the one that is wrong")
    return bases[0], scalings[0] if scalings else None


def _scaling_from_hf(raw: dict[str, Any], max_seq_len: int) -> RopeScaling | None:
    if raw.get("partial_rotary_factor") not in (None, 1.0):
        raise CheckpointError(
            f"partial_rotary_factor is {raw['partial_rotary_factor']!r:.80}; this Llama rotates all features"
        )
    name = raw.get("rope_type", raw.get("type", "default"))
    if name == "default":
        return None
    if not isinstance(name, str) or name not in _SCALINGS:
        raise CheckpointError(f"rope_type is {name!r:.80}; known are default, {', '.join(_SCALINGS)}")
    kind, names = _SCALINGS[name]
    raw = {theirs: value for theirs, value in raw.items() if value is not None}
    if name == "dynamic":  # transformers measures growth from max_position_embeddings, whatever else is written
        raw["original_max_position_embeddings"] = max_seq_len
    if name == "yarn":
        raw.setdefault("original_max_position_embeddings", max_seq_len)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        theirs = names[field.name]
        where = f"{theirs} of rope_type {name}"
        if theirs in raw:
            values[field.name] = as_kind(field.type, where, raw[theirs])
        elif field.default is dataclasses.MISSING:
            raise CheckpointError(f"{where} is missing")
    if name == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise CheckpointError(
            f"high_freq_factor is {values['high_freq_factor']}; it must be above low_freq_factor {values['low_freq_factor']}"
        )
    return kind(**values)
