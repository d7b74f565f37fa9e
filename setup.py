"""The CPU engine's kernels, compiled with the package where there is a C compiler; without them torch decodes.

Everything else about the package stands in pyproject.toml.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("src/lamoid/inference/native")
BUILD = runpy.run_path(str(FOLDER / "build.py"))

setup(
    ext_modules=[
        Extension(
            "lamoid.inference.native._engine",
            sources=[str(FOLDER / name) for name in BUILD["SOURCES"]],
            depends=[str(file) for file in sorted(FOLDER.glob("*.h"))],
            extra_compile_args=list(BUILD["FLAGS"]),
            libraries=["m"],
            optional=True,
        )
    ]
)
