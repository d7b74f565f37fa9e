"""Sentences from film reviews, each rated by twenty people: Hutto & Gilbert 2014, "VADER", MIT licence.

They lie in the source archive of the package vaderSentiment, which pip downloads and checks by its hash; nothing of it is
part of this repository.
"""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def read_reviews(folder: Path) -> list[tuple[str, str]]:
    """Texts with `positive` or `negative`, by the sign of their mean rating; those that came to nought are left out."""
    if not (folder / ARCHIVE).is_file():
        wanted = folder / "film-reviews.txt"
        wanted.write_text(f"vaderSentiment==3.3.2 --hash=sha256:{SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--require-hashes"]
        subprocess.run([*command, "-q", "-r", str(wanted), "-d", str(folder)], check=True)
    with tarfile.open(folder / ARCHIVE) as outer, tarfile.open(fileobj=io.BytesIO(_read(outer, INNER))) as inner:
        lines = _read(inner, RATINGS).decode("utf-8").splitlines()
    rated = [(" ".join(text.split()), float(rating)) for _, rating, text in (line.split("\t") for line in lines)]
    return [(text, "positive" if rating > 0 else "negative") for text, rating in rated if rating]


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()
