"""Attention's operations and traffic in four cases, the KV cache, and the table."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lamoid.inspect.anatomy import Heads, anatomy
from lamoid.inspect.cost import attention_cases, attention_cost, cost_rows, kv_cache_bytes
from lamoid.models.bert import BertConfig
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.llama import PRESETS, Llama, LlamaConfig
from lamoid.models.transformer import TransformerConfig
from lamoid.nn.attention import Attention
from lamoid.nn.kv_cache import KVCache

D, H, E, B, N = 20, 6, 4, 3, 7


@pytest.mark.parametrize("k", [1, 2, 6])
@pytest.mark.parametrize("cached", [False, True])
def test_operations_are_those_that_torch_counts(k: int, cached: bool):
    layer, x = Attention(D, H, k, E, path="explicit"), torch.randn(B, N, D)
    cache = KVCache(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if cached:
            for position in range(N):
                layer(x[:, position : position + 1], cache=cache)
                cache.length += 1
        else:
            layer(x)
    assert attention_cost(D, Heads(H, k, E, True), B, N, cached=cached).operations == counter.get_total_flops()


@pytest.mark.parametrize("k", [1, 2, 6])
def test_traffic_is_the_sum_over_products_of_what_they_read_and_write(k: int):
    weights = D * H * E + 2 * D * k * E + H * E * D
    heads = Heads(H, k, E, True)

    def products(n_queries: int, n_keys: int) -> int:
        project = B * n_queries * (D + (H + 2 * k) * E)
        score = B * (n_queries * H * E + n_keys * k * E + H * n_queries * n_keys)
        sum_up = B * (H * n_queries * n_keys + n_keys * k * E + n_queries * H * E)
        return weights + project + score + sum_up + B * n_queries * (H * E + D)

    assert attention_cost(D, heads, B, N, cached=False).values_moved == products(N, N)
    step_by_step = sum(products(1, n) for n in range(1, N + 1))
    assert attention_cost(D, heads, B, N, cached=True).values_moved == step_by_step


def test_the_four_cases_grow_as_shazeer_says():
    """Values for each operation: about 1/E without a cache, growing as n / D with one, an H-th of that for MQA."""
    config = LlamaConfig(100, 1024, 1, 16, 16, 64, 2048, 8192)
    alone, cached, multi, grouped = attention_cases(anatomy(config), 512, 4096).values()
    assert alone.ratio == pytest.approx((2 * 16 * 4096 + 10 * 1024) / (8 * 1024**2 + 4 * 4096 * 1024), rel=0.01)
    assert cached.ratio == pytest.approx(4096 / (8 * 1024 + 2 * 4096), rel=0.05)
    assert multi.ratio < cached.ratio / 8
    assert multi.ratio < grouped.ratio < cached.ratio
    assert list(attention_cases(anatomy(PRESETS["llama-3-8b"]), 1, 9))[3] == "GQA with 8 key/value heads, with a cache"


@pytest.mark.parametrize("rows, n", [(1, 8), (3, 8)])
def test_the_kv_cache_is_as_large_as_the_one_that_decodes(rows: int, n: int):
    for kind, config in (
        (Llama, LlamaConfig(53, 20, 3, 6, 2, 4, 28, 16)),
        (GPT2, GPT2Config(53, 20, 2, 5, 36, 16)),
    ):
        cache = KVCache(config.n_layers, capacity=n)
        with torch.no_grad():
            kind(config).initialise(0)(torch.randint(53, (rows, n)), cache=cache)
        assert kv_cache_bytes(anatomy(config), n, rows) == cache.n_bytes


def test_the_table_has_a_line_for_all_of_it():
    rows = cost_rows(PRESETS["llama-3.2-1b"], tokens=1024)
    assert rows[0] == ("parameters", "all", 1_235_814_400, "parameters")
    assert ("KV cache", "one token", 2 * 16 * 8 * 64 * 4, "bytes") in rows
    assert len({(row.section, row.name) for row in rows}) == len(rows)
    assert sum(row.section.startswith("an attention layer") for row in rows) == 4 * 3
    for config in (BertConfig(53, 20, 2, 5, 36), TransformerConfig(53, 20, 2, 5, 36)):
        assert all(row.value > 0 for row in cost_rows(config, tokens=7, rows=2))
