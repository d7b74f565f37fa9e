"""What an adapter's JSON files say: of the method, of an encoder's head and labels, of a base that was quantized."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lamoid.adapt.adapters import AdapterConfig
from lamoid.adapt.lora import LoraConfig
from lamoid.adapt.nf4 import DTYPES, Nf4Config
from lamoid.checkpoints.hf_bert import MOST_LABELS
from lamoid.checkpoints.llama_tensors import listed
from lamoid.errors import CheckpointError
from lamoid.models.heads import HeadKind

TENSORS_FILE, OWN_FILE = "adapter_model.safetensors", "lamoid_adapter.json"
LORA, HOULSBY = "LORA", "LAMOID_HOULSBY"
TASKS: dict[str, HeadKind] = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token", "QUESTION_ANS": "span"}
"""What peft calls the heads of encoders; a decoder's task is CAUSAL_LM."""
_CLASSIFIERS = (".classifier.weight", ".classifier.out_proj.weight")


@dataclass(frozen=True)
class Quantization:
    """How the base of a QLoRA was put into NF4: from weights of which dtype, and with which mean scale for each layer."""

    config: Nf4Config
    weight_dtype: torch.dtype
    offsets: dict[str, float]


def lora_to_peft(config: LoraConfig, targets: list[str]) -> dict[str, Any]:
    """A LoRA in the words of adapter_config.json."""
    return {
        "peft_type": LORA,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": float(config.dropout),
        "use_rslora": config.rslora,
        "target_modules": targets,
        "bias": "none",
    }


_UNDERSTOOD = {"peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora"}
_WITHOUT_CONSEQUENCE = {
    *("auto_mapping", "inference_mode", "peft_version", "revision", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the tensors say where LoRA is
    *("megatron_core", "qalora_group_size"),  # say nothing without megatron_config and use_qalora
}
_HARMLESS_BEGINNINGS = (True, False, None, "gaussian", "orthogonal")  # the others change the weights of the base
_NOTHING: tuple[Any, ...] = (None, False, [], {}, "none")


def read_head(raw: dict[str, Any]) -> HeadKind | None:
    """The head that the task asks for, None where it has none. Raises CheckpointError for a task that is unknown."""
    task = raw.get("task_type")
    if task not in (None, "CAUSAL_LM", *TASKS):
        raise CheckpointError(f"task_type is {task!r:.80}; known are CAUSAL_LM, {', '.join(TASKS)}")
    return TASKS.get(str(task))


def read_labels(named: Any, tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of the classes, numbers where the directory names none."""
    counts = [len(t) for name, t in tensors.items() if f".{name}".endswith(_CLASSIFIERS) and t.dim() == 2]
    if len(counts) != 1 or not 0 < counts[0] <= MOST_LABELS:
        raise CheckpointError(f"task_type is one of classes, but {TENSORS_FILE} holds {counts or 'none'} of them")
    if named is None:
        return tuple(f"LABEL_{i}" for i in range(counts[0]))
    if not isinstance(named, list) or len(named) != counts[0] or not all(isinstance(label, str) for label in named):
        raise CheckpointError(f"labels in {OWN_FILE} are {str(named)[:80]}; {counts[0]} names are expected")
    return tuple(named)


def read_method(raw: dict[str, Any], tensors: dict[str, Tensor]) -> LoraConfig | AdapterConfig:
    """The LoRA or the adapters, with the paths that the tensors name. Raises CheckpointError for what neither can be."""
    kind = raw.get("peft_type")
    if kind == HOULSBY:
        return _houlsby(raw, tensors)
    if kind != LORA:
        raise CheckpointError(f"peft_type is {kind!r:.80}; only {LORA} and {HOULSBY} can be read")
    return _lora(raw, tensors)


def _houlsby(raw: dict[str, Any], tensors: dict[str, Tensor]) -> AdapterConfig:
    for name in ("behind", "norms"):
        if not isinstance(raw.get(name), list) or not all(isinstance(item, str) for item in raw[name]):
            raise CheckpointError(f"{name} is {raw.get(name)!r:.80}; it must be a list of names")
    widths = sorted({t.shape[0] for name, t in tensors.items() if name.endswith(".adapter.down.weight")})
    if widths != [raw.get("bottleneck")]:
        raise CheckpointError(f"bottleneck is {raw.get('bottleneck')!r:.80}, but {TENSORS_FILE} holds {widths}")
    return AdapterConfig(widths[0], tuple(raw["behind"]), tuple(raw["norms"]))


def _lora(raw: dict[str, Any], tensors: dict[str, Tensor]) -> LoraConfig:
    if raw.get("init_lora_weights") not in _HARMLESS_BEGINNINGS:
        raise CheckpointError(
            f"init_lora_weights is {raw['init_lora_weights']!r:.80}, which changes the base; "
            f"save the adapter in peft with path_initial_model_for_weight_conversion"
        )
    of_head = {"modules_to_save"} if read_head(raw) else set()  # the tensors say which they are
    for name in raw.keys() - _UNDERSTOOD - _WITHOUT_CONSEQUENCE - of_head - {"init_lora_weights"}:
        if raw[name] not in _NOTHING:
            raise CheckpointError(f"{name} is {raw[name]!r:.80}, which this LoRA cannot represent; merge it with peft")
    alpha, dropout = raw.get("lora_alpha", 8), raw.get("lora_dropout", 0.0)
    for name, value in (("lora_alpha", alpha), ("lora_dropout", dropout)):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f"{name} is {value!r:.80}; it must be a finite number")
    if type(rslora := raw.get("use_rslora") or False) is not bool:
        raise CheckpointError(f"use_rslora is {rslora!r:.80}; it must be true or false")
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    paths = tuple(dict.fromkeys(name.rpartition(".lora_")[0] for name in lora))
    odd = [name for name in lora if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    if odd or not paths:
        raise CheckpointError(f"{TENSORS_FILE} holds {listed(odd) or 'nothing'}; expected are lora_A and lora_B")
    ranks = sorted({t.shape[0] if "lora_A" in name else t.shape[-1] for name, t in lora.items() if t.dim() == 2})
    if ranks != [raw.get("r", 8)]:
        raise CheckpointError(f"r is {raw.get('r', 8)!r:.80}, but {TENSORS_FILE} holds LoRA of rank {ranks}")
    return LoraConfig(ranks[0], float(alpha), float(dropout), rslora, paths)


def read_quantization(raw: Any) -> Quantization | None:
    """How the base was quantized, None where it was not."""
    if raw is None:
        return None
    if not isinstance(raw, dict) or raw.get("type") != "nf4" or str(raw.get("weight_dtype")) not in _WEIGHT_DTYPES:
        raise CheckpointError(f"quantization in {OWN_FILE} is {str(raw)[:80]}; expected is nf4 as written here")
    offsets = raw.get("offsets")
    if not isinstance(offsets, dict) or not all(type(v) is float and math.isfinite(v) for v in offsets.values()):
        raise CheckpointError(f"offsets of the quantization in {OWN_FILE} are no numbers")
    config = Nf4Config(raw.get("double_quantization") is True, str(raw.get("compute_dtype")))
    return Quantization(config, _WEIGHT_DTYPES[raw["weight_dtype"]], offsets)


_WEIGHT_DTYPES = DTYPES | {"float16": torch.float16}
