"""The fields of a config.json, each of the type that it has to have. No torch."""

import dataclasses
import re
import sys
from collections.abc import Collection
from typing import Any

from lamoid.errors import CheckpointError, UsageError


def read_fields(kind: type, names: dict[str, str], raw: dict[str, Any], required: Collection[str]) -> dict[str, Any]:
    """The fields of a configuration that a config.json gives, under our names; null counts as left out.

    `names` are ours -> theirs. Raises CheckpointError for a field that is missing or of the wrong type.
    """
    given = {ours: raw[theirs] for ours, theirs in names.items() if raw.get(theirs) is not None}
    missing = [names[ours] for ours in required if ours not in given]
    if missing:
        raise CheckpointError(f"fields {missing} are missing")
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}
    return {
        ours: as_kind(kinds[ours], names[ours], value, may_be_zero=ours.endswith(("dropout", "_id")))
        for ours, value in given.items()
    }


def make_config(kind: type, fields: dict[str, Any], names: dict[str, str]) -> Any:
    """The configuration itself. Raises CheckpointError with the names of the file where it refuses a value."""
    try:
        return kind(**fields)
    except UsageError as error:
        text = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(error))
        raise CheckpointError(text) from error


def allow_only(raw: dict[str, Any], allowed: dict[str, tuple[Any, ...]], what: str) -> None:
    """Raise CheckpointError for a field whose value this model cannot represent; left out means the first one allowed."""
    for field, values in allowed.items():
        if raw.get(field, values[0]) not in values:
            raise CheckpointError(f"{field} is {raw[field]!r:.80}; this {what} can only have {values[0]!r}")


def as_kind(kind: Any, field: str, value: Any, *, may_be_zero: bool = False) -> Any:
    """A value from JSON as a bool, text, whole number or float above 0; an error that names the field otherwise."""
    above = "of 0 or above" if may_be_zero else "above 0"
    if kind is bool:
        if type(value) is not bool:
            raise CheckpointError(f"{field} is {value!r:.80}; it must be true or false")
    elif kind is str:
        if not isinstance(value, str):
            raise CheckpointError(f"{field} is {value!r:.80}; it must be text")
    elif kind is int:
        if type(value) is not int or value < (not may_be_zero):
            raise CheckpointError(f"{field} is {value!r:.80}; it must be a whole number {above}")
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and (0 < value <= sys.float_info.max or (may_be_zero and value == 0))):
            raise CheckpointError(f"{field} is {value!r:.80}; it must be a finite number {above}")
        value = float(value)
    return value


def rename(name: str, table: list[tuple[str, str]]) -> str:
    """The name with the first pattern that its beginning matches replaced."""
    for pattern, replacement in table:
        renamed, n_replaced = re.subn(f"^{pattern}", replacement, name)
        if n_replaced:
            return renamed
    return name
