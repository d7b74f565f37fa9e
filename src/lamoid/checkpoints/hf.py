"""Hugging Face directories: config.json and safetensors <-> a model. Anything written here opens in transformers as it is.

The configuration carries RoPE in both spellings: `rope_parameters` (transformers 5), `rope_theta` and `rope_scaling` (4).
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lamoid.checkpoints.name_maps import LLAMA_FIELDS, llama_to_hf
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.positions import DynamicNTKScaling, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from lamoid.tokenizers.tokenizer import Tokenizer

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_JSON_BYTES = 64 * 2**20


def write_model(directory: Path, model: Llama, tokenizer: Tokenizer | None) -> None:
    """Write a model and its tokenizer as a Hugging Face directory, into a folder that the caller makes final.

    Tied embeddings are written once. Weights keep their dtype.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    tensors = {llama_to_hf(name): p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    write_description(directory, model.config, dtype, tokenizer)


def write_description(directory: Path, config: LlamaConfig, dtype: str, tokenizer: Tokenizer | None) -> None:
    """Write all files of a model directory but the weights, whose dtype is named as torch names it, such as `bfloat16`."""
    special_ids = _special_ids(tokenizer)
    _write(directory / CONFIG_FILE, config_to_hf(config) | {"dtype": dtype, "torch_dtype": dtype} | special_ids)
    _write(directory / "generation_config.json", special_ids | {"do_sample": False})
    for name, content in (tokenizer.files() if tokenizer is not None else {}).items():
        (directory / name).write_bytes(content)


def read_model(directory: Path, *, dtype: torch.dtype | None = None) -> Llama:
    """Build the model that a directory describes and fill it; `dtype` None keeps the files'.

    Raises CheckpointError naming the file or field that is wrong, or every tensor that is missing, superfluous or
    misshapen, in one message; no half-loaded model is returned.
    """
    config = read_config(directory)
    tensors = _read_tensors(directory)
    with torch.device("meta"):
        model = Llama(config)
    wanted = {llama_to_hf(name): (name, p.shape) for name, p in model.named_parameters()}
    tensors = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied_embeddings:
        tensors.pop("lm_head.weight", None)
    _check_tensors(directory, {name: shape for name, (_, shape) in wanted.items()}, tensors)
    state = {wanted[name][0]: t if dtype is None else t.to(dtype) for name, t in tensors.items()}
    if config.tied_embeddings:
        state["lm_head.weight"] = state["embedding.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.requires_grad_(True).eval()


def read_config(directory: Path) -> LlamaConfig:
    """The configuration of a model directory. Raises CheckpointError naming the field that is wrong."""
    file = directory / CONFIG_FILE
    raw = _read_object(file)
    try:
        return config_from_hf(raw)
    except (UsageError, CheckpointError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
    """A LlamaConfig in Hugging Face's words."""
    fields = {theirs: getattr(config, ours) for ours, theirs in LLAMA_FIELDS.items()}
    scaling = _scaling_to_hf(config.rope_scaling)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **fields,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"} | (scaling or {}),
        "rope_theta": config.rope_base,
        "rope_scaling": scaling,
    }


def config_from_hf(raw: dict[str, Any]) -> LlamaConfig:
    """The LlamaConfig that a config.json means. Fields that Llama cannot represent are refused, never ignored."""
    for field, allowed in _ONLY.items():
        if raw.get(field, allowed[0]) not in allowed:
            raise CheckpointError(f"{field} is {raw[field]!r}; this Llama can only have {allowed[0]!r}")
    fields = {ours: raw[theirs] for ours, theirs in LLAMA_FIELDS.items() if raw.get(theirs) is not None}
    missing = [LLAMA_FIELDS[name] for name in _REQUIRED if name not in fields]
    if missing:
        raise CheckpointError(f"fields {missing} are missing")
    for name in _REQUIRED:
        if type(fields[name]) is not int or fields[name] < 1:
            raise CheckpointError(f"{LLAMA_FIELDS[name]} is {fields[name]!r}; it must be a whole number above 0")
    fields.setdefault("n_kv_heads", fields["n_heads"])
    fields.setdefault("norm_eps", 1e-6)
    if "head_dim" not in fields:
        if fields["d_model"] % fields["n_heads"]:
            raise CheckpointError(
                f"num_attention_heads is {fields['n_heads']}; it must divide hidden_size {fields['d_model']}"
            )
        fields["head_dim"] = fields["d_model"] // fields["n_heads"]
    rope = raw.get("rope_parameters") or {}
    base = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    scaling = _scaling_from_hf(rope or raw.get("rope_scaling") or {}, fields["max_seq_len"])
    if isinstance(base, bool) or not isinstance(base, int | float):
        raise CheckpointError(f"rope_theta is {base!r}; it must be a number")
    return LlamaConfig(**fields, rope_base=float(base), rope_scaling=scaling)


_REQUIRED = ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_seq_len")
_ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
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


def _scaling_from_hf(raw: dict[str, Any], max_seq_len: int) -> RopeScaling | None:
    name = raw.get("rope_type", raw.get("type", "default"))
    if name == "default":
        return None
    if name not in _SCALINGS:
        raise CheckpointError(f"rope_type is {name!r}; known are default, {', '.join(_SCALINGS)}")
    if raw.get("partial_rotary_factor") not in (None, 1.0):
        raise CheckpointError(
            f"partial_rotary_factor is {raw['partial_rotary_factor']!r}; this Llama rotates all features"
        )
    kind, fields = _SCALINGS[name]
    values = {ours: raw[theirs] for ours, theirs in fields.items() if raw.get(theirs) is not None}
    if name == "dynamic":  # transformers measures growth from max_position_embeddings, whatever else is written
        values["original_max_seq_len"] = max_seq_len
    if name == "yarn":
        values.setdefault("original_max_seq_len", max_seq_len)
    for ours, value in values.items():
        if ours != "truncate" and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
        ):
            raise CheckpointError(f"{fields[ours]} of rope_type {name} is {value!r}; it must be a number above 0")
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"rope_type {name}: {error}") from error


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    ids = {f"{role}_token_id": tokenizer.special_id(role) for role in ("bos", "eos", "pad")}
    return {name: index for name, index in ids.items() if index is not None}


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="pt") as opened:
                tensors.update((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return tensors


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory. Raises CheckpointError for a shard that lies outside of it."""
    if (directory / INDEX_FILE).is_file():
        index = _read_object(directory / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict):
            raise CheckpointError(f"{directory / INDEX_FILE}: weight_map is missing")
        names = sorted({str(name) for name in index.values()})
        for name in names:
            if (directory / name).resolve().parent != directory.resolve():
                raise CheckpointError(f"{directory / INDEX_FILE}: shard {name!r} lies outside the directory")
        return [directory / name for name in names]
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    raise CheckpointError(f"{directory} has no {WEIGHTS_FILE}; a model is a Hugging Face directory with safetensors")


def _check_tensors(directory: Path, wanted: dict[str, torch.Size], found: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is superfluous" for name in found if name not in wanted]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    if problems:
        raise CheckpointError(f"{directory} does not fit its {CONFIG_FILE}: {'; '.join(problems)}")


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; a model is a Hugging Face directory with {CONFIG_FILE}")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds {type(raw).__name__}; a JSON object is expected")
    return raw


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
