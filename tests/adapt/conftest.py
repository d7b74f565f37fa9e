"""The real SmolLM2 as Hugging Face has it."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture(scope="session")
def smollm2_weights(smollm2: Path) -> dict[str, Tensor]:
    """Its tensors, by Hugging Face's names."""
    return load_file(smollm2 / "model.safetensors")
