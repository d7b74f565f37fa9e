"""Every Llama against its twin in transformers: the same random weights, through real files in both directions."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from jaxtyping import TypeCheckError
from safetensors.torch import load_file
from torch import Tensor

from lamoid.checkpoints.hf import config_from_hf, config_to_hf, read_model, write_model
from lamoid.checkpoints.name_maps import llama_to_hf
from lamoid.data.packed import Batch
from lamoid.errors import UsageError
from lamoid.models.llama import PRESETS, Llama, LlamaConfig
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.losses import IGNORED
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, YarnScaling
from lamoid.training.loop import Progress, train
from lamoid.training.objectives import next_token

V = 97
SMALL = dict(
    vocab_size=V,
    hidden_size=36,
    intermediate_size=51,
    num_hidden_layers=3,
    num_attention_heads=6,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def rope(base: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": base, "rope_type": "default", **scaling}}


TWINS: dict[str, dict[str, Any]] = {
    "llama-1": dict(rms_norm_eps=1e-6),
    "llama-2": dict(rms_norm_eps=1e-5, **rope(10_000.0)),
    "llama-2-gqa": dict(num_key_value_heads=2),
    "llama-3": dict(num_key_value_heads=2, **rope(500_000.0)),
    "llama-3.1": dict(num_key_value_heads=2, **rope(500_000.0, factor=8.0, **LLAMA3)),
    "llama-3.2": dict(num_key_value_heads=3, tie_word_embeddings=True, **rope(500_000.0, factor=32.0, **LLAMA3)),
    "linear": dict(num_key_value_heads=3, **rope(10_000.0, rope_type="linear", factor=2.5)),
    "dynamic": dict(num_key_value_heads=3, max_position_embeddings=16, **rope(1e4, rope_type="dynamic", factor=2.0)),
    "yarn": dict(num_key_value_heads=2, **rope(10_000.0, **YARN)),
    "yarn-mscale": dict(num_key_value_heads=2, **rope(10_000.0, mscale=0.8, mscale_all_dim=1.3, **YARN)),
    "head-size-10": dict(head_dim=10, num_key_value_heads=2, **rope(500_000.0, factor=8.0, **LLAMA3)),
    "head-size-2": dict(head_dim=2),
    "multi-query": dict(num_key_value_heads=1),
    "multi-query-tied": dict(num_key_value_heads=1, head_dim=14, tie_word_embeddings=True),
    "multi-head-tied": dict(num_key_value_heads=6, tie_word_embeddings=True),
    "attention-bias": dict(attention_bias=True, num_key_value_heads=2),
    "feed-forward-bias": dict(mlp_bias=True, num_key_value_heads=6),
    "both-biases": dict(attention_bias=True, mlp_bias=True, head_dim=8, num_key_value_heads=1),
    "one-head": dict(num_attention_heads=1, hidden_size=34, num_hidden_layers=1),
}
LENGTH = 29  # beyond the original context of 16 where there is one


def hf_model(**changes: Any) -> transformers.LlamaForCausalLM:
    """A twin whose every parameter is random, norms and biases too."""
    config = transformers.LlamaConfig(**(SMALL | changes), attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model


def twins(path: Path, **changes: Any) -> tuple[transformers.LlamaForCausalLM, Llama]:
    theirs = hf_model(**changes)
    theirs.save_pretrained(path)
    return theirs, read_model(path)


def small_model(**changes: Any) -> Llama:
    shape: dict[str, Any] = dict(
        vocab_size=V, d_model=36, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=10, d_ff=51, max_seq_len=64
    )
    return Llama(LlamaConfig(**(shape | changes))).initialise(seed=1).eval()


def livelier(model: Llama) -> Llama:
    """Weights large enough that attention is far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return model


def some_ids(*shape: int) -> Tensor:
    return torch.randint(0, V, shape)


def assert_equal_logits(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference < 1e-4, f"logits differ by {difference:.2e} of the largest"


# --- against transformers


@pytest.mark.parametrize("name", TWINS)
@torch.no_grad()
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, **TWINS[name])
    ids = some_ids(2, LENGTH)
    assert_equal_logits(ours(ids), theirs(ids).logits)


@pytest.mark.parametrize("name", TWINS)
@torch.no_grad()
def test_what_lamoid_writes_opens_in_transformers(name: str, tmp_path: Path) -> None:
    original, ours = twins(tmp_path / "theirs", **TWINS[name])
    (tmp_path / "ours").mkdir()
    write_model(tmp_path / "ours", ours, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(theirs) is transformers.LlamaForCausalLM
    expected, found = original.state_dict(), theirs.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    ids = some_ids(2, LENGTH)
    assert_equal_logits(ours(ids), theirs(ids).logits)


@pytest.mark.parametrize("name", TWINS)
def test_configuration_survives_both_ways(name: str, tmp_path: Path) -> None:
    config = config_from_hf(transformers.LlamaConfig(**(SMALL | TWINS[name])).to_dict())
    written = config_to_hf(config)
    assert config_from_hf(written) == config
    theirs = transformers.LlamaConfig(**written)
    for field, value in (SMALL | TWINS[name]).items():
        if field == "rope_parameters":
            assert {key: theirs.rope_parameters[key] for key in value} == value
        else:
            assert getattr(theirs, field) == value


@pytest.mark.parametrize("name", [name for name in TWINS if name != "dynamic"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_on_either_side(name: str, side: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, **TWINS[name])
    ids, mask = some_ids(3, LENGTH), torch.ones(3, LENGTH, dtype=torch.int64)
    for row, n_padding in enumerate((0, 5, 20)):
        if n_padding:
            mask[row, slice(0, n_padding) if side == "left" else slice(-n_padding, None)] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    real = mask.bool()
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
    found = ours(ids, mask)
    assert torch.isfinite(found).all()
    assert_equal_logits(found[real], expected[real])
    changed = torch.where(real, ids, (ids + 1) % V)
    assert torch.equal(ours(changed, mask)[real], found[real])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_with_dynamic_ntk_gives_each_row_what_it_gets_alone(side: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, **TWINS["dynamic"])
    lengths = (LENGTH, 10, 20)
    ids, mask = some_ids(3, LENGTH), torch.zeros(3, LENGTH, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, slice(-length, None) if side == "left" else slice(0, length)] = 1
    found = ours(ids, mask)
    for row in range(3):
        real = mask[row].bool()
        assert_equal_logits(found[row, real], theirs(ids[row, real][None]).logits[0])


@pytest.mark.parametrize("name", ["llama-1", "llama-3.1", "both-biases", "multi-query-tied"])
@torch.no_grad()
def test_explicit_path_gives_the_same(name: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, **TWINS[name])
    explicit = Llama(ours.config, attention_path="explicit")
    explicit.load_state_dict(ours.state_dict())
    ids = some_ids(2, 7)
    assert_equal_logits(explicit(ids), theirs(ids).logits)


@pytest.mark.parametrize("path", ["fused", "explicit"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_makes_a_nan(path: Any, side: str) -> None:
    model = Llama(small_model().config, attention_path=path).initialise(2)
    ids, mask = some_ids(2, 7), torch.ones(2, 7, dtype=torch.int64)
    mask[1, slice(0, 4) if side == "left" else slice(3, None)] = 0
    logits = model(ids, mask)
    assert torch.isfinite(logits).all()
    logits[mask.bool()].logsumexp(-1).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("name", ["llama-2", "llama-3.2", "both-biases", "yarn"])
def test_gradients_equal_transformers(name: str, tmp_path: Path) -> None:
    theirs, ours = twins(tmp_path, **TWINS[name])
    ids = some_ids(2, LENGTH)
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    loss, count = next_token(ours, batch)
    (loss / count).backward()
    expected = theirs(ids, labels=ids).loss
    expected.backward()
    torch.testing.assert_close(loss / count, expected, rtol=1e-5, atol=0)
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        found, wanted = parameter.grad, reference.pop(llama_to_hf(name)).grad
        assert found is not None and wanted is not None and found.shape == wanted.shape
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert not reference


# --- cached, packed, recomputed, split

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": dict(),
    "multi-query": dict(n_kv_heads=1),
    "multi-head": dict(n_kv_heads=6),
    "llama3": dict(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 16), tied_embeddings=True),
    "biases": dict(attention_bias=True, feed_forward_bias=True),
    "dynamic": dict(rope_scaling=DynamicNTKScaling(2.0, 64)),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("pieces", [[1] * 11, [7, 1, 1, 1, 1], [4, 3, 4]])
@torch.no_grad()
def test_cached_equals_uncached(name: str, pieces: list[int]) -> None:
    model, ids = livelier(small_model(**CONFIGS[name])), some_ids(2, 11)
    cache = KVCache(3, capacity=2)
    found = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
    assert cache.length == 11
    assert_equal_logits(found, model(ids))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_cached_equals_uncached_with_padding(side: str) -> None:
    model, ids, mask = livelier(small_model()), some_ids(2, 11), torch.ones(2, 11, dtype=torch.int64)
    mask[1, slice(0, 3) if side == "left" else slice(4, 7)] = 0
    cache, found = KVCache(3), []
    for end in (7, 8, 11):
        found.append(model(ids[:, cache.length : end], mask[:, :end], cache=cache))
    real = mask.bool()
    assert_equal_logits(torch.cat(found, dim=1)[real], model(ids, mask)[real])


@torch.no_grad()
def test_cached_equals_uncached_across_the_original_length_of_dynamic_ntk() -> None:
    model, ids = livelier(small_model(n_layers=1, rope_scaling=DynamicNTKScaling(2.0, 8))), some_ids(2, 20)
    cache = KVCache(1)
    for end in (5, 8, 9, 10, 17, 18, 20):
        last = model(ids[:, cache.length : end], cache=cache)[:, -1]
        assert_equal_logits(last, model(ids[:, :end])[:, -1])


@torch.no_grad()
def test_dynamic_ntk_in_many_layers_keeps_what_each_position_was_when_it_came() -> None:
    """Frequencies change with the length, so a rerun would change every earlier position; a cache must not."""
    model, ids = livelier(small_model(rope_scaling=DynamicNTKScaling(2.0, 8))), some_ids(2, 14)
    cache = KVCache(3)
    found = torch.cat([model(ids[:, t : t + 1], cache=cache) for t in range(14)], dim=1)
    x = model.embedding(ids)
    for block in model.layers:
        ends = range(1, 15)
        angles = [model.rope(torch.arange(end)[None]) for end in ends]
        steps = [block(x[:, :end], a, None, None, 0, False)[:, -1] for end, a in zip(ends, angles, strict=True)]
        x = torch.stack(steps, dim=1)
    assert_equal_logits(found, model.lm_head(model.norm(x)))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_packed_equals_separate(name: str) -> None:
    model, ids = livelier(small_model(**CONFIGS[name])), some_ids(2, 12)
    segments = torch.tensor([[0] * 5 + [1] * 1 + [2] * 6, [7] * 8 + [3] * 4])
    packed = model(ids, segment_ids=segments)
    for row in range(2):
        separate = [model(ids[row, segments[row] == s][None])[0] for s in segments[row].unique_consecutive()]
        assert_equal_logits(packed[row], torch.cat(separate))


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_packed_with_padding_equals_separate(name: str) -> None:
    config = CONFIGS[name] | ({"rope_scaling": DynamicNTKScaling(2.0, 8)} if name == "dynamic" else {})
    model, ids = livelier(small_model(**config)), some_ids(1, 14)
    segments = torch.tensor([[0] * 5 + [1] * 6 + [2] * 3])
    mask = torch.tensor([[1] * 11 + [0] * 3])
    separate = torch.cat((model(ids[:, :5]), model(ids[:, 5:11])), dim=1)
    assert_equal_logits(model(ids, mask, segments)[:, :11], separate)


@torch.no_grad()
def test_a_segment_does_not_see_another() -> None:
    model, ids = livelier(small_model()), some_ids(1, 12)
    segments = torch.tensor([[0] * 5 + [1] * 7])
    changed = ids.clone()
    changed[:, :5] = (ids[:, :5] + 1) % V
    assert torch.equal(model(ids, segment_ids=segments)[:, 5:], model(changed, segment_ids=segments)[:, 5:])
    assert not torch.equal(model(ids)[:, 5:], model(changed)[:, 5:])


@pytest.mark.parametrize("path", ["fused", "explicit", "tiled"])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("scaling", [None, DynamicNTKScaling(2.0, 8)])
@torch.no_grad()
def test_no_tokens_in_no_documents_make_no_logits(shape: tuple[int, int], path: Any, scaling: Any) -> None:
    model, ids = Llama(small_model(rope_scaling=scaling).config, attention_path=path), some_ids(*shape)
    for mask in (None, torch.ones_like(ids)):
        assert model(ids, mask, torch.zeros_like(ids)).shape == model(ids, mask).shape == (*shape, V)


@pytest.mark.parametrize("path", ["fused", "explicit"])
def test_gradient_checkpointing_gives_the_same_gradients(path: Any) -> None:
    config, ids = small_model(attention_bias=True).config, some_ids(2, 9)
    runs, calls = [], []
    for recompute in (False, True):
        torch.manual_seed(5)
        model = livelier(Llama(config, attention_path=path, gradient_checkpointing=recompute))
        n_calls: list[int] = []
        model.layers[0].register_forward_pre_hook(lambda *_, n=n_calls: n.append(1))
        logits = model(ids)
        logits.logsumexp(-1).sum().backward()
        runs.append((logits, [p.grad for p in model.parameters()]))
        calls.append(len(n_calls))
    assert calls == [1, 2]  # recomputed indeed
    torch.testing.assert_close(*runs, rtol=0, atol=0)


def step_once(model: Llama, micro_batches: list[Batch]) -> tuple[float, int]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    reports = []
    train(
        model,
        lambda position: (micro_batches[position], position + 1),
        next_token,
        optimizer,
        schedule=lambda step: 1.0,
        max_steps=1,
        progress=Progress(position=0),
        accumulate=len(micro_batches),
        clip_norm=0.5,
        after_step=reports.append,
    )
    return reports[0].loss, reports[0].tokens


@pytest.mark.parametrize("rows", [[1] * 6, [2, 4], [5, 1], [3, 2, 1]])
def test_accumulated_equals_one_batch_whatever_is_trained_in_each(rows: list[int]) -> None:
    start = small_model().double().state_dict()
    ids, labels = some_ids(6, 8), some_ids(6, 8)
    for row, n_ignored in enumerate((0, 7, 3, 8, 5, 0)):  # the fourth row trains nothing at all
        labels[row, :n_ignored] = IGNORED
    whole, split = small_model().double(), small_model().double()
    expected = step_once(whole, [Batch(ids, labels)])
    found = step_once(split, [Batch(i, t) for i, t in zip(ids.split(rows), labels.split(rows), strict=True)])
    assert found[1] == expected[1] == 8 + 1 + 5 + 0 + 3 + 8
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for name, tensor in whole.state_dict().items():
        moved = (tensor - start[name]).abs().max()
        assert moved > 0
        assert (split.state_dict()[name] - tensor).abs().max() <= 1e-5 * moved


# --- tied, named, sized


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_one_tensor_and_written_once(tied: bool, tmp_path: Path) -> None:
    model = small_model(tied_embeddings=tied)
    write_model(tmp_path, model, None)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    again = read_model(tmp_path)
    assert (again.lm_head.weight is again.embedding.weight) is tied
    assert (again.lm_head.weight.data_ptr() == again.embedding.weight.data_ptr()) is tied
    assert len(list(again.parameters())) == len(list(model.parameters())) == 29 + (not tied)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))


def test_tied_embeddings_that_were_saved_twice_are_one_tensor(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    write_model(tmp_path, small_model(tied_embeddings=True), None)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tmp_path / "model.safetensors"
    )
    again = read_model(tmp_path)
    assert again.lm_head.weight is again.embedding.weight
    assert torch.equal(again.embedding.weight, tensors["model.embed_tokens.weight"])


L3 = dict(vocab_size=128_256, num_key_value_heads=8, max_position_embeddings=8192, **rope(500_000.0))
L3_1 = L3 | dict(
    max_position_embeddings=131_072,
    **rope(500_000.0, **(LLAMA3 | dict(factor=8.0, original_max_position_embeddings=8192))),
)
L3_2 = L3 | dict(
    max_position_embeddings=131_072,
    tie_word_embeddings=True,
    **rope(500_000.0, **(LLAMA3 | dict(factor=32.0, original_max_position_embeddings=8192))),
)
L1, L2 = dict(rms_norm_eps=1e-6, max_position_embeddings=2048), dict(max_position_embeddings=4096)
PUBLISHED: dict[str, tuple[tuple[int, int, int, int], dict[str, Any], int]] = {
    # (width, heads, layers, feed-forward width), the rest, parameters as the model cards' files have them
    "llama-7b": ((4096, 32, 32, 11_008), L1, 6_738_415_616),
    "llama-13b": ((5120, 40, 40, 13_824), L1, 13_015_864_320),
    "llama-33b": ((6656, 52, 60, 17_920), L1, 32_528_943_616),
    "llama-65b": ((8192, 64, 80, 22_016), L1, 65_285_660_672),
    "llama-2-7b": ((4096, 32, 32, 11_008), L2, 6_738_415_616),
    "llama-2-13b": ((5120, 40, 40, 13_824), L2, 13_015_864_320),
    "llama-2-34b": ((8192, 64, 48, 22_016), L2 | dict(num_key_value_heads=8), 33_743_970_304),
    "llama-2-70b": ((8192, 64, 80, 28_672), L2 | dict(num_key_value_heads=8), 68_976_648_192),
    "llama-3-8b": ((4096, 32, 32, 14_336), L3, 8_030_261_248),
    "llama-3-70b": ((8192, 64, 80, 28_672), L3, 70_553_706_496),
    "llama-3.1-8b": ((4096, 32, 32, 14_336), L3_1, 8_030_261_248),
    "llama-3.1-70b": ((8192, 64, 80, 28_672), L3_1, 70_553_706_496),
    "llama-3.1-405b": ((16_384, 128, 126, 53_248), L3_1, 405_853_388_800),
    "llama-3.2-1b": ((2048, 32, 16, 8192), L3_2, 1_235_814_400),
    "llama-3.2-3b": ((3072, 24, 28, 8192), L3_2, 3_212_749_824),
}


def test_every_preset_is_compared() -> None:
    assert PUBLISHED.keys() == PRESETS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_is_the_published_model(name: str) -> None:
    (width, heads, layers, feed_forward), rest, n_parameters = PUBLISHED[name]
    fields = dict(
        hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=feed_forward
    )
    theirs = transformers.LlamaConfig(**({"rms_norm_eps": 1e-5, "vocab_size": 32_000} | fields | rest))
    assert config_from_hf(theirs.to_dict()) == PRESETS[name]
    with torch.device("meta"):
        ours, reference = Llama(PRESETS[name]), transformers.LlamaForCausalLM(theirs)
    shapes = {llama_to_hf(n): tuple(p.shape) for n, p in ours.named_parameters()}
    assert shapes == {n: tuple(p.shape) for n, p in reference.named_parameters()}
    assert sum(map(math.prod, shapes.values())) == n_parameters


def test_llama_2_7b_prints_its_layers() -> None:
    with torch.device("meta"):
        text = repr(Llama(PRESETS["llama-2-7b"]))
    assert "(embedding): Embedding(32000, 4096)" in text
    assert "(0-31): 32 x Block(" in text
    lines = [line.strip() for line in text.splitlines() if "Linear" in line]
    assert lines == [
        *(f"({name}_proj): Linear(in_features=4096, out_features=4096, bias=False)" for name in "qkvo"),
        "(gate_proj): Linear(in_features=4096, out_features=11008, bias=False)",
        "(up_proj): Linear(in_features=4096, out_features=11008, bias=False)",
        "(down_proj): Linear(in_features=11008, out_features=4096, bias=False)",
        "(lm_head): Linear(in_features=4096, out_features=32000, bias=False)",
    ]


# --- initialisation and input


@pytest.mark.parametrize("tied", [False, True])
def test_initialisation_is_deterministic_per_seed(tied: bool) -> None:
    config = small_model(tied_embeddings=tied).config
    torch.manual_seed(1)
    first = Llama(config).initialise(7)
    torch.manual_seed(2)
    second, other = Llama(config).initialise(7), Llama(config).initialise(8)
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)


def test_initialisation_has_the_standard_deviations_of_its_table() -> None:
    model = small_model(
        d_model=256, d_ff=300, n_heads=4, n_kv_heads=2, head_dim=50, n_layers=5, vocab_size=500, init_std=0.03,
        attention_bias=True, feed_forward_bias=True,
    )  # fmt: skip
    n_matrices = 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter))
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            residual = "o_proj" in name or "down_proj" in name
            expected = 0.03 / math.sqrt(2 * 5) if residual else 0.03
            assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
            assert abs(parameter.mean().item()) < 0.03 * expected, name
            n_matrices += 1
    assert n_matrices == 5 * 7 + 2


def test_initial_loss_is_that_of_guessing() -> None:
    ids = some_ids(4, 64)
    loss, count = next_token(small_model(), Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()))
    assert float(loss.detach()) / count == pytest.approx(math.log(V), abs=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_layers", 0), ("n_heads", -1), ("d_model", 2**40), ("n_layers", 10**6), ("vocab_size", True),
        ("n_kv_heads", 4), ("head_dim", 7), ("norm_eps", math.nan), ("norm_eps", 0.0), ("rope_base", math.inf),
        ("init_std", -1.0),
    ],
)  # fmt: skip
def test_configuration_refuses_and_names(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{field} is {value}"):
        dataclasses.replace(small_model().config, **{field: value})


@pytest.mark.parametrize(
    "change",
    [
        dict(rope_base=1.0, rope_scaling=YarnScaling(4.0, 64)),
        dict(rope_base=1e-320),
        dict(rope_scaling=YarnScaling(4.0, 64, beta_fast=1e308)),
        dict(rope_scaling=YarnScaling(4.0, 10**400)),
        dict(rope_scaling=YarnScaling(4.0, 64, attention_factor=math.nan)),
        dict(rope_scaling=LinearScaling(0.0)),
        dict(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 10**30)),
        dict(head_dim=2, rope_scaling=DynamicNTKScaling(4.0, 16)),
    ],
    ids=str,
)
def test_positions_that_are_not_finite_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^rope_base .* gives frequencies that are not finite"):
        dataclasses.replace(small_model().config, **change)
    with torch.device("meta"):  # a model that is only being described is no reason to refuse
        dataclasses.replace(small_model().config, rope_scaling=YarnScaling(4.0, 64))


def test_mask_of_the_wrong_length_is_refused() -> None:
    model, cache = small_model(), KVCache(3)
    with pytest.raises(UsageError, match="attention_mask covers 5 positions; it must cover 0 cached \\+ 6 new"):
        model(some_ids(1, 6), torch.ones(1, 5, dtype=torch.int64))
    model(some_ids(1, 4), cache=cache)
    with pytest.raises(UsageError, match="covers 2 positions; it must cover 4 cached \\+ 2 new"):
        model(some_ids(1, 2), torch.ones(1, 2, dtype=torch.int64), cache=cache)


def test_segments_beside_a_cache_are_refused() -> None:
    model, cache = small_model(), KVCache(3)
    model(some_ids(1, 4), cache=cache)
    with pytest.raises(UsageError, match="segment_ids"):
        model(some_ids(1, 2), segment_ids=torch.zeros(1, 2, dtype=torch.int64), cache=cache)


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(TypeCheckError, match="input_ids"):
        small_model()(torch.zeros(3, dtype=torch.int64))
