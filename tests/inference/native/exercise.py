"""Run every kernel on odd sizes with a library that was compiled to watch itself: python -m … exercise LIBRARY."""

import sys
from pathlib import Path

import numpy as np
from tests.inference.native.blocks import multiply, random_rows

from lamoid.checkpoints.gguf import GGUFTensor
from lamoid.inference.engine import NativeDecoder, NativeModel
from lamoid.inference.native.library import Team, load_library, paths
from lamoid.inference.weights import QUANTIZED, Weights
from lamoid.models.llama_config import LlamaConfig, parameter_shapes

SHAPE = dict(vocab_size=43, n_layers=2, n_heads=6, n_kv_heads=2, head_dim=12, max_seq_len=400)


def random_model(kind: str, **shape: object) -> Weights:
    """A model of random bytes, with one bias or another, whose matrices are of one format."""
    rng, tensors = np.random.default_rng(0), {}
    config = LlamaConfig(**{**SHAPE, "d_model": 256, "d_ff": 256, "attention_bias": True, **shape})  # type: ignore[arg-type]
    for name, sizes in parameter_shapes(config).items():
        fits = len(sizes) > 1 and (kind not in QUANTIZED or sizes[-1] % 256 == 0)
        own = kind if fits else "F32"
        n_rows = sizes[0] if len(sizes) > 1 else 1
        rows = random_rows(own, n_rows, sizes[-1], rng)
        tensors[name] = GGUFTensor(name, sizes, own, rows.reshape(*sizes[:-1], -1))
    return Weights(Path(), config, tensors, is_interleaved=kind == "Q8_0")


def main() -> None:
    file, rng = Path(sys.argv[1]), np.random.default_rng(0)
    for path in paths(load_library(file)):
        team = Team(2, path=path, library_file=file)
        for kind in (*QUANTIZED, "F32", "F16", "BF16"):
            for n_rows, n_tokens in ((1, 1), (9, 5), (17, 2)):
                for n_cols in (256, 768) if kind in QUANTIZED else (1, 13, 64):
                    x = rng.standard_normal((n_tokens, n_cols)).astype(np.float32)
                    multiply(team, kind, random_rows(kind, n_rows, n_cols, rng), n_cols, x)
            for half_cache in (False, True):
                decoder = NativeDecoder(NativeModel(random_model(kind), team, half_cache=half_cache))
                decoder.prefill([list(range(43)) * 4, [1, 2, 3], [5]])
                decoder.step([1, 2, 3])
                decoder.keep_rows([2])
                decoder.step([1])
        decoder = NativeDecoder(NativeModel(random_model("F32", d_model=20, d_ff=30, vocab_size=5, head_dim=2), team))
        decoder.prefill([[1, 2, 3, 4]])
        decoder.step_many([1, 2, 3])
        decoder.forget(2)
        decoder.logits([1] * 140)
    print("exercised")


if __name__ == "__main__":
    main()
