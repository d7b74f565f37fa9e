import pytest
import torch
from torch import Tensor, nn

from lamoid.nn.attention import Attention
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.positions import RoPE
from lamoid.nn.rope_scaling import DynamicNTKScaling


def some_pairs(n: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, n, 5), torch.randn(batch, 3, n, 5)


@pytest.mark.parametrize("capacity", [1, 2, 3, 8, 256])
@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1, 1, 1], [5, 1, 1], [3, 3, 1], [1, 6], [7]])
def test_returns_all_so_far_whatever_its_capacity(capacity: int, lengths: list[int]) -> None:
    keys, values = some_pairs(7)
    cache, begin = KVCache(n_layers=2, capacity=capacity), 0
    for length in lengths:
        end = begin + length
        for layer, sign in enumerate((1, -1)):
            new = sign * keys[:, :, begin:end], sign * values[:, :, begin:end]
            all_keys, all_values = cache.append(layer, *new)
            assert torch.equal(all_keys, sign * keys[:, :, :end])
            assert torch.equal(all_values, sign * values[:, :, :end])
        begin = cache.length = end


def test_capacity_doubles_and_memory_is_two_per_layer() -> None:
    cache, sizes = KVCache(n_layers=2, capacity=2), []
    assert cache.n_bytes == 0
    for _ in range(9):
        for layer in range(2):
            cache.append(layer, *some_pairs(1))
        cache.length += 1
        sizes.append(cache.n_bytes)
    row = 2 * 2 * 2 * 3 * 5 * 4  # keys and values · layers · B · K · E · bytes
    assert sizes == [capacity * row for capacity in (2, 2, 4, 4, 8, 8, 8, 8, 16)]


def test_what_it_gave_does_not_change_later() -> None:
    cache = KVCache(n_layers=1, capacity=2)
    first, _ = cache.append(0, *some_pairs(2))
    before = first.clone()
    cache.length = 2
    cache.append(0, *some_pairs(5))
    assert torch.equal(first, before)


@pytest.mark.parametrize("rows", [[0], [2], [2, 0], [1, 1, 2], [0, 1, 2]])
def test_keep_rows_selects_and_orders(rows: list[int]) -> None:
    keys, values = some_pairs(4, batch=3)
    cache = KVCache(n_layers=2, capacity=3)
    cache.append(0, keys[:, :, :3], values[:, :, :3])
    cache.length = 3
    cache.keep_rows(rows)  # layer 1 is still empty
    all_keys, all_values = cache.append(0, keys[rows, :, 3:], values[rows, :, 3:])
    assert torch.equal(all_keys, keys[rows])
    assert torch.equal(all_values, values[rows])


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [8, 1]])
@pytest.mark.parametrize("unrotated", [False, True])
@torch.no_grad()
def test_cached_attention_equals_uncached(n_kv_heads: int, pieces: list[int], unrotated: bool) -> None:
    attention = Attention(12, 4, n_kv_heads, 6)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    rope = RoPE(6, scaling=DynamicNTKScaling(2.0, 100) if unrotated else None)
    x, positions = torch.randn(2, 9, 12), torch.arange(9).expand(2, 9)
    whole = attention(x, rope(positions))
    cache, outputs = KVCache(1, capacity=2), []
    for piece in x.split(pieces, dim=1):
        begin, end = cache.length, cache.length + piece.shape[1]
        angles = rope(positions[:, (0 if unrotated else begin) : end])
        outputs.append(attention(piece, angles, cache=cache, rotate_cached_keys=unrotated))
        cache.length = end
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, rtol=1e-5, atol=1e-5)
