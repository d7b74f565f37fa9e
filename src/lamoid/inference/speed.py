"""How fast the native engine is on this machine, and how fast it could be: memory is the limit of decoding."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from lamoid.inference.engine import NativeDecoder, huge_memory
from lamoid.inference.native.library import Team

_READ_BYTES = 2**28


@dataclass(frozen=True)
class Speed:
    """Tokens and bytes per second, medians over the rounds.

    `bytes_per_token`: the weights, and the keys and values of half of the new tokens behind the prompt.
    `limit_bytes_per_s`: the best of several plain reads of memory with the same threads.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    bytes_per_token: int
    limit_bytes_per_s: float

    @property
    def decode_bytes_per_s(self) -> float:
        """What decoding reads in a second."""
        return self.decode_tokens_per_s * self.bytes_per_token

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.decode_bytes_per_s / self.limit_bytes_per_s


def measure_speed(decoder: NativeDecoder, n_prompt: int, n_new: int, n_rounds: int) -> Speed:
    """Read a prompt of so many tokens and decode so many after it, several times; every prompt is a new one."""
    prefill, decode = [], []
    for round_number in range(n_rounds + 1):
        prompt = [(7 * i + round_number) % decoder.vocab_size for i in range(n_prompt)]
        began = time.perf_counter()
        logits = decoder.prefill([prompt])
        middle = time.perf_counter()
        for _ in range(n_new):
            logits = decoder.step([int(logits[0].argmax())])
        if round_number:  # the first one does not count
            prefill.append(n_prompt / (middle - began))
            decode.append(n_new / (time.perf_counter() - middle))
    cache = decoder.model.cache_bytes_per_token * (n_prompt + n_new // 2)
    n_bytes = decoder.model.weight_bytes + cache
    limit = memory_read_rate(decoder.model.team)
    return Speed(statistics.median(prefill), statistics.median(decode), n_bytes, limit)


def memory_read_rate(team: Team, repeats: int = 8) -> float:
    """The most bytes per second at which a team's threads together read memory, in huge pages where there are some."""
    numbers = np.frombuffer(huge_memory(_READ_BYTES), np.uint8)
    numbers[:] = 1
    best = 0.0
    for _ in range(repeats):
        began = time.perf_counter()
        team.library.lamoid_read(team.address, numbers.ctypes.data, _READ_BYTES)
        best = max(best, _READ_BYTES / (time.perf_counter() - began))
    return best
