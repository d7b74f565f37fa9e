"""Where raw text comes from: files, folders, globs, compressed files, JSON lines, and the text that comes with Python.

Everything is read as a stream, so that a file of any size needs little memory.
"""

import ast
import codecs
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import lzma
import sysconfig
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import DataError, MissingExtra

_PROSE = (".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".htm", ".srt", ".vtt", ".po", ".log")
_TABLES = (".xml", ".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".sql")
_CODE = (".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".java", ".js", ".jsx", ".ts", ".tsx", ".kt")
_MORE_CODE = (".lua", ".php", ".pl", ".r", ".rb", ".rs", ".scala", ".sh", ".swift")
TEXT_SUFFIXES = frozenset(_PROSE + _TABLES + _CODE + _MORE_CODE)
"""What is taken from a folder. A file named by itself is read as text whatever its name."""
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
COMPRESSED_SUFFIXES = frozenset({".gz", ".xz", ".zst"})
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Passage:
    """A piece of a document: whole if it is short. `starts` and `ends` say whether the document does so here too."""

    text: str
    source: str
    starts: bool
    ends: bool


@dataclass(frozen=True)
class Source:
    """One file or named text. `documents` yields each document as a stream of blocks of text."""

    name: str
    n_bytes: int
    documents: Callable[[], Iterator[Iterator[str]]]
    digest: Callable[[], str]


def find_sources(data: Sequence[str]) -> list[Source]:
    """Resolve paths, folders, globs and the names in NAMED_CORPORA, sorted within each, without duplicates.

    Raises DataError where one of them does not exist or holds no text.
    """
    found: dict[str, Source] = {}
    for name in data:
        sources = NAMED_CORPORA[name]() if name in NAMED_CORPORA else [_file_source(p) for p in find_files(name)]
        found.update((source.name, source) for source in sources)
    if not found:
        raise DataError(f"no text in {list(data)}; give a file, a folder, a glob or one of {sorted(NAMED_CORPORA)}")
    return list(found.values())


def read_passages(source: Source, passage_bytes: int) -> Iterator[Passage]:
    """Cut each document of a source into passages of at most about `passage_bytes`, at the end of a paragraph or line.

    The passages of a document, joined, are the document.
    """
    for blocks in source.documents():
        starts, held = True, ""
        for block in blocks:
            held += block
            while len(held) > passage_bytes:
                end = _cut(held, passage_bytes)
                yield Passage(held[:end], source.name, starts, ends=False)
                starts, held = False, held[end:]
        if held:
            yield Passage(held, source.name, starts, ends=True)


def spread(texts: Iterable[str], share: float) -> Iterator[str]:
    """A share of the texts, spread evenly over all of them; the first is always among them."""
    owed = 1.0
    for text in texts:
        if owed >= 1.0:
            owed -= 1.0
            yield text
        owed += min(share, 1.0)


def first_texts(sources: Sequence[Source]) -> Iterator[str]:
    """About the first 2 MB, the same number of passages from each source: what the text is like."""
    for source in sources[:64]:
        yield from (p.text for p in itertools.islice(read_passages(source, 32_768), 64 // min(len(sources), 64)))


def _cut(text: str, limit: int) -> int:
    for separator in ("\n\n", "\n", "。", ". ", " "):
        end = text.rfind(separator, limit // 2, limit)
        if end != -1:
            return end + len(separator)
    return limit


def find_files(name: str, suffixes: Collection[str] = TEXT_SUFFIXES | JSONL_SUFFIXES) -> list[Path]:
    """The file of that name, the files in the folder of that name that have one of the suffixes, or what a glob matches."""
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and inner_suffix(p) in suffixes)
        if not files:
            raise DataError(f"{path} holds no text file; looked for {' '.join(sorted(suffixes))}")
        return files
    matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not matches:
        raise DataError(f"{name} does not exist and matches no file; named corpora are {sorted(NAMED_CORPORA)}")
    return matches


def inner_suffix(path: Path) -> str:
    """The suffix that tells the format, under a compression's suffix if there is one."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path
    return inner.suffix.lower()


def _file_source(path: Path) -> Source:
    documents = _json_documents if inner_suffix(path) in JSONL_SUFFIXES else _text_document

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return Source(str(path), path.stat().st_size, lambda: documents(path), digest)


def _open(path: Path) -> io.BufferedIOBase:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)
    if suffix == ".xz":
        return lzma.open(path)
    return path.open("rb")


def _text_document(path: Path) -> Iterator[Iterator[str]]:
    yield read_text(path)


def read_text(path: Path) -> Iterator[str]:
    """The text of a file in blocks, without a byte-order mark. Raises DataError where it cannot be read or is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, mark = 0, "\ufeff"
    for block in read_blocks(path):
        waiting = len(decoder.getstate()[0])
        text = _decode(decoder, block, offset - waiting, path)
        offset += len(block)
        if text:
            yield text.removeprefix(mark)
            mark = ""
    _decode(decoder, b"", offset - len(decoder.getstate()[0]), path, final=True)


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, offset: int, path: Path, *, final: bool = False) -> str:
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        where, byte = offset + error.start, error.object[error.start]
        raise DataError(
            f"{path} is not UTF-8: byte 0x{byte:02X} at offset {where}; convert it, for example with iconv -t UTF-8"
        ) from None


def read_blocks(path: Path) -> Generator[bytes, None, None]:
    """The bytes of a file, decompressed. Raises DataError where it cannot be read, MissingExtra without zstandard."""
    try:
        with _open(path) as file:
            if path.suffix.lower() == ".zst":
                yield from _decompress_zstandard(file)
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.startswith("zstandard"):
            raise DataError(f"{path} cannot be read: {error}") from error
        raise


def _decompress_zstandard(file: io.BufferedIOBase) -> Iterator[bytes]:
    """All frames of a file, little by little; zstandard's own reader takes a truncated file for a shorter one."""
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("zstandard", "zstd") from None
    frame = None
    while packed := file.read(BLOCK_BYTES // 64):
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")


class _BlockReader(io.RawIOBase):
    """The blocks of a file as a file again, so that lines can be read from it with errors already translated."""

    def __init__(self, path: Path) -> None:
        self._blocks, self._rest = read_blocks(path), b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._blocks.close()
        super().close()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._rest = self._rest or next(filter(None, self._blocks), b"")
        n_bytes = min(len(buffer), len(self._rest))
        buffer[:n_bytes], self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        return n_bytes


def _json_documents(path: Path) -> Iterator[Iterator[str]]:
    for number, line in read_lines(path):
        yield iter((_text_field(line, path, number),))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1; a byte-order mark at the beginning is left out."""
    with io.BufferedReader(_BlockReader(path), BLOCK_BYTES) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, line


def _text_field(line: bytes, path: Path, number: int) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} line {number} is not JSON: {error}") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise DataError(f'{path} line {number}: expected an object with a string "text", got {line[:60]!r}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path} line {number}: lone surrogate at character {error.start} of the text") from None
    return text


def _python_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "lib2to3"}
    return sorted(p for p in root.rglob("*.py") if not skipped & set(p.relative_to(root).parts))


def _named_source(name: str, documents: tuple[str, ...]) -> Source:
    def digest() -> str:
        return hashlib.sha256("\0".join(documents).encode()).hexdigest()

    n_bytes = sum(len(text.encode()) for text in documents)
    return Source(name, n_bytes, lambda: (iter((text,)) for text in documents), digest)


def _topics() -> tuple[str, ...]:
    from pydoc_data import topics

    return tuple(topics.topics.values())


@functools.cache
def _python_sources() -> tuple[str, ...]:
    texts = []
    for path in _python_files():
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:  # two files of the standard library declare another encoding
            continue
    return tuple(texts)


@functools.cache
def _docstrings() -> tuple[str, ...]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for text in _python_sources() for node in ast.walk(ast.parse(text)))
    docstrings = (ast.get_docstring(node) for node in nodes if isinstance(node, documented))
    return tuple(docstring for docstring in docstrings if docstring)


NAMED_CORPORA: dict[str, Callable[[], list[Source]]] = {
    "python-docs": lambda: [
        _named_source("python-topics", _topics()),
        _named_source("python-docstrings", _docstrings()),
    ],
    "python-code": lambda: [_named_source("python-code", _python_sources())],
}
"""Text that is on every machine with Python: its reference topics and docstrings (2 MB of English), and its source."""
