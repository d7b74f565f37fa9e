"""llama.cpp through the low-level functions of llama-cpp-python: what the benchmarks need of it, and nothing between."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class LlamaCpp:
    """A model with a context of so many tokens for so many sequences; keys and values in float16, as is its default."""

    def __init__(self, file: Path, n_threads: int, n_ctx: int, n_sequences: int = 1) -> None:
        import llama_cpp

        self._c = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept alive: C calls it
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = n_ctx * n_sequences, n_sequences
        settings.n_batch = 2048
        settings.n_threads = settings.n_threads_batch = n_threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(2048, 0, n_sequences)
        self._lengths = [0] * n_sequences

    def clear(self) -> None:
        """Forget all sequences."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._lengths = [0] * len(self._lengths)

    def read(self, ids: Sequence[int], sequence: int = 0) -> np.ndarray:
        """Append a prompt; returns the logits behind it."""
        for start in range(0, len(ids), 2048):
            part = ids[start : start + 2048]
            self._decode([(index, sequence, i == len(part) - 1) for i, index in enumerate(part)])
        return self._logits(-1)

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Append one token to each of the first sequences; returns the logits behind each."""
        self._decode([(index, sequence, True) for sequence, index in enumerate(ids)])
        return np.stack([self._logits(row) for row in range(len(ids))])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits behind every id of a new text of at most 2,048."""
        self.clear()
        self._decode([(index, 0, True) for index in ids])
        return np.stack([self._logits(row) for row in range(len(ids))])

    def close(self) -> None:
        """Give the memory back."""
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)

    def _decode(self, tokens: Sequence[tuple[int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (index, sequence, is_wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = index, self._lengths[sequence], is_wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            self._lengths[sequence] += 1
        if self._c.llama_decode(self._context, batch):
            raise RuntimeError("llama.cpp failed to decode")

    def _logits(self, row: int) -> np.ndarray:
        pointer = self._c.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,)).copy()
