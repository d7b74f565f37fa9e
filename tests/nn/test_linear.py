"""Our linear layer and joined ones are torch's, values and gradients, whoever makes the products."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamoid.nn.linear import WORTHWHILE, Linear, add_linear, joined_linears, linear, product, weight_gradient

SHAPES = {"small": ((2, 4, 7), 5), "odd": ((3, 333, 77), 129), "wide": ((130, 65), 1031), "narrow": ((1031, 257), 8)}


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Both sum in float32, in another order."""
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_values_and_gradients_are_torchs(shape, bias, frozen):
    torch.manual_seed(0)
    size, n_out = SHAPES[shape]
    assert (torch.Size(size).numel() * n_out >= WORTHWHILE) == (shape != "small")
    x = torch.randn(size, requires_grad=True)
    weight = torch.randn(n_out, size[-1], requires_grad=not frozen)
    offset = torch.randn(n_out, requires_grad=True) if bias else None
    inputs = [part for part in (x, weight, offset) if part is not None and part.requires_grad]
    got, expected = linear(x, weight, offset), F.linear(x, weight, offset)
    close(got, expected)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert ours.shape == theirs.shape
        close(ours, theirs)


@pytest.mark.parametrize("transposed", [False, True])
def test_products_read_weights_in_either_layout(transposed):
    x, weight = torch.randn(130, 97), torch.randn(257, 97)
    if transposed:
        weight = weight.T.contiguous().T
    close(product(x, weight), x @ weight.T)
    close(product(weight, x), weight @ x.T)
    for upstream in (torch.randn(130, 257), torch.randn(130, 31)):
        close(weight_gradient(upstream, x), upstream.T @ x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype):
    x, layer = torch.randn(64, 200, dtype=dtype), Linear(200, 100, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("d_model", [7, 700])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_joined_layers_are_each_of_them(bias, d_model, with_gradients):
    torch.manual_seed(0)
    layers = [Linear(d_model, n, bias=bias) for n in (300, 100, 500)]
    layers[1].weight.requires_grad_(False)
    x = torch.randn(2, 9, d_model, requires_grad=with_gradients)
    with torch.set_grad_enabled(with_gradients):
        joined = joined_linears(x, layers)
        expected = [F.linear(x, layer.weight, layer.bias) for layer in layers]
        for ours, theirs in zip(joined, expected, strict=True):
            close(ours, theirs)
    if with_gradients:
        inputs = [x, *(p for layer in layers for p in layer.parameters() if p.requires_grad)]
        upstream = [torch.randn_like(y) for y in expected]
        pairs = zip(
            torch.autograd.grad(joined, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
        )
        for ours, theirs in pairs:
            close(ours, theirs)


def test_a_single_vector_needs_no_batch():
    layer, x = Linear(1024, 1031), torch.randn(1024, requires_grad=True)
    expected = F.linear(x, layer.weight, layer.bias)
    close(layer(x), expected)
    close(joined_linears(x, [layer, layer])[1], expected)
    upstream = torch.randn_like(expected)
    close(torch.autograd.grad(layer(x), x, upstream)[0], torch.autograd.grad(expected, x, upstream)[0])


@pytest.mark.parametrize("when", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_a_layer_with_a_hook_is_called(when):
    x = torch.randn(100, 200, requires_grad=True)
    layers, called = [Linear(200, 300), Linear(200, 100)], []
    getattr(layers[1], f"register_{when}_hook")(lambda *seen: called.append(seen[0]))
    got = joined_linears(x, layers)
    sum(y.sum() for y in got).backward()
    assert called == [layers[1]]
    for y, layer in zip(got, layers, strict=True):
        assert torch.equal(y, layer(x))


def test_layers_of_another_kind_are_called():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    layers = [Linear(300, 200), Doubled(300, 200)]
    x = torch.randn(100, 300)
    torch.testing.assert_close(joined_linears(x, layers)[1], layers[1](x))


@pytest.mark.parametrize("shape", [(3, 5, 2), (1031, 129, 8)])
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, True), (True, False, True), (True, True, False)])
def test_a_product_is_added_in_place(shape, needs):
    n, n_out, n_in = shape
    torch.manual_seed(0)
    parts = [torch.randn(size, requires_grad=need) for size, need in zip([(n, n_out), (n, n_in), (n_out, n_in)], needs)]  # noqa: B905
    y, x, weight = parts
    inputs = [part for part in parts if part.requires_grad]
    written = y * 1.0
    got, expected = add_linear(written, x, weight), y + F.linear(x, weight)
    close(got, expected)
    assert (got.data_ptr() == written.data_ptr()) == (n * n_out * n_in >= WORTHWHILE)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        close(ours, theirs)
