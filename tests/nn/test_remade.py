"""What is made again is not kept, and gives the same gradients."""

import weakref
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from lamoid.nn.remade import keep_all, made_again


def sine_times(x, weight, *, again: bool):
    y = x.sin()
    if not again:
        return y @ weight
    with made_again(y, partial(torch.sin, x)):
        return y @ weight


def test_gradients_are_the_same_to_the_bit():
    x, weight = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    kept, made = (
        torch.autograd.grad(sine_times(x, weight, again=again).square().sum(), [x, weight]) for again in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, made, strict=True))


def test_it_is_made_once_for_all_who_want_it_and_only_backward():
    calls = []

    def make():
        calls.append(torch.is_grad_enabled())
        return x.sin()

    x, weights = torch.randn(5, 7, requires_grad=True), [torch.randn(7, 3, requires_grad=True) for _ in range(3)]
    y = x.sin()
    with made_again(y, make):
        total = sum((y @ weight).square().sum() for weight in weights)
    assert calls == []
    total.backward()
    assert calls == [False]


def test_two_at_once_and_one_within_another():
    x, w = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)

    def run(again: bool):
        a, b = x.sin(), x.cos()
        if again:
            with made_again(a, partial(torch.sin, x)), made_again(b, partial(torch.cos, x)):
                return (a @ b @ w).sum()
        return (a @ b @ w).sum()

    kept, made = (torch.autograd.grad(run(again), [x, w]) for again in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(kept, made, strict=True))


def test_less_is_kept():
    x, weight = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    y = x.sin()
    freed: list[bool] = []
    weakref.finalize(y, freed.append, True)
    with made_again(y, partial(torch.sin, x)):
        product = y @ weight
    del y
    assert freed == [True]
    product.sum().backward()


def test_within_a_checkpoint_nothing_is_treated_on_its_own():
    x, weight, calls = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True), []

    def make(x):
        calls.append(x)
        return x.sin()

    def block(x):
        y = x.sin()
        with made_again(y, partial(make, x)):
            return (y @ weight).square()

    again = checkpoint(block, x, use_reentrant=False, context_fn=keep_all)
    gradients = torch.autograd.grad(again.sum(), [x, weight])
    assert calls == []
    plain = torch.autograd.grad(block(x).sum(), [x, weight])
    assert calls and all(torch.equal(a, b) for a, b in zip(plain, gradients, strict=True))
