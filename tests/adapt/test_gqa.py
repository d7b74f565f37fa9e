"""Fewer key/value heads: means of rows, equality where heads are alike, and transformers' logits of what is written."""

from dataclasses import replace

import pytest
import torch
import transformers
from tests.checkpoints.llamas import SCALED, make_heads_alike, random_llama

from lamoid.adapt.gqa import POOLINGS, cache_bytes_per_token, group_kv_heads
from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.checkpoints.hf import write_model
from lamoid.errors import DataError, UsageError
from lamoid.inference.decoder import TorchDecoder
from lamoid.models.llama import LlamaConfig
from lamoid.nn.kv_cache import KVCache

MHA = LlamaConfig(97, 60, 3, 6, 6, 10, 88, 64, attention_bias=True, rope_base=500_000.0)
PAIRS = [(6, 3), (6, 2), (6, 1), (3, 1)]
IDS = torch.randint(97, (2, 33), generator=torch.Generator().manual_seed(2))


def a_llama(n_kv_heads: int = 6):
    return random_llama(replace(MHA, n_kv_heads=n_kv_heads))


@pytest.mark.parametrize(("n_old", "n_new"), PAIRS)
def test_heads_are_the_means_of_their_groups(n_old, n_new):
    model = a_llama(n_old)
    grouped = group_kv_heads(model, n_new, pooling="mean")
    assert grouped.config == replace(model.config, n_kv_heads=n_new)
    group = n_old // n_new
    for old, new in zip(model.layers, grouped.layers, strict=True):
        for name in ("k_proj", "v_proj"):
            before, after = getattr(old.attention, name), getattr(new.attention, name)
            assert after.weight.shape == (10 * n_new, 60) and after.out_features == 10 * n_new
            for row in range(10 * n_new):
                head, feature = divmod(row, 10)
                rows = [(head * group + j) * 10 + feature for j in range(group)]
                torch.testing.assert_close(after.weight[row], sum(before.weight[r] for r in rows) / group)
                torch.testing.assert_close(after.bias[row], sum(before.bias[r] for r in rows) / group)
        assert torch.equal(old.attention.q_proj.weight, new.attention.q_proj.weight)
    assert torch.equal(model.embedding.weight, grouped.embedding.weight)


@pytest.mark.parametrize(("n_old", "n_new"), PAIRS)
@pytest.mark.parametrize("pooling", ["aligned", "mean", "first"])
def test_heads_that_are_alike_lose_nothing(n_old, n_new, pooling):
    """Every head of a group made equal to the group's last one: the logits stay, for every K' down to 1."""
    model = a_llama(n_old)
    make_heads_alike(model, n_new)
    with torch.no_grad():
        expected, got = model(IDS), group_kv_heads(model, n_new, pooling=pooling)(IDS)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_heads_that_differ_do_lose():
    model = a_llama()
    with torch.inference_mode():
        for pooling in POOLINGS:
            assert not torch.allclose(group_kv_heads(model, 2, pooling=pooling)(IDS), model(IDS), rtol=0.1)


def test_the_first_head_of_each_group_is_taken():
    model = a_llama()
    grouped = group_kv_heads(model, 2, pooling="first")
    weight = model.layers[1].attention.v_proj.weight
    assert torch.equal(grouped.layers[1].attention.v_proj.weight, torch.cat([weight[:10], weight[30:40]]))


def test_random_heads_come_from_the_seed():
    model = a_llama()
    one, same, other = (group_kv_heads(model, 2, pooling="random", seed=seed) for seed in (1, 1, 2))
    weights = [m.layers[2].attention.k_proj.weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    drawn = [p.detach().flatten() for b in one.layers for p in (b.attention.k_proj.weight, b.attention.v_proj.weight)]
    assert float(torch.cat(drawn).std()) == pytest.approx(model.config.init_std, rel=0.05)
    assert not one.layers[0].attention.k_proj.bias.any()
    assert not torch.equal(one.layers[0].attention.k_proj.weight, one.layers[1].attention.k_proj.weight)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("n_kv_heads", [3, 1])
def test_transformers_opens_it_and_gives_the_same_logits(tmp_path, n_kv_heads, pooling):
    grouped = group_kv_heads(a_llama(), n_kv_heads, pooling=pooling)
    write_model(tmp_path, grouped, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.num_key_value_heads == n_kv_heads
    with torch.inference_mode():
        expected, got = theirs(IDS).logits, grouped(IDS)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4


def test_the_copy_shares_nothing_and_keeps_ties_and_scaling():
    model = random_llama(SCALED)
    grouped = group_kv_heads(model, 1)
    assert grouped.lm_head.weight is grouped.embedding.weight is not model.embedding.weight
    assert grouped.config.rope_scaling == SCALED.rope_scaling
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in grouped.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_float64_keeps_its_digits():
    model = a_llama().double()
    weight = group_kv_heads(model, 2, pooling="mean").layers[0].attention.v_proj.weight
    expected = model.layers[0].attention.v_proj.weight.detach().numpy().reshape(2, 3, 10, 60).mean(axis=1)
    torch.testing.assert_close(weight.detach(), torch.from_numpy(expected).flatten(0, 1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("target", ["q_proj", "v_proj", "o_proj"])
def test_a_model_with_an_adapter_is_refused(target):
    model = add_lora(a_llama(), LoraConfig(rank=2, targets=(target,)))
    with pytest.raises(UsageError, match="a layer is a LoraLinear, no plain weights; merge a LoRA with lamoid merge"):
        group_kv_heads(model, 2)


def test_bfloat16_stays_and_is_averaged_in_float32():
    model = a_llama().to(torch.bfloat16)
    weight = group_kv_heads(model, 1, pooling="mean").layers[0].attention.k_proj.weight
    old = model.layers[0].attention.k_proj.weight
    assert torch.equal(weight, old.float().unflatten(0, (6, 10)).mean(dim=0).to(torch.bfloat16))


@pytest.mark.parametrize("n_kv_heads", [6, 4, 0, -1, 12])
def test_numbers_that_do_not_divide_are_refused(n_kv_heads):
    with pytest.raises(UsageError, match=rf"n_kv_heads is {n_kv_heads}; .* one of \[1, 2, 3\]"):
        group_kv_heads(a_llama(), n_kv_heads)


def test_a_model_of_one_head_and_an_unknown_pooling_are_refused():
    with pytest.raises(UsageError, match="has one key/value head already"):
        group_kv_heads(a_llama(1), 1)
    with pytest.raises(UsageError, match="aligned, mean, first, random"):
        group_kv_heads(a_llama(), 2, pooling="median")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_weights_that_are_not_finite_are_named(value, pooling):
    model = a_llama()
    with torch.no_grad():
        model.layers[1].attention.v_proj.weight[3, 4] = value
    with pytest.raises(DataError, match=r"^layers\.1\.attention has weights that are not finite; "):
        group_kv_heads(model, 2, pooling=pooling)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_takes_as_many_bytes_as_said(dtype):
    """Against the memory of a real cache that is exactly full, after decoding into it."""
    model = group_kv_heads(a_llama(), 2).to(dtype)
    cache = KVCache(model.config.n_layers, capacity=IDS.shape[1])
    with torch.inference_mode():
        model(IDS[:1], cache=cache)
    assert cache.n_bytes == cache_bytes_per_token(model) * IDS.shape[1]


def test_it_decodes_as_it_reads():
    grouped = group_kv_heads(a_llama(), 1)
    decoder, ids = TorchDecoder(grouped), IDS[0].tolist()
    steps = [decoder.prefill([ids[:5]])[0], *(decoder.step([index])[0] for index in ids[5:12])]
    with torch.inference_mode():
        expected = grouped(IDS[:1, :12])[0, 4:].numpy()
    for got, row in zip(steps, expected, strict=True):
        assert abs(got - row).max() < 1e-4 * abs(row).max()
