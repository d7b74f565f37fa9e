"""Meta's own format: `params.json`, `consolidated.NN.pth` and `tokenizer.model`, as Llama 1 to 3.2 were published.

Each of the files holds a part of every matrix, as tensor parallelism dealt them out: rows of those that spread a vector
out, columns of those that gather it in. Q and K have the pairs of RoPE interleaved. Source: Meta's reference code,
`llama/model.py` and `llama3/model.py`. The files are pickled: they are read with `weights_only` and memory-mapped, and
whatever needs more is refused.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lamoid.checkpoints.llama_tensors import check_tensors
from lamoid.checkpoints.name_maps import llama_to_meta
from lamoid.checkpoints.source import DTYPES, Rows, Source, interleaved_rows, is_rotated, row_blocks
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama import PRESETS, LlamaConfig
from lamoid.models.llama_config import parameter_shapes
from lamoid.nn.rope_scaling import Llama3Scaling
from lamoid.tokenizers.load import has_tokenizer, load_tokenizer

PARAMS_FILE, OWN_FILE = "params.json", "lamoid.json"
SHARDS = "consolidated.*.pth"
MAX_JSON_BYTES = 2**20
REFERENCE_FACTOR, LOW, HIGH, ORIGINAL = 8.0, 1.0, 4.0, 8192  # what `use_scaled_rope` means in Meta's code

_COLUMNS = ("attention.wo.", "feed_forward.w2.")  # their columns are dealt out, all others' rows
_KNOWN = {
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor", "max_seq_len", "max_batch_size"),
}


def open_meta(directory: Path) -> Source:
    """A directory in Meta's format as a Source. Raises CheckpointError naming the file, parameter or tensor that is wrong."""
    params = _read_json(directory / PARAMS_FILE)
    files = sorted(directory.glob(SHARDS))
    if not files:
        raise CheckpointError(f"{directory} has no {SHARDS}; Meta's format is {PARAMS_FILE} with those files")
    shards = [_load(file) for file in files]
    try:
        config = config_from_meta(params, shards, _read_json(directory / OWN_FILE, required=False))
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(f"{directory / PARAMS_FILE}: {error}") from error
    names = {llama_to_meta(name): name for name in parameter_shapes(config)}
    odd = [n for n in shards[0] if (config.tied_embeddings and n == "output.weight") or n == "rope.freqs"]
    axes = {name: _axis(files, name, [s.get(name) for s in shards], config) for name in shards[0] if name not in odd}
    found = {name: _whole_shape([s[name] for s in shards], axis) for name, axis in axes.items()}
    check_tensors(directory, config, llama_to_meta, found)
    kinds = {dtype: kind for kind, dtype in DTYPES.items()}
    formats = {ours: kinds.get(shards[0][theirs].dtype, str(shards[0][theirs].dtype)) for theirs, ours in names.items()}
    if any(kind not in DTYPES for kind in formats.values()):
        raise CheckpointError(
            f"{directory} has weights as {sorted(set(formats.values()))}; allowed are {', '.join(DTYPES)}"
        )

    def read(name: str, rows: Rows) -> Tensor:
        rows = interleaved_rows(rows, config.head_dim) if is_rotated(name) else rows
        theirs = llama_to_meta(name)
        return _gather([_load(file)[theirs] for file in files], axes[theirs], rows)  # mapped anew, so that pages go

    return Source(directory, config, formats, read, load_tokenizer(directory) if has_tokenizer(directory) else None)


def config_from_meta(params: dict[str, Any], shards: list[dict[str, Tensor]], own: dict[str, Any]) -> LlamaConfig:
    """The LlamaConfig that a params.json means, `own` being what Lamoid wrote beside it.

    The file says neither the context, nor whether the output is the embedding, nor, in the published ones, the factor
    of scaled RoPE, which Meta's reference code fixes at 8 although the 1B and 3B need 32. So these come from the
    published model of the same shape, if there is one; else from the reference code.
    """
    unknown = sorted(params.keys() - _KNOWN)
    if unknown:
        raise CheckpointError(f"{unknown[0]:.80} is {params[unknown[0]]!r:.80}; this Llama has nothing of that name")
    d_model, n_heads = _integer(params, "dim"), _integer(params, "n_heads")
    if d_model % n_heads:
        raise CheckpointError(f"n_heads is {n_heads}; it must divide dim, {d_model}")
    embedding = shards[0].get("tok_embeddings.weight")
    if embedding is None or embedding.dim() != 2:
        raise CheckpointError("tensor tok_embeddings.weight is missing")
    is_row_split = embedding.shape[1] == d_model
    vocab_size = embedding.shape[0] * (len(shards) if is_row_split else 1)
    fields: dict[str, Any] = dict(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=_integer(params, "n_layers"),
        n_heads=n_heads,
        n_kv_heads=_integer(params, "n_kv_heads", n_heads),
        head_dim=d_model // n_heads,
        d_ff=feed_forward_size(d_model, _integer(params, "multiple_of", 256), _multiplier(params)),
    )
    if fields["n_layers"] > len(shards[0]):
        raise CheckpointError(f"n_layers is {fields['n_layers']}, but the files have {len(shards[0])} tensors")
    base, eps = _number(params, "rope_theta", 10_000.0), _number(params, "norm_eps", 1e-5)
    scaled = bool(params.get("use_scaled_rope"))
    published = next((p for p in PRESETS.values() if _is_like(p, fields, scaled, base, eps)), None)
    scaling = Llama3Scaling(_number(params, "rope_scaling_factor", REFERENCE_FACTOR), LOW, HIGH, ORIGINAL)
    if (
        published is not None
        and isinstance(published.rope_scaling, Llama3Scaling)
        and "rope_scaling_factor" not in params
    ):
        scaling = published.rope_scaling
    usual = 131_072 if scaled else 8192 if base > 10_000 else 4096
    return LlamaConfig(
        **fields,
        max_seq_len=_integer(own, "max_seq_len", published.max_seq_len if published is not None else usual),
        norm_eps=eps,
        rope_base=base,
        rope_scaling=scaling if scaled else None,
        tied_embeddings=_is_tied(shards),
    )


def feed_forward_size(d_model: int, multiple_of: int, multiplier: float | None) -> int:
    """⌊multiplier · ⌊8 d_model / 3⌋⌋, rounded up to a multiple: as many parameters as a ReLU network 4 d_model wide."""
    size = int(2 * 4 * d_model / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return -(-size // multiple_of) * multiple_of


def _load(file: Path) -> dict[str, Tensor]:
    """The tensors of a shard, mapped and not read. Raises CheckpointError for anything else that is in it."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).partition("\n")[0][:120]
        raise CheckpointError(
            f"{file} cannot be read with weights_only, and nothing else is allowed: {reason}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in state.items()):
        raise CheckpointError(f"{file} holds something else than tensors by name; allowed are tensors alone")
    return state


def _axis(files: list[Path], name: str, parts: list[Tensor | None], config: LlamaConfig) -> int | None:
    """Along which axis the parts of a tensor lie; None where each file has all of it."""
    shapes = {tuple(part.shape) if part is not None else None for part in parts}
    if len(shapes) != 1:
        raise CheckpointError(f"{files[0].parent}: {name} has different shapes in its {len(files)} parts: {shapes}")
    shape = shapes.pop()
    if len(files) == 1 or shape is None or len(shape) < 2:
        return None
    if name == "tok_embeddings.weight":  # Llama 1 and 2 deal out columns, Llama 3 rows
        return 0 if shape[1] == config.d_model else 1
    return 1 if any(kind in name for kind in _COLUMNS) else 0


def _whole_shape(parts: list[Tensor], axis: int | None) -> tuple[int, ...]:
    return tuple(size * (len(parts) if i == axis else 1) for i, size in enumerate(parts[0].shape))


def _gather(parts: list[Tensor], axis: int | None, rows: Rows) -> Tensor:
    """Rows of the tensor that the parts make, without making it."""
    index = torch.from_numpy(rows)
    if axis is None:
        return parts[0][index]
    if axis == 1:
        return torch.cat([part[index] for part in parts], dim=1)
    owner, local = index // len(parts[0]), index % len(parts[0])
    gathered = torch.empty((len(rows), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for number, part in enumerate(parts):
        gathered[owner == number] = part[local[owner == number]]
    return gathered


def _is_tied(shards: list[dict[str, Tensor]]) -> bool:
    """Whether the output matrix is the embedding: it is not there, or the same. Mostly the first rows decide."""
    pairs = [(s.get("output.weight"), s["tok_embeddings.weight"]) for s in shards]
    for output, embedding in pairs:
        if output is None:
            continue
        if output.shape != embedding.shape:
            return False
        if not all(torch.equal(output[rows], embedding[rows]) for rows in row_blocks(tuple(output.shape))):
            return False
    return True


def _is_like(preset: LlamaConfig, fields: dict[str, int], scaled: bool, base: float, eps: float) -> bool:
    same_shape = all(getattr(preset, name) == value for name, value in fields.items())
    is_scaled = preset.rope_scaling is not None
    return same_shape and is_scaled == scaled and (preset.rope_base, preset.norm_eps) == (base, eps)


def _integer(params: dict[str, Any], name: str, default: int | None = None) -> int:
    value = params.get(name)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= 2**31:
        raise CheckpointError(f"{name} is {value!r:.80}; it must be a whole number from 1 to 2^31")
    return value


def _number(params: dict[str, Any], name: str, default: float) -> float:
    value = params.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CheckpointError(f"{name} is {value!r:.80}; it must be a finite number above 0")
    return float(value)


def _multiplier(params: dict[str, Any]) -> float | None:
    has_one = params.get("ffn_dim_multiplier") is not None
    return _number(params, "ffn_dim_multiplier", 1.0) if has_one else None


def _read_json(file: Path, *, required: bool = True) -> dict[str, Any]:
    if not file.is_file() and not required:
        return {}
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds {type(raw).__name__}; a JSON object is expected")
    return raw
