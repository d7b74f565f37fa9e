"""Texts with a tag for each word, such as names of people and places: CoNLL's columns and JSON lines -> rows.

A word's tag stands at its first token, its other tokens are not trained (Devlin et al. 2019, section 5.3).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lamoid.data.labelled import label_of
from lamoid.data.records import keep_good, read_records, say_file
from lamoid.data.sources import JSONL_SUFFIXES, find_files, inner_suffix, read_text
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.framing import Framed, frame_many
from lamoid.tokenizers.tokenizer import Tokenizer

COLUMN_SUFFIXES = frozenset({".conll", ".bio", ".iob", ".iob2", ".tsv", ".txt"})
WORD_NAMES, TAG_NAMES = ("tokens", "words"), ("tags", "ner_tags", "labels", "pos_tags")
OUTSIDE = "O"


@dataclass(frozen=True)
class TaggedText:
    """Words, the tag of each, and where the text begins."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class TaggedSet:
    """Texts, the names of their tags in the order of their numbers (O first), and what was left out."""

    examples: list[TaggedText]
    tag_names: tuple[str, ...]
    bad: list[str]


def read_tagged(
    paths: Sequence[str], *, skip_bad: bool = False, notify: Callable[[str], object] = lambda text: None
) -> TaggedSet:
    """Read columns (a word and its tag a line, the tag last, an empty line between texts) and JSONL (tokens, tags).

    Raises DataError naming file and line, or with `skip_bad` leaves out the text; either way where nothing is left.
    """
    examples: list[TaggedText] = []
    bad: list[str] = []
    for file in {file: None for path in paths for file in find_files(path, JSONL_SUFFIXES | COLUMN_SUFFIXES)}:
        is_json, bad_here = inner_suffix(file) in JSONL_SUFFIXES, list[str]()
        found = list(keep_good(_from_json(file) if is_json else _from_columns(file), bad_here, skip_bad=skip_bad))
        say_file(file, "words and tags in " + ("JSON lines" if is_json else "columns"), len(found), bad_here, notify)
        examples, bad = examples + found, bad + bad_here
    tags = {tag for example in examples for tag in example.tags}
    if len(tags) < 2:
        raise DataError(
            f"{', '.join(paths)}: {len(examples)} texts with the tags {sorted(tags)} ({len(bad)} bad ones); at least two "
            f'tags are needed: lines "word tag" with an empty line between texts, or JSON lines with "tokens" and "tags"'
        )
    return TaggedSet(examples, tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, tag))), bad)


def _from_columns(file: Path) -> Iterator[TaggedText | DataError]:
    """Texts between empty lines; the lines of `-DOCSTART-` that CoNLL's files have are passed over."""
    lines: list[list[str]] = []
    first = 1
    for number, line in enumerate([*"".join(read_text(file)).split("\n"), ""], start=1):
        columns = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if any(columns) and columns[0] != "-DOCSTART-":
            first = first if lines else number
            lines.append(columns)
        elif lines:
            yield _text_of_lines(lines, file, first)
            lines = []


def _text_of_lines(lines: list[list[str]], file: Path, first: int) -> TaggedText | DataError:
    for number, columns in enumerate(lines, start=first):
        if len(columns) < 2 or not columns[0].strip() or not columns[-1].strip():
            return DataError(f"{file} line {number}: expected a word and its tag, got {' '.join(columns)[:60]!r}")
    return TaggedText(tuple(c[0] for c in lines), tuple(c[-1].strip() for c in lines), f"{file} line {first}")


def _from_json(file: Path) -> Iterator[TaggedText | DataError]:
    for where, record in read_records(file):
        yield record if isinstance(record, DataError) else _text_of_record(record, where)


def _text_of_record(record: dict[str, Any], where: str) -> TaggedText | DataError:
    words, tags = (next((record[n] for n in names if n in record), None) for names in (WORD_NAMES, TAG_NAMES))
    if not isinstance(words, list) or not isinstance(tags, list) or not words:
        return DataError(f'{where}: expected lists "tokens" and "tags", it has {", ".join(record)[:60] or "nothing"}')
    if len(words) != len(tags):
        return DataError(f"{where} has {len(words)} tokens but {len(tags)} tags; each token has one")
    if not all(isinstance(word, str) and word.strip() for word in words):
        return DataError(f"{where}: a token is empty or no text")
    try:
        " ".join(words).encode()
        return TaggedText(tuple(words), tuple(label_of(tag, "a tag", where) for tag in tags), where)
    except UnicodeEncodeError:
        return DataError(f"{where}: a token has a lone surrogate, which is no character")
    except DataError as error:
        return error


def encode_tagged(
    tokenizer: Tokenizer, examples: Sequence[TaggedText], names: Sequence[str], max_tokens: int
) -> tuple[list[Framed], list[list[int]]]:
    """Rows cut to `max_tokens`, and a label for each token, as LabelledRows takes them."""
    rows = frame_words(tokenizer, [example.words for example in examples], max_tokens)
    number = {name: index for index, name in enumerate(names)}
    labels = []
    for row, example in zip(rows, examples, strict=True):
        line = np.full(len(row), IGNORED)
        places = first_tokens(row, example.words)
        for place, tag in zip(places, example.tags, strict=True):
            if place is not None:
                line[place] = number[tag]
        labels.append(line.tolist())
    return rows, labels


def frame_words(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], max_tokens: int) -> list[Framed]:
    """Words joined by spaces, in their frame; the space belongs to the words, as byte-level BPE wants it."""
    return frame_many(tokenizer, [" ".join(words) for words in texts], max_tokens=max_tokens)


def first_tokens(row: Framed, words: Sequence[str]) -> list[int | None]:
    """The place of each word's first token in a row; None for words that were cut off or that left no token.

    A token is in the word where its last character is: in byte-level BPE it may begin with the space before, or be it.
    """
    begins = np.cumsum([0, *(len(word) + 1 for word in words)])
    text = np.flatnonzero(row.sources == 0)
    first, end = row.offsets[text].T
    owners = np.searchsorted(begins, np.maximum(end, first + 1), side="left") - 1
    places: list[int | None] = [None] * len(words)
    for place, owner in zip(text[::-1].tolist(), owners[::-1].tolist(), strict=True):
        places[owner] = place
    return places
