"""The KV cache in pages of PAGE_KEYS positions, grown as needed; full pages are shared by sequences that begin alike."""

import ctypes
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from lamoid.inference.native.library import PAGE_KEYS

Key = tuple[int, tuple[int, ...]]
"""The number of the page before (−1 for none) and the ids of a full page: what it holds depends on nothing else."""


class Page:
    """Keys and values of PAGE_KEYS positions, all layers, and how many sequences use them."""

    def __init__(self, number: int, n_bytes: int) -> None:
        self.number, self.n_users = number, 1
        self.key: Key | None = None
        self.data: NDArray[np.uint8] = np.zeros(n_bytes, np.uint8)
        self.address = self.data.ctypes.data


class Pages:
    """All pages of a decoder. Full pages that no sequence uses any more are kept, `most_idle` of them, oldest out first."""

    def __init__(self, page_bytes: int, most_idle: int = 64) -> None:
        self.page_bytes, self._most_idle = page_bytes, most_idle
        self._known: dict[Key, Page] = {}
        self._idle: OrderedDict[int, Page] = OrderedDict()
        self._numbers = count()
        self.n_pages = 0

    def new(self) -> Page:
        """An empty page with one user."""
        self.n_pages += 1
        return Page(next(self._numbers), self.page_bytes)

    def shared(self, ids: Sequence[int]) -> list[Page]:
        """The known pages that hold the longest beginning of these ids; each gets one more user."""
        pages: list[Page] = []
        for key_ids in _full(ids):
            page = self._known.get((pages[-1].number if pages else -1, key_ids))
            if page is None:
                break
            page.n_users += 1
            self._idle.pop(page.number, None)
            pages.append(page)
        return pages

    def remember(self, pages: Sequence[Page], ids: Sequence[int]) -> None:
        """Let later sequences find the full pages of one that holds these ids."""
        before = -1
        for page, key_ids in zip(pages, _full(ids), strict=False):
            if page.key is None:
                key = (before, key_ids)
                if key in self._known:
                    return  # another sequence was first; what follows this page would have another predecessor
                page.key = key
                self._known[key] = page
            before = page.number

    def release(self, pages: Sequence[Page]) -> None:
        """Give up one use of each, the last first: without its beginning a sequence's end is out of reach."""
        for page in reversed(pages):
            page.n_users -= 1
            if page.n_users:
                continue
            if page.key is not None:
                self._idle[page.number] = page
            else:
                self.n_pages -= 1
        while len(self._idle) > self._most_idle:
            _, page = self._idle.popitem(last=False)
            assert page.key is not None
            del self._known[page.key]
            self.n_pages -= 1


class PageTable:
    """The cache of one sequence: the ids that were read, and the pages that hold their keys and values."""

    def __init__(self, pages: Pages) -> None:
        self._all, self.ids = pages, list[int]()
        self.pages: list[Page] = []
        self._addresses = (ctypes.c_void_p * 1)()

    @property
    def address(self) -> int:
        """Where the kernels find the list of pages."""
        return ctypes.addressof(self._addresses)

    def begin(self, ids: Sequence[int], others: Sequence["PageTable"]) -> None:
        """Take what is known of these ids, but never the last, whose logits are wanted: shared pages, then a copy."""
        self.pages = self._all.shared(ids[:-1])
        at = len(self.pages) * PAGE_KEYS
        best, donor = 0, None
        for other in others:
            if other.ids[:at] == list(ids[:at]):
                n = _n_common(other.ids[at : at + PAGE_KEYS], ids[at:-1])
                best, donor = (n, other) if n > best else (best, donor)
        if donor is not None:
            page = self._all.new()
            page.data[:] = donor.pages[len(self.pages)].data
            self.pages.append(page)
        self.ids = list(ids[: at + best])
        self._point()

    def reserve(self, n: int) -> list[int]:
        """Make room for n more ids; returns their positions. Whoever has read them adds them to `ids`, never before:
        after Ctrl-C the table still says what its pages hold."""
        first = len(self.ids)
        while len(self.pages) * PAGE_KEYS < first + n:
            self.pages.append(self._all.new())
        self._point()
        return list(range(first, first + n))

    def remember(self) -> None:
        """Let others share the pages that are full."""
        self._all.remember(self.pages, self.ids)

    def cut(self, n: int) -> None:
        """Forget all but the first n ids. Their pages must not be shared, so this goes back less than a page's worth."""
        self.ids = self.ids[:n]

    def release(self) -> None:
        """Give the pages back."""
        self._all.release(self.pages)
        self.pages, self.ids = [], []

    def _point(self) -> None:
        if len(self.pages) > len(self._addresses):
            self._addresses = (ctypes.c_void_p * (2 * len(self.pages)))()
        for i, page in enumerate(self.pages):
            self._addresses[i] = page.address


def _full(ids: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(ids) - PAGE_KEYS + 1, PAGE_KEYS):
        yield tuple(ids[start : start + PAGE_KEYS])


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
