"""The first weights of a model, or of a part of it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def draw(module: nn.Module, std_of: Callable[[str, Tensor], float], seed: int) -> None:
    """Draw every matrix from N(0, std²), with `std_of(name, matrix)`; gains become 1 and biases 0.

    The same seed gives the same weights. A parameter that is tied to another one is drawn once.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std_of(name, parameter))
