"""Texts, or pairs of texts, with a label each: read, counted, held out by label, and turned into an encoder's rows."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lamoid.data.records import SUFFIXES, Record, keep_good, read_records, say_file, text_of
from lamoid.data.sources import find_files
from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.framing import Framed, frame_many
from lamoid.tokenizers.tokenizer import Tokenizer, check_encodable

TEXT_NAMES = (
    "text",
    "sentence",
    "sentence1",
    "premise",
    "question1",
    "review",
    "content",
    "comment",
    "message",
    "document",
)
PAIR_NAMES = ("text_pair", "pair", "text2", "sentence2", "hypothesis", "question2")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "intent", "gold_label")
"""Names of columns that are recognised, the first that is there; case does not matter."""
Notify = Callable[[str], object]
T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """Which columns hold the text, the second text of a pair (None: there is none) and the label."""

    text: str
    pair: str | None
    label: str

    def __str__(self) -> str:
        pair = f", paired with {self.pair!r}" if self.pair else ""
        return f"text in {self.text!r}{pair}, label in {self.label!r}"


@dataclass(frozen=True)
class LabelledText:
    """A text, perhaps a second one, the name of its label, and where it stands."""

    text: str
    pair: str | None
    label: str
    source: str


@dataclass(frozen=True)
class LabelledSet:
    """Examples, the names of their labels in the order of their numbers, and what was left out."""

    examples: list[LabelledText]
    label_names: tuple[str, ...]
    bad: list[str]


def read_labelled(
    paths: Sequence[str],
    *,
    text_column: str = "",
    pair_column: str = "",
    label_column: str = "",
    label_names: Sequence[str] = (),
    skip_bad: bool = False,
    notify: Notify = lambda text: None,
) -> LabelledSet:
    """Read CSV, TSV and JSONL; columns that are not given are recognised by their names, and said.

    Labels are texts, whole numbers or true/false, and keep their names; they are numbered in alphabetical order, or that
    of numbers, or as in `label_names`, beside which there may be no other. Raises DataError naming file and line, or with
    `skip_bad` counts the line and goes on; either way where nothing is left, or only one label.
    """
    examples: list[LabelledText] = []
    bad: list[str] = []
    is_pair: bool | None = None
    for file in {file: None for path in paths for file in find_files(path, SUFFIXES)}:
        columns, n_before, bad_here = Columns(text_column, pair_column, label_column), len(examples), list[str]()
        for where, record in keep_good_records(file, bad_here, skip_bad=skip_bad):
            if len(examples) == n_before:
                columns = find_columns(record, where, text_column, pair_column, label_column)
            made = _example(record, columns, where, label_names)
            examples += keep_good([made], bad_here, skip_bad=skip_bad)
        if len(examples) > n_before:
            if is_pair not in (None, columns.pair is not None):
                raise DataError(f"{file} has {columns}; the files before it differ: give texts or pairs, not both")
            is_pair = columns.pair is not None
        say_file(file, str(columns), len(examples) - n_before, bad_here, notify)
        bad += bad_here
    names = tuple(label_names) or _order({example.label for example in examples})
    if len(names) < 2:
        raise DataError(
            f"{', '.join(paths)}: {len(examples)} examples with the labels {list(names)} ({len(bad)} bad lines); "
            f"at least two labels are needed"
        )
    notify(describe_labels(examples, names))
    return LabelledSet(examples, names, bad)


def keep_good_records(file: Path, bad: list[str], *, skip_bad: bool) -> Iterator[tuple[str, Record]]:
    """The records of a file that can be read, and where each stands."""
    placed = (item if isinstance(item, DataError) else (where, item) for where, item in read_records(file))
    return keep_good(placed, bad, skip_bad=skip_bad)


def find_columns(record: Record, where: str, text: str, pair: str, label: str) -> Columns:
    """The columns that are given, and for the others the first that has one of the names above."""
    folded = {name.lower(): name for name in reversed(record)}

    def find(given: str, names: Sequence[str], flag: str) -> str | None:
        if given:
            if given not in record:
                raise DataError(f"{where} has no column {given!r} (--{flag}-column); it has {', '.join(record)}")
            return given
        return next((folded[name] for name in names if name in folded), None)

    found_text, found_label = find(text, TEXT_NAMES, "text"), find(label, LABEL_NAMES, "label")
    if found_text is None or found_label is None:
        raise DataError(
            f"{where} has the columns {', '.join(record)}; name those of text and label with --text-column and "
            f"--label-column (a table's first line must name its columns)"
        )
    return Columns(found_text, find(pair, PAIR_NAMES, "pair"), found_label)


def _example(record: Record, columns: Columns, where: str, known: Sequence[str]) -> LabelledText | DataError:
    try:
        label = label_of(record.get(columns.label), columns.label, where)
        if known and label not in known:
            raise DataError(f"{where}: label {label!r} is unknown; known are {', '.join(known)}")
        pair = None if columns.pair is None else text_of(record, columns.pair, where)
        return LabelledText(text_of(record, columns.text, where), pair, label, where)
    except DataError as error:
        return error


def label_of(value: object, column: str, where: str) -> str:
    """A label's name. Raises DataError for all but a text of characters that is not empty, a whole number, true or false."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) or (isinstance(value, str) and value.strip()):
        check_encodable(str(value), f"{where}: {column}")
        return str(value).strip()
    raise DataError(f"{where}: {column} must be one label, a name or a whole number, got {str(value)[:60]!r}")


def _order(labels: set[str]) -> tuple[str, ...]:
    is_number = all(label.removeprefix("-").isdecimal() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if is_number else None))


def count_labels(examples: Sequence[LabelledText], names: Sequence[str]) -> np.ndarray:
    """How many examples each label has (C,)."""
    counts = Counter(example.label for example in examples)
    return np.array([counts[name] for name in names])


def describe_labels(examples: Sequence[LabelledText], names: Sequence[str]) -> str:
    """The labels with their counts, and what that means, in one line."""
    counts = count_labels(examples, names)
    order = np.argsort(-counts, kind="stable")[:8]
    listed = ", ".join(f"{names[i]} {counts[i]:,} ({counts[i] / max(counts.sum(), 1):.0%})" for i in order)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    uneven = counts.max() / max(counts.min(), 1)
    warning = f"; the most frequent is {uneven:.0f} times as frequent as the rarest" if uneven >= 3 else ""
    return f"{len(names)} labels: {listed}{more}{warning}"


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """n / (C · count) for each of C labels: rare ones weigh more, and the mean over the examples is 1.

    A label without examples gets 0. So scikit-learn's "balanced".
    """
    n_labels = np.count_nonzero(counts)
    return np.where(counts > 0, counts.sum() / (n_labels * np.maximum(counts, 1)), 0.0)


def hold_out(
    items: Sequence[T],
    share: float,
    seed: int,
    texts_of: Callable[[T], Sequence[str]],
    group_of: Callable[[T], str] = lambda item: "",
) -> tuple[list[T], list[T]]:
    """Hold out about this share of the texts of each group, at least one where it has two: (training, held out).

    Which, is decided by a hash of the texts and the seed: it survives added data, and equal texts go the same way.
    """
    if not 0 < share < 1:
        raise UsageError(f"the held-out share is {share}; it must be above 0 and below 1")
    keys = [_key(texts_of(item), seed) for item in items]
    groups: dict[str, set[int]] = {}
    for item, key in zip(items, keys, strict=True):
        groups.setdefault(group_of(item), set()).add(key)
    heldout: set[int] = set()
    for own in groups.values():
        if len(own) > 1:
            heldout.update(sorted(own)[: min(max(round(share * len(own)), 1), len(own) - 1)])
    if not heldout:
        raise DataError(f"{len(items)} examples, no two different ones of a kind: none can be held out; give more")
    pairs = list(zip(items, keys, strict=True))
    return [item for item, key in pairs if key not in heldout], [item for item, key in pairs if key in heldout]


def _key(texts: Sequence[str], seed: int) -> int:
    content = "\0".join([f"heldout {seed}", *texts]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def encode_labelled(
    tokenizer: Tokenizer, examples: Sequence[LabelledText], names: Sequence[str], max_tokens: int
) -> tuple[list[Framed], list[list[int]]]:
    """Rows cut to `max_tokens`, and the number of each one's label, as LabelledRows takes them."""
    pairs = [example.pair or "" for example in examples] if any(e.pair is not None for e in examples) else None
    rows = frame_many(tokenizer, [example.text for example in examples], pairs, max_tokens=max_tokens)
    number = {name: index for index, name in enumerate(names)}
    return rows, [[number[example.label]] for example in examples]
