"""From logits to the next token. Numpy only, so that every engine shares it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from lamoid.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The rules are applied in the order in which they stand here.

    repetition_penalty: divide positive logits of tokens that occurred, multiply negative ones (Keskar et al. 2019); 1 is off
    temperature: divide the logits; 0 takes the most likely token (greedy)
    top_k: keep the k most likely tokens; 0 is off
    top_p: keep the fewest most likely tokens whose probabilities reach p (Holtzman et al. 2020); 1 is off
    min_p: keep tokens at least this share as likely as the most likely one (Nguyen et al. 2024); 0 is off
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kind = getattr(self, field.name), Integral if field.name == "top_k" else Real
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            _check(field.name, value, is_number, "a whole number" if kind is Integral else "a number")
        _check("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0")
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 (greedy) or above")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or above")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1 (off)")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 (off) to 1")


class Sampler:
    """Draws tokens for one sequence; the same seed and logits give the same tokens, whatever else runs beside it."""

    def __init__(self, sampling: Sampling, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise UsageError(f"seed is {seed!r}; it must be a whole number from 0 to 2^63 - 1")
        self._sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(seed))

    def choose(self, logits: NDArray[np.floating], previous: Sequence[int]) -> int:
        """The next id after `previous` (prompt and output so far)."""
        logits = penalise_repetition(logits, previous, self._sampling.repetition_penalty)
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = filtered_probabilities(logits, self._sampling)
        cumulative = probabilities.cumsum(dtype=np.float64)
        return int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))


def penalise_repetition(logits: NDArray[np.floating], previous: Sequence[int], penalty: float) -> NDArray[np.floating]:
    """z / penalty where z > 0 and z · penalty where z < 0, for every id in `previous`; a new array."""
    if penalty == 1 or not len(previous):
        return logits
    seen = np.unique(np.asarray(previous))
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    return logits


def filtered_probabilities(logits: NDArray[np.floating], sampling: Sampling) -> NDArray[np.floating]:
    """softmax(z / temperature) after top-k, top-p and min-p; what is filtered out has probability 0."""
    with np.errstate(over="ignore"):  # a tiny temperature leaves only the largest, here 0, above -inf
        scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        scaled = np.where(scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k], -np.inf, scaled)
    if sampling.top_p < 1:
        scaled = _keep_top_p(scaled, sampling.top_p)
    if sampling.min_p > 0:
        scaled = np.where(scaled < scaled.max() + math.log(sampling.min_p), -np.inf, scaled)
    return np.exp(log_softmax(scaled))


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.floating]:
    """z − log Σ exp z over the last axis, in fp64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _keep_top_p(logits: NDArray[np.floating], top_p: float) -> NDArray[np.floating]:
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(log_softmax(logits[order]))
    before = probabilities.cumsum() - probabilities
    kept = np.full_like(logits, -np.inf)
    inside = order[before < top_p]
    kept[inside] = logits[inside]
    return kept


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise UsageError(f"{name} is {value!r}; it must be {allowed}")
