"""Cross-entropy of the next token without ever holding all logits."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORED = -100
"""The label of a position that is not trained."""


def chunked_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    labels: Int[Tensor, " N"],
    chunk_tokens: int = 1024,
) -> Float[Tensor, ""]:
    """Σ over trained positions of −log softmax(h Wᵀ)[label], in nats: the sum, not the mean.

    Logits are made for `chunk_tokens` positions at a time and for no position whose label is IGNORED; their
    gradient softmax(h Wᵀ) − onehot(label) is used at once, so memory is chunk · V instead of N · V,
    and nothing is computed twice. The sum lets the caller divide by all trained tokens of a step.
    """
    trained = labels != IGNORED
    if not bool(trained.all()):
        hidden, labels = hidden[trained], labels[trained]
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, chunk_tokens)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made beside the loss, in the forward pass; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int) -> Tensor:
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(labels), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = hidden[rows] @ weight.T
            logits = logits.to(total.dtype)
            log_partition = logits.logsumexp(dim=-1, keepdim=True)
            target = labels[rows, None]
            total += (log_partition - logits.gather(1, target)).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            logits_grad = logits.sub_(log_partition).exp_()
            logits_grad.scatter_add_(1, target, logits_grad.new_full(target.shape, -1.0))
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(logits_grad, weight, out=hidden_grad[rows])
            if weight_grad is not None:
                weight_grad.addmm_(logits_grad.T, hidden[rows])
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scale = upstream[0]
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else weight_grad * scale.to(weight_grad.dtype),
            None,
            None,
        )
