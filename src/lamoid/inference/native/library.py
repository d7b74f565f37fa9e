"""The compiled kernels as Python sees them: the structs of engine.h, and the library, which may be missing."""

import ctypes
import functools
import importlib.machinery
import itertools
import os
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p
from pathlib import Path

from lamoid.errors import EngineUnavailable

FOLDER = Path(__file__).parent
PAGE_KEYS = 64
"""Positions in a page of the KV cache, as in engine.h."""


class Matrix(Structure):
    """A weight matrix: GGUF's number of its format, its shape, where it lies, and its bias or None."""

    _fields_ = (
        ("format", c_int32),
        ("n_rows", c_int32),
        ("n_cols", c_int32),
        ("data", c_void_p),
        ("bias", c_void_p),
    )


class Layer(Structure):
    """The weights of one block."""

    _fields_ = (
        ("attention_norm", c_void_p),
        ("feed_forward_norm", c_void_p),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
    )


class Model(Structure):
    """Sizes and weights of a model."""

    _fields_ = (
        *((name, c_int32) for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff")),
        ("vocab_size", c_int32),
        ("is_interleaved", c_int32),
        ("is_half_cache", c_int32),
        ("norm_eps", c_float),
        ("norm", c_void_p),
        ("head", Matrix),
        ("layers", POINTER(Layer)),
    )


class Batch(Structure):
    """The tokens of one step, and where their logits go."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("n_outputs", c_int32),
        ("embedded", c_void_p),
        ("positions", c_void_p),
        ("pages", c_void_p),
        ("cosines", c_void_p),
        ("sines", c_void_p),
        ("outputs", c_void_p),
        ("logits", c_void_p),
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The shared library. Raises EngineUnavailable where it was not built."""
    for suffix in [*importlib.machinery.EXTENSION_SUFFIXES, ".so"]:
        file = FOLDER / f"_engine{suffix}"
        if file.is_file():
            return load_library(file)
    raise EngineUnavailable("the kernels were not compiled when lamoid was installed; install a C compiler, then again")


def load_library(file: Path) -> ctypes.CDLL:
    """A compiled library with the types of its functions. Raises EngineUnavailable where it cannot be loaded here."""
    try:
        loaded = ctypes.CDLL(str(file))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise EngineUnavailable(f"{file} cannot be loaded ({error}); install lamoid again") from error
    return loaded


_FUNCTIONS = {
    "lamoid_open": (c_void_p, (c_int, c_int)),
    "lamoid_close": (None, (c_void_p,)),
    "lamoid_path": (c_char_p, (c_int,)),
    "lamoid_supports": (c_int, (c_int,)),
    "lamoid_forward": (c_int, (c_void_p, POINTER(Model), POINTER(Batch))),
    "lamoid_pack": (None, (c_void_p, c_int, c_void_p, c_int, c_int, c_void_p)),
    "lamoid_packed_bytes": (c_int64, (c_int, c_int, c_int)),
    "lamoid_matmul": (c_int, (c_void_p, POINTER(Matrix), c_void_p, c_int, c_void_p)),
    "lamoid_read": (c_uint64, (c_void_p, c_void_p, c_int64)),
}


def paths(loaded: ctypes.CDLL) -> dict[str, int]:
    """The ways to compute that this processor has, the fastest first, and their numbers: "AVX2", "C" and others."""
    numbers = itertools.takewhile(loaded.lamoid_path, itertools.count())
    return {loaded.lamoid_path(i).decode(): i for i in numbers if loaded.lamoid_supports(i)}


class Team:
    """A team of threads with its working memory; closed with the last reference to it."""

    def __init__(
        self, n_threads: int | None = None, *, path: str | None = None, library_file: Path | None = None
    ) -> None:
        """`n_threads` None takes all cores that this process may use; `path` one of `paths`, None the fastest."""
        self.library = load_library(library_file) if library_file else library()
        self.n_threads = n_threads or available_cores()
        known = paths(self.library)
        self.path = path or next(iter(known))
        if self.path not in known:
            raise EngineUnavailable(f"this processor has no {self.path}; it has {', '.join(known)}")
        self._process = os.getpid()
        self._team = self.library.lamoid_open(self.n_threads, known[self.path])
        if not self._team:
            raise EngineUnavailable(f"{self.n_threads} threads cannot be started; ask for fewer with --threads")

    @property
    def address(self) -> int:
        """What the library's functions take as their first argument. Raises EngineUnavailable after a fork: the child has
        the memory, but not the threads, for which it would wait forever."""
        if os.getpid() != self._process:
            raise EngineUnavailable(
                "the engine's threads stayed in the process that forked; load the model in this one"
            )
        return int(self._team)

    def __del__(self) -> None:
        if getattr(self, "_team", None) and os.getpid() == self._process:
            self.library.lamoid_close(self._team)


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_back_memory() -> None:
    """Let the system have what the C library keeps of freed memory (glibc): reading a vocabulary leaves tens of MB."""
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(c_int64(0))
