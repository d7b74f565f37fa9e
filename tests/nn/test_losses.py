from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lamoid.nn.linear import product
from lamoid.nn.losses import IGNORED, chunked_cross_entropy


def a_problem(
    n: int = 23, d: int = 7, v: int = 31, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(n, d, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, d, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, v, (n,))


def reference(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, labels, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("chunk_tokens", [1, 3, 22, 23, 24, 1000])
@pytest.mark.parametrize("ignored", ["none", "some", "first", "all but one"])
def test_loss_and_gradients_equal_pytorch(chunk_tokens: int, ignored: str) -> None:
    hidden, weight, labels = a_problem(dtype=torch.float64)
    rows = {"none": [], "some": [2, 3, 7, 22], "first": list(range(9)), "all but one": list(range(22))}[ignored]
    labels[rows] = IGNORED
    ours, theirs = chunked_cross_entropy(hidden, weight, labels, chunk_tokens), reference(hidden, weight, labels)
    torch.testing.assert_close(ours, theirs)
    scale = torch.tensor(-2.5, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (hidden, weight), scale), torch.autograd.grad(theirs, (hidden, weight), scale)
    )


@pytest.mark.parametrize(("is_trained", "most"), [(True, 1024), (False, 256)])
def test_a_frozen_head_needs_fewer_logits_at_a_time(is_trained: bool, most: int, monkeypatch) -> None:
    hidden, weight, labels = a_problem(1100)
    sizes = []

    def spy(x: Tensor, w: Tensor) -> Tensor:
        sizes.append(len(x))
        return product(x, w)

    monkeypatch.setattr("lamoid.nn.losses.product", spy)
    loss = chunked_cross_entropy(hidden, weight.requires_grad_(is_trained), labels)
    assert max(sizes) == most
    torch.testing.assert_close(loss, reference(hidden, weight, labels))


@pytest.mark.parametrize("chunk_tokens", [2, 5, 100])
def test_gradcheck(chunk_tokens: int) -> None:
    hidden, weight, labels = a_problem(5, 3, 4, torch.float64)
    labels[1] = IGNORED
    assert torch.autograd.gradcheck(lambda h, w: chunked_cross_entropy(h, w, labels, chunk_tokens), (hidden, weight))


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = a_problem()
    big = (hidden.detach() * 1e4).requires_grad_()
    loss = chunked_cross_entropy(big, weight, labels, 4)
    torch.testing.assert_close(loss, reference(big, weight, labels))
    assert torch.isfinite(torch.autograd.grad(loss, big)[0]).all()


def test_bf16_sums_its_loss_in_fp32() -> None:
    hidden, weight, labels = (t.detach() for t in a_problem(4000, 8, 16))
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    loss = chunked_cross_entropy(hidden, weight, labels)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy((hidden @ weight.T).float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_all_ignored_is_zero_with_zero_gradients() -> None:
    hidden, weight, labels = a_problem()
    loss = chunked_cross_entropy(hidden, weight, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None and torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert weight.grad is not None and torch.equal(weight.grad, torch.zeros_like(weight))


def test_ignored_positions_get_no_gradient() -> None:
    hidden, weight, labels = a_problem()
    labels[::2] = IGNORED
    chunked_cross_entropy(hidden, weight, labels, 3).backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad.abs().sum(-1) == 0, labels == IGNORED)


@pytest.mark.parametrize("frozen", ["weight", "hidden", "both"])
def test_what_is_frozen_costs_no_gradient(frozen: str) -> None:
    hidden, weight, labels = a_problem()
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    loss = chunked_cross_entropy(hidden, weight, labels, 4)
    assert loss.requires_grad == (frozen != "both")
    free = {"weight": hidden, "hidden": weight}.get(frozen)
    if free is not None:
        expected = torch.autograd.grad(reference(hidden, weight, labels), free)
        torch.testing.assert_close(torch.autograd.grad(loss, free), expected)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave."""

    n_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.n_elements = max(self.n_elements, value.numel())
        return result


@pytest.mark.parametrize(("chunk_tokens", "largest"), [(3, 500 * 7), (16, 16 * 500), (64, 64 * 500)])
def test_never_holds_all_logits(chunk_tokens: int, largest: int) -> None:
    hidden, weight, labels = a_problem(400, 7, 500)
    with LargestTensor() as spy:
        chunked_cross_entropy(hidden, weight, labels, chunk_tokens).backward()
    assert spy.n_elements == largest
    with LargestTensor() as spy:
        reference(hidden, weight, labels)
    assert spy.n_elements == 400 * 500  # what the spy would have seen


def test_ignored_positions_have_no_logits() -> None:
    hidden, weight, labels = a_problem(400, 2, 500)
    labels[5:] = IGNORED
    with LargestTensor() as spy:
        chunked_cross_entropy(hidden, weight, labels, 400)
    assert spy.n_elements == 5 * 500


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("has_bias", [True, False])
def test_smoothed_labels_and_a_bias_equal_pytorch(label_smoothing: float, has_bias: bool) -> None:
    hidden, weight, labels = a_problem(dtype=torch.float64)
    bias = torch.randn(31, dtype=torch.float64, requires_grad=True) if has_bias else None
    labels[[2, 3, 22]] = IGNORED
    logits = F.linear(hidden, weight, bias)
    theirs = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
    ours = chunked_cross_entropy(hidden, weight, labels, 5, bias=bias, label_smoothing=label_smoothing)
    torch.testing.assert_close(ours, theirs)
    wanted = [hidden, weight, *([bias] if bias is not None else [])]
    torch.testing.assert_close(torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted))
