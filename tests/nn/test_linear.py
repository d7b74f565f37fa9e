"""Joined linear layers are the linear layers."""

import pytest
import torch
from torch import nn

from lamoid.nn.linear import joined_linears


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_values_and_gradients_are_those_of_each(bias, with_gradients):
    linears = [nn.Linear(7, n, bias=bias) for n in (3, 1, 5)]
    x = torch.randn(2, 4, 7, requires_grad=with_gradients)
    with torch.set_grad_enabled(with_gradients):
        for joined, linear in zip(joined_linears(x, linears), linears, strict=True):
            torch.testing.assert_close(joined, linear(x), rtol=1e-6, atol=1e-6)
            if not with_gradients:
                continue
            inputs = [x, *linear.parameters()]
            expected = torch.autograd.grad(linear(x).square().sum(), inputs)
            got = torch.autograd.grad(joined.square().sum(), inputs, retain_graph=True)
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_layers_of_another_kind_are_called():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    linears = [nn.Linear(3, 2), Doubled(3, 2)]
    x = torch.randn(1, 3)
    torch.testing.assert_close(joined_linears(x, linears)[1], linears[1](x))
