"""Sources and their targets, such as sentences and their translations: read, held out, brought to ids, and batched."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from lamoid.data.packed import Position
from lamoid.data.padded import pad
from lamoid.data.records import SUFFIXES, Record, decode, keep_good, read_records, say_file, text_of
from lamoid.data.sources import find_files, inner_suffix, read_lines
from lamoid.errors import DataError, UsageError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.tokenizer import Tokenizer

SOURCE_NAMES = ("source", "src", "input")
TARGET_NAMES = ("target", "tgt", "output")
"""Names of columns that are recognised, the first that is there; case does not matter."""
SORTED_BATCHES = 50
"""Batches whose rows are sorted by length together: enough that little is padding, few enough that batches stay varied."""
Notify = Callable[[str], object]
Columns = tuple[str, str]


@dataclass(frozen=True)
class TextPair:
    """A source and its target, without white space at their ends, and where they stand."""

    source: str
    target: str
    where: str


def read_pairs(
    paths: Sequence[str], *, skip_bad: bool = False, notify: Notify = lambda text: None
) -> tuple[list[TextPair], int]:
    """Read TSV, CSV and JSONL (also .gz, .xz, .zst); returns the pairs and the number of bytes of their texts.

    A TSV has two columns, and may have a first line that names them; quotes in it are characters like any other. A CSV
    has a first line of names; a JSONL record has the two texts, or an object "translation" that has them. The columns
    are those of SOURCE_NAMES and TARGET_NAMES, or else the only two that there are, the source first. A pair that occurs
    again is left out, and counted. Raises DataError naming file and line, or with `skip_bad` counts the line and goes on;
    either way where nothing is left.
    """
    found: dict[tuple[str, str], TextPair] = {}
    n_read, n_bad = 0, 0
    for file in {file: None for path in paths for file in find_files(path, SUFFIXES)}:
        bad: list[str] = []
        n_before = n_read
        for pair in keep_good(_read_file(file), bad, skip_bad=skip_bad):
            found.setdefault((pair.source, pair.target), pair)
            n_read += 1
        say_file(file, "pairs", n_read - n_before, bad, notify)
        n_bad += len(bad)
    if not found:
        raise DataError(f"{', '.join(paths)}: no pair of source and target ({n_bad} bad lines)")
    if len(found) < n_read:
        notify(f"{n_read - len(found):,} of {n_read:,} pairs left out because they stand elsewhere too")
    return list(found.values()), sum(len(text.encode()) for pair in found for text in pair)


def _read_file(file: Path) -> Iterator[TextPair | DataError]:
    columns: Columns | None = None
    for where, record in _read_tsv(file) if inner_suffix(file) == ".tsv" else read_records(file):
        try:
            if isinstance(record, DataError):
                raise record
            inner = record.get("translation", record)
            if not isinstance(inner, dict):
                raise DataError(f"{where}: translation must be an object with two texts, got {str(inner)[:60]!r}")
            columns = columns or _find_columns(inner, where)
            source, target = (text_of(inner, name, where).strip() for name in columns)
            yield TextPair(source, target, where)
        except DataError as error:
            yield error


def _read_tsv(file: Path) -> Iterator[tuple[str, Record | DataError]]:
    """The lines of a TSV. Unlike records.py, which asks for names, it takes lines of two texts as corpora have them."""
    names = ["source", "target"]
    for number, line in read_lines(file):
        where = f"{file} line {number}"
        text = decode(line, where)
        if isinstance(text, DataError):
            yield where, text
            continue
        cells = text.rstrip("\r\n").split("\t")
        folded = {cell.strip().lower() for cell in cells}
        if number == 1 and folded & set(SOURCE_NAMES) and folded & set(TARGET_NAMES):
            names = [cell.strip() for cell in cells]
        elif len(cells) == len(names):
            yield where, dict(zip(names, cells, strict=True))
        else:
            expected = f"expected {len(names)}: {', '.join(names)}, with a tab between them"
            yield where, DataError(f"{where} has {len(cells)} column{'s' * (len(cells) > 1)}; {expected}")


def _find_columns(record: Record, where: str) -> Columns:
    folded = {name.strip().lower(): name for name in reversed(record)}
    source, target = (
        next((folded[name] for name in names if name in folded), None) for names in (SOURCE_NAMES, TARGET_NAMES)
    )
    if source is not None and target is not None:
        return source, target
    if len(record) == 2 and source is None and target is None:
        first, second = record
        return first, second
    raise DataError(f"{where} has {', '.join(record) or 'nothing'}; expected source and target, or two columns alone")


def split_pairs(pairs: Sequence[TextPair], share: float, seed: int) -> tuple[list[TextPair], list[TextPair]]:
    """Hold out about this share of the sources, at least one: (training, held out).

    Which, is decided by a hash of the source and the seed: it survives added data, and all targets of a source go the
    same way. Raises UsageError for a share out of range, DataError where the pairs have one source alone.
    """
    if not 0 < share < 1:
        raise UsageError(f"the held-out share is {share}; it must be above 0 and below 1")
    keys = [_key(pair.source, seed) for pair in pairs]
    threshold = max(int(share * 2**64), min(keys) + 1)
    training = [pair for pair, key in zip(pairs, keys, strict=True) if key >= threshold]
    if not training:
        raise DataError(f"{len(pairs)} pairs are too few to hold {share:.0%} out and train on the rest; give more")
    return training, [pair for pair, key in zip(pairs, keys, strict=True) if key < threshold]


def _key(source: str, seed: int) -> int:
    content = f"heldout {seed}\0{' '.join(source.split())}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class EncodedPair:
    """The ids of a source, its end included, and of a target without beginning and end; and the texts, if they are known."""

    source: list[int]
    target: list[int]
    texts: TextPair = TextPair("", "", "")

    @property
    def n_tokens(self) -> int:
        """Tokens on both sides as a model reads them: the target behind its beginning."""
        return len(self.source) + len(self.target) + 1


def encode_pairs(pairs: Sequence[TextPair], tokenizer: Tokenizer, max_tokens: int) -> tuple[list[EncodedPair], int]:
    """The pairs as ids, and how many are left out because one side, its end included, has more than `max_tokens`."""
    end = tokenizer.special_id("eos")
    assert end is not None
    sources = tokenizer.encode_many([pair.source for pair in pairs])
    targets = tokenizer.encode_many([pair.target for pair in pairs])
    encoded = [EncodedPair([*s, end], t, pair) for s, t, pair in zip(sources, targets, pairs, strict=True)]
    kept = [pair for pair in encoded if max(len(pair.source), len(pair.target) + 1) <= max_tokens]
    return kept, len(encoded) - len(kept)


@dataclass(frozen=True)
class PairBatch:
    """What an encoder–decoder reads and should say: int64, padded on the right to the longest of the batch.

    `source_ids` and `source_mask` (B, S), 1 for tokens and 0 for padding; `target_ids` (B, T), each target behind its
    beginning; `labels` (B, T), each target before its end, IGNORED at padding. There is no mask of the target: each of its
    positions sees those before it alone, and padding stands behind.
    """

    source_ids: Tensor
    source_mask: Tensor
    target_ids: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PairRows:
    """Batches of pairs, each epoch in an order drawn from (seed, epoch), in which neighbours have like lengths.

    A position is (epoch, batches of it that were used); the batch at a position depends on nothing else. An epoch's
    batches have at most `batch_rows` rows, and are as even as they can be where those do not come out even.
    """

    pairs: Sequence[EncodedPair]
    batch_rows: int
    seed: int
    bos_id: int
    eos_id: int
    pad_id: int
    _orders: dict[int, list[np.ndarray]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError("there are no pairs to train on")

    @property
    def n_tokens(self) -> int:
        """Tokens of an epoch, of source and target."""
        return sum(pair.n_tokens for pair in self.pairs)

    def __call__(self, position: Position) -> tuple[PairBatch, Position]:
        """The batch at a position, and the position behind it."""
        epoch, used = position
        batches = self._order(epoch)
        batch = self._batch([self.pairs[row] for row in batches[used]])
        return batch, (epoch, used + 1) if used + 1 < len(batches) else (epoch + 1, 0)

    def in_order(self) -> Iterator[PairBatch]:
        """All pairs once, as they stand: to evaluate."""
        for start in range(0, len(self.pairs), self.batch_rows):
            yield self._batch(self.pairs[start : start + self.batch_rows])

    def _order(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch; those of the epoch before are forgotten."""
        if epoch not in self._orders:
            self._orders.clear()
            generator, n = np.random.default_rng((self.seed, epoch)), len(self.pairs)
            lengths = np.array([pair.n_tokens for pair in self.pairs])
            blocks = np.array_split(generator.permutation(n), math.ceil(n / (self.batch_rows * SORTED_BATCHES)))
            order = np.concatenate([block[np.argsort(lengths[block], kind="stable")] for block in blocks])
            batches = np.array_split(order, math.ceil(n / self.batch_rows))
            self._orders[epoch] = [batches[i] for i in generator.permutation(len(batches))]
        return self._orders[epoch]

    def _batch(self, pairs: Sequence[EncodedPair]) -> PairBatch:
        return PairBatch(
            pad([pair.source for pair in pairs], self.pad_id),
            pad([[1] * len(pair.source) for pair in pairs], 0),
            pad([[self.bos_id, *pair.target] for pair in pairs], self.pad_id),
            pad([[*pair.target, self.eos_id] for pair in pairs], IGNORED),
        )
