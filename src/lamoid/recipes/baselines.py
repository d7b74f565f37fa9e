"""What a model should beat: a byte n-gram model and xz, both given the same training text, in bits per byte."""

import lzma

import numpy as np


def ngram_bits_per_byte(training: bytes, heldout: bytes, order: int = 5) -> float:
    """Bits per byte of a byte model of the given order, interpolated by Witten and Bell's rule:

        p(b | h) = (count(h b) + kinds(h) · p(b | h')) / (count(h) + kinds(h))

    h' is h without its oldest byte, kinds(h) the number of different bytes seen behind h, and p(b | nothing) is 1/256 at
    the end. Source: Witten & Bell 1991; Chen & Goodman 1998, section 2.4.
    """
    assert 1 <= order <= 8, "a run of bytes is kept as one number of 64 bits"
    probability = np.full(max(len(heldout) - order + 1, 0), 1 / 256)
    for length in range(order):
        seen, wanted = _windows(training, length + 1), _windows(heldout, length + 1)
        wanted = wanted[order - 1 - length :]
        windows, counts = np.unique(seen, return_counts=True)
        contexts, first, inverse = np.unique(windows >> np.uint64(8), return_index=True, return_inverse=True)
        totals, kinds = np.bincount(inverse, counts), np.diff([*first, len(windows)])
        count = _look_up(windows, counts, wanted)
        total, n_kinds = (_look_up(contexts, values, wanted >> np.uint64(8)) for values in (totals, kinds))
        known = total > 0
        mixed = (count + n_kinds * probability)[known] / (total + n_kinds)[known]
        probability[known] = mixed
    return float(-np.log2(probability).mean())


def xz_bits_per_byte(training: bytes, heldout: bytes) -> float:
    """Bits per byte that `xz -9` adds for the held-out text once it has seen the training text."""
    return (_xz_bytes(training + heldout) - _xz_bytes(training)) * 8 / len(heldout)


def _xz_bytes(data: bytes) -> int:
    return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def _windows(data: bytes, length: int) -> np.ndarray:
    """Every run of `length` bytes as one number, the oldest byte highest."""
    raw = np.frombuffer(data, dtype=np.uint8).astype(np.uint64)
    n_windows = len(raw) - length + 1
    windows = np.zeros(n_windows, dtype=np.uint64)
    for i in range(length):
        windows = windows << np.uint64(8) | raw[i : i + n_windows]
    return windows


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[index] == wanted, values[index], 0)
