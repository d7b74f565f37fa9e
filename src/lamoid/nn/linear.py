"""Several linear layers of one input as one matrix product."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def joined_linears(x: Float[Tensor, "*rest D"], linears: Sequence[nn.Module]) -> list[Tensor]:
    """[x W₁ᵀ + b₁, x W₂ᵀ + b₂, …], while gradients are wanted through one product with the matrices on top of each other.

    One wide product keeps the cores busier than several narrow ones, forward and backward. Joining copies the weights,
    which is little beside the products of a training batch and too much beside those of a single token. Layers of
    another kind (an adapter's, for one) are called as they are.
    """
    plain = [linear for linear in linears if type(linear) is nn.Linear]
    if not torch.is_grad_enabled() or len(plain) < len(linears):
        return [linear(x) for linear in linears]
    weights: list[Tensor] = [linear.weight for linear in plain]
    biases: list[Tensor] = [linear.bias for linear in plain if linear.bias is not None]
    joined = F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
    return list(joined.split([linear.out_features for linear in plain], dim=-1))
