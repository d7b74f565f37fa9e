"""Byte-pair encoding's training from any symbols to begin with: join the most frequent pair of neighbours, again and again.

The text is one chain of symbols with a gap between two words. Pairs are found once, and again only around each merge. A
pair's occurrences all arise when the later of its two symbols does and can only disappear, so its places are written
down once and looked at anew when it is the most frequent. Source: Sennrich et al. 2016, algorithm 1.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

GAP = -1
_GONE = -2
FEWEST = 2
"""A pair that occurs once is no pattern."""


@dataclass(frozen=True)
class Learned:
    """A new token, and the two symbols that it joins; None for a character that becomes a token."""

    token: str
    pair: tuple[str, str] | None


def learn(
    symbols: Int32[np.ndarray, " N"],
    spelled: Mapping[int, str],
    may_be: Callable[[str], bool],
    characters: Mapping[int, int] | None = None,
) -> Iterator[Learned]:
    """Learn one token after the other, without end but that of the pairs that occur at least FEWEST times.

    `symbols` are ids, GAP between words; `spelled` is each id's token. `may_be` says whether a joined text may be a
    token; one that is there already never becomes another. `characters` are symbols that are no token yet but are
    written as other tokens; the number says how many of them one occurrence saves. They take part in pairs only after
    they were chosen, which is when they save more than any pair does.
    Equally frequent pairs come in the order of their ids, as in the `tokenizers` library.
    """
    chain = _Chain(symbols, dict(spelled), dict(characters or {}))
    while chain.queue:
        n_saved, left, right = heapq.heappop(chain.queue)
        if right == GAP:
            chain.unlock(left)
            yield Learned(chain.spelled[left], None)
            continue
        places = chain.places(left, right)
        if len(places) < -n_saved:
            if len(places) >= FEWEST:
                heapq.heappush(chain.queue, (-len(places), left, right))
            continue
        pair = chain.spelled[left], chain.spelled[right]
        token = "".join(pair)
        if token not in chain.tokens and may_be(token):
            chain.merge(left, right, places)
            yield Learned(token, pair)


class _Chain:
    """The symbols as a doubly linked list in arrays, a queue of pairs by falling frequency, and the places of each."""

    def __init__(self, symbols: np.ndarray, spelled: dict[int, str], locked: dict[int, int]) -> None:
        self._symbols = np.concatenate([[GAP], symbols, [GAP]]).astype(np.int32)
        index = np.arange(len(self._symbols), dtype=np.int32)
        self._next, self._previous = index + 1, index - 1
        self._next[-1], self._previous[0] = index[-1], 0
        self.spelled = spelled
        self.tokens = {token for index, token in spelled.items() if index not in locked}
        self._n_ids = max(spelled, default=GAP) + 1
        self._locked = np.zeros(self._n_ids + 2, dtype=bool)
        self._locked[[GAP, _GONE, *locked]] = True  # the last two entries are those of GAP and _GONE
        self._places: dict[tuple[int, int], np.ndarray] = {}
        self.queue: list[tuple[int, int, int]] = []
        self._find(index[:-1])
        counts = np.bincount(self._symbols[self._symbols >= 0], minlength=self._n_ids)
        for symbol, saves in locked.items():
            if saves > 0 and counts[symbol] >= FEWEST:
                heapq.heappush(self.queue, (-int(counts[symbol]) * saves, symbol, GAP))

    def places(self, left: int, right: int) -> Int32[np.ndarray, " n"]:
        """Where the pair stands now: the places of its left symbols, in rising order."""
        places = self._places.pop((left, right))
        places = places[(self._symbols[places] == left) & (self._symbols[self._next[places]] == right)]
        self._places[left, right] = places
        return places

    def unlock(self, symbol: int) -> None:
        """Let a character take part in pairs."""
        self._locked[symbol] = False
        self.tokens.add(self.spelled[symbol])
        self._find_around(np.flatnonzero(self._symbols == symbol).astype(np.int32))

    def merge(self, left: int, right: int, places: Int32[np.ndarray, " n"]) -> None:
        """Join the pair everywhere under a new id; in a run of equal symbols from the left."""
        if left == right:
            places = _every_other(places, self._next[places])
        new, self._n_ids = self._n_ids, self._n_ids + 1
        if new + 2 >= len(self._locked):
            self._locked = np.concatenate(
                [self._locked[:new], np.zeros(len(self._locked), dtype=bool), self._locked[-2:]]
            )
        self.spelled[new] = self.spelled[left] + self.spelled[right]
        self.tokens.add(self.spelled[new])
        joined = self._next[places]
        behind = self._next[joined]
        self._symbols[places], self._symbols[joined] = new, _GONE
        self._next[places], self._previous[behind] = behind, places
        del self._places[left, right]
        self._find_around(places)

    def _find_around(self, places: Int32[np.ndarray, " n"]) -> None:
        self._find(np.unique(np.concatenate([self._previous[places], places])))

    def _find(self, lefts: Int32[np.ndarray, " n"]) -> None:
        """Write down the pairs whose left symbols stand here, by pair and place."""
        first, second = self._symbols[lefts], self._symbols[self._next[lefts]]
        possible = ~(self._locked[first] | self._locked[second])
        lefts, keys = lefts[possible], (first.astype(np.int64) << 32 | second)[possible]
        order = np.argsort(keys, kind="stable")
        keys, lefts = keys[order], lefts[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        ends = np.append(starts[1:], len(keys))
        often = ends - starts >= FEWEST
        for key, start, end in zip(
            keys[starts[often]].tolist(), starts[often].tolist(), ends[often].tolist(), strict=True
        ):
            pair = key >> 32, key & 0xFFFFFFFF
            self._places[pair] = lefts[start:end]
            heapq.heappush(self.queue, (start - end, *pair))


def _every_other(places: Int32[np.ndarray, " n"], following: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " m"]:
    """Of places that follow one another the first, the third, …: `aaaaa` is (aa)(aa)a."""
    index = np.arange(len(places))
    begins = np.append(True, places[1:] != following[:-1])
    within: Int64[np.ndarray, " n"] = index - np.maximum.accumulate(np.where(begins, index, 0))
    return places[within % 2 == 0]
