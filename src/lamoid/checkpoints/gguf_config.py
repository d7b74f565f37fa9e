"""The metadata of a GGUF file of the `llama` architecture -> a LlamaConfig. No torch.

What the metadata say and our Llama cannot be is refused by name. Source: ggml, docs/gguf.md, section "LLMs"; llama.cpp,
the `llama` architecture.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamoid.checkpoints.gguf import GGUFFile, dequantize
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama_config import LlamaConfig
from lamoid.nn.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling, numpy_frequencies

ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_SCALING = "lamoid.rope.llama3"  # our own key: factor, low_freq_factor, high_freq_factor, original_max_seq_len
ATTENTION_FACTOR = "lamoid.rope.attention_factor"  # our own key: that of YaRN, as float64
MAX_FACTORS_ERROR = 1e-5

_FIELDS = {
    "n_layers": "block_count",
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "n_heads": "attention.head_count",
    "max_seq_len": "context_length",
}
_OPTIONAL = (
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
    "tensor_data_layout",
)
_SCALING = ("type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast", "yarn_beta_slow", "finetuned")
_READ = {*_FIELDS.values(), *_OPTIONAL, *(f"rope.scaling.{key}" for key in _SCALING), "rope.scale_linear"}
_ONLY: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "use_parallel_residual": (False,),
    "rope.scaling.yarn_ext_factor": (1.0, -1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
}


def config_from_gguf(file: GGUFFile) -> LlamaConfig:
    """The LlamaConfig that a file's metadata and tensors mean. What Llama cannot represent is refused by its name."""
    try:
        return _Metadata(file).config()
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(f"{file.path}: {error}") from error


class _Metadata:
    """The `llama.…` keys of a file, each checked when it is asked for."""

    def __init__(self, file: GGUFFile) -> None:
        self.file, self.metadata = file, file.metadata

    def config(self) -> LlamaConfig:
        self.check_keys()
        fields: dict[str, Any] = {ours: self.integer(theirs) for ours, theirs in _FIELDS.items()}
        if fields["n_layers"] > len(self.file.tensors):
            raise CheckpointError(
                f"llama.block_count is {fields['n_layers']}, but the file has {len(self.file.tensors)} tensors"
            )
        n_heads, d_model = fields["n_heads"], fields["d_model"]
        if not self.has("attention.key_length") and d_model % n_heads:
            raise CheckpointError(f"llama.attention.head_count is {n_heads}; it must divide embedding_length {d_model}")
        head_dim = self.integer("attention.key_length", d_model // n_heads)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self.integer(key, head_dim) != head_dim:
                raise CheckpointError(
                    f"llama.{key} is {self.integer(key)}; this Llama can only have the head size {head_dim}"
                )
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError("tensor token_embd.weight is missing")
        base = self.number("rope.freq_base", 10_000.0)
        return LlamaConfig(
            **fields,
            vocab_size=self.integer("vocab_size", embedding.shape[0]),
            n_kv_heads=self.integer("attention.head_count_kv", n_heads),
            head_dim=head_dim,
            norm_eps=self.number("attention.layer_norm_rms_epsilon", 1e-5),
            rope_base=base,
            rope_scaling=self.scaling(head_dim, base, fields["max_seq_len"]),
            tied_embeddings="output.weight" not in self.file.tensors,
            attention_bias="blk.0.attn_q.bias" in self.file.tensors,
            feed_forward_bias="blk.0.ffn_gate.bias" in self.file.tensors,
        )

    def check_keys(self) -> None:
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture != "llama":
            raise CheckpointError(f"general.architecture is {architecture!r:.80}; this Llama can only have 'llama'")
        kind, n_parts = self.metadata.get("general.type", "model"), self.metadata.get("split.count", 1)
        if not isinstance(kind, str) or kind != "model":
            raise CheckpointError(f"general.type is {kind!r:.80}; allowed is 'model'")
        if not isinstance(n_parts, int) or n_parts not in (0, 1):
            raise CheckpointError(f"split.count is {n_parts!r:.80}; merge the parts into one file first")
        for name, value in self.metadata.items():
            key = name.removeprefix("llama.")
            if key == name or key in _READ:
                continue
            allowed = _ONLY.get(key, ())
            if isinstance(value, np.ndarray | list) or value not in allowed:
                limits = f"can only have {allowed[0]!r}" if allowed else "has nothing of that name"
                raise CheckpointError(f"{name} is {value!r:.80}; this Llama {limits}")

    def has(self, key: str) -> bool:
        return f"llama.{key}" in self.metadata

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; an array that gives one for each layer counts if they are all the same."""
        value: Any = self.metadata.get(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"llama.{key} is missing")
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int or value < 1:
            raise CheckpointError(
                f"llama.{key} is {value!r:.80}; it must be a whole number above 0, the same in all layers"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number as it was meant: the file has it as float32, and 1e-5 comes back as 1e-5, not as 9.99999975e-06."""
        value: Any = self.metadata.get(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"llama.{key} is missing")
        if type(value) not in (int, float) or not np.isfinite(value) or value <= 0:
            raise CheckpointError(f"llama.{key} is {value!r:.80}; it must be a finite number above 0")
        return float(str(np.float32(value)))

    def scaling(self, head_dim: int, base: float, max_seq_len: int) -> RopeScaling | None:
        name = self.metadata.get("llama.rope.scaling.type", "linear" if self.has("rope.scale_linear") else "none")
        if not isinstance(name, str):
            raise CheckpointError(f"llama.rope.scaling.type is {name!r:.80}; it must be a text")
        has_factors = ROPE_FACTORS in self.file.tensors
        if has_factors and name != "none":
            raise CheckpointError(
                f"llama.rope.scaling.type is {name!r:.80} beside tensor {ROPE_FACTORS}; only one can be"
            )
        if has_factors:
            return self.llama3_scaling(head_dim, base)
        if name == "none":
            return None
        if name == "linear":
            factor = self.number("rope.scaling.factor", self.number("rope.scale_linear", 1.0))
            return LinearScaling(factor) if factor != 1 else None
        if name != "yarn":
            raise CheckpointError(
                f"llama.rope.scaling.type is {name!r:.80}; this Llama can only have none, linear and yarn"
            )
        factor = self.number("rope.scaling.factor")
        temperature = self.number("rope.scaling.attn_factor", 1.0)
        yarn = YarnScaling(
            factor,
            self.integer("rope.scaling.original_context_length", max_seq_len),
            self.number("rope.scaling.yarn_beta_fast", 32.0),
            self.number("rope.scaling.yarn_beta_slow", 1.0),
        )
        magnitude = yarn.magnitude  # llama.cpp multiplies, transformers replaces
        if temperature == 1:
            return yarn
        own: Any = self.metadata.get(ATTENTION_FACTOR)
        is_ours = isinstance(own, float) and math.isclose(own, temperature * magnitude, rel_tol=MAX_FACTORS_ERROR)
        return replace(yarn, attention_factor=own if is_ours else temperature * magnitude)

    def llama3_scaling(self, head_dim: int, base: float) -> RopeScaling | None:
        """The scaling whose factors, one for each pair, the file holds; the factors alone do not name its parameters."""
        factors = dequantize(self.file.tensors[ROPE_FACTORS])
        if factors.shape != (head_dim // 2,):
            raise CheckpointError(f"tensor {ROPE_FACTORS} is {tuple(factors.shape)}, not {(head_dim // 2,)}")
        if (factors == 1).all():
            return None
        own: Any = self.metadata.get(LLAMA3_SCALING)
        published = [(float(factors.max()), 1.0, 4.0, original) for original in (8192, *(2**i for i in range(8, 18)))]
        is_one = isinstance(own, np.ndarray) and len(own) == 4 and bool((np.abs(own) < 2**31).all())
        written = [tuple(float(x) for x in own)] if is_one else []
        for factor, low, high, original in [*written, *published]:
            scaling = Llama3Scaling(factor, low, high, int(original))
            with np.errstate(all="ignore"):  # what is not finite is close to nothing
                if np.allclose(rope_factors(scaling, head_dim, base), factors, rtol=MAX_FACTORS_ERROR, atol=0):
                    return scaling
        raise CheckpointError(f"tensor {ROPE_FACTORS} is not what llama3 scaling gives; this Llama can only have that")


def rope_factors(scaling: Llama3Scaling, head_dim: int, base: float) -> NDArray[np.float32]:
    """What each frequency of RoPE is divided by, (E/2,): 1 for fast pairs, `factor` for slow ones."""
    frequencies = numpy_frequencies(head_dim, base)
    return np.asarray(frequencies / scaling.scale(frequencies, head_dim, base), np.float32)


def end_ids(file: GGUFFile) -> tuple[int, ...]:
    """The ids that end a turn or a message, beside the tokenizer's own end."""
    ids = [file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    return tuple(i for i in ids if type(i) is int)
