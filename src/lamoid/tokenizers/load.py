"""The tokenizer of a model directory, in any of three forms: tokenizer.json, SentencePiece, tiktoken."""

import json
from pathlib import Path

import tokenizers as runtime

from lamoid.errors import DataError
from lamoid.tokenizers.sentencepiece import read_sentencepiece
from lamoid.tokenizers.tiktoken import is_tiktoken, read_tiktoken
from lamoid.tokenizers.tokenizer import CONFIG_FILE, MAX_TOKENIZER_BYTES, SPECIAL_ROLES, TOKENIZER_FILE, Tokenizer
from lamoid.tokenizers.vocabulary import MAX_FILE_BYTES, NATIVE_FILE, rust_errors


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read the tokenizer of a model directory, or a `tokenizer.json` or `tokenizer.model` by itself.

    A directory's `tokenizer.json` comes first; a `tokenizer.model` beside it is kept as it is for `files()`.
    Raises DataError where the files are missing, too large, or make no tokenizer.
    """
    path = Path(path)
    if not path.is_dir():
        return _read(path, {})
    file, native = path / TOKENIZER_FILE, path / NATIVE_FILE
    if file.is_file():
        return _read(file, {NATIVE_FILE: _content(native, MAX_FILE_BYTES)} if native.is_file() else {})
    if native.is_file():
        return _read(native, {})
    raise DataError(
        f"{path} has neither {TOKENIZER_FILE} nor {NATIVE_FILE}; a tokenizer is a directory with one of them"
    )


def _read(file: Path, native: dict[str, bytes]) -> Tokenizer:
    config = read_json_object(file.with_name(CONFIG_FILE))
    if file.suffix == ".json":
        content = _content(file, MAX_TOKENIZER_BYTES)
        with rust_errors(str(file)):
            backend = runtime.Tokenizer.from_str(content.decode("utf-8"))
        return Tokenizer(backend, _specials(config), native)
    content = _content(file, MAX_FILE_BYTES)
    read = read_tiktoken if is_tiktoken(content) else read_sentencepiece
    try:
        tokenizer = read(
            content, add_bos=config.get("add_bos_token") is not False, add_eos=config.get("add_eos_token") is True
        )
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return Tokenizer(tokenizer.backend, tokenizer.specials | _specials(config), tokenizer.native)


def _content(file: Path, max_bytes: int) -> bytes:
    if not file.is_file():
        raise DataError(f"{file} does not exist; a tokenizer is a directory with {TOKENIZER_FILE}, or that file")
    if file.stat().st_size > max_bytes:
        raise DataError(f"{file} has {file.stat().st_size} bytes; a tokenizer has at most {max_bytes}")
    return file.read_bytes()


def read_json_object(file: Path) -> dict[str, object]:
    """What a small JSON file says, nothing where there is no file. Raises DataError unless it is an object."""
    if not file.is_file():
        return {}
    try:
        config = json.loads(_content(file, MAX_TOKENIZER_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise DataError(f"{file} is not a JSON object but a {type(config).__name__}")
    return config


def _specials(config: dict[str, object]) -> dict[str, str]:
    tokens = {role: config.get(f"{role}_token") for role in SPECIAL_ROLES}
    contents = {role: t.get("content") if isinstance(t, dict) else t for role, t in tokens.items()}
    return {role: token for role, token in contents.items() if isinstance(token, str)}
