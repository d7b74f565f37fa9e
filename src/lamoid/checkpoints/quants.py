"""Blocks of quantized weights -> float32: the tensor types of GGUF files (see `gguf.py`), in numpy, no torch.

A row of a tensor is a run of blocks; a block is a few bytes that stand for 32 or 256 neighbouring weights. In what
follows x[a:b] are bytes of a block, d, m and dₘᵢₙ are float16 (little-endian), and w is computed in float32 as it is
written, so that every bit is the one that the `gguf` package gives.
Source: ggml, the `block_q…` structs of ggml-common.h; the K formats come from llama.cpp's pull request 1684.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Decoded at a time: the intermediates stay in the cache, and small beside the result.
_CHUNK_WEIGHTS = 2**16


class BlockFormat(NamedTuple):
    """One tensor type: its number in the file, the weights and bytes of a block, and what turns bytes into weights.

    `decode` takes blocks as (n, n_bytes) and returns n · n_weights values in the order of the weights, in any shape.
    """

    type_id: int
    n_weights: int
    n_bytes: int
    decode: Callable[[Bytes], Floats]


def dequantize_blocks(blocks: Bytes, type_name: str) -> Floats:
    """Blocks as (n, n_bytes) -> weights as (n, n_weights), for a type named in `FORMATS`.

    Needs little memory besides the result. Scales that are infinite or NaN give what IEEE 754 says, without a warning.
    """
    block = FORMATS[type_name]
    weights = np.empty((len(blocks), block.n_weights), np.float32)
    step = _CHUNK_WEIGHTS // block.n_weights
    with np.errstate(invalid="ignore"):
        for start in range(0, len(blocks), step):
            chunk = blocks[start : start + step]
            weights[start : start + step] = block.decode(chunk).reshape(len(chunk), block.n_weights)
    return weights


def _f32(x: Bytes) -> Floats:
    """One weight, 4 bytes: w = x as float32."""
    return x.view("<f4")


def _f16(x: Bytes) -> Floats:
    """One weight, 2 bytes: w = x as IEEE half."""
    return x.view("<f2").astype(np.float32)


def _bf16(x: Bytes) -> Floats:
    """One weight, 2 bytes: x is the upper half of w as float32."""
    return (x.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q8_0(x: Bytes) -> Floats:
    """32 weights, 34 bytes: d = x[0:2], q = x[2:34] as int8.  w = d · q"""
    return _half(x, 0) * x[:, 2:].view(np.int8).astype(np.float32)


def _q4_0(x: Bytes) -> Floats:
    """32 weights, 18 bytes: d = x[0:2], q = x[2:18].  w = d · (q − 8)

    The lower halves of the 16 bytes of q belong to weights 0…15, the upper to 16…31.
    """
    return _half(x, 0) * (_fields(x[:, 2:], 4).reshape(-1, 32).astype(np.float32) - 8)


def _q4_1(x: Bytes) -> Floats:
    """32 weights, 20 bytes: d = x[0:2], m = x[2:4], q = x[4:20] as in Q4_0.  w = d · q + m"""
    return _half(x, 0) * _fields(x[:, 4:], 4).reshape(-1, 32).astype(np.float32) + _half(x, 2)


def _q5_0(x: Bytes) -> Floats:
    """32 weights, 22 bytes: d = x[0:2], fifth bits x[2:6], lower four x[6:22].  w = d · (q − 16)"""
    return _half(x, 0) * (_five_bits(x[:, 2:6], x[:, 6:]).astype(np.float32) - 16)


def _q5_1(x: Bytes) -> Floats:
    """32 weights, 24 bytes: d = x[0:2], m = x[2:4], fifth bits x[4:8], lower four x[8:24].  w = d · q + m"""
    return _half(x, 0) * _five_bits(x[:, 4:8], x[:, 8:]).astype(np.float32) + _half(x, 2)


def _q2_k(x: Bytes) -> Floats:
    """256 weights in 16 groups, 84 bytes: scales x[0:16], q = x[16:80], d = x[80:82], dₘᵢₙ = x[82:84].

        w = (d · s) · q − dₘᵢₙ · m,  s and m the lower and upper half of the group's byte in x[0:16]

    Each 32 bytes of q hold 128 weights: their lowest two bits the first 32, and so on.
    """
    scales, minima = _half(x, 80) * (x[:, :16] & 15), _half(x, 82) * (x[:, :16] >> 4)
    q = _fields(x[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return scales[..., None] * q.astype(np.float32) - minima[..., None]


def _q3_k(x: Bytes) -> Floats:
    """256 weights in 16 groups, 110 bytes: third bits x[0:32], lower two x[32:96], scales x[96:108], d = x[108:110].

        w = (d · (s − 32)) · (q − 4)

    The lower two bits lie as in Q2_K; bit j of third-bit byte i belongs to weight 32 j + i. Scale s has six bits: the
    lower four of all 16 lie in x[96:104] as in Q4_0, the upper two in x[104:108], the lowest bits first (for scales
    0…3, then 4…7, and so on).
    """
    low, high = _fields(x[:, 96:104], 4).reshape(-1, 16), _fields(x[:, 104:108], 2).reshape(-1, 16)
    scales = _half(x, 108) * ((low | high << 4).astype(np.float32) - 32)
    low_bits, third_bits = _fields(x[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 8, 32), _fields(x[:, :32], 1)
    q = (low_bits | third_bits << 2).reshape(-1, 16, 16)
    return scales[..., None] * (q.astype(np.float32) - 4)


def _q4_k(x: Bytes) -> Floats:
    """256 weights in 8 groups, 144 bytes: d = x[0:2], dₘᵢₙ = x[2:4], scales x[4:16], q = x[16:144].

        w = (d · s) · q − dₘᵢₙ · m,  s and m from `_eight_scales`

    Each 32 bytes of q hold two groups, the first in the lower halves.
    """
    scales, minima = _eight_scales(x)
    q = _fields(x[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return scales * q.astype(np.float32) - minima


def _q5_k(x: Bytes) -> Floats:
    """256 weights in 8 groups, 176 bytes: as Q4_K with fifth bits x[16:48] before q = x[48:176].

        w = (d · s) · q − dₘᵢₙ · m,  s and m from `_eight_scales`

    Bit j of fifth-bit byte i belongs to weight i of group j.
    """
    scales, minima = _eight_scales(x)
    q = _fields(x[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 8, 32) | _fields(x[:, 16:48], 1) << 4
    return scales * q.astype(np.float32) - minima


def _q6_k(x: Bytes) -> Floats:
    """256 weights in 16 groups, 210 bytes: lower four bits x[0:128], upper two x[128:192], s x[192:208], d x[208:210].

        w = (d · s) · (q − 32),  s as int8

    128 weights share 64 bytes of the first (lower halves, then upper) and 32 of the second (lowest two bits first).
    """
    scales = _half(x, 208) * x[:, 192:208].view(np.int8).astype(np.float32)
    low = _fields(x[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 16, 16)
    high = _fields(x[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return scales[..., None] * ((low | high << 4).astype(np.float32) - 32)


def _half(x: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as float32, in a column."""
    return x[:, at : at + 2].view("<f2").astype(np.float32)


def _fields(x: Bytes, n_bits: int) -> Bytes:
    """Cut bytes into fields of 1, 2 or 4 bits: (…, n) -> (…, 8 / n_bits, n), the lowest field of all n bytes first."""
    shifts = np.arange(0, 8, n_bits, dtype=np.uint8)
    return (x[..., None, :] >> shifts[:, None]) & np.uint8(2**n_bits - 1)


def _five_bits(high: Bytes, low: Bytes) -> Bytes:
    """32 numbers of five bits: the fifth of number i is bit i of the 4 bytes, the rest lies in 16 bytes as in Q4_0."""
    fifth = np.unpackbits(high, axis=-1, bitorder="little")
    return _fields(low, 4).reshape(-1, 32) | fifth << np.uint8(4)


def _eight_scales(x: Bytes) -> tuple[Floats, Floats]:
    """d · s and dₘᵢₙ · m of a Q4_K or Q5_K block, as (n, 8, 1); s and m have six bits each, packed into p = x[4:16]:

    s₀…₃ the lower six bits of p[0:4],  s₄…₇ the lower half of p[8:12] under the upper two bits of p[0:4]
    m₀…₃ the lower six bits of p[4:8],  m₄…₇ the upper half of p[8:12] under the upper two bits of p[4:8]
    """
    a, b, rest = x[:, 4:8], x[:, 8:12], x[:, 12:16]
    scales = np.concatenate((a & 63, (rest & 15) | (a >> 6 << 4)), axis=-1)
    minima = np.concatenate((b & 63, (rest >> 4) | (b >> 6 << 4)), axis=-1)
    return (_half(x, 0) * scales)[..., None], (_half(x, 2) * minima)[..., None]


FORMATS = {
    "F32": BlockFormat(0, 1, 4, _f32),
    "F16": BlockFormat(1, 1, 2, _f16),
    "BF16": BlockFormat(30, 1, 2, _bf16),
    "Q8_0": BlockFormat(8, 32, 34, _q8_0),
    "Q4_0": BlockFormat(2, 32, 18, _q4_0),
    "Q4_1": BlockFormat(3, 32, 20, _q4_1),
    "Q5_0": BlockFormat(6, 32, 22, _q5_0),
    "Q5_1": BlockFormat(7, 32, 24, _q5_1),
    "Q2_K": BlockFormat(10, 256, 84, _q2_k),
    "Q3_K": BlockFormat(11, 256, 110, _q3_k),
    "Q4_K": BlockFormat(12, 256, 144, _q4_k),
    "Q5_K": BlockFormat(13, 256, 176, _q5_k),
    "Q6_K": BlockFormat(14, 256, 210, _q6_k),
}
