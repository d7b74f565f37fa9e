"""FlashAttention's tiles against the explicit path, with odd sizes, and against finite differences."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lamoid.nn.attention import attend_explicitly, attend_fused
from lamoid.nn.flash import attend_tiled
from lamoid.nn.relative_positions import ALiBi, T5Bias

H = 6
SIZES = [(1, 1), (7, 7), (13, 13), (1, 9), (5, 11), (8, 8)]


def some_inputs(n_kv_heads: int, n_queries: int, n_keys: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = [(2, H, n_queries, 5), (2, n_kv_heads, n_keys, 5), (2, n_kv_heads, n_keys, 5)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def a_bias(kind: str) -> Any:
    if kind == "alibi":
        return ALiBi(H)
    if kind == "t5":
        bias = T5Bias(H, n_buckets=8, max_distance=20, bidirectional=True)
        nn.init.normal_(bias.weight)
        return bias
    return None


def a_mask(kind: str, n_queries: int, n_keys: int) -> Tensor | None:
    if kind == "none":
        return None
    shape = {"padding": (2, 1, 1, n_keys), "one for all": (1, 1, n_queries, n_keys), "full": (2, 1, n_queries, n_keys)}
    mask = torch.rand(shape[kind]) < 0.5
    mask[..., -1] = True
    return mask


@pytest.mark.parametrize("bias_kind", ["none", "alibi", "t5"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask_kind", ["none", "padding", "one for all", "full"])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
def test_tiles_equal_the_explicit_path_with_gradients(
    bias_kind: str, causal: bool, mask_kind: str, n_kv_heads: int
) -> None:
    bias = a_bias(bias_kind)
    for (n_queries, n_keys), tile in itertools.product(SIZES, (1, 3, 4, 64)):
        inputs, mask = some_inputs(n_kv_heads, n_queries, n_keys), a_mask(mask_kind, n_queries, n_keys)
        wanted = [*inputs, *(bias.parameters() if bias is not None else ())]
        settings: dict[str, Any] = dict(causal=causal, bias=bias, scale=0.3)
        explicit, tiled = (
            attend_explicitly(*inputs, mask, **settings),
            attend_tiled(*inputs, mask, **settings, tile=tile),
        )
        torch.testing.assert_close(tiled, explicit, rtol=1e-5, atol=1e-5)
        upstream = torch.randn_like(explicit)
        ours = torch.autograd.grad(tiled, wanted, upstream)
        theirs = torch.autograd.grad(explicit, wanted, upstream)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("bias_kind", ["none", "alibi", "t5"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_kv_heads", [2, 6])
def test_gradients_are_those_of_finite_differences(bias_kind: str, causal: bool, n_kv_heads: int) -> None:
    bias = a_bias(bias_kind)
    if isinstance(bias, T5Bias):
        bias.double()
    inputs = [t[:1, ..., :3].detach().requires_grad_() for t in some_inputs(n_kv_heads, 4, 5, torch.float64)]
    learned = list(bias.parameters()) if bias is not None else []
    assert torch.autograd.gradcheck(
        lambda q, k, v, *_: attend_tiled(q, k, v, None, causal=causal, bias=bias, tile=3), (*inputs, *learned)
    )


def test_gradients_with_padding_in_double() -> None:
    inputs = [t[..., :2].detach().requires_grad_() for t in some_inputs(3, 4, 5, torch.float64)]
    mask = a_mask("padding", 4, 5)
    assert torch.autograd.gradcheck(lambda q, k, v: attend_tiled(q, k, v, mask, tile=2), inputs)


def test_dropped_weights_are_dropped_again_in_the_backward_pass() -> None:
    inputs = [t[:1].detach().requires_grad_() for t in some_inputs(2, 5, 7, torch.float64)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend_tiled(q, k, v, None, dropout=0.4, tile=3)

    assert torch.autograd.gradcheck(attend, inputs)
    torch.manual_seed(4)
    assert not torch.allclose(attend_tiled(*inputs, None, dropout=0.4, tile=3), attend(*inputs))


@pytest.mark.parametrize("attend", [attend_explicitly, attend_fused, attend_tiled])
def test_dropout_keeps_the_mean_and_drops_its_share(attend: Any) -> None:
    n, p = 512, 0.25
    q, k, v = torch.zeros(1, 4, n, n), torch.zeros(1, 4, n, n), torch.eye(n).expand(1, 4, n, n)
    weights = attend(q, k, v, None, causal=False, dropout=p)  # 1/n each, or 0
    assert (weights == 0).float().mean().item() == pytest.approx(p, abs=0.005)
    torch.testing.assert_close(weights[weights > 0], torch.full_like(weights[weights > 0], 1 / n / (1 - p)))
    quarters = [part for half in (weights == 0).chunk(2, dim=-2) for part in half.chunk(2, dim=-1)]  # a tile each
    for one, other in itertools.combinations(quarters, 2):
        agree = (one == other).float().mean().item()
        assert agree == pytest.approx(p**2 + (1 - p) ** 2, abs=0.01), "two tiles drop the same weights"


def test_half_precision_keeps_its_sums_in_fp32() -> None:
    inputs = [t.detach().bfloat16() for t in some_inputs(2, 50, 50)]
    exact = attend_explicitly(*(t.double() for t in inputs), None)
    ours = attend_tiled(*inputs, None, tile=7)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=0.02, atol=0.02)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = (t.detach() * 100 for t in some_inputs(6, 9, 9))
    tiled = attend_tiled(q, k, v, None, tile=2)
    assert tiled.isfinite().all()
    torch.testing.assert_close(tiled, attend_explicitly(q, k, v, None))


def test_nothing_as_large_as_the_square_is_ever_made() -> None:
    """The largest tensor of a forward and backward pass, as torch's dispatcher sees it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return out

    bias = a_bias("t5")
    inputs = [torch.randn(1, H, 300, 5, requires_grad=True) for _ in range(3)]
    with Watch():
        attend_tiled(*inputs, None, bias=bias, tile=16).sum().backward()
    assert largest <= H * 300 * 5  # an input's size; all scores would be H · 300 · 300
    with Watch():
        attend_explicitly(*inputs, None, bias=bias)
    assert largest >= H * 300 * 300
