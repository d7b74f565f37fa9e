"""The tokenizer of a model directory, in any of three forms: tokenizer.json, SentencePiece, tiktoken."""

from pathlib import Path

from lamoid.errors import DataError
from lamoid.tokenizers.sentencepiece import read_sentencepiece
from lamoid.tokenizers.templates import find_template
from lamoid.tokenizers.tiktoken import is_tiktoken, read_tiktoken
from lamoid.tokenizers.tokenizer import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    Tokenizer,
    name_roles,
    note_code,
    read_config,
    read_tokenizer_json,
)
from lamoid.tokenizers.vocabulary import MAX_FILE_BYTES, NATIVE_FILE


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory has a tokenizer in one of the forms."""
    return any((directory / name).is_file() for name in (TOKENIZER_FILE, NATIVE_FILE))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read the tokenizer of a model directory, or a `tokenizer.json` or `tokenizer.model` by itself.

    A directory's `tokenizer.json` comes first; a `tokenizer.model` beside it is kept as it is for `files()`. With it
    comes the directory's chat template. Raises DataError where the files are missing, too large, or make no tokenizer.
    """
    path = Path(path)
    tokenizer, directory = _read(path), path if path.is_dir() else path.parent
    note_code(read_config(directory / CONFIG_FILE), directory / CONFIG_FILE)
    tokenizer.chat_template = find_template(directory)
    return tokenizer


def _read(path: Path) -> Tokenizer:
    native = path / NATIVE_FILE
    if path.suffix == native.suffix and not path.is_dir():
        return _read_native(path)
    if not native.is_file():
        return read_tokenizer_json(path)
    if not (path / TOKENIZER_FILE).is_file():
        return _read_native(native)
    tokenizer = read_tokenizer_json(path)
    return Tokenizer(tokenizer.backend, tokenizer.specials, {NATIVE_FILE: _content(native)})


def _read_native(file: Path) -> Tokenizer:
    """A file that only the content tells from one of the other kind: both are called `tokenizer.model`."""
    content, config = _content(file), read_config(file.with_name(CONFIG_FILE))
    add_bos, add_eos = config.get("add_bos_token") is not False, config.get("add_eos_token") is True
    try:
        if is_tiktoken(content):
            tokenizer = read_tiktoken(content, add_bos=add_bos, add_eos=add_eos)
        else:
            tokenizer = read_sentencepiece(content, add_bos=add_bos, add_eos=add_eos)
    except DataError as error:
        raise DataError(f"{file} is no tokenizer: {error}") from error
    return Tokenizer(tokenizer.backend, tokenizer.specials | name_roles(config), tokenizer.native)


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise DataError(f"{file} does not exist; a tokenizer is a directory with {TOKENIZER_FILE} or {NATIVE_FILE}")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes; a {NATIVE_FILE} has at most {MAX_FILE_BYTES}")
    return file.read_bytes()
