"""Tables of examples as people have them: CSV, TSV and JSON lines -> records with the place where each stands.

What is wrong with a record is given in its place, as a DataError, so that a reader may stop there or go on.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lamoid.data.sources import JSONL_SUFFIXES, inner_suffix, read_lines, read_text
from lamoid.errors import DataError

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
SUFFIXES = TABLE_SUFFIXES | JSONL_SUFFIXES
Record = dict[str, Any]
T = TypeVar("T")


def read_records(file: Path) -> Iterator[tuple[str, Record | DataError]]:
    """Each record of a file (also .gz, .xz, .zst) and where it stands: "FILE line N", N being where it begins."""
    suffix = inner_suffix(file)
    if suffix in JSONL_SUFFIXES:
        for number, line in read_lines(file):
            yield f"{file} line {number}", _parse_object(line, f"{file} line {number}")
    elif suffix in TABLE_SUFFIXES:
        yield from _table(file, is_tsv=suffix == ".tsv")
    else:
        raise DataError(
            f"{file} is of no known kind; expected one of {' '.join(sorted(SUFFIXES))} (also .gz, .xz, .zst)"
        )


def parse_json(content: bytes, where: str) -> Any:
    """A JSON value, or a DataError that says why it is none."""
    text = decode(content, where)
    if isinstance(text, DataError):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return DataError(f"{where} is not JSON: {error}")


def decode(content: bytes, where: str) -> str | DataError:
    """A text, or a DataError where it is not UTF-8, or has a byte-order mark that `read_lines` has not taken off."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return DataError(f"{where} is not UTF-8: byte 0x{content[error.start]:02X} at its offset {error.start}")
    if text.startswith("\ufeff"):
        return DataError(f"{where} begins with a byte-order mark, which may stand at the beginning of a file alone")
    return text


def _parse_object(line: bytes, where: str) -> Record | DataError:
    value = parse_json(line, where)
    if isinstance(value, dict | DataError):
        return value
    return DataError(f"{where}: expected a JSON object, got {line[:60]!r}")


def _table(file: Path, *, is_tsv: bool) -> Iterator[tuple[str, Record | DataError]]:
    """The rows under the line of column names. In a TSV quotes are characters like any other, as in GLUE."""
    text = "".join(read_text(file))
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # else a text of 131,072 characters is an error
    if is_tsv:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        first = text.partition("\n")[0]
        delimiter = ";" if first.count(";") > first.count(",") else ","  # Excel in much of Europe
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        where = f"{file} line {rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(
                f"{where} cannot be read as {'TSV' if is_tsv else 'CSV'}: {error}; is a quote missing?"
            ) from None
        if row is None:
            break
        if names is None:
            names = _column_names(row, where)
        elif any(cell.strip() for cell in row):
            yield where, _record(names, row, where)
    if names is None:
        raise DataError(f"{file} is empty; expected a line of column names, and rows")


def _column_names(row: list[str], where: str) -> list[str]:
    names = [name.strip() for name in row]
    if len(set(names)) < len(names) or not all(names):
        raise DataError(f"{where}: the columns are {names}; each needs a name of its own")
    return names


def _record(names: list[str], row: list[str], where: str) -> Record | DataError:
    if len(row) != len(names):
        return DataError(f"{where} has {len(row)} columns, the first line {len(names)}: {', '.join(names)}")
    return dict(zip(names, row, strict=True))


def keep_good(items: Iterable[T | DataError], bad: list[str], *, skip_bad: bool) -> Iterator[T]:
    """The items that are good. The first that is not is raised, or with `skip_bad` each is written into `bad`."""
    for item in items:
        if not isinstance(item, DataError):
            yield item
        elif skip_bad:
            bad.append(str(item))
        else:
            raise DataError(f"{item}; correct it, or leave out such lines with --skip-bad")


def say_file(file: Path, what: str, n_good: int, bad: list[str], notify: Callable[[str], object]) -> None:
    """One line about a file: what it was taken for, how many examples, and what was left out."""
    left_out = f", {len(bad):,} bad lines left out, the first: {bad[0]}" if bad else ""
    notify(f"{file}: {what}, {n_good:,} examples{left_out}")


def text_of(record: Record, column: str, where: str) -> str:
    """A text of a record. Raises DataError where it is missing, empty, no text, or has half a character."""
    value = record.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {column} must be a text that is not empty, got {str(value)[:60]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: lone surrogate at character {error.start} of {column}") from None
    return value
