"""Cross-entropy of the next token without ever holding all logits."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lamoid.nn.linear import product, weight_gradient

IGNORED = -100
"""The label of a position that is not trained."""
CHUNK_TOKENS = {True: 1024, False: 256}
"""Positions whose logits exist at one time, where W needs a gradient and where not: each chunk passes over that gradient."""


def chunked_cross_entropy(
    hidden: Float[Tensor, "N D"],
    weight: Float[Tensor, "V D"],
    labels: Int[Tensor, " N"],
    chunk_tokens: int | None = None,
    *,
    bias: Float[Tensor, " V"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Σ over trained positions of −log softmax(h Wᵀ + b)[label], in nats: the sum, not the mean.

    Logits are made for `chunk_tokens` positions at a time (None: CHUNK_TOKENS) and for no position whose label is IGNORED; their
    gradient softmax(h Wᵀ + b) − onehot(label) is used at once, so memory is chunk · V instead of N · V,
    and nothing is computed twice. The sum lets the caller divide by all trained tokens of a step.

    With label smoothing ε the target is (1 − ε) · onehot(label) + ε / V (Szegedy et al. 2016, section 7).
    """
    trained = labels != IGNORED
    if not bool(trained.all()):
        hidden, labels = hidden[trained], labels[trained]
    chunk_tokens = chunk_tokens or CHUNK_TOKENS[weight.requires_grad]
    return _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, chunk_tokens, label_smoothing)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradients are made beside the loss, in the forward pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        chunk_tokens: int,
        label_smoothing: float,
    ) -> Tensor:
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for start in range(0, len(labels), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = product(hidden[rows], weight)
            logits = logits.to(total.dtype) if bias is None else logits.to(total.dtype) + bias
            log_partition = logits.logsumexp(dim=-1, keepdim=True)
            target = labels[rows, None]
            total += (log_partition - logits.gather(1, target)).sum()
            if label_smoothing:
                total += label_smoothing * (logits.gather(1, target) - logits.mean(dim=-1, keepdim=True)).sum()
            if hidden_grad is None and weight_grad is None and bias_grad is None:
                continue
            logits_grad = logits.sub_(log_partition).exp_()
            logits_grad.scatter_add_(1, target, logits_grad.new_full(target.shape, label_smoothing - 1.0))
            if label_smoothing:
                logits_grad -= label_smoothing / logits.shape[1]
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = product(logits_grad, weight.T)
            if weight_grad is not None:
                weight_grad += weight_gradient(logits_grad, hidden[rows])
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0)
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if g is None else g * upstream[0].to(g.dtype) for g in ctx.saved_tensors)
        return (*gradients, None, None, None)
