"""Meta's format against its own arithmetic (complex RoPE on interleaved pairs), written out here from the paper."""

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.checkpoints.llamas import SCALED, SHAPES, TEMPLATE

import lamoid
from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.hf import read_model
from lamoid.checkpoints.meta import config_from_meta, feed_forward_size, open_meta
from lamoid.checkpoints.meta_write import params_to_meta
from lamoid.checkpoints.source import load
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama import PRESETS, LlamaConfig
from lamoid.nn.positions import stretch
from lamoid.nn.rope_scaling import LinearScaling, Llama3Scaling
from lamoid.tokenizers.gguf_vocabulary import PROBE

PLAIN = {name: c for name, c in SHAPES.items() if c.head_dim * c.n_heads == c.d_model} | {"scaled": SCALED}
COLUMNS = ("attention.wo.", "feed_forward.w2.")


def meta_logits(weights: dict[str, torch.Tensor], params: dict, ids: list[int], factors: torch.Tensor) -> torch.Tensor:
    """The forward of Meta's reference code: pairs (2i, 2i + 1) as complex numbers."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weights[f"{name}.weight"]

    n_heads, n_kv_heads, n = params["n_heads"], params["n_kv_heads"], len(ids)
    size = params["dim"] // n_heads
    frequencies = params["rope_theta"] ** -(torch.arange(0, size, 2).double() / size) / factors.double()
    turn = torch.polar(torch.ones(n, size // 2).double(), torch.outer(torch.arange(n).double(), frequencies))

    def rotate(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * turn[:, None]).flatten(-2).float()

    x = weights["tok_embeddings.weight"][ids]
    for i in range(params["n_layers"]):
        p = f"layers.{i}"
        h = norm(x, f"{p}.attention_norm")
        q, k, v = (
            (h @ weights[f"{p}.attention.w{name}.weight"].T).view(n, heads, size)
            for name, heads in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads))
        )
        k, v = (t.repeat_interleave(n_heads // n_kv_heads, dim=1) for t in (rotate(k), v))
        scores = torch.einsum("qhd,khd->hqk", rotate(q), k) / size**0.5
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        x = x + attended @ weights[f"{p}.attention.wo.weight"].T
        h = norm(x, f"{p}.ffn_norm")
        gate, up = (h @ weights[f"{p}.feed_forward.w{j}.weight"].T for j in (1, 3))
        x = x + (F.silu(gate) * up) @ weights[f"{p}.feed_forward.w2.weight"].T
    return norm(x, "norm") @ weights["output.weight"].T


@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_the_files_mean_the_same_to_metas_arithmetic(config: LlamaConfig, model_directory, tmp_path: Path) -> None:
    source = model_directory(config)
    convert(open_model(source), tmp_path / "meta", kind="meta")
    weights = torch.load(tmp_path / "meta" / "consolidated.00.pth", weights_only=True)
    params = json.loads((tmp_path / "meta" / "params.json").read_text())
    factors = torch.ones(8)
    if config.rope_scaling is not None:
        factors = 1 / (
            stretch(config.rope_scaling, 16, config.rope_base, 0)[0] * config.rope_base ** (torch.arange(8) / 8)
        )
    model, tokenizer = load(open_model(source)), open_model(source).tokenizer
    ids = tokenizer.encode(PROBE)[:60]
    expected = meta_logits(weights, params, ids, factors)
    got = model(torch.tensor([ids]))[0]
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", PLAIN.values(), ids=PLAIN)
def test_there_and_back_changes_no_bit(
    config: LlamaConfig, dtype: torch.dtype, model_directory, tmp_path: Path
) -> None:
    source = model_directory(config, dtype=dtype)
    assert convert(open_model(source), tmp_path / "meta", kind="meta")["exact"]
    convert(open_model(tmp_path / "meta"), tmp_path / "back")
    first, second = read_model(source), read_model(tmp_path / "back")
    assert second.config == config
    assert all(
        torch.equal(p, q) for p, q in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    again = open_model(tmp_path / "back")
    assert again.tokenizer.encode(PROBE) == open_model(source).tokenizer.encode(PROBE)
    assert again.tokenizer.chat_template == TEMPLATE
    with zipfile.ZipFile(tmp_path / "meta" / "consolidated.00.pth") as opened:
        assert opened.testzip() is None
    sizes = {True: 1, False: 2}[config.tied_embeddings]
    assert (tmp_path / "meta" / "consolidated.00.pth").stat().st_size < first.embedding.weight.nbytes * (sizes + 12)


@pytest.mark.parametrize("embedding_axis", [0, 1], ids=["llama 3", "llama 1 and 2"])
@pytest.mark.parametrize("n_shards", [2, 4])
def test_model_parallel_shards(n_shards: int, embedding_axis: int, model_directory, tmp_path: Path) -> None:
    config = replace(SHAPES["grouped"], n_heads=8, n_kv_heads=4, head_dim=8)
    source = model_directory(config)
    convert(open_model(source), tmp_path / "meta", kind="meta")
    file = tmp_path / "meta" / "consolidated.00.pth"
    whole = torch.load(file, weights_only=True)
    for number in range(n_shards):
        shard = {"rope.freqs": torch.ones(4)}
        for name, weight in whole.items():
            axis = 1 if any(c in name for c in COLUMNS) else embedding_axis if "tok_emb" in name else 0
            shard[name] = weight if weight.dim() == 1 else weight.chunk(n_shards, axis)[number].clone()
        torch.save(shard, tmp_path / "meta" / f"consolidated.{number:02}.pth")
    first, second = read_model(source), load(open_meta(tmp_path / "meta"))
    assert second.config == config
    assert all(
        torch.equal(p, q) for p, q in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_published_sizes_follow_from_their_params(name: str) -> None:
    """Widths from Meta's rule; contexts and factors that the files do not give, from the shape."""
    config = PRESETS[name]
    params = params_to_meta(config)
    params.pop("rope_scaling_factor", None)
    assert feed_forward_size(config.d_model, params["multiple_of"], params.get("ffn_dim_multiplier")) == config.d_ff
    with torch.device("meta"):
        shard = {"tok_embeddings.weight": torch.empty(config.vocab_size, config.d_model)}
    shard |= {f"other {i}": torch.empty(0) for i in range(config.n_layers)}
    assert replace(config_from_meta(params, [shard], {}), tied_embeddings=config.tied_embeddings) == config


def test_real_params_of_llama_3_2(tmp_path: Path) -> None:
    params = {
        "dim": 2048,
        "ffn_dim_multiplier": 1.5,
        "multiple_of": 256,
        "n_heads": 32,
        "n_kv_heads": 8,
        "n_layers": 16,
    }
    params |= {"norm_eps": 1e-05, "rope_theta": 500000.0, "use_scaled_rope": True, "vocab_size": 128256}
    with torch.device("meta"):
        shard = {"tok_embeddings.weight": torch.empty(128256, 2048)} | {f"x{i}": torch.empty(0) for i in range(16)}
    assert config_from_meta(params, [shard], {}) == PRESETS["llama-3.2-1b"]
    other = {**shard, "tok_embeddings.weight": torch.empty(9, 1024)}
    assert config_from_meta(params | {"dim": 1024}, [other], {}).rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


class Bomb:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["code", "old format", "number", "text", "truncated"])
def test_what_needs_more_than_weights_is_refused(content: str, model_directory, tmp_path: Path, capsys) -> None:
    """Fault F20."""
    convert(open_model(model_directory(SHAPES["tied"])), tmp_path / "meta", kind="meta")
    file = tmp_path / "meta" / "consolidated.00.pth"
    if content == "code":
        torch.save({"tok_embeddings.weight": Bomb()}, file)
    elif content == "old format":
        file.write_bytes(pickle.dumps({"tok_embeddings.weight": Bomb()}))
    elif content == "number":
        torch.save({"tok_embeddings.weight": 3}, file)
    elif content == "text":
        file.write_text("hello")
    else:
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth"):
        open_meta(tmp_path / "meta")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("moe", {}),
        ("quantization_args", {"scheme": "int8"}),
        ("dim", 0),
        ("n_layers", 10**9),
        ("norm_eps", "x"),
        ("n_heads", 3),
    ],
)
def test_params_that_a_llama_cannot_have_are_refused_by_name(
    field: str, value: object, model_directory, tmp_path: Path
) -> None:
    convert(open_model(model_directory(SHAPES["tied"])), tmp_path / "meta", kind="meta")
    file = tmp_path / "meta" / "params.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=f"params.json: {field}"):
        open_meta(tmp_path / "meta")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (replace(SHAPES["grouped"], attention_bias=True), "attention_bias"),
        (SHAPES["one kv head, odd head size"], "head_dim"),
        (replace(SHAPES["grouped"], rope_scaling=LinearScaling(2.0)), "rope_scaling"),
    ],
)
def test_what_metas_code_cannot_represent_is_refused(
    config: LlamaConfig, field: str, model_directory, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=field):
        convert(open_model(model_directory(config)), tmp_path / "meta", kind="meta")
    assert not (tmp_path / "meta").exists()


def test_tensors_that_do_not_fit_are_listed(model_directory, tmp_path: Path) -> None:
    convert(open_model(model_directory(SHAPES["tied"])), tmp_path / "meta", kind="meta")
    file = tmp_path / "meta" / "consolidated.00.pth"
    weights = torch.load(file, weights_only=True)
    weights["extra"] = weights.pop("norm.weight")
    weights["layers.0.attention.wq.weight"] = torch.zeros(3, 3)
    torch.save(weights, file)
    wrong = (
        r"norm\.weight is missing; extra is superfluous; layers\.0\.attention\.wq\.weight is \(3, 3\), not \(64, 64\)"
    )
    with pytest.raises(lamoid.CheckpointError, match=wrong):
        open_meta(tmp_path / "meta")
