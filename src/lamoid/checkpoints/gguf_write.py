"""A Llama -> a GGUF file that llama.cpp opens, through the `gguf` package (an extra), in blocks of rows.

The package writes the header and quantizes; weights are appended as they come, so that no tensor is whole in memory.
Source: ggml, docs/gguf.md; llama.cpp, convert_hf_to_gguf.py for what its `llama` architecture expects.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamoid.checkpoints.gguf import DEFAULT_ALIGNMENT_BYTES
from lamoid.checkpoints.gguf_config import ATTENTION_FACTOR, LLAMA3_SCALING, ROPE_FACTORS, rope_factors
from lamoid.checkpoints.name_maps import llama_to_gguf
from lamoid.checkpoints.quants import FORMATS
from lamoid.checkpoints.source import DTYPES, Source, check_range, is_rotated, row_blocks, split_rows
from lamoid.errors import CheckpointError, MissingExtra
from lamoid.models.llama import LlamaConfig
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, YarnScaling
from lamoid.tokenizers.gguf_vocabulary import tokenizer_to_gguf

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
"""What can be written, with llama.cpp's number for a file of it."""
FALLBACK = "F16"


def tensor_format(name: str, shape: tuple[int, ...], dtype: str, *, is_output: bool) -> str:
    """The format of one tensor in a file of the given kind.

    Vectors stay F32. The matrix that makes the logits is Q8_0 in a four-bit file (llama.cpp keeps it finer too).
    Rows that are no whole number of blocks cannot be quantized and stay F16.
    """
    if len(shape) < 2:
        return "F32"
    if dtype in ("Q4_0", "Q4_1") and is_output:
        dtype = "Q8_0"
    return dtype if shape[-1] % FORMATS[dtype].n_weights == 0 else FALLBACK


def formats(source: Source, dtype: str) -> dict[str, str]:
    """The format that each parameter of a model gets in a file of the given kind."""
    output = "embedding.weight" if source.config.tied_embeddings else "lm_head.weight"
    return {name: tensor_format(name, s, dtype, is_output=name == output) for name, s in source.shapes.items()}


def write_gguf(path: Path, source: Source, dtype: str, on_weights: Callable[[int], object]) -> None:
    """Write a file of one of FILE_TYPES. `on_weights` hears how many weights were written.

    Raises MissingExtra without the package, DataError for a tokenizer that GGUF has no kind for, and CheckpointError
    for RoPE that it cannot say and weights that the format cannot hold.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("gguf", "gguf") from error
    plan, shapes = formats(source, dtype), source.shapes
    factors = rope_tensor(source.config)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata(source, dtype).items():
        _add(writer, gguf.GGUFValueType, key, value)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for name, kind in plan.items():
        block = FORMATS[kind]
        n_bytes = math.prod(shapes[name]) // block.n_weights * block.n_bytes
        kind_id = gguf.GGMLQuantizationType(block.type_id)
        writer.add_tensor_info(llama_to_gguf(name), shapes[name], np.dtype(np.float32), n_bytes, raw_dtype=kind_id)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        _pad(file)
        if factors is not None:
            file.write(factors.data)
            _pad(file)
        for name, kind in plan.items():
            for weights in _file_rows(source, name):
                check_range(weights, kind, name)
                file.write(gguf.quantize(weights, gguf.GGMLQuantizationType(FORMATS[kind].type_id)).data)
                on_weights(weights.size)
            _pad(file)


def metadata(source: Source, dtype: str) -> dict[str, Any]:
    """Everything that llama.cpp wants to know besides the weights, by its key."""
    c, name = source.config, source.path.stem if source.path.is_file() else source.path.name
    keys: dict[str, Any] = {
        "general.type": "model",
        "general.name": name or "llama",
        "general.file_type": FILE_TYPES[dtype],
    }
    if dtype not in DTYPES:
        keys["general.quantization_version"] = 2
    llama = {
        "block_count": c.n_layers,
        "context_length": c.max_seq_len,
        "embedding_length": c.d_model,
        "feed_forward_length": c.d_ff,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.norm_eps,
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": c.rope_base,
        "vocab_size": c.vocab_size,
        **_scaling(c),
    }
    keys |= {f"llama.{key}": value for key, value in llama.items()}
    if isinstance(c.rope_scaling, Llama3Scaling):
        s = c.rope_scaling
        keys[LLAMA3_SCALING] = [s.factor, s.low_freq_factor, s.high_freq_factor, float(s.original_max_seq_len)]
    if "llama.rope.scaling.attn_factor" in keys and isinstance(c.rope_scaling, YarnScaling):
        keys[ATTENTION_FACTOR] = np.float64(c.rope_scaling.magnitude)
    if source.tokenizer is not None:
        keys |= tokenizer_to_gguf(source.tokenizer, c.vocab_size)
        others = [i for i in source.end_ids if i != source.tokenizer.special_id("eos")]
        keys |= {f"tokenizer.ggml.{key}_token_id": i for key, i in zip(("eot", "eom"), others, strict=False)}
    return keys


def rope_tensor(config: LlamaConfig) -> NDArray[np.float32] | None:
    """What llama.cpp divides RoPE's frequencies by, for llama3 scaling; None for all others."""
    if not isinstance(config.rope_scaling, Llama3Scaling):
        return None
    return rope_factors(config.rope_scaling, config.head_dim, config.rope_base).astype("<f4")


def _scaling(config: LlamaConfig) -> dict[str, Any]:
    s = config.rope_scaling
    if isinstance(s, LinearScaling):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": s.factor}
    if isinstance(s, DynamicNTKScaling):
        raise CheckpointError("rope_type is dynamic, which GGUF cannot say; convert a model with another rope_type")
    if not isinstance(s, YarnScaling):
        return {}
    if not s.truncate:
        raise CheckpointError("truncate of rope_type yarn is False, which GGUF cannot say; only True can be written")
    if (s.beta_fast, s.beta_slow) != (32, 1):
        raise CheckpointError(
            f"beta_fast and beta_slow of rope_type yarn are {s.beta_fast:g} and {s.beta_slow:g}, which llama.cpp does not "
            f"read from a file; only 32 and 1 can be written"
        )
    magnitude = s.magnitude
    usual = YarnScaling(s.factor, s.original_max_seq_len).magnitude
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": s.factor,
        "rope.scaling.original_context_length": s.original_max_seq_len,
        **({"rope.scaling.attn_factor": magnitude / usual} if magnitude != usual else {}),
    }


def _file_rows(source: Source, name: str) -> Iterator[NDArray[np.float32]]:
    """The rows of a parameter in the file's order: Q and K interleaved."""
    for rows in row_blocks(source.shapes[name]):
        mine = split_rows(rows, source.config.head_dim) if is_rotated(name) else rows
        yield source.read(name, mine).float().contiguous().numpy()


def _add(writer: Any, types: Any, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, np.float64):
        writer.add_float64(key, float(value))
    else:
        kind = types.BOOL if isinstance(value, bool) else types.UINT32 if isinstance(value, int) else types.FLOAT32
        writer.add_key_value(key, value, kind)


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % DEFAULT_ALIGNMENT_BYTES))
