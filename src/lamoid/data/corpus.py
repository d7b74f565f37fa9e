"""From sources to a training text and a held-out text that share no passage, no paragraph and no long line.

Two passes over the sources, both streams: `survey` hashes, `Corpus.passages` reads again and leaves out what the
survey found twice. Memory: 8 bytes for each passage and paragraph, and the held-out text.
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

    `n_bytes` counts the training text, `n_repeated_bytes` what was left out of both.
    """

    sources: tuple[Source, ...]
    passage_bytes: int
    keep: np.ndarray
    is_heldout: Callable[[int], bool]
    heldout: tuple[Passage, ...]
    n_bytes: int
    n_repeated_bytes: int

    def training(self) -> Iterator[Passage]:
        """Every passage of the training text, in the order of the sources."""
        for passage, key in _without_repeats(self.sources, self.passage_bytes, self.keep):
            if not self.is_heldout(key):
                yield passage

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
    hashes, passage_keys, n_read = array("Q"), array("Q"), 0
    for source in sources:
        for passage in read_passages(source, passage_bytes):
            keys = _keys(passage.text)
            passage_keys.append(keys[0])
            hashes.extend(keys)
            n_bytes = len(passage.text.encode())
            n_read += n_bytes
            on_bytes(n_bytes)
    if not passage_keys:
        raise DataError(f"{', '.join(s.name for s in sources)}: empty; there is nothing to train on")
    keep = _first_occurrences(np.frombuffer(hashes, dtype=np.uint64))
    is_heldout = _choose(np.frombuffer(passage_keys, dtype=np.uint64), heldout_share, n_read, seed)
    corpus = Corpus(tuple(sources), passage_bytes, keep, is_heldout, (), 0, 0)
    return _hold_out(corpus, n_read)


def _hold_out(corpus: Corpus, n_read: int) -> Corpus:
    """Read once more: collect the held-out passages, remove their lines that training has, count bytes."""
    pairs = _without_repeats(corpus.sources, corpus.passage_bytes, corpus.keep)
    heldout = [passage for passage, key in pairs if corpus.is_heldout(key)]
    lines = {line for passage in heldout for line in _long_lines(passage.text)}
    remains = {_fold(_drop_lines(passage.text, lines)) for passage in heldout}  # what is left of each at worst
    shared: set[str] = set()
    copies: set[str] = set()
    n_training, n_all = 0, sum(len(p.text.encode()) for p in heldout)
    for passage in corpus.training():
        n_training += len(passage.text.encode())
        shared.update(line for line in _long_lines(passage.text) if line in lines)
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


def _without_repeats(sources: Sequence[Source], passage_bytes: int, keep: np.ndarray) -> Iterator[tuple[Passage, int]]:
    """Passages with their repeated paragraphs taken out, and their keys; whole repeats are passed over."""
    position = 0
    for source in sources:
        for passage in read_passages(source, passage_bytes):
            keys = _keys(passage.text)
            kept = keep[position : position + len(keys)]
            position += len(keys)
            if not kept[0]:
                continue
            text = passage.text if kept.all() else _drop_paragraphs(passage.text, kept[1:])
            if text.strip():
                yield replace(passage, text=text), keys[0]


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


def _choose(keys: np.ndarray, share: float, total_bytes: int, seed: int) -> Callable[[int], bool]:
    """The passages whose key, mixed with the seed, falls below a threshold; at least the lowest one."""
    salt = np.uint64(_hash(f"heldout {seed}"))
    share = min(share, MAX_HELDOUT_BYTES / max(total_bytes, 1))
    threshold = max(int(share * 2**64), int((keys ^ salt).min()) + 1)
    return lambda key: (key ^ int(salt)) < threshold


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
