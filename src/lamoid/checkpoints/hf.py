"""Hugging Face directories: config.json and safetensors <-> a model. Anything written here opens in transformers as it is.

`SPELLINGS` says which types of models there are; each has a file that knows its names.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lamoid.checkpoints.hf_bert import BERT, ROBERTA
from lamoid.checkpoints.hf_files import CONFIG_FILE, WEIGHTS_FILE, gather, weight_files
from lamoid.checkpoints.hf_gpt2 import GPT_2
from lamoid.checkpoints.hf_llama import LLAMA
from lamoid.checkpoints.hf_own import TRANSFORMER, VARIANT
from lamoid.checkpoints.llama_tensors import listed
from lamoid.checkpoints.spelling import Spelling
from lamoid.checkpoints.store import read_object, refuse_adapter, write_object
from lamoid.errors import CheckpointError
from lamoid.tokenizers.tokenizer import Tokenizer, note_code

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

SPELLINGS: dict[str, Spelling] = {
    "llama": LLAMA,
    "gpt2": GPT_2,
    "bert": BERT,
    "roberta": ROBERTA,
    "lamoid_transformer": TRANSFORMER,
    "lamoid_variant": VARIANT,
}
"""The models that a directory can hold, by the `model_type` of its config.json."""


def write_model(directory: Path, model: nn.Module, tokenizer: Tokenizer | None) -> None:
    """Write a model and its tokenizer as a Hugging Face directory, into a folder that the caller makes final.

    Tied embeddings are written once. Weights keep their dtype. Raises UsageError for what transformers has no class for.
    """
    spelling = spelling_of(model.config)
    described = spelling.describe(model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    save_file(_packed(spelling, model), directory / WEIGHTS_FILE, metadata={"format": "pt"})
    write_description(directory, model.config, dtype, tokenizer, described)


def write_description(
    directory: Path, config: Any, dtype: str, tokenizer: Tokenizer | None, described: dict[str, Any] | None = None
) -> None:
    """Write all files of a model directory but the weights, whose dtype is named as torch names it, such as `bfloat16`.

    `described` is what config.json says beyond the configuration, such as the model's class.
    """
    special_ids = _special_ids(tokenizer)
    content = config_to_hf(config) | (described or {}) | {"dtype": dtype, "torch_dtype": dtype} | special_ids
    write_object(directory / CONFIG_FILE, content)
    write_object(directory / "generation_config.json", special_ids | {"do_sample": False})
    for name, file in (tokenizer.files() if tokenizer is not None else {}).items():
        (directory / name).write_bytes(file)


def read_model(directory: Path, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Build the model that a directory describes and fill it; `dtype` None keeps the files'.

    Raises CheckpointError naming the file or field that is wrong, or every tensor that is missing, superfluous or
    misshapen, in one message; no half-loaded model is returned.
    """
    config = read_config(directory)
    raw = read_object(directory / CONFIG_FILE)
    spelling = spelling_of(config)
    tensors = _read_tensors(directory)
    try:
        with torch.device("meta"):
            model = spelling.build(config, raw, tensors.keys())
    except CheckpointError as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    tensors = spelling.clean(model, tensors)
    _check_tensors(directory, {name: t.shape for name, t in _packed(spelling, model).items()}, tensors)
    tensors = spelling.unpack(model, tensors)
    state = {name: tensors[spelling.rename(model, name)] for name, _ in model.named_parameters()}
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    model.load_state_dict(state, strict=False, assign=True)  # what is tied is not in `state`
    spelling.tie(model)
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.requires_grad_(True).eval()


def read_config(directory: Path) -> Any:
    """The configuration of a model directory. Raises CheckpointError naming the field that is wrong."""
    file = directory / CONFIG_FILE
    refuse_adapter(directory)
    raw = read_object(file)
    note_code(raw, file)
    try:
        return config_from_hf(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def config_to_hf(config: Any) -> dict[str, Any]:
    """A configuration in Hugging Face's words. Raises UsageError for what they cannot say."""
    return spelling_of(config).write_config(config)


def config_from_hf(raw: dict[str, Any]) -> Any:
    """The configuration that a config.json means. Fields that a model cannot represent are refused, never ignored."""
    kind = raw.get("model_type", "llama")
    if not isinstance(kind, str) or kind not in SPELLINGS:
        raise CheckpointError(f"model_type is {kind!r:.80}; known are {', '.join(SPELLINGS)}")
    return SPELLINGS[kind].read_config(raw)


def spelling_of(config: Any) -> Spelling:
    """How models of this configuration are spelled."""
    return next(spelling for spelling in SPELLINGS.values() if spelling.config is type(config))


def _packed(spelling: Spelling, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model as a file has them; what is tied is there once."""
    packed = spelling.pack(model, {spelling.rename(model, n): p.detach() for n, p in model.named_parameters()})
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    ids = {f"{role}_token_id": tokenizer.special_id(role) for role in ("bos", "eos", "pad")}
    return {name: index for name, index in ids.items() if index is not None}


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    return gather((file, _read_file(file)) for file in weight_files(directory))


def _read_file(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {str(error)[:300]}") from error


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
        raise CheckpointError(f"{directory} does not fit its {CONFIG_FILE}: {listed(problems)}")
