"""llama.cpp on small random Llamas of every shape, scaling and format that we write."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tests.checkpoints.llamas import SCALED, SHAPES, TEMPLATE, random_llama
from tests.peers.llama_cpp_side import assert_same_weights, logits, opened, rounded_activations, write_in_f32

from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.hf import write_model
from lamoid.checkpoints.source import load
from lamoid.models.llama import LlamaConfig
from lamoid.nn.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.gguf_vocabulary import PROBE
from lamoid.tokenizers.tokenizer import Tokenizer

WIDE = replace(SHAPES["tied"], head_dim=64)
SCALINGS = {
    "llama3": replace(WIDE, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64)),
    "llama3 with odd settings": replace(WIDE, rope_scaling=Llama3Scaling(3.0, 1.5, 2.5, 100)),
    "llama 3.2": SCALED,
    "linear": replace(WIDE, rope_scaling=LinearScaling(4.0)),
    "yarn": replace(WIDE, rope_scaling=YarnScaling(4.0, 64)),
    "yarn, other base": replace(WIDE, rope_base=500_000.0, rope_scaling=YarnScaling(8.0, 64)),
    "yarn, attention factor": replace(WIDE, rope_scaling=YarnScaling(8.0, 64, attention_factor=1.3)),
    "yarn, mscale": replace(WIDE, rope_scaling=YarnScaling(8.0, 64, mscale=0.7, mscale_all_dim=0.5)),
}
BIASES = {
    "attention biases": replace(SHAPES["grouped"], attention_bias=True),
    "feed-forward biases": replace(SHAPES["grouped"], feed_forward_bias=True),
}
CONFIGS = (
    SHAPES
    | SCALINGS
    | BIASES
    | {
        "three kv heads, D no multiple of 32": replace(SHAPES["grouped"], d_model=72, n_heads=6, n_kv_heads=3),
        "more ids than the tokenizer": replace(SHAPES["tied"], vocab_size=410),
        "eight layers": replace(SHAPES["grouped"], n_layers=8),
    }
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([PROBE] * 3, 400)


@pytest.fixture
def write(tmp_path: Path, tokenizer: Tokenizer) -> Callable[..., Path]:
    """write(config, dtype): a GGUF file of random weights."""

    def make(config: LlamaConfig, dtype: str = "F32") -> Path:
        directory = tmp_path / "source"
        directory.mkdir()
        write_model(directory, random_llama(config), tokenizer)
        (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        convert(open_model(directory), tmp_path / "x.gguf", dtype=dtype, notify=lambda text: None)
        return tmp_path / "x.gguf"

    return make


def probe(tokenizer: Tokenizer) -> list[int]:
    return (tokenizer.encode(PROBE) * 3)[:120]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_logits_are_ours(config: LlamaConfig, write: Callable[..., Path], tokenizer: Tokenizer) -> None:
    file, ids = write(config), probe(tokenizer)
    with opened(file, n_ctx=256) as peer, torch.inference_mode():
        theirs, ours = logits(peer, ids), load(open_model(file))(torch.tensor([ids]))[0]
        assert (theirs - ours).abs().max() <= 1e-5 * ours.abs().max()
        assert (peer.token_bos(), peer.token_eos()) == (tokenizer.special_id("bos"), tokenizer.special_id("eos"))
        assert peer.metadata["tokenizer.chat_template"] == TEMPLATE


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
@pytest.mark.parametrize("shape", ["tied", "one kv head, odd head size", "rows of 100"])
def test_every_format_means_the_same(shape: str, dtype: str, write: Callable[..., Path], tokenizer: Tokenizer) -> None:
    """In llama.cpp's own F32 copy of the file, weights are equal to the bit and logits within 1e-5.

    With the file itself it rounds what a matrix is multiplied with; that costs no more than it does in torch.
    """
    config = (SHAPES | {"rows of 100": replace(SHAPES["grouped"], d_ff=100)})[shape]
    file, ids = write(config, dtype), probe(tokenizer)
    copy = file.with_name("copy.gguf")
    write_in_f32(file, copy)
    assert_same_weights(file, copy)
    source = open_model(file)
    model = load(source, torch.float32)
    with opened(file, n_ctx=256) as peer, opened(copy, n_ctx=256) as peer_in_f32, torch.inference_mode():
        ours = model(torch.tensor([ids]))[0]
        assert (logits(peer_in_f32, ids) - ours).abs().max() <= 1e-5 * ours.abs().max()
        with rounded_activations(model, source.formats):
            rounded = model(torch.tensor([ids]))[0]
        assert (logits(peer, ids) - ours).norm() <= 1.5 * (rounded - ours).norm()


@pytest.mark.parametrize("name", [*SCALINGS, *BIASES])
def test_transformers_reads_neither_scalings_nor_biases_from_gguf(
    name: str, write: Callable[..., Path], tokenizer: Tokenizer
) -> None:
    """What docs/convert.md warns of. Once this fails, the warning can go."""
    file, ids = write(CONFIGS[name]), torch.tensor([probe(tokenizer)])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.inference_mode():
        ours = load(open_model(file))(ids)
        assert (theirs.eval()(ids).logits - ours).abs().max() > 1e-3 * ours.abs().max()
