import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lamoid.nn.attention import Attention, attend_explicitly, attend_fused
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.masks import Documents, causal_mask
from lamoid.nn.positions import RoPE
from lamoid.nn.relative_positions import ALiBi

H = 12
DIVISORS = [1, 2, 3, 4, 6, 12]
LENGTHS = [(7, 7), (1, 7), (3, 7), (1, 1)]


def some_inputs(n_kv_heads: int, n_queries: int, n_keys: int, head_dim: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(3, H, n_queries, head_dim, requires_grad=True)
    k, v = (torch.randn(3, n_kv_heads, n_keys, head_dim, requires_grad=True) for _ in range(2))
    return q, k, v


def a_mask(kind: str, n_queries: int, n_keys: int) -> Tensor | None:
    if kind == "causal":
        return None
    if kind == "one for all rows":
        mask = torch.rand(1, 1, n_queries, n_keys) < 0.5
    else:
        mask = torch.rand(3, 1, n_queries, n_keys) < 0.5
    mask[..., -1] = True  # no query without any key
    return mask


@pytest.mark.parametrize("kind", ["causal", "one for all rows", "one for each row"])
@pytest.mark.parametrize("n_kv_heads", DIVISORS)
@pytest.mark.parametrize(("n_queries", "n_keys"), LENGTHS)
def test_explicit_equals_fused_with_gradients(kind: str, n_kv_heads: int, n_queries: int, n_keys: int) -> None:
    inputs, mask = some_inputs(n_kv_heads, n_queries, n_keys), a_mask(kind, n_queries, n_keys)
    explicit, fused = attend_explicitly(*inputs, mask), attend_fused(*inputs, mask)
    torch.testing.assert_close(explicit, fused, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(explicit)
    torch.testing.assert_close(
        torch.autograd.grad(explicit, inputs, upstream),
        torch.autograd.grad(fused, inputs, upstream),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("n_kv_heads", [1, 4, 12])
def test_documents_one_by_one_equal_a_mask_with_gradients(n_kv_heads: int, biased: bool) -> None:
    """A document ends with its row, though the next row's first has the same number; some are of one token."""
    segments = torch.tensor([[0] * 7, [0] + [1] * 5 + [2], [2, 3, 0, 0, 0, 0, 3]])
    documents = causal_mask(7, 0, None, segments)
    assert isinstance(documents, Documents) and documents.lengths == (7, 1, 5, 1, 1, 1, 4, 1)
    mask = ((segments[:, :, None] == segments[:, None, :]) & torch.ones(7, 7, dtype=torch.bool).tril())[:, None]
    mask[2, 0, 6, 1] = False  # another document of the same number
    assert torch.equal(documents.mask(segments.device), mask)
    inputs, how = some_inputs(n_kv_heads, 7, 7), {"scale": 0.7, "bias": ALiBi(H) if biased else None}
    fused, explicit = attend_fused(*inputs, documents, **how), attend_explicitly(*inputs, mask, **how)
    torch.testing.assert_close(fused, explicit, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(explicit)
    ours, theirs = (torch.autograd.grad(out, inputs, upstream) for out in (fused, explicit))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_weights_within_documents_are_dropped() -> None:
    q, k, v = torch.zeros(2, 1, 50, 4), torch.zeros(2, 1, 50, 4), torch.ones(2, 1, 50, 4)
    out = attend_fused(q, k, v, Documents((30, 20, 50), 50), dropout=0.5)
    assert (out - 1).abs().mean() > 0.05 and out.mean() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("n_kv_heads", DIVISORS)
def test_explicit_is_the_formula(n_kv_heads: int) -> None:
    q, k, v = (t.detach() for t in some_inputs(n_kv_heads, 5, 5))
    out = attend_explicitly(q, k, v, None)
    for row in range(3):
        for head in range(H):
            kv_head = head // (H // n_kv_heads)
            for t in range(5):
                scores = k[row, kv_head, : t + 1] @ q[row, head, t] / math.sqrt(10)
                expected = scores.softmax(0) @ v[row, kv_head, : t + 1]
                torch.testing.assert_close(out[row, head, t], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attend", [attend_explicitly, attend_fused])
@pytest.mark.parametrize("n_queries", [1, 2, 6])
def test_the_last_query_stands_at_the_last_key(attend: type[attend_fused], n_queries: int) -> None:
    q, k, v = (t.detach() for t in some_inputs(3, 7, 7))
    torch.testing.assert_close(attend(q[:, :, -n_queries:], k, v, None), attend(q, k, v, None)[:, :, -n_queries:])


@pytest.mark.parametrize("attend", [attend_explicitly, attend_fused])
@pytest.mark.parametrize("head_dim", [16, 64, 256])
def test_scores_of_unit_inputs_have_unit_variance(attend: type[attend_fused], head_dim: int) -> None:
    q, k = torch.randn(2, 8, 500, head_dim), torch.randn(2, 8, head_dim, head_dim)
    v = torch.eye(head_dim).expand(2, 8, head_dim, head_dim)  # so that the output is the weights
    mask = torch.ones(1, 1, 500, head_dim, dtype=torch.bool)
    scores = attend(q, k, v, mask).log()  # up to a constant for each query
    assert scores.var(dim=-1).mean().item() == pytest.approx(1, abs=0.05)


def no_rotation(n: int, head_dim: int) -> tuple[Tensor, Tensor]:
    return torch.ones(1, 1, n, head_dim // 2), torch.zeros(1, 1, n, head_dim // 2)


@pytest.mark.parametrize("path", ["explicit", "fused"])
def test_without_rotation_it_is_pytorchs_multi_head_attention(path: str) -> None:
    ours = Attention(24, 4, 4, 6, bias=True, path=path)  # type: ignore[arg-type]
    theirs = nn.MultiheadAttention(24, 4, batch_first=True)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.weight.copy_(ours.o_proj.weight)
        theirs.out_proj.bias.copy_(ours.o_proj.bias)
    x = torch.randn(2, 5, 24)
    hidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=hidden)
    torch.testing.assert_close(ours(x, no_rotation(5, 6)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ["explicit", "fused"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 3])
def test_grouped_equals_multi_head_with_repeated_heads(path: str, n_kv_heads: int) -> None:
    grouped = Attention(20, 6, n_kv_heads, 8, bias=True, path=path)  # type: ignore[arg-type]
    full = Attention(20, 6, 6, 8, bias=True, path=path)  # type: ignore[arg-type]
    state = grouped.state_dict()
    for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
        heads = state[name].unflatten(0, (n_kv_heads, 8))
        state[name] = heads.repeat_interleave(6 // n_kv_heads, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    x, rope = torch.randn(2, 7, 20), RoPE(8)(torch.arange(7)[None])
    torch.testing.assert_close(grouped(x, rope), full(x, rope), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ["explicit", "fused"])
def test_no_position_sees_a_later_one(path: str) -> None:
    attention, rope = Attention(20, 4, 2, 8, path=path), RoPE(8)(torch.arange(7)[None])  # type: ignore[arg-type]
    x = torch.randn(1, 7, 20)
    changed = x.clone()
    changed[:, 4:] += 1
    before, after = attention(x, rope), attention(changed, rope)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_values_are_not_rotated() -> None:
    attention = Attention(20, 4, 2, 8)
    x = torch.randn(1, 1, 20)  # one position sees itself alone, so its output is its value
    far, near = (attention(x, RoPE(8)(torch.tensor([[position]]))) for position in (1000, 0))
    torch.testing.assert_close(far, near)
    value = attention.v_proj(x).unflatten(-1, (2, 8)).repeat_interleave(2, dim=2).flatten(2)
    torch.testing.assert_close(near, F.linear(value, attention.o_proj.weight))


@pytest.mark.parametrize("path", ["explicit", "fused", "tiled"])
@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention_is_pytorchs(path: str, padded: bool) -> None:
    ours = Attention(24, 4, 4, 6, bias=True, path=path, causal=False)  # type: ignore[arg-type]
    theirs = nn.MultiheadAttention(24, 4, batch_first=True)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]).normal_())
        for projection, part in zip(projections, theirs.in_proj_bias.chunk(3), strict=True):
            projection.bias.copy_(part)
        theirs.out_proj.load_state_dict(ours.o_proj.state_dict())
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    seen = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    expected, _ = theirs(x, memory, memory, key_padding_mask=~seen if padded else None)
    mask = seen[:, None, None, :] if padded else None
    torch.testing.assert_close(ours(x, mask=mask, memory=memory), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ["explicit", "fused", "tiled"])
def test_cross_attention_reads_its_memory_once(path: str) -> None:
    attention = Attention(20, 4, 2, 8, path=path, causal=False)  # type: ignore[arg-type]
    x, memory, cache = torch.randn(2, 3, 20), torch.randn(2, 7, 20), KVCache(1)
    whole = attention(x, memory=memory)
    first = attention(x[:, :1], memory=memory, cache=cache)
    cache.length = 7
    rest = attention(x[:, 1:], memory=memory[:, :0], cache=cache)  # nothing new to remember
    torch.testing.assert_close(torch.cat((first, rest), dim=1), whole)


@pytest.mark.parametrize("path", ["explicit", "fused", "tiled"])
def test_dropout_is_for_training_alone(path: str) -> None:
    attention = Attention(20, 4, 2, 8, path=path, dropout=0.5)  # type: ignore[arg-type]
    x = torch.randn(1, 7, 20)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_every_path_is_one_function_with_rope_and_its_own_scale() -> None:
    x, rope, outs = torch.randn(2, 9, 20), RoPE(8)(torch.arange(9)[None]), []
    for path in ("explicit", "fused", "tiled"):
        torch.manual_seed(5)
        outs.append(Attention(20, 4, 2, 8, path=path, scale=0.7)(x, rope))  # type: ignore[arg-type]
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])
