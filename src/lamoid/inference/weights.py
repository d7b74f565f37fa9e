"""A Llama's weights as they lie in files, for the native engine: named as in our `Llama`, in bytes, without torch.

Nothing malformed gets past here: every tensor has the shape that the configuration means, and a format that has kernels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lamoid.checkpoints.gguf import GGUFFile, GGUFTensor
from lamoid.checkpoints.gguf_config import ROPE_FACTORS, config_from_gguf
from lamoid.checkpoints.hf_files import CONFIG_FILE, gather, weight_files
from lamoid.checkpoints.hf_llama_config import llama_config_from_hf
from lamoid.checkpoints.llama_tensors import check_tensors
from lamoid.checkpoints.name_maps import llama_to_gguf, llama_to_hf
from lamoid.checkpoints.quants import FORMATS
from lamoid.checkpoints.safetensors_map import PLAIN, map_safetensors
from lamoid.checkpoints.store import read_object
from lamoid.errors import CheckpointError, EngineUnavailable
from lamoid.models.llama_config import LlamaConfig, parameter_shapes
from lamoid.nn.rope_scaling import DynamicNTKScaling
from lamoid.tokenizers.tokenizer import note_code

QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K")


@dataclass(frozen=True, eq=False)
class Weights:
    """What the engine needs of a model. `is_interleaved`: rows of Q and K have RoPE's pairs side by side."""

    path: Path
    config: LlamaConfig
    tensors: dict[str, GGUFTensor]
    is_interleaved: bool


def weights_of_gguf(file: GGUFFile) -> Weights:
    """The weights of a GGUF file, mapped. Raises CheckpointError for a wrong file, EngineUnavailable for another reason."""
    config = config_from_gguf(file)
    found = {name: tensor.shape for name, tensor in file.tensors.items() if name != ROPE_FACTORS}
    check_tensors(file.path, config, llama_to_gguf, found)
    tensors = {name: file.tensors[llama_to_gguf(name)] for name in parameter_shapes(config)}
    return _checked(Weights(file.path, config, tensors, is_interleaved=True))


def weights_of_directory(directory: Path) -> Weights:
    """The weights of a Hugging Face directory, mapped. Raises CheckpointError for wrong files, EngineUnavailable for
    another architecture."""
    raw = read_object(directory / CONFIG_FILE)
    kind = raw.get("model_type", "llama")
    if kind != "llama":
        raise EngineUnavailable(f"model_type is {kind!r:.80}; the engine runs llama")
    note_code(raw, directory / CONFIG_FILE)
    try:
        config = llama_config_from_hf(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{directory / CONFIG_FILE}: {error}") from error
    found = gather((file, map_safetensors(file)) for file in weight_files(directory))
    found = {name: tensor for name, tensor in found.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied_embeddings:
        found.pop("lm_head.weight", None)
    check_tensors(directory, config, llama_to_hf, {name: tensor.shape for name, tensor in found.items()})
    tensors = {name: found[llama_to_hf(name)] for name in parameter_shapes(config)}
    return _checked(Weights(directory, config, tensors, is_interleaved=False))


def weights_of_arrays(config: LlamaConfig, arrays: dict[str, NDArray[np.floating]], path: Path = Path()) -> Weights:
    """Weights in memory, float32 or float16, named and laid out as in our `Llama` (RoPE's pairs half a head apart)."""
    tensors = {}
    for name, shape in parameter_shapes(config).items():
        array = np.ascontiguousarray(arrays[name])
        assert array.shape == shape, f"{name} is {array.shape}, not {shape}"
        kind = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}[array.dtype]
        tensors[name] = GGUFTensor(name, shape, kind, array.view(np.uint8))
    return _checked(Weights(path, config, tensors, is_interleaved=False))


def _checked(weights: Weights) -> Weights:
    if isinstance(weights.config.rope_scaling, DynamicNTKScaling):
        raise EngineUnavailable("rope_type dynamic changes the frequencies with the length, and the engine keeps them")
    odd = sorted({t.type_name for t in weights.tensors.values()} - {*PLAIN, *QUANTIZED})
    if odd:
        raise EngineUnavailable(
            f"the weights are {', '.join(odd)}; the engine has kernels for {', '.join((*PLAIN, *QUANTIZED))}"
        )
    for name, tensor in weights.tensors.items():
        block = FORMATS[tensor.type_name]
        assert tensor.data.flags.c_contiguous
        assert tensor.data.shape[-1] == tensor.shape[-1] // block.n_weights * block.n_bytes, name
    return weights
