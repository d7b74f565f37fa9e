"""A Llama on the CPU through the native kernels: the decoder that `generate` and `chat` take where it applies. No torch.

Everything is one function: tokens of any number of sequences take a step together, whether they are the next token of
each of eight answers, 128 tokens of a prompt or five guesses to be checked. A token's numbers do not depend on its company.
"""

import ctypes
import mmap
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamoid.checkpoints.gguf import GGUFTensor, dequantize
from lamoid.checkpoints.quants import FORMATS
from lamoid.errors import UsageError
from lamoid.inference.native.library import PAGE_KEYS, Batch, Layer, Matrix, Model, Team
from lamoid.inference.pages import Pages, PageTable
from lamoid.inference.weights import Weights
from lamoid.nn.rope_scaling import rope_table

CHUNK_TOKENS = 128
"""Tokens of prompts that take a step together: enough to use each weight often, few enough to stay in the cache."""
_HUGE_PAGE = 2**21


def huge_memory(n_bytes: int) -> mmap.mmap:
    """Zeros of this process alone, in huge pages where the system has them."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, n_bytes)
    memory = mmap.mmap(-1, -(-n_bytes // _HUGE_PAGE) * _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _give_back(tensor: GGUFTensor) -> None:
    """Let the system have the file's pages that were read; they are mapped anew where they are read again."""
    whole: Any = tensor.data
    while isinstance(whole, np.ndarray) and whole.base is not None:
        whole = whole.base
    if isinstance(whole, mmap.mmap):
        whole.madvise(mmap.MADV_DONTNEED)


class NativeModel:
    """Weights where the kernels want them, and RoPE's angles. Several decoders may share it; they take turns.

    Matrices are copied once into panels of 8 rows (see panels.h), and the pages of the file are given back, so that the
    model is in memory once.
    """

    def __init__(self, weights: Weights, team: Team, *, half_cache: bool | None = None) -> None:
        """`half_cache` None: keys and values are float16, except beside weights in float32."""
        c = self.config = weights.config
        self.weights, self.team, self._lock = weights, team, threading.Lock()
        kinds = {t.type_name for t in weights.tensors.values() if len(t.shape) > 1}
        self.is_half_cache = kinds != {"F32"} if half_cache is None else half_cache
        self._kept: list[object] = []  # what the structs point into
        self._arena, self._used = self._make_arena(), 0
        layers = (Layer * c.n_layers)(*(self._layer(f"layers.{i}.") for i in range(c.n_layers)))
        head = "embedding.weight" if c.tied_embeddings else "lm_head.weight"
        self._embedding = weights.tensors["embedding.weight"]
        sizes = (c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, c.d_ff, c.vocab_size)
        options = (int(weights.is_interleaved), int(self.is_half_cache), c.norm_eps)
        self._struct = Model(*sizes, *options, self._vector("norm.weight"), self._matrix(head), layers)
        self._kept.append(layers)
        self._cosines, self._sines = (np.empty((0, c.head_dim // 2), np.float32) for _ in range(2))
        self._padded_vocab = -(-c.vocab_size // 8) * 8
        width = -(-c.head_dim // 8) * 8
        self.page_bytes = c.n_layers * c.n_kv_heads * 2 * width * PAGE_KEYS * (2 if self.is_half_cache else 4)

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one token of one sequence reads: all matrices, the embedding only where it is the head."""
        tied = self.config.tied_embeddings
        return sum(t.data.nbytes for name, t in self.weights.tensors.items() if tied or name != "embedding.weight")

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values of one position."""
        return self.page_bytes // PAGE_KEYS

    def forward(
        self, ids: Sequence[int], positions: Sequence[int], tables: Sequence[PageTable], outputs: Sequence[int]
    ) -> NDArray[np.float32]:
        """One step of these tokens, each at its position of the sequence with this cache; logits after `outputs`, (n, V)."""
        n, logits = len(ids), np.empty((len(outputs), self._padded_vocab), np.float32)
        embedded = dequantize(self._embedding, np.asarray(ids))
        _give_back(self._embedding)
        where, wanted = np.array(positions, np.int32), np.array(outputs, np.int32)
        pages = (ctypes.c_void_p * n)(*(table.address for table in tables))
        with self._lock:
            self._reach(max(positions) + 1)
            batch = Batch(
                n,
                len(outputs),
                embedded.ctypes.data,
                where.ctypes.data,
                ctypes.addressof(pages),
                self._cosines.ctypes.data,
                self._sines.ctypes.data,
                wanted.ctypes.data,
                logits.ctypes.data,
            )
            if self.team.library.lamoid_forward(self.team.address, self._struct, batch):
                raise MemoryError
        return logits[:, : self.config.vocab_size]

    def _reach(self, n_positions: int) -> None:
        """RoPE's angles for so many positions; there are twice as many each time."""
        have, c = len(self._cosines), self.config
        if n_positions > have:
            more = max(n_positions, 2 * have, 256) - have
            cosines, sines = rope_table(c.head_dim, c.rope_base, c.rope_scaling, have, more)
            both = (np.concatenate(pair) for pair in ((self._cosines, cosines), (self._sines, sines)))
            self._cosines, self._sines = both  # at once, for Ctrl-C: the kernels trust that they are of one length

    def _make_arena(self) -> mmap.mmap:
        """Memory for all panels at once, in huge pages where the system has them: fewer look-ups of addresses."""
        untied = "" if self.config.tied_embeddings else "embedding.weight"  # read by rows, from the file
        n_bytes = sum(self._packed_bytes(t) for name, t in self.weights.tensors.items() if name != untied)
        return huge_memory(n_bytes + 64)

    def _packed_bytes(self, t: GGUFTensor) -> int:
        if len(t.shape) < 2:
            return 0
        n_bytes = self.team.library.lamoid_packed_bytes(FORMATS[t.type_name].type_id, *t.shape)
        return -(-int(n_bytes) // 64) * 64

    def _layer(self, at: str) -> Layer:
        norms = (self._vector(f"{at}{name}_norm.weight") for name in ("attention", "feed_forward"))
        linears = [f"attention.{name}_proj" for name in "qkvo"]
        linears += [f"feed_forward.{name}_proj" for name in ("gate", "up", "down")]
        return Layer(*norms, *(self._matrix(f"{at}{name}.weight") for name in linears))

    def _vector(self, name: str) -> int:
        vector = np.ascontiguousarray(dequantize(self.weights.tensors[name]), np.float32)
        self._kept.append(vector)
        return int(vector.ctypes.data)

    def _matrix(self, name: str) -> Matrix:
        tensor, bias = self.weights.tensors[name], name.removesuffix("weight") + "bias"
        type_id = FORMATS[tensor.type_name].type_id
        return Matrix(
            type_id,
            *tensor.shape,
            self._pack(tensor, type_id),
            self._vector(bias) if bias in self.weights.tensors else None,
        )

    def _pack(self, tensor: GGUFTensor, type_id: int) -> int:
        target = ctypes.addressof(ctypes.c_char.from_buffer(self._arena)) + self._used
        target += -target % 64
        self._used += self._packed_bytes(tensor)
        team = self.team
        team.library.lamoid_pack(team.address, type_id, tensor.data.ctypes.data, *tensor.shape, target)
        _give_back(tensor)
        return target


class NativeDecoder:
    """Decodes a batch of sequences (see `inference.generate.Decoder`); beginnings that were read before are not read again."""

    def __init__(self, model: NativeModel) -> None:
        self.model = model
        self.max_seq_len = model.config.max_seq_len
        self.vocab_size = model.config.vocab_size
        self._pages = Pages(model.page_bytes)
        self._tables: list[PageTable] = []

    def prefill(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Read the prompts, none of them empty; returns the logits of the token after each, (B, V)."""
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                raise UsageError(f"prompt {row} is empty; give at least one token")
        old, self._tables = self._tables, []
        for table in old:
            table.remember()
        logits = np.empty((len(prompts), self.vocab_size), np.float32)
        waiting: list[tuple[int, PageTable, list[int]]] = []
        try:
            for row, prompt in enumerate(prompts):
                table = PageTable(self._pages)
                table.begin(prompt, [*old, *self._tables])
                self._tables.append(table)
                rest = list(prompt[len(table.ids) :])
                while rest:
                    free = CHUNK_TOKENS - sum(len(part) for _, _, part in waiting)
                    waiting.append((row, table, rest[:free]))
                    rest = rest[free:]
                    if rest or free <= len(waiting[-1][2]):
                        self._read(waiting, logits, prompts)
                        waiting = []
            if waiting:
                self._read(waiting, logits, prompts)
        except BaseException:
            for table in self._tables:
                table.release()
            self._tables = []
            raise
        finally:
            for table in old:
                table.release()
        return logits

    def step(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append one token to each sequence; returns the logits of the next, (B, V)."""
        positions = [table.reserve(1)[0] for table in self._tables]
        logits = self.model.forward(ids, positions, self._tables, range(len(ids)))
        for table, index in zip(self._tables, ids, strict=True):
            table.ids.append(index)
            if len(table.ids) % PAGE_KEYS == 0:
                table.remember()
        return logits

    def step_many(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Append several tokens to the only sequence; returns the logits after each, (T, V)."""
        (table,) = self._tables
        logits = self.model.forward(ids, table.reserve(len(ids)), [table] * len(ids), range(len(ids)))
        table.ids += ids
        return logits

    def forget(self, n: int) -> None:
        """Take back the last n tokens of the only sequence."""
        (table,) = self._tables
        table.cut(len(table.ids) - n)

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these sequences alone, in this order."""
        for row, table in enumerate(self._tables):
            if row not in rows:
                table.release()
        self._tables = [self._tables[row] for row in rows]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after every one of these ids, (T, V), read as a new sequence that is forgotten afterwards."""
        if len(ids) > self.max_seq_len:
            raise UsageError(f"{len(ids)} tokens exceed the context of {self.max_seq_len}; give fewer")
        table, parts = PageTable(self._pages), []
        for start in range(0, len(ids), CHUNK_TOKENS):
            part = ids[start : start + CHUNK_TOKENS]
            parts.append(self.model.forward(part, table.reserve(len(part)), [table] * len(part), range(len(part))))
            table.ids += part
        table.release()
        return np.concatenate(parts)

    def _read(
        self,
        parts: list[tuple[int, PageTable, list[int]]],
        logits: NDArray[np.float32],
        prompts: Sequence[Sequence[int]],
    ) -> None:
        ids: list[int] = []
        positions: list[int] = []
        tables: list[PageTable] = []
        rows, outputs = [], []
        for row, table, part in parts:
            ids += part
            positions += table.reserve(len(part))
            tables += [table] * len(part)
            if positions[-1] == len(prompts[row]) - 1:
                rows.append(row)
                outputs.append(len(ids) - 1)
        logits[rows] = self.model.forward(ids, positions, tables, outputs)
        for _, table, part in parts:
            table.ids += part
            table.remember()
