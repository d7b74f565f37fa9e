"""From one format of models to another, with a certificate, or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lamoid.checkpoints.certificate import CERTIFICATE_FILE, certify
from lamoid.checkpoints.gguf_llama import open_gguf
from lamoid.checkpoints.gguf_write import FALLBACK, FILE_TYPES, formats, write_gguf
from lamoid.checkpoints.hf_files import CONFIG_FILE
from lamoid.checkpoints.hf_stream import open_hf, write_hf
from lamoid.checkpoints.meta import PARAMS_FILE, open_meta
from lamoid.checkpoints.meta_write import write_meta
from lamoid.checkpoints.source import DTYPES, Source
from lamoid.checkpoints.store import atomic_directory, atomic_file, refuse_adapter, write_json
from lamoid.errors import CheckpointError, UsageError

READERS: dict[str, Callable[[Path], Source]] = {"hf": open_hf, "gguf": open_gguf, "meta": open_meta}
WRITERS: dict[str, Callable[[Path, Source, str, Callable[[int], object]], None]] = {
    "hf": write_hf,
    "gguf": write_gguf,
    "meta": write_meta,
}


def open_model(path: Path) -> Source:
    """Open a model of any format. Raises CheckpointError for a path that has none of them."""
    if path.is_file() and path.suffix.lower() == ".gguf":
        return open_gguf(path)
    for file, kind in ((CONFIG_FILE, "hf"), (PARAMS_FILE, "meta")):
        if (path / file).is_file():
            return READERS[kind](path)
    refuse_adapter(path)
    raise CheckpointError(
        f"{path} is no model; expected a .gguf file, or a directory with {CONFIG_FILE} or {PARAMS_FILE} (Meta's)"
    )


def convert(
    source: Source,
    target: Path,
    *,
    kind: str | None = None,
    dtype: str | None = None,
    notify: Callable[[str], object] = print,
    on_weights: Callable[[int], object] = lambda n: None,
    measure: Callable[[Source], dict[str, Any]] = lambda result: {},
) -> dict[str, Any]:
    """Write a model in another format; returns the certificate, which also lies beside the result.

    `kind` is one of WRITERS (None: `gguf` for a name that ends so, else `hf`); `dtype` is one of FILE_TYPES, for `hf`
    and `meta` one of DTYPES (None: the source's own, or F32 where it is quantized). What is written is read again and
    compared with the source; if that fails, or anything else, nothing is left behind. `on_weights` hears every weight
    twice: when it is written and when it is compared. What `measure` finds in the result goes into the certificate too.
    """
    kind = kind or ("gguf" if target.suffix.lower() == ".gguf" else "hf")
    dtype = _dtype(source, kind, dtype)
    if target.exists():
        raise UsageError(f"{target} exists; choose another name, or remove it first")
    if kind == "gguf":
        rows = [name for name, got in formats(source, dtype).items() if got == FALLBACK != dtype]
        if rows:
            notify(
                f"note: {len(rows)} tensors stay {FALLBACK}, since their rows are no multiple of 32: {', '.join(rows[:5])}"
            )
    with _place(target, kind) as (place, certificate_file):
        WRITERS[kind](place, source, dtype, on_weights)
        result = READERS[kind](place)
        certificate = {"format": kind, "dtype": dtype, **certify(source, result, on_weights), **measure(result)}
        if kind == "gguf":  # it is hashed under its temporary name
            certificate["result"]["sha256"] = {target.name: certificate["result"]["sha256"][place.name]}
        write_json(certificate_file, certificate)
    return certificate


@contextmanager
def _place(target: Path, kind: str) -> Iterator[tuple[Path, Path]]:
    """Where to write, and where to put the certificate; both get their final names only at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind != "gguf":
        with atomic_directory(target) as directory:
            yield directory, directory / CERTIFICATE_FILE
        return
    with atomic_file(target.with_suffix(f".{CERTIFICATE_FILE}")) as certificate, atomic_file(target) as file:
        yield file, certificate


def _dtype(source: Source, kind: str, dtype: str | None) -> str:
    if dtype is None:
        kinds = {source.formats[name] for name, shape in source.shapes.items() if len(shape) > 1}
        dtype = kinds.pop() if len(kinds) == 1 else "F32"
        return dtype if dtype in DTYPES else "F32"
    allowed = FILE_TYPES if kind == "gguf" else DTYPES
    if dtype not in allowed:
        raise UsageError(f"dtype is {dtype.lower()}; {kind} can have {', '.join(d.lower() for d in allowed)}")
    return dtype
