"""Random weights of every format, as they lie in files, and what a product with them must give, in float64."""

import ctypes

import numpy as np

from lamoid.checkpoints.quants import FORMATS, dequantize_blocks
from lamoid.inference.native.library import Matrix, Team, library, paths

HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}
"""Where the float16 numbers of a block are."""

PATHS = tuple(paths(library()))
"""What this processor has of the engine's ways to compute."""


def random_rows(kind: str, n_rows: int, n_cols: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of bytes: every pattern that a file may hold, but with scales that are finite."""
    if kind not in HALVES:
        weights = rng.standard_normal((n_rows, n_cols)).astype(np.float32)
        if kind == "BF16":
            return np.ascontiguousarray(weights.view(np.uint16).reshape(n_rows, n_cols, 2)[..., 1]).view(np.uint8)
        return weights.astype(np.float16 if kind == "F16" else np.float32).view(np.uint8)
    block = FORMATS[kind]
    blocks = rng.integers(0, 256, (n_rows, n_cols // block.n_weights, block.n_bytes), np.uint8)
    for at in HALVES[kind]:
        scales = rng.standard_normal(blocks.shape[:2]).astype(np.float16) / np.float16(8)
        blocks[..., at : at + 2] = scales.view(np.uint8).reshape(*scales.shape, 2)
    return blocks.reshape(n_rows, -1)


def as_numbers(kind: str, rows: np.ndarray) -> np.ndarray:
    """The weights, (n_rows, n_cols), float64."""
    blocks = rows.reshape(-1, FORMATS[kind].n_bytes)
    return dequantize_blocks(blocks, kind).reshape(len(rows), -1).astype(np.float64)


def quantized(x: np.ndarray) -> np.ndarray:
    """Activations as the kernels see them: groups of 32 as whole multiples, -127 to 127, of max |x| / 127."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return (np.rint(groups * inverse).astype(np.float64) * (largest / np.float32(127)).astype(np.float64)).reshape(
        x.shape
    )


def multiply(team: Team, kind: str, rows: np.ndarray, n_cols: int, x: np.ndarray, bias: np.ndarray | None = None):
    """x Wᵀ + bias by the kernels, (n_tokens, n_rows)."""
    type_id, n_rows, n_tokens = FORMATS[kind].type_id, len(rows), len(x)
    panels = np.full(team.library.lamoid_packed_bytes(type_id, n_rows, n_cols), 0xAA, np.uint8)
    rows, x = np.ascontiguousarray(rows), np.ascontiguousarray(x, np.float32)
    team.library.lamoid_pack(team.address, type_id, rows.ctypes.data, n_rows, n_cols, panels.ctypes.data)
    y = np.empty((n_tokens, -(-n_rows // 8) * 8), np.float32)
    matrix = Matrix(type_id, n_rows, n_cols, panels.ctypes.data, None if bias is None else bias.ctypes.data)
    assert team.library.lamoid_matmul(team.address, ctypes.byref(matrix), x.ctypes.data, n_tokens, y.ctypes.data) == 0
    return y[:, :n_rows]
