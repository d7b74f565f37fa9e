"""A recipe is a dataclass whose fields are its flags, its YAML keys and its documentation at once.

Precedence: flag > environment (LAMOID_DATA, LAMOID_THREADS, …) > file (--recipe) > default.
"""

import argparse
import dataclasses
import difflib
import os
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lamoid.errors import DataError, UsageError

R = TypeVar("R")


def option(default: Any, help: str, *, positional: bool = False, choices: Sequence[str] | None = None) -> Any:
    """A field of a recipe: its default, a sentence about it, and what it may be. A list's default is copied."""
    metadata = {"help": help, "positional": positional, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(kind: type[R], arguments: Sequence[str], program: str) -> R:
    """Build a recipe from command-line arguments, the environment and a file. Raises UsageError for a wrong call."""
    parser = _Parser(prog=program, description=kind.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        _add(parser, field)
    parser.add_argument(
        "--recipe", metavar="FILE", help="read settings from this YAML file, such as a run's recipe.yaml"
    )
    flags = vars(parser.parse_intermixed_args(list(arguments)))
    file = flags.pop("recipe", None)
    return make(kind, (load(Path(file)) if file else {}) | _environment(kind) | flags)


def make(kind: type[R], values: dict[str, Any]) -> R:
    """Build a recipe from plain values. An unknown key is an error that names the nearest known one."""
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"{name} is no setting of {kind.__name__}; did you mean {near}?")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _convert(value, hints[name], known[name]) for name, value in values.items()})


def load(file: Path) -> dict[str, Any]:
    """The settings in a YAML file."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DataError(f"{file} holds no settings; expected lines such as 'seed: 0'")
    return values


def dump(recipe: Any) -> str:
    """A recipe as YAML, every field with its value."""
    values = dataclasses.asdict(recipe)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != values:  # PyYAML does not escape the line ends of Unicode, such as U+0085
        text = yaml.safe_dump(values, sort_keys=False)
    return text


def say(text: str) -> None:
    """Tell the user something that is not the result: on standard error, so that output stays clean."""
    print(text, file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing usage and leaving."""

    def error(self, message: str) -> typing.NoReturn:
        if "unrecognized arguments: --" in message:
            flag = message.partition("--")[2].partition(" ")[0].partition("=")[0]
            flags = [name.lstrip("-") for name in self._option_string_actions]
            near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.0)[0]
            message = f"--{flag} is no flag; did you mean --{near}?"
        raise UsageError(f"{message} (see {self.prog} --help)")


def _add(parser: argparse.ArgumentParser, field: dataclasses.Field[Any]) -> None:
    kind, is_list = _plain_type(field)
    help_text = field.metadata["help"]
    default = field.default if field.default is not dataclasses.MISSING else None
    if default not in (None, "", False):
        help_text += f" (default: {default})"
    settings: dict[str, Any] = {"help": help_text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if field.metadata["positional"]:
        settings |= {"nargs": "?"} if _has_default(field) else {}
        parser.add_argument(field.name, metavar=field.name.upper(), **settings)
        return
    flag = "--" + field.name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, dest=field.name, action=argparse.BooleanOptionalAction, **settings)
        return
    settings |= {"nargs": "+", "action": "extend"} if is_list else {}
    choices = field.metadata["choices"]
    metavar = "|".join(choices) if choices else {int: "N", float: "X"}.get(kind, "TEXT")
    parser.add_argument(flag, dest=field.name, metavar=metavar, **settings)


def _plain_type(field: dataclasses.Field[Any]) -> tuple[type, bool]:
    """int | None → int; list[str] → str, and that it is a list."""
    hint: Any = field.type
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0], True
    return hint, False


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _environment(kind: type) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        text = os.environ.get(f"LAMOID_{field.name.upper()}")
        if text is not None:
            values[field.name] = text.split(os.pathsep) if _plain_type(field)[1] else text
    return values


def _convert(value: Any, hint: Any, field: dataclasses.Field[Any]) -> Any:
    """Check a value against its field's type; texts, which flags and the environment give, are converted."""
    kind, is_list = _plain_type(field)
    if value is None and isinstance(hint, types.UnionType):
        return None
    if is_list:
        if not isinstance(value, list):
            value = [value]
        return [_convert_one(item, kind, field) for item in value]
    return _convert_one(value, kind, field)


def _convert_one(value: Any, kind: type, field: dataclasses.Field[Any]) -> Any:
    wrong = UsageError(f"{field.name} is {value!r}; it must be {_EXPECTED[kind]}")
    if kind is bool and isinstance(value, str):
        value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            value.lower(), value
        )
    if isinstance(value, bool) != (kind is bool):
        raise wrong
    try:
        converted = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not isinstance(value, str) and converted != value:
        raise wrong
    choices = field.metadata["choices"]
    if choices and converted not in choices:
        raise UsageError(f"{field.name} is {value!r}; it must be one of {', '.join(choices)}")
    return converted


_EXPECTED = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
