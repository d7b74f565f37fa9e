import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lamoid.checkpoints.store import (
    CHECKSUMS_FILE,
    atomic_directory,
    atomic_file,
    file_digest,
    link_files,
    remove_leftovers,
    verify,
    write_json,
)
from lamoid.errors import CheckpointError, RunError

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
Atomic = Callable[[Path], AbstractContextManager[Path]]


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    with atomic_directory(tmp_path / "step-3") as temporary:
        (temporary / "a.bin").write_bytes(bytes(range(256)) * 20)
        (temporary / "training").mkdir()
        (temporary / "training" / "b.json").write_text("{}")
    return tmp_path / "step-3"


def test_atomic_file_appears_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path and not path.exists()
    assert path.read_text() == "new" and names(tmp_path) == ["x.txt"]


def test_atomic_file_makes_its_folder(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "new" / "folder" / "x.txt") as temporary:
        temporary.write_text("văn bản")
    assert (tmp_path / "new" / "folder" / "x.txt").read_text() == "văn bản"


def test_atomic_file_replaces(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("old")
    with atomic_file(tmp_path / "x.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "x.txt").read_text() == "old"
    assert (tmp_path / "x.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_atomic_file_leaves_nothing_after_an_exception(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("old")
    with pytest.raises(type(error)), atomic_file(tmp_path / "x.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["x.txt"] and (tmp_path / "x.txt").read_text() == "old"


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_atomic_directory_leaves_nothing_after_an_exception(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)), atomic_directory(tmp_path / "d") as temporary:
        (temporary / "half").write_text("half")
        assert not (tmp_path / "d").exists()
        raise error
    assert names(tmp_path) == []


@pytest.mark.parametrize("atomic", [atomic_file, atomic_directory])
def test_an_operating_system_error_becomes_a_run_error(atomic: Atomic, tmp_path: Path) -> None:
    message = "d cannot be written: No space left on device; free some space"
    with pytest.raises(RunError, match=message), atomic(tmp_path / "d"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == []


def test_an_existing_directory_is_not_replaced(checkpoint: Path) -> None:
    with pytest.raises(RunError, match="step-3 cannot be written"), atomic_directory(checkpoint) as temporary:
        (temporary / "other").write_text("other")
    verify(checkpoint)
    assert names(checkpoint.parent) == ["step-3"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_umask(mask: int, mode: int, tmp_path: Path, umask: Callable[[int], int]) -> None:
    umask(mask)
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "x").touch(mode=0o600)
        (temporary / "y").touch(mode=0o666)
    with atomic_file(tmp_path / "z") as temporary:
        temporary.touch(mode=0o600)
    for path in (tmp_path / "d" / "x", tmp_path / "d" / "y", tmp_path / "d" / CHECKSUMS_FILE, tmp_path / "z"):
        assert path.stat().st_mode & 0o777 == mode
    assert umask(mask) == mask


def test_everything_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def spy_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('-')[-1]}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    parent = tmp_path / "parent"
    parent.mkdir()
    with atomic_file(parent / "x.txt") as temporary:
        temporary.write_text("new")
    assert events == ["sync x.txt", "rename", "sync parent"]
    events.clear()
    with atomic_directory(parent / "d") as temporary:
        (temporary / "a").write_text("a")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("b")
    assert events[-2:] == ["rename", "sync parent"]
    assert sorted(events[:-2]) == ["sync a", "sync b", f"sync {CHECKSUMS_FILE}", "sync d", "sync sub"]


def test_checksums_are_sha256_of_every_file(checkpoint: Path, tmp_path: Path) -> None:
    sums = json.loads((checkpoint / CHECKSUMS_FILE).read_text())
    assert sums == {name: file_digest(checkpoint / name) for name in ("a.bin", "training/b.json")}
    (tmp_path / "empty").touch()
    assert file_digest(tmp_path / "empty") == EMPTY_SHA256
    verify(checkpoint)


@pytest.mark.parametrize("position", [0, 2000, 5119])
def test_a_flipped_byte_is_found(checkpoint: Path, position: int) -> None:
    content = bytearray((checkpoint / "a.bin").read_bytes())
    content[position] ^= 1
    (checkpoint / "a.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.bin does not match its checksum"):
        verify(checkpoint)


def test_a_truncated_file_is_found(checkpoint: Path) -> None:
    os.truncate(checkpoint / "training" / "b.json", 1)
    with pytest.raises(CheckpointError, match=r"b\.json does not match its checksum"):
        verify(checkpoint)


def test_a_missing_file_is_found(checkpoint: Path) -> None:
    (checkpoint / "a.bin").unlink()
    with pytest.raises(CheckpointError, match=r"a\.bin is missing"):
        verify(checkpoint)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"a.bin": 3}', "null", '"x"', b"\xff"])
def test_damaged_checksums_are_found(checkpoint: Path, content: str | bytes | None) -> None:
    file = checkpoint / CHECKSUMS_FILE
    file.unlink()
    if isinstance(content, str):
        file.write_text(content)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError):
        verify(checkpoint)


def test_leftovers_are_removed_and_named(tmp_path: Path) -> None:
    (tmp_path / ".lamoid-tmp-123-step-9").mkdir()
    (tmp_path / ".lamoid-tmp-123-step-9" / "x").touch()
    (tmp_path / ".lamoid-tmp-4-model.safetensors").touch()
    (tmp_path / "step-8").mkdir()
    (tmp_path / "notes.txt").touch()
    assert sorted(remove_leftovers(tmp_path)) == ["model.safetensors", "step-9"]
    assert names(tmp_path) == ["notes.txt", "step-8"]
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path / "nowhere") == []


def test_what_a_killed_process_left_is_a_leftover(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys\n"
        "from lamoid.checkpoints.store import atomic_directory\n"
        "with atomic_directory(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    (temporary / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "step-9")], check=False)
    assert ended.returncode == -9
    assert len(names(tmp_path)) == 1 and not (tmp_path / "step-9").exists()
    assert remove_leftovers(tmp_path) == ["step-9"] and names(tmp_path) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from lamoid.checkpoints.store import atomic_directory, atomic_file
from lamoid.errors import RunError

root, what = Path(sys.argv[1]), sys.argv[2]
if what == "model":
    from lamoid.checkpoints.hf import write_model
    from lamoid.models.llama import Llama, LlamaConfig
    model = Llama(LlamaConfig(500, 64, 1, 2, 2, 32, 64, 64))
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    if what == "file":
        with atomic_file(root / "x") as temporary:
            temporary.write_bytes(bytes(100_000))
    elif what == "directory":
        with atomic_directory(root / "d") as temporary:
            (temporary / "small").write_text("small")
            (temporary / "big").write_bytes(bytes(100_000))
    else:
        with atomic_directory(root / "m") as temporary:
            write_model(temporary, model, None)
except RunError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("what", "target"), [("file", "x"), ("directory", "d"), ("model", "m")])
def test_a_real_failure_to_write_keeps_what_was_there(what: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), what]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 4, ended.stderr
    assert ended.stdout.startswith(f"{tmp_path / target} cannot be written: ") and ended.stdout.count("\n") == 1
    assert "File too large" in ended.stdout
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_directory_that_cannot_be_written_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for atomic in (atomic_file, atomic_directory):
        with pytest.raises(RunError, match="cannot be written"), atomic(tmp_path / "file" / "x") as temporary:
            temporary.write_text("never")


def test_write_json_is_readable_and_keeps_every_script(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"chữ": "한국어", "n": 1.5})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "chữ" in text and "한국어" in text and json.loads(text) == {"chữ": "한국어", "n": 1.5}


@pytest.mark.parametrize("hard_links", [True, False])
def test_link_files_shows_a_checkpoint(
    hard_links: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse)
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.bin").write_bytes(b"old")
    (root / "metrics.jsonl").write_text("kept")
    link_files(checkpoint, root)
    assert names(root) == ["a.bin", "metrics.jsonl"]  # neither checksums nor training/
    assert (root / "a.bin").read_bytes() == (checkpoint / "a.bin").read_bytes()
    assert os.path.samefile(root / "a.bin", checkpoint / "a.bin") is hard_links
    link_files(checkpoint, root)  # again, over its own links
    verify(checkpoint)
    assert names(root) == ["a.bin", "metrics.jsonl"]
