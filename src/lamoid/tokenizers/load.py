"""The tokenizer of a model directory, in any of its forms.

These are tokenizer.json, tokenizer.model (SentencePiece's or tiktoken's), vocab.txt, vocab.json with merges.txt.
"""

from pathlib import Path
from typing import Any

from lamoid.errors import DataError
from lamoid.tokenizers import gpt2, wordpiece
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

NATIVE_FILES = (NATIVE_FILE, wordpiece.VOCAB_FILE, gpt2.VOCAB_FILE)
"""Each stands for a tokenizer by itself, the last with a merges.txt beside it."""


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory has a tokenizer in one of the forms."""
    return any((directory / name).is_file() for name in (TOKENIZER_FILE, *NATIVE_FILES))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read the tokenizer of a model directory, or one of its files by itself.

    A directory's `tokenizer.json` comes first; native files beside it are kept as they are for `files()`. With it
    comes the directory's chat template. Raises DataError where the files are missing, too large, or make no tokenizer.
    """
    path = Path(path)
    tokenizer, directory = _read(path), path if path.is_dir() else path.parent
    note_code(read_config(directory / CONFIG_FILE), directory / CONFIG_FILE)
    tokenizer.chat_template = find_template(directory)
    return tokenizer


def _read(path: Path) -> Tokenizer:
    if path.name in NATIVE_FILES[1:] or (path.suffix == Path(NATIVE_FILE).suffix and not path.is_dir()):
        return _read_native(path)
    native = [name for name in (*NATIVE_FILES, gpt2.MERGES_FILE) if (path / name).is_file()]
    if native and not (path / TOKENIZER_FILE).is_file():
        return _read_native(path / native[0])
    tokenizer = read_tokenizer_json(path)
    return Tokenizer(tokenizer.backend, tokenizer.specials, {name: _content(path / name) for name in native})


def _read_native(file: Path) -> Tokenizer:
    config = read_config(file.with_name(CONFIG_FILE))
    try:
        if file.name == wordpiece.VOCAB_FILE:
            tokenizer = wordpiece.read_wordpiece(
                _content(file),
                lowercase=_yes_or_no(config, "do_lower_case"),
                strip_accents=_yes_or_no(config, "strip_accents"),
                split_chinese=_yes_or_no(config, "tokenize_chinese_chars") is not False,
            )
        elif file.name == gpt2.VOCAB_FILE:
            tokenizer = gpt2.read_gpt2(_content(file), _content(file.with_name(gpt2.MERGES_FILE)))
        else:
            tokenizer = _read_model_file(_content(file), config)
    except DataError as error:
        raise DataError(f"{file} is no tokenizer: {error}") from error
    return Tokenizer(tokenizer.backend, tokenizer.specials | name_roles(config), tokenizer.native)


def _yes_or_no(config: dict[str, Any], name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None


def _read_model_file(content: bytes, config: dict[str, Any]) -> Tokenizer:
    """Only the content tells the two kinds apart: both are called `tokenizer.model`."""
    add_bos, add_eos = config.get("add_bos_token") is not False, config.get("add_eos_token") is True
    read = read_tiktoken if is_tiktoken(content) else read_sentencepiece
    return read(content, add_bos=add_bos, add_eos=add_eos)


def _content(file: Path) -> bytes:
    if not file.is_file():
        raise DataError(f"{file} does not exist; a tokenizer is a directory with {TOKENIZER_FILE} or {NATIVE_FILE}")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise DataError(f"{file} has {file.stat().st_size} bytes; it may have at most {MAX_FILE_BYTES}")
    return file.read_bytes()
