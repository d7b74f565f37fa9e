"""Hugging Face directories: config.json and safetensors <-> a model. Anything written here opens in transformers as it is.

The configuration carries RoPE in both spellings: `rope_parameters` (transformers 5), `rope_theta` and `rope_scaling` (4).
"""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lamoid.checkpoints.name_maps import LLAMA_FIELDS, llama_to_hf
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from lamoid.tokenizers.tokenizer import Tokenizer, note_code

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_JSON_BYTES = 8 * 2**20
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    note_code(raw, file)
    try:
        return config_from_hf(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def config_to_hf(config: LlamaConfig) -> dict[str, Any]:
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


def config_from_hf(raw: dict[str, Any]) -> LlamaConfig:
    """The LlamaConfig that a config.json means. Fields that Llama cannot represent are refused, never ignored."""
    for field, allowed in _ONLY.items():
        if raw.get(field, allowed[0]) not in allowed:
            raise CheckpointError(f"{field} is {raw[field]!r}; this Llama can only have {allowed[0]!r}")
    fields = {ours: raw[theirs] for ours, theirs in LLAMA_FIELDS.items() if raw.get(theirs) is not None}
    missing = [LLAMA_FIELDS[name] for name in _REQUIRED if name not in fields]
    if missing:
        raise CheckpointError(f"fields {missing} are missing")
    kinds = {field.name: field.type for field in dataclasses.fields(LlamaConfig)}
    fields = {name: _as(kinds[name], LLAMA_FIELDS[name], value) for name, value in fields.items()}
    fields.setdefault("n_kv_heads", fields["n_heads"])
    fields.setdefault("norm_eps", 1e-6)
    if "head_dim" not in fields:
        if fields["d_model"] % fields["n_heads"]:
            raise CheckpointError(
                f"num_attention_heads is {fields['n_heads']}; it must divide hidden_size {fields['d_model']}"
            )
        fields["head_dim"] = fields["d_model"] // fields["n_heads"]
    base, scaling = _rope_from_hf(raw, fields["max_seq_len"])
    try:
        return LlamaConfig(**fields, rope_base=base, rope_scaling=scaling)
    except UsageError as error:
        names = LLAMA_FIELDS | {"rope_base": "rope_theta"}
        text = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(error))
        raise CheckpointError(text) from error


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


def _rope_from_hf(raw: dict[str, Any], max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from either spelling; where both are there, they have to agree."""
    spellings = [
        (field, raw[field]) for field in ("rope_parameters", "rope_scaling") if raw.get(field) not in (None, {})
    ]
    for field, value in spellings:
        if not isinstance(value, dict):
            raise CheckpointError(f"{field} is {value!r}; it must be an object or null")
    scalings = [_scaling_from_hf(value, max_seq_len) for _, value in spellings]
    if len(scalings) == 2 and scalings[0] != scalings[1]:
        raise CheckpointError("rope_parameters and rope_scaling disagree; remove the one that is wrong")
    bases = [value["rope_theta"] for value in (raw, *(v for _, v in spellings)) if value.get("rope_theta") is not None]
    bases = [_as(float, "rope_theta", base) for base in bases] or [10_000.0]
    if bases[0] != bases[-1]:
        raise CheckpointError(f"rope_theta is both {bases[0]} and {bases[-1]}; remove the one that is wrong")
    return bases[0], scalings[0] if scalings else None


def _scaling_from_hf(raw: dict[str, Any], max_seq_len: int) -> RopeScaling | None:
    if raw.get("partial_rotary_factor") not in (None, 1.0):
        raise CheckpointError(
            f"partial_rotary_factor is {raw['partial_rotary_factor']!r}; this Llama rotates all features"
        )
    name = raw.get("rope_type", raw.get("type", "default"))
    if name == "default":
        return None
    if not isinstance(name, str) or name not in _SCALINGS:
        raise CheckpointError(f"rope_type is {name!r}; known are default, {', '.join(_SCALINGS)}")
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
            values[field.name] = _as(field.type, where, raw[theirs])
        elif field.default is dataclasses.MISSING:
            raise CheckpointError(f"{where} is missing")
    if name == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise CheckpointError(
            f"high_freq_factor is {values['high_freq_factor']}; it must be above low_freq_factor {values['low_freq_factor']}"
        )
    return kind(**values)


def _as(kind: Any, field: str, value: Any) -> Any:
    """A value from JSON as a bool, a whole number or a float above 0; an error that names the field otherwise."""
    if kind is bool:
        if type(value) is not bool:
            raise CheckpointError(f"{field} is {value!r}; it must be true or false")
    elif kind is int:
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{field} is {value!r}; it must be a whole number above 0")
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 < value <= sys.float_info.max):
            raise CheckpointError(f"{field} is {value!r}; it must be a finite number above 0")
        value = float(value)
    return value


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
                for name in opened.keys():  # noqa: SIM118
                    if name in tensors:
                        raise CheckpointError(f"{file}: {name} is in another file of this model too")
                    tensors[name] = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return tensors


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory. Raises CheckpointError for a shard that lies outside of it."""
    if (directory / WEIGHTS_FILE).is_file():  # before the index, as transformers does where both are there
        return [directory / WEIGHTS_FILE]
    if (directory / INDEX_FILE).is_file():
        index = _read_object(directory / INDEX_FILE).get("weight_map")
        if not isinstance(index, dict):
            raise CheckpointError(f"{directory / INDEX_FILE}: weight_map is missing")
        names = sorted({str(name) for name in index.values()})
        for name in names:
            if not _lies_inside(directory, name):
                what = f"{directory / INDEX_FILE}: shard {name!r} lies outside the directory"
                raise CheckpointError(f"{what}; put the file itself there")
        return [directory / name for name in names]
    raise CheckpointError(f"{directory} has no {WEIGHTS_FILE}; a model is a Hugging Face directory with safetensors")


def _lies_inside(directory: Path, name: str) -> bool:
    try:
        return (directory / name).resolve().parent == directory.resolve()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, links in a circle
        return False


def _check_tensors(directory: Path, wanted: dict[str, torch.Size], found: dict[str, Tensor]) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is superfluous" for name in found if name not in wanted]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    problems += [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}, which only quantized or broken models have"
        for name, tensor in found.items()
        if tensor.dtype not in _DTYPES
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
