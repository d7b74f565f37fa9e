"""What the backward pass needs and can make again cheaply is not kept for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor


@contextmanager
def made_again(tensor: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Operations within keep `make` where they would keep `tensor` for the backward pass; `make()` equals it.

    For what costs less to make than to hold, such as a normalised activation, whose input is kept anyway. `make` runs
    once for all that want it, without gradients, so it must not draw random numbers. The idea of recomputation is of
    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; here it is for single tensors instead of blocks.
    """
    others = _within.get()
    if others is None or not tensor.requires_grad:
        yield
        return
    token = _within.set((*others, (tensor, _Again(make))))
    try:
        with torch.autograd.graph.saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _within.reset(token)


def keep_all() -> tuple[Any, Any]:
    """Two contexts for `checkpoint(context_fn=…)`, which makes whole blocks again: nothing within them is treated on its own."""
    return _keeping_all(), _keeping_all()


@contextmanager
def _keeping_all() -> Iterator[None]:
    token = _within.set(None)
    try:
        yield
    finally:
        _within.reset(token)


class _Again:
    """Made when it is first asked for, and held as long as somebody may still ask."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None

    def value(self) -> Tensor:
        if self._made is None:
            with torch.no_grad():
                self._made = self._make()
        return self._made


def _pack(kept: Tensor) -> Any:
    for tensor, again in _within.get() or ():
        if kept.data_ptr() == tensor.data_ptr() and kept.numel() == tensor.numel() and kept.is_contiguous():
            return again, kept.shape
    return kept


def _unpack(kept: Any) -> Tensor:
    return kept[0].value().view(kept[1]) if isinstance(kept, tuple) else kept


_within: ContextVar[tuple[tuple[Tensor, _Again], ...] | None] = ContextVar("within", default=())
"""The tensors that are made again here, or None where all are kept."""
