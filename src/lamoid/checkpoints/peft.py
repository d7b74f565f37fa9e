"""PEFT directories: an adapter and the name of the model that it stands on. `peft` opens what is written here.

`adapter_config.json` and `adapter_model.safetensors` are peft's, with an encoder's new head among the `modules_to_save`;
tokenizer and chat template are those that a chat needs. `lamoid_adapter.json` says what peft has no word for: which base
it was, how that was quantized, and the names of the labels. Houlsby adapters, which peft does not have, look the same
under a type name of their own.
"""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lamoid.adapt.adapters import AdaptedLinear, AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, LoraLinear, add_lora
from lamoid.adapt.nf4 import Nf4Linear, offsets_of, quantize_base
from lamoid.adapt.paths import FROZEN
from lamoid.checkpoints.hf import read_model, spelling_of
from lamoid.checkpoints.hf_bert import KINDS
from lamoid.checkpoints.hf_files import CONFIG_FILE
from lamoid.checkpoints.hf_stream import GENERATION_FILE
from lamoid.checkpoints.llama_tensors import listed
from lamoid.checkpoints.peft_config import (
    HOULSBY,
    OWN_FILE,
    TASKS,
    TENSORS_FILE,
    Quantization,
    lora_to_peft,
    read_head,
    read_labels,
    read_method,
    read_quantization,
)
from lamoid.checkpoints.store import ADAPTER_FILE, read_object, write_object
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.heads import Encoder, HeadedEncoder, HeadKind, PooledEncoder, Pooler, attach_head
from lamoid.models.llama import Llama
from lamoid.tokenizers.tokenizer import Tokenizer

_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class SavedAdapter:
    """What an adapter's directory says. `base` is a path or a name on the Hub; `tensors` and targets go by transformers' names.

    `head` is what an encoder got for its task, None where there is none, and `labels` name its classes.
    """

    directory: Path
    base: str
    method: LoraConfig | AdapterConfig
    tensors: dict[str, Tensor]
    head: HeadKind | None = None
    labels: tuple[str, ...] = ()
    quantization: Quantization | None = None
    fingerprint: str | None = None


def write_adapter(directory: Path, model: nn.Module, tokenizer: Tokenizer | None, base: Path) -> None:
    """Write what was trained of an adapted model, into a folder that the caller makes final.

    `base` is the Hugging Face directory that the model came from. Raises UsageError where it is something else, since
    peft could not open it.
    """
    if not (base / CONFIG_FILE).is_file():
        raise UsageError(f"the base {base} is no Hugging Face directory; make one with: lamoid convert {base} DIR")
    lora, houlsby = _first(model, LoraLinear), _first(model, AdaptedLinear)
    if lora is not None:
        config = lora_to_peft(lora.config, _names_of_targets(model))
    elif houlsby is not None:
        config = {"peft_type": HOULSBY, **dataclasses.asdict(houlsby.adapter.config)}
        config.pop("seed")  # it decided the first weights, which are not there any more
    else:
        raise UsageError("the model has no LoRA and no adapters; write it whole")
    where = {"base_model_name_or_path": str(base.resolve()), "inference_mode": True}
    write_object(directory / ADAPTER_FILE, config | where | _task(model))
    own = {"base_fingerprint": fingerprint(read_model(base)), "quantization": _quantization(model)}
    labels = getattr(model.head, "labels", None) if isinstance(model, HeadedEncoder) else None
    write_object(directory / OWN_FILE, own | ({"labels": labels} if labels else {}))
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    tensors = {_PREFIX + _theirs(model, name): tensor for name, tensor in trained.items()}
    save_file(tensors, directory / TENSORS_FILE, metadata={"format": "pt"})
    for name, content in (tokenizer.files() if tokenizer is not None else {}).items():
        (directory / name).write_bytes(content)
    if (base / GENERATION_FILE).is_file():
        shutil.copyfile(base / GENERATION_FILE, directory / GENERATION_FILE)


def fingerprint(model: nn.Module) -> str:
    """A hash of the configuration, of all vectors, and of three rows of each matrix, as float32.

    It tells two models of one shape apart, whatever files they lie in, without reading all of their weights.
    """
    shape = {name: value for name, value in dataclasses.asdict(model.config).items() if name != "init_std"}  # type: ignore[call-overload]
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, weights in model.named_parameters():
        rows = (
            weights.detach()
            if weights.dim() == 1
            else weights.detach()[sorted({0, len(weights) // 2, len(weights) - 1})]
        )
        digest.update(name.encode() + rows.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
    try:
        head = read_head(raw)
        method = read_method(raw, tensors)
        labels = read_labels(own.get("labels"), tensors) if head in ("sequence", "token") else ()
        quantization = read_quantization(own.get("quantization"))
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(f"{file}: {error}") from error
    return SavedAdapter(directory, base, method, tensors, head, labels, quantization, own.get("base_fingerprint"))


def attach(model: nn.Module, saved: SavedAdapter, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Put a saved adapter, and the head that it brings, on its base, which is quantized first where it was; unmerged.

    The base comes in the dtype of its files, or in `saved.quantization.weight_dtype`; what is not quantized is then put
    into `dtype`. A pooler that the base has is kept unless the adapter brings one. Returns the model. Raises
    CheckpointError naming what belongs to another base (fault F29).
    """
    has_pooler = _first(model, Pooler) is not None
    if saved.head is not None:
        if not isinstance(model, Encoder | PooledEncoder | HeadedEncoder):
            raise CheckpointError(
                f"{saved.directory} has a head for an encoder; {saved.base} is a {type(model).__name__}"
            )
        model = attach_head(model, saved.head, 0, saved.labels)
    elif not isinstance(model, Llama):
        raise CheckpointError(f"{saved.directory} is for a Llama; {saved.base} is a {type(model).__name__}")
    paths, base = _linears(model), _base_tensors(model)
    targets = saved.method.targets if isinstance(saved.method, LoraConfig) else ()
    of_base = {name for name in saved.tensors if targets and name.replace(".base_layer", "") in base}
    foreign = [name for name in of_base if not _same(base[name.replace(".base_layer", "")], saved.tensors[name])]
    foreign += [f"{target}, which is not there" for target in targets if target not in paths]
    if foreign:
        raise CheckpointError(f"{saved.directory} belongs to another base than {saved.base}: {listed(foreign)}")
    body = model.encoder if isinstance(model, HeadedEncoder) else model
    try:
        if saved.quantization is not None:
            quantize_base(body, saved.quantization.config, saved.quantization.offsets)
        if dtype is not None:
            model.to(dtype)
        if isinstance(saved.method, LoraConfig):
            own = tuple(paths[target].removeprefix("encoder.") for target in targets)
            add_lora(body, replace(saved.method, targets=own))
        else:
            add_adapters(body, saved.method)
    except UsageError as error:
        raise CheckpointError(f"{saved.directory}: {error}") from error
    state = by_our_names(model, {name: t for name, t in saved.tensors.items() if name not in of_base})
    for name, parameter in model.named_parameters():
        if name.startswith("head."):
            parameter.requires_grad_(name in state or not (has_pooler and ".pooler." in name))
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = [
        f"{name} is {found.get(name)}, not {shape}" for name, shape in wanted.items() if found.get(name) != shape
    ]
    problems += [f"{name} is superfluous" for name in found.keys() - wanted.keys()]
    if problems:
        raise CheckpointError(f"{saved.directory} does not fit its base {saved.base}: {listed(problems)}")
    model.load_state_dict(state, strict=False)
    return model.eval()


def by_our_names(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors by the parameter names of the adapted model; those that it does not have keep theirs."""
    ours = {_theirs(model, name): name for name, _ in model.named_parameters()}
    return {ours.get(name, name): tensor for name, tensor in tensors.items()}


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """By transformers' names, in float32."""
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
    return {name.removeprefix(_PREFIX): tensor.float() for name, tensor in tensors.items()}


def _theirs(model: nn.Module, name: str) -> str:
    """What transformers and peft call a parameter, or with `path.weight` a layer, of an adapted model."""
    return spelling_of(model.config).rename(model, name) + (".weight" if name.endswith((".lora_A", ".lora_B")) else "")


def _linears(model: nn.Module) -> dict[str, str]:
    """The paths of linear layers, by theirs."""
    paths = [path for path, layer in model.named_modules() if isinstance(layer, nn.Linear | Nf4Linear)]
    return {_theirs(model, f"{path}.weight").removesuffix(".weight"): path for path in paths}


def _base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything but a head, by their names; what is tied, by each of its names."""
    named = model.named_parameters(remove_duplicate=False)
    return {_theirs(model, name): tensor for name, tensor in named if not name.startswith("head.")}


def _task(model: nn.Module) -> dict[str, Any]:
    if not isinstance(model, HeadedEncoder):
        return {"task_type": "CAUSAL_LM"}
    task = next(task for task, kind in TASKS.items() if kind == KINDS[type(model.head)])
    head = [_theirs(model, name) for name, _ in model.named_parameters() if name.startswith("head.")]
    modules = dict.fromkeys(name.removeprefix("bert.").partition(".")[0] for name in head)
    return {"task_type": task, "modules_to_save": list(modules)}


def _quantization(model: nn.Module) -> dict[str, Any] | None:
    body = model.encoder if isinstance(model, HeadedEncoder) else model
    layer = _first(body, Nf4Linear)
    if layer is None:
        return None
    dtype = str(layer.weight_dtype).removeprefix("torch.")
    return {"type": "nf4", **dataclasses.asdict(layer.config), "weight_dtype": dtype, "offsets": offsets_of(body)}


def _names_of_targets(model: nn.Module) -> list[str]:
    """`q_proj` where all layers of that name have LoRA, whole paths otherwise."""
    adapted = [path for path, layer in model.named_modules() if isinstance(layer, LoraLinear)]
    plain = [ours.removesuffix(f".{FROZEN}") for ours in _linears(model).values()]
    theirs = {path: _theirs(model, f"{path}.weight").removesuffix(".weight") for path in (*adapted, *plain)}
    others = {theirs[path].rpartition(".")[2] for path in plain if path not in adapted}
    names = [(theirs[path].rpartition(".")[2], theirs[path]) for path in adapted]
    return list(dict.fromkeys(path if name in others else name for name, path in names))


def _first(model: nn.Module, kind: type[Any]) -> Any:
    return next((module for module in model.modules() if isinstance(module, kind)), None)


def _same(own: Tensor, tensor: Tensor) -> bool:
    return own.shape == tensor.shape and bool(torch.equal(own.float(), tensor))
