"""llama.cpp and transformers beside what we write. `make test-peers` builds llama.cpp first; `make test` stays away.

What was measured is printed at the end, and with `--out docs/proofs` kept there too, if every test passed.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.pairs import write_proof

Figures = dict[str, dict[str, float | int | str]]
FIGURES = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--out", type=Path, help="also write what was measured as JSON into this folder")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[..., None]:
    """measured(name, **figures): something to be printed and kept."""

    def keep(name: str, **figures: float | int | str) -> None:
        request.config.stash[FIGURES][name] = figures

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, figures in config.stash[FIGURES].items():
        values = (f"{value:.5g}" if isinstance(value, float) else f"{value}" for value in figures.values())
        terminalreporter.write_line(f"{name}: {', '.join(map(' '.join, zip(figures, values, strict=True)))}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    figures = session.config.stash[FIGURES]
    if exitstatus == 0 and figures:
        peers = {name: importlib.metadata.version(name) for name in ("llama-cpp-python", "transformers")}
        write_proof("peers", {"peers": peers, "figures": figures}, session.config.getoption("--out"))
