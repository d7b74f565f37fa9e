"""PEFT directories: an adapter and the name of the model that it stands on. `peft` opens what is written here.

`adapter_config.json` and `adapter_model.safetensors` are peft's, tokenizer and chat template those that a chat needs.
`lamoid_adapter.json` says what peft has no word for: which base it was, and how that was quantized. Houlsby adapters,
which peft does not have, look the same under a type name of their own.
"""

import dataclasses
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lamoid.adapt.adapters import AdaptedLinear, AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, LoraLinear, add_lora
from lamoid.adapt.nf4 import DTYPES, Nf4Config, Nf4Linear, offsets_of, quantize_base
from lamoid.checkpoints.hf_files import CONFIG_FILE
from lamoid.checkpoints.hf_stream import GENERATION_FILE, open_hf
from lamoid.checkpoints.llama_tensors import listed
from lamoid.checkpoints.name_maps import llama_from_hf, llama_to_hf
from lamoid.checkpoints.source import fingerprint
from lamoid.checkpoints.store import ADAPTER_FILE, read_object, write_object
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama import Llama
from lamoid.tokenizers.tokenizer import Tokenizer

TENSORS_FILE, OWN_FILE = "adapter_model.safetensors", "lamoid_adapter.json"
LORA, HOULSBY = "LORA", "LAMOID_HOULSBY"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Quantization:
    """How the base of a QLoRA was put into NF4: from weights of which dtype, and with which mean scale for each layer."""

    config: Nf4Config
    weight_dtype: torch.dtype
    offsets: dict[str, float]


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """What an adapter's directory says. `base` is a path or a name on the Hub; `state` goes by our parameter names.

    `base_tensors` are weights of the base itself, which peft writes beside a LoRA on the output layer.
    """

    directory: Path
    base: str
    method: LoraConfig | AdapterConfig
    state: dict[str, Tensor]
    base_tensors: dict[str, Tensor] = field(default_factory=dict)
    quantization: Quantization | None = None
    fingerprint: str | None = None


def write_adapter(directory: Path, model: Llama, tokenizer: Tokenizer | None, base: Path) -> None:
    """Write what was trained of an adapted model, into a folder that the caller makes final.

    `base` is the Hugging Face directory that the model came from. Raises UsageError where it is something else, since
    peft could not open it.
    """
    if not (base / CONFIG_FILE).is_file():
        raise UsageError(f"the base {base} is no Hugging Face directory; make one with: lamoid convert {base} DIR")
    lora, houlsby = _first(model, LoraLinear), _first(model, AdaptedLinear)
    if lora is not None:
        config = _lora_to_peft(lora.config, _names_of_targets(model))
    elif houlsby is not None:
        config = {"peft_type": HOULSBY, **dataclasses.asdict(houlsby.adapter.config)}
        config.pop("seed")  # it decided the first weights, which are not there any more
    else:
        raise UsageError("the model has no LoRA and no adapters; write it whole")
    where = {"base_model_name_or_path": str(base.resolve()), "task_type": "CAUSAL_LM", "inference_mode": True}
    write_object(directory / ADAPTER_FILE, config | where)
    write_object(
        directory / OWN_FILE, {"base_fingerprint": fingerprint(open_hf(base)), "quantization": _quantization(model)}
    )
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file({_to_peft(n): t for n, t in trained.items()}, directory / TENSORS_FILE, metadata={"format": "pt"})
    for name, content in (tokenizer.files() if tokenizer is not None else {}).items():
        (directory / name).write_bytes(content)
    if (base / GENERATION_FILE).is_file():
        shutil.copyfile(base / GENERATION_FILE, directory / GENERATION_FILE)


def read_adapter(directory: Path) -> SavedAdapter:
    """Read an adapter's directory, written here or by peft.

    Raises CheckpointError naming the field or the tensors that our LoRA or adapters cannot represent.
    """
    file = directory / ADAPTER_FILE
    raw = read_object(file)
    tensors = _read_tensors(directory)
    own = read_object(directory / OWN_FILE) if (directory / OWN_FILE).is_file() else {}
    base = raw.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{file}: base_model_name_or_path is {base!r:.80}; write there where the base model lies")
    state = {name: tensor for name, tensor in tensors.items() if not _is_of_base(name)}
    base_tensors = {n.replace(".base_layer", ""): t for n, t in tensors.items() if _is_of_base(n)}
    try:
        method = _method(raw, state)
        quantization = _read_quantization(own.get("quantization"))
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    print_of_base = own.get("base_fingerprint")
    return SavedAdapter(directory, base, method, state, base_tensors, quantization, print_of_base)


def attach(model: Llama, saved: SavedAdapter, *, dtype: torch.dtype | None = None) -> Llama:
    """Put a saved adapter on its base, which is quantized first where it was; returns the model, unmerged.

    The base comes in the dtype of its files, or in `saved.quantization.weight_dtype`; what is not quantized is then put
    into `dtype`. Raises CheckpointError naming what belongs to another base (fault F29).
    """
    own = dict(model.named_parameters())
    foreign = [name for name, tensor in saved.base_tensors.items() if not _same(own.get(_tied(model, name)), tensor)]
    linears = {path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Nf4Linear)}
    if isinstance(saved.method, LoraConfig):
        foreign += [f"{path}, which is not there" for path in saved.method.targets if path not in linears]
    if foreign:
        raise CheckpointError(f"{saved.directory} belongs to another base than {saved.base}: {listed(foreign)}")
    try:
        if saved.quantization is not None:
            quantize_base(model, saved.quantization.config, saved.quantization.offsets)
        if dtype is not None:
            model.to(dtype)
        if isinstance(saved.method, LoraConfig):
            add_lora(model, saved.method)
        else:
            add_adapters(model, saved.method)
    except UsageError as error:
        raise CheckpointError(f"{saved.directory}: {error}") from error
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    found = {name: tuple(tensor.shape) for name, tensor in saved.state.items()}
    problems = [
        f"{name} is {found.get(name)}, not {shape}" for name, shape in wanted.items() if found.get(name) != shape
    ]
    problems += [f"{name} is superfluous" for name in found.keys() - wanted.keys()]
    if problems:
        raise CheckpointError(f"{saved.directory} does not fit its base {saved.base}: {listed(problems)}")
    model.load_state_dict(saved.state, strict=False)
    return model.eval()


def _lora_to_peft(config: LoraConfig, targets: list[str]) -> dict[str, Any]:
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


def _method(raw: dict[str, Any], state: dict[str, Tensor]) -> LoraConfig | AdapterConfig:
    kind = raw.get("peft_type")
    if kind == HOULSBY:
        return _houlsby(raw, state)
    if kind != LORA:
        raise CheckpointError(f"peft_type is {kind!r:.80}; only {LORA} and {HOULSBY} can be read")
    return _lora(raw, state)


def _houlsby(raw: dict[str, Any], state: dict[str, Tensor]) -> AdapterConfig:
    for name in ("behind", "norms"):
        if not isinstance(raw.get(name), list) or not all(isinstance(item, str) for item in raw[name]):
            raise CheckpointError(f"{name} is {raw.get(name)!r:.80}; it must be a list of names")
    widths = sorted({t.shape[0] for name, t in state.items() if name.endswith(".adapter.down.weight")})
    if widths != [raw.get("bottleneck")]:
        raise CheckpointError(f"bottleneck is {raw.get('bottleneck')!r:.80}, but {TENSORS_FILE} holds {widths}")
    return AdapterConfig(widths[0], tuple(raw["behind"]), tuple(raw["norms"]))


def _lora(raw: dict[str, Any], state: dict[str, Tensor]) -> LoraConfig:
    if raw.get("task_type") not in (None, "CAUSAL_LM"):
        raise CheckpointError(f"task_type is {raw['task_type']!r:.80}; only CAUSAL_LM can be read")
    if raw.get("init_lora_weights") not in _HARMLESS_BEGINNINGS:
        raise CheckpointError(
            f"init_lora_weights is {raw['init_lora_weights']!r:.80}, which changes the base; "
            f"save the adapter in peft with path_initial_model_for_weight_conversion"
        )
    for name in raw.keys() - _UNDERSTOOD - _WITHOUT_CONSEQUENCE - {"init_lora_weights"}:
        if raw[name] not in _NOTHING:
            raise CheckpointError(f"{name} is {raw[name]!r:.80}, which this LoRA cannot represent; merge it with peft")
    alpha, dropout = raw.get("lora_alpha", 8), raw.get("lora_dropout", 0.0)
    for name, value in (("lora_alpha", alpha), ("lora_dropout", dropout)):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f"{name} is {value!r:.80}; it must be a finite number")
    paths = tuple(dict.fromkeys(name.rpartition(".lora_")[0] for name in state))
    odd = [name for name in state if not name.endswith((".lora_A", ".lora_B"))]
    if odd or not paths:
        raise CheckpointError(f"{TENSORS_FILE} holds {listed(odd) or 'nothing'}; expected are lora_A and lora_B")
    ranks = sorted({t.shape[0] if name.endswith("A") else t.shape[-1] for name, t in state.items() if t.dim() == 2})
    if ranks != [raw.get("r", 8)]:
        raise CheckpointError(f"r is {raw.get('r', 8)!r:.80}, but {TENSORS_FILE} holds LoRA of rank {ranks}")
    return LoraConfig(ranks[0], float(alpha), float(dropout), raw.get("use_rslora") is True, paths)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """By our names, in float32."""
    file = directory / TENSORS_FILE
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; adapters are read from safetensors alone")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {str(error)[:300]}") from error
    odd = [name for name, t in tensors.items() if not name.startswith(_PREFIX) or not t.is_floating_point()]
    if odd:
        raise CheckpointError(f"{file} holds {listed(odd)}; expected are weights named {_PREFIX}…")
    return {_from_peft(name): tensor.float() for name, tensor in tensors.items()}


def _to_peft(name: str) -> str:
    return _PREFIX + llama_to_hf(name) + (".weight" if name.endswith((".lora_A", ".lora_B")) else "")


def _from_peft(name: str) -> str:
    name = llama_from_hf(name.removeprefix(_PREFIX))
    return name.removesuffix(".weight") if name.endswith((".lora_A.weight", ".lora_B.weight")) else name


def _quantization(model: nn.Module) -> dict[str, Any] | None:
    layer = _first(model, Nf4Linear)
    if layer is None:
        return None
    dtype = str(layer.weight_dtype).removeprefix("torch.")
    return {"type": "nf4", **dataclasses.asdict(layer.config), "weight_dtype": dtype, "offsets": offsets_of(model)}


def _read_quantization(raw: Any) -> Quantization | None:
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


def _names_of_targets(model: Llama) -> list[str]:
    """`q_proj` where all layers of that name have LoRA, whole paths otherwise."""
    adapted = [path for path, layer in model.named_modules() if isinstance(layer, LoraLinear)]
    plain = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Nf4Linear)]
    others = {path.rpartition(".")[2] for path in plain if path.removesuffix(".linear") not in adapted}
    names = [path.rpartition(".")[2] for path in adapted]
    short = [name if name not in others else llama_to_hf(path) for name, path in zip(names, adapted, strict=True)]
    return list(dict.fromkeys(short))


def _first(model: nn.Module, kind: type[Any]) -> Any:
    return next((module for module in model.modules() if isinstance(module, kind)), None)


def _is_of_base(name: str) -> bool:
    return name.endswith(".base_layer.weight") or name == "embedding.weight" or name == "lm_head.weight"


def _tied(model: Llama, name: str) -> str:
    return "embedding.weight" if model.config.tied_embeddings and name == "lm_head.weight" else name


def _same(own: Tensor | None, tensor: Tensor) -> bool:
    return own is not None and own.shape == tensor.shape and bool(torch.equal(own.float(), tensor))
