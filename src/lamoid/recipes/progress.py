"""A progress bar with rate and time left, for everything that takes more than two seconds."""

import sys
from typing import Any

from tqdm import tqdm

LOG_INTERVAL_S = 10.0


def progress(what: str, total: int, unit: str) -> "tqdm[Any]":
    """A bar on standard error: live in a terminal, a line now and then in a log. Use as `with`; `update(n)` moves it."""
    interval_s = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_S
    return tqdm(
        total=total, desc=what, unit=unit, unit_scale=True, delay=2, mininterval=interval_s, maxinterval=interval_s
    )
