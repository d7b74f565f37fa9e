"""A model from the Hugging Face Hub, through `huggingface_hub`: weights in safetensors, and no file that could run."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lamoid.checkpoints.store import file_digest
from lamoid.errors import DataError, MissingExtra, RunError

FETCHED = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|[\w.-]+\.json|tokenizer\.model|vocab\.txt|merges\.txt|[\w.-]+\.jinja|LICENSE(\.\w+)?",
    re.ASCII,
)
"""Whole names of files at the root of a repository; no pickle (.bin, .pt, .pth), no code (.py), no folder."""


def download_from_hub(
    repository: str, downloads: Path, say: Callable[[str], object]
) -> tuple[list[str], dict[str, str]]:
    """Download the files of one commit, checked against the Hub's digests: their names, and facts to write down.

    A file that a killed process left is gone on with where it broke off. HF_ENDPOINT, HF_TOKEN and the like are
    huggingface_hub's. Raises MissingExtra without it, RunError where the Hub refuses or cannot be reached, DataError
    where there are no safetensors or a digest differs.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub") from error
    try:
        info = huggingface_hub.HfApi().model_info(repository, files_metadata=True)
        files = [file for file in info.siblings or [] if FETCHED.fullmatch(file.rfilename)]
        _check_names(repository, [file.rfilename for file in info.siblings or []])
        for file in files:
            say(f"{file.rfilename} ({(file.size or 0) / 1e6:.1f} MB)")
            huggingface_hub.hf_hub_download(repository, file.rfilename, revision=info.sha, local_dir=downloads)
    except DataError:
        raise
    except Exception as error:  # huggingface_hub raises its own errors, its HTTP library's, and the system's
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RunError(
            f"hf:{repository} cannot be fetched: {reason}; check the name, the network and HF_TOKEN"
        ) from error
    for file in files:
        _check_digest(downloads / file.rfilename, file)
    _note_code(downloads / "config.json", say)
    names = [file.rfilename for file in files]
    license = str(getattr(info.card_data, "license", None) or "see the model's page")
    return names, {"source": f"{repository} (Hugging Face Hub)", "commit": str(info.sha), "license": license}


def _check_names(repository: str, names: list[str]) -> None:
    if "config.json" not in names or not any(FETCHED.fullmatch(n) and n.endswith(".safetensors") for n in names):
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        there = f"its weights are pickles ({pickles[0]}), which could run code" if pickles else "it has other files"
        raise DataError(f"hf:{repository} has no config.json with safetensors; {there}: choose another repository")


def _check_digest(file: Path, described: Any) -> None:
    """Large files have a SHA-256 at the Hub, small ones git's SHA-1 of a header and the content."""
    if described.lfs is not None:
        is_right = file_digest(file) == described.lfs.sha256
    else:
        content = file.read_bytes()
        is_right = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == described.blob_id
    if not is_right:
        file.unlink()
        raise DataError(f"{file.name} does not match the Hub's digest, so it was deleted; give the same command again")


def _note_code(config: Path, say: Callable[[str], object]) -> None:
    try:
        has_code = "auto_map" in json.loads(config.read_bytes())
    except ValueError as error:
        raise DataError(f"{config.name} is not JSON: {error}; choose another repository") from error
    if has_code:
        say("note: this model names code of its own (auto_map); it was not fetched and is never run")
