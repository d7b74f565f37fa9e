"""What holds for a directory of any type of model: damaged files, tied embeddings saved twice, unknown types."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lamoid.checkpoints.config_fields import as_kind
from lamoid.checkpoints.hf import SPELLINGS, config_from_hf, config_to_hf, read_model, write_model
from lamoid.errors import CheckpointError
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.heads import attach_head
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.roberta import Roberta, RobertaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import Variant, VariantConfig

MODELS: dict[str, Any] = {
    "llama": Llama(LlamaConfig(40, 12, 2, 3, 1, 4, 20, 32, tied_embeddings=True)),
    "gpt2": GPT2(GPT2Config(40, 12, 2, 3, 20, 32)),
    "bert": Bert(BertConfig(40, 12, 2, 3, 20, 32)),
    "roberta": Roberta(RobertaConfig(40, 12, 2, 3, 20, 32)),
    "lamoid_transformer": Transformer(TransformerConfig(40, 12, 2, 3, 20)),
    "lamoid_variant": Variant(VariantConfig(40, 12, 2, 3, 1, 4, 20, 32, tied_embeddings=True)),
}
SECOND_COPIES = {
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "bert": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "roberta": ("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "lamoid_transformer": ("lm_head.weight", "embedding.weight"),
    "lamoid_variant": ("lm_head.weight", "embedding.weight"),
}


def write(name: str, path: Path) -> nn.Module:
    model = MODELS[name].initialise(1)
    write_model(path, model, None)
    return model


def test_every_type_is_here() -> None:
    assert MODELS.keys() == SPELLINGS.keys() == SECOND_COPIES.keys()


@pytest.mark.parametrize("name", MODELS)
def test_bits_dtype_and_configuration_survive(name: str, tmp_path: Path) -> None:
    model = write(name, tmp_path)
    again = read_model(tmp_path)
    assert again.config == model.config and not again.training
    assert config_from_hf(json.loads(json.dumps(config_to_hf(model.config)))) == model.config
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))
    assert {p.dtype for p in read_model(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", MODELS)
def test_tied_embeddings_are_written_once_and_read_once_or_twice(name: str, tmp_path: Path) -> None:
    model = MODELS[name].initialise(1)
    model = attach_head(model, "mlm", 0) if isinstance(model, Bert | Roberta) else model
    write_model(tmp_path, model, None)
    copy, original = SECOND_COPIES[name]
    tensors = load_file(tmp_path / "model.safetensors")
    assert copy not in tensors
    save_file(tensors | {copy: tensors[original].clone()}, tmp_path / "model.safetensors")
    again = read_model(tmp_path)
    head = again.head.decoder if hasattr(again, "head") else again.lm_head  # type: ignore[union-attr]
    embedding = again.encoder.embedding if hasattr(again, "head") else again.embedding  # type: ignore[union-attr]
    assert head.weight is embedding.weight  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_damaged_weights_are_refused(name: str, tmp_path: Path) -> None:
    write(name, tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    huge = (2**60).to_bytes(8, "little") + whole[8:]
    for content in (whole[:-5], whole[:20], b"", huge):
        file.write_bytes(content)
        began = time.perf_counter()
        with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
            read_model(tmp_path)
        assert time.perf_counter() - began < 1
    file.unlink()
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_code_of_a_directory_is_never_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(name, tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"auto_map": {"AutoModel": "evil.Model"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('run')")
    if name.startswith("lamoid_"):  # our own files have no fields that we do not know
        with pytest.raises(CheckpointError, match="auto_map is no field"):
            read_model(tmp_path)
    else:
        read_model(tmp_path)
    assert "auto_map is ignored" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["mistral", ["bert"], 7, ""])
def test_an_unknown_type_is_refused(kind: Any) -> None:
    with pytest.raises(CheckpointError, match=r"model_type is .*; known are llama, gpt2, bert, roberta"):
        config_from_hf({"model_type": kind})


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, 1.0, "must be a whole number above 0"),
        (int, True, "must be a whole number above 0"),
        (int, 0, "must be a whole number above 0"),
        (float, "1", "must be a finite number above 0"),
        (float, float("inf"), "must be a finite number above 0"),
        (bool, 1, "must be true or false"),
        (str, 1, "must be text"),
    ],
)
def test_values_of_the_wrong_kind(kind: type, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"x is .*; it {message}"):
        as_kind(kind, "x", value)


def test_nothing_is_a_number_too_where_it_may_be() -> None:
    assert as_kind(float, "x", 0, may_be_zero=True) == 0.0 and as_kind(int, "x", 0, may_be_zero=True) == 0
    with pytest.raises(CheckpointError, match="of 0 or above"):
        as_kind(float, "x", -1, may_be_zero=True)
