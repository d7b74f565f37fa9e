"""What holds for every test: shapes are checked, nothing goes to the network, and no cache of the user's is touched."""

import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import beartype
import jaxtyping

_CACHE_HOME = tempfile.mkdtemp(prefix="lamoid-tests-")
os.environ |= {
    "XDG_CACHE_HOME": _CACHE_HOME,
    "HF_HOME": f"{_CACHE_HOME}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # the models are tiny: more threads only get in each other's way
    "OMP_WAIT_POLICY": "passive",  # where a test asks for some, waiting ones leave the cores to the others
}
checker = types.ModuleType("numeric_tower")  # beartype, with an int where a float is asked for, as PEP 484 has it
checker.check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules["numeric_tower"] = checker
jaxtyping.install_import_hook("lamoid", "numeric_tower.check")  # before anything imports lamoid

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], Any]]:
    """`torch.set_num_threads` for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The directory of the real SmolLM2-135M-Instruct, GGUF and Hugging Face, fetched once a session as a user would."""
    from lamoid.recipes.fetch import fetch

    return fetch("smollm2", print)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The directory of the real all-MiniLM-L6-v2, a BERT of 6 layers, fetched once a session as a user would."""
    from lamoid.recipes.fetch import fetch

    return fetch("minilm", print)
