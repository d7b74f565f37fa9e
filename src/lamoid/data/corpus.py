"""From sources to a training text and a held-out text that share no passage, no paragraph and no long line.

All passes over the sources are streams: the first hashes, the later ones read again and leave out what it found twice.
Memory: 9 bytes for each long paragraph, 13 for each passage, and the held-out text.
"""

import hashlib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lamoid.data.sources import Passage, Source, read_passages
from lamoid.errors import DataError

PARAGRAPH_CHARS = 64
"""Paragraphs and lines shorter than this may repeat: headings, list items, common phrases."""
MAX_HELDOUT_BYTES = 2_000_000
_PARAGRAPH_END = re.compile(r"(\n[ \t]*\n+)")


@dataclass(frozen=True)
class Corpus:
    """The surveyed text: `training()` yields its passages without repeats; `heldout` holds the others.

    Per passage, in reading order: `n_keys`, how many hashes it has, and `is_heldout`. `keep` says of each hash whether
    it is the first of its kind. `n_bytes` counts the training text, `n_repeated_bytes` what was left out of both.
    """

    sources: tuple[Source, ...]
    passage_bytes: int
    n_keys: np.ndarray
    is_heldout: np.ndarray
    keep: np.ndarray
    heldout: tuple[Passage, ...] = ()
    n_bytes: int = 0
    n_repeated_bytes: int = 0

    def training(self) -> Iterator[Passage]:
        """Every passage of the training text, in the order of the sources."""
        return self._without_repeats(~self.is_heldout)

    def _without_repeats(self, wanted: np.ndarray) -> Iterator[Passage]:
        """The wanted passages with their repeated paragraphs taken out; whole repeats are passed over."""
        passages = (p for source in self.sources for p in read_passages(source, self.passage_bytes))
        ends = self.n_keys.cumsum()
        for passage, is_wanted, begin, end in zip(passages, wanted, ends - self.n_keys, ends, strict=True):
            if not is_wanted or not self.keep[begin]:
                continue
            kept = self.keep[begin:end]
            text = passage.text if kept.all() else _drop_paragraphs(passage.text, kept[1:])
            if text.strip():
                yield replace(passage, text=text)

    def sample(self, n_bytes: int) -> Iterator[str]:
        """Training passages spread evenly over the whole corpus, of about `n_bytes` together."""
        share = min(1.0, n_bytes / max(self.n_bytes, 1))
        owed = 1.0
        for passage in self.training():
            if owed >= 1.0:
                owed -= 1.0
                yield passage.text
            owed += share


def survey(
    sources: Sequence[Source],
    *,
    heldout_share: float = 0.05,
    seed: int = 0,
    on_bytes: Callable[[int], object] = lambda n: None,
) -> Corpus:
    """Find repeats, and choose the held-out passages by a hash of their text and the seed.

    A passage, or a paragraph of at least PARAGRAPH_CHARS, that was seen before is left out. Of the held-out text,
    lines of that length that also occur in the training text are removed. About `heldout_share` of the passages, at
    least one and at most MAX_HELDOUT_BYTES, is held out; as the choice depends on the text alone, it survives added data.

    Raises DataError where the sources are empty or too short to hold anything out.
    """
    total = sum(source.n_bytes for source in sources)
    passage_bytes = min(max(total // 100, 2048), 32_768)
    hashes, passage_keys, n_keys, n_read = array("Q"), array("Q"), array("I"), 0
    for source in sources:
        for passage in read_passages(source, passage_bytes):
            keys = _keys(passage.text)
            passage_keys.append(keys[0])
            n_keys.append(len(keys))
            hashes.extend(keys)
            n_bytes = len(passage.text.encode())
            n_read += n_bytes
            on_bytes(n_bytes)
    if not passage_keys:
        raise DataError(f"{', '.join(s.name for s in sources)}: empty; there is nothing to train on")
    keep = _first_occurrences(np.frombuffer(hashes, dtype=np.uint64))
    is_heldout = _choose(np.frombuffer(passage_keys, dtype=np.uint64), heldout_share, n_read, seed)
    counts = np.frombuffer(n_keys, dtype=np.uint32).astype(np.int64)
    return _hold_out(Corpus(tuple(sources), passage_bytes, counts, is_heldout, keep), n_read)


def _hold_out(corpus: Corpus, n_read: int) -> Corpus:
    """Read again: collect the held-out passages, remove their lines that training has, count bytes."""
    heldout = list(corpus._without_repeats(corpus.is_heldout))
    lines = {line for passage in heldout for line in _long_lines(passage.text)}
    remains = {_fold(_drop_lines(passage.text, lines)) for passage in heldout}  # what is left of each at worst
    longest = max((len(text) for text in remains), default=0)
    shared: set[str] = set()
    copies: set[str] = set()
    n_training, n_all = 0, sum(len(p.text.encode()) for p in heldout)
    for passage in corpus.training():
        n_training += len(passage.text.encode())
        shared.update(line for line in _long_lines(passage.text) if line in lines)
        if len(passage.text) <= 2 * longest:
            copies.update({_fold(passage.text)} & remains)
    if not n_training or not heldout:
        raise DataError(
            f"{', '.join(s.name for s in corpus.sources)}: too little text to hold some out; give at least 4 KB"
        )
    heldout = [replace(p, text=_drop_lines(p.text, shared)) for p in heldout]
    kept = tuple(p for p in heldout if p.text.strip() and _fold(p.text) not in copies)
    if not kept:
        raise DataError("everything held out also stands in the training text; the corpus repeats itself throughout")
    return replace(corpus, heldout=kept, n_bytes=n_training, n_repeated_bytes=n_read - n_training - n_all)


def _keys(text: str) -> list[int]:
    """64-bit hashes of a passage and of each of its long paragraphs, white space folded.

    The passage's is made differently, so that one that is a single paragraph does not pass for its own repeat.
    """
    return [_hash(text, b"passage"), *(_hash(p) for p in _PARAGRAPH_END.split(text)[::2] if len(p) >= PARAGRAPH_CHARS)]


def _hash(text: str, kind: bytes = b"") -> int:
    return int.from_bytes(hashlib.blake2b(_fold(text).encode(), digest_size=8, person=kind).digest(), "little")


def _fold(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def _first_occurrences(hashes: np.ndarray) -> np.ndarray:
    keep = np.zeros(len(hashes), dtype=bool)
    keep[np.unique(hashes, return_index=True)[1]] = True
    return keep


def _choose(keys: np.ndarray, share: float, total_bytes: int, seed: int) -> np.ndarray:
    """The passages whose key, mixed with the seed, falls below a threshold; at least the lowest one."""
    mixed = keys ^ np.uint64(_hash(f"heldout {seed}"))
    share = min(share, MAX_HELDOUT_BYTES / max(total_bytes, 1))
    threshold = max(int(share * 2**64), int(mixed.min()) + 1)
    return mixed < np.uint64(min(threshold, 2**64 - 1))


def _drop_paragraphs(text: str, keep: np.ndarray) -> str:
    """Remove the long paragraphs that `keep` denies, each with the blank lines behind it."""
    pieces = [*_PARAGRAPH_END.split(text), ""]
    kept, position = [], 0
    for paragraph, ending in zip(pieces[::2], pieces[1::2], strict=True):
        is_long = len(paragraph) >= PARAGRAPH_CHARS
        if not is_long or keep[position]:
            kept.append(paragraph + ending)
        position += is_long
    return "".join(kept)


def _long_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        folded = _fold(line)
        if len(folded) >= PARAGRAPH_CHARS // 2:
            yield folded


def _drop_lines(text: str, lines: set[str]) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if _fold(line) not in lines)
