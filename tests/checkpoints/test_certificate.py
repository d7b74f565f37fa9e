"""The bounds of the formats, and every way in which a certificate can fail."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.checkpoints.llamas import SCALED, SHAPES

from lamoid.checkpoints.certificate import certify, compare_layers, probe_ids, rounding_bound
from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.source import Source, load
from lamoid.checkpoints.store import file_digest
from lamoid.errors import RunError
from lamoid.nn.rope_scaling import Llama3Scaling
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.gguf_vocabulary import PROBE
from lamoid.tokenizers.tokenizer import Tokenizer


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 1e3])
def test_the_bound_holds_and_is_tight(kind: str, scale: float) -> None:
    generator = np.random.default_rng(0)
    weights = (generator.standard_normal((500, 64)) * scale).astype(np.float32)
    weights[:50] = 0
    weights[50:100] += np.float32(3 * scale)
    weights[100:150, ::2] = -weights[100:150, 1::2]  # both ends of a block as large
    kind_id = gguf.GGMLQuantizationType[kind]
    stored = gguf.dequantize(np.ascontiguousarray(gguf.quantize(weights, kind_id)).view(np.uint8), kind_id)
    difference, bound = np.abs(stored.reshape(weights.shape) - weights), rounding_bound(weights, kind)
    assert (difference <= bound).all()
    if kind != "F32" and scale >= 1e-3:
        assert (difference > 0.8 * bound)[weights != 0].any()


def test_the_layers_are_those_of_the_model(model_directory, tmp_path: Path) -> None:
    """Streamed from disk they give the loss that the model in memory gives."""
    source = open_model(model_directory(SCALED))
    ids = probe_ids(source)
    got = compare_layers(source, source, ids)
    logits = load(source)(torch.tensor([ids]))[0]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
    assert got["loss"]["source"] == got["loss"]["result"] == pytest.approx(expected.item(), rel=1e-5)
    assert got["layers"] == {name: [0, 0] for name in ("embedding", "layer 0", "layer 1", "logits")}
    assert got["positions"][1] > 8192 and got["same_most_likely_token"] == 1


def test_what_a_certificate_says(model_directory, tmp_path: Path) -> None:
    proof = convert(open_model(model_directory(SCALED)), tmp_path / "x.gguf", dtype="Q8_0")
    assert proof["result"] == {
        "formats": {"F32": 5, "Q8_0": 15},
        "sha256": {"x.gguf": file_digest(tmp_path / "x.gguf")},
    }
    assert proof["tied_embeddings"] and proof["special_ids"] == {"bos": 394, "eos": 395, "pad": 396}
    assert proof["weights"]["largest_difference"] > 0 and proof["weights"]["largest_share_of_bound"] <= 1
    assert not proof["exact"] and proof["perplexity"]["result"] > 0


def changed(source: Source, where: str, by: float) -> Source:
    def read(name: str, rows: np.ndarray) -> torch.Tensor:
        block = source.read(name, rows).clone()
        if name == where:
            block.flatten()[-1] += by
        return block

    return replace(source, read=read)


def with_template(tokenizer: Tokenizer | None) -> Tokenizer:
    assert tokenizer is not None
    return Tokenizer(tokenizer.backend, tokenizer.specials, chat_template="{{ messages }}")


FAULTS: dict[str, Callable[[Source], Source]] = {
    "layers.1.attention.o_proj.weight is": lambda s: changed(s, "layers.1.attention.o_proj.weight", 1e-6),
    "norm.weight is": lambda s: changed(s, "norm.weight", 1e-6),
    "embedding.weight is": lambda s: changed(s, "embedding.weight", float("nan")),
    "rope_scaling is": lambda s: replace(s, config=replace(s.config, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))),
    "rope_base is": lambda s: replace(s, config=replace(s.config, rope_base=10_000.0)),
    "max_seq_len is": lambda s: replace(s, config=replace(s.config, max_seq_len=64)),
    "tied_embeddings is": lambda s: replace(s, config=replace(s.config, tied_embeddings=False)),
    "the chat template is another": lambda s: replace(s, tokenizer=with_template(s.tokenizer)),
    "the tokenizer gives other ids": lambda s: replace(s, tokenizer=train_bpe([PROBE[:200]] * 3, 400)),
    "special ids are": lambda s: replace(s, tokenizer=None),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_certificate_fails_naming_what_differs(message: str, model_directory, tmp_path: Path) -> None:
    source = open_model(model_directory(replace(SCALED, head_dim=64)))
    with pytest.raises(RunError, match=f"the certificate failed: {message}"):
        certify(source, FAULTS[message](source))


def test_a_model_whose_output_is_not_finite_gets_no_certificate(model_directory) -> None:
    source = open_model(model_directory(SHAPES["grouped"]))
    broken = changed(source, "layers.0.feed_forward.down_proj.weight", float("inf"))
    with pytest.raises(RunError, match="the certificate failed"):
        certify(broken, broken)
