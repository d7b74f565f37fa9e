"""Files and directories that are there whole or not at all, and that say when they were damaged.

Everything is written under a temporary name, synced, and renamed; then the folder is synced, so that the name survives a
power cut too. Files get the user's umask (safetensors writes mode 0600 by itself).
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamoid.errors import CheckpointError, RunError

CHECKSUMS_FILE, ADAPTER_FILE = "checksums.json", "adapter_config.json"
MAX_JSON_BYTES = 8 * 2**20
_TEMPORARY = ".lamoid-tmp-"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, whose folder is made if there is none; what was written there takes its place at
    the end, or nothing does."""
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with _disk_errors(path):
            if not path.parent.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _finish_file(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which must not exist; at the end it gets checksums and the final name."""
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with _disk_errors(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            files = sorted(p for p in temporary.rglob("*") if p.is_file())
            sums = {str(p.relative_to(temporary)): file_digest(p) for p in files}
            (temporary / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
            for file in [*files, temporary / CHECKSUMS_FILE]:
                _finish_file(file)
            for folder in {file.parent for file in files} | {temporary}:
                _sync(folder)
            os.rename(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file, human-readable, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError where it is not there, too large, or something else."""
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist; a model is a Hugging Face directory with config.json")
    if file.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{file} has {file.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds {type(raw).__name__}; a JSON object is expected")
    return raw


def write_object(file: Path, value: dict[str, Any]) -> None:
    """A JSON file, into a folder that the caller makes final."""
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter (see `peft.py`) and no whole model."""
    return (directory / ADAPTER_FILE).is_file() and not (directory / "config.json").is_file()


def refuse_adapter(directory: Path) -> None:
    """Raise CheckpointError for the directory of an adapter where a whole model is wanted."""
    if is_adapter(directory):
        raise CheckpointError(
            f"{directory} is an adapter; merge it into its base first: lamoid merge {directory} --out DIR"
        )


def verify(directory: Path) -> None:
    """Compare every file with the checksums that were written beside it. Raises CheckpointError naming the first that differs."""
    try:
        sums = json.loads((directory / CHECKSUMS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / CHECKSUMS_FILE} cannot be read: {error}") from error
    if not isinstance(sums, dict):
        raise CheckpointError(
            f"{directory / CHECKSUMS_FILE} holds no checksums; this checkpoint is damaged, use another one"
        )
    for name, expected in sums.items():
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; this checkpoint is damaged, use another one")
        if file_digest(file) != expected:
            raise CheckpointError(f"{file} does not match its checksum; this checkpoint is damaged, use another one")


def link_files(source: Path, target: Path) -> None:
    """Make the files of one folder appear in another, each replaced atomically; hard links where the disk has them."""
    for file in sorted(p for p in source.iterdir() if p.is_file() and p.name != CHECKSUMS_FILE):
        with atomic_file(target / file.name) as temporary:
            try:
                os.link(file, temporary)
            except OSError:
                shutil.copyfile(file, temporary)


def remove_leftovers(directory: Path) -> list[str]:
    """Delete what a killed process left unfinished; returns the names it was meant for."""
    leftovers = sorted(directory.glob(f"{_TEMPORARY}*")) if directory.is_dir() else []
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [path.name.removeprefix(_TEMPORARY).partition("-")[2] for path in leftovers]


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    import hashlib  # 4 MB of OpenSSL, which a chat does not need

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finish_file(path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; free some space or choose another --out"
        ) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise RunError(f"{path} cannot be written: {error}; free some space or choose another --out") from error
