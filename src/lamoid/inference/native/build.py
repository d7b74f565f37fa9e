"""Compile the kernels (python -m lamoid.inference.native.build); setup.py does it for an installation.

No torch and no Python headers: the result is a plain shared library.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = ("engine.c", "team.c", "panels.c", "avx512vnni.c", "avxvnni.c", "avx2.c", "portable.c")
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-pthread",
    "-Wno-psabi",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
)
"""Products and sums are fused only where the source says so; NaN and infinity mean what IEEE 754 says."""
SANITIZERS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compile_library(target: Path, extra: Sequence[str] = ()) -> None:
    """Compile all of it into one shared library. Raises OSError without a compiler, CalledProcessError where it fails."""
    compiler = os.environ.get("CC", "cc")
    sources = [str(FOLDER / name) for name in SOURCES]
    subprocess.run([compiler, *FLAGS, *extra, "-fPIC", "-shared", "-o", str(target), *sources, "-lm"], check=True)


if __name__ == "__main__":
    compile_library(FOLDER / "_engine.so", sys.argv[1:])
