"""Where things are kept that can be fetched or made again."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Where stores and fetched models are kept: $XDG_CACHE_HOME/lamoid, or ~/.cache/lamoid."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lamoid"
