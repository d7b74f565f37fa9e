"""Adapters: two small networks in every block of a frozen model, behind attention and behind the feed-forward network.

Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.adapt.paths import find_layers, replace_layer
from lamoid.errors import UsageError
from lamoid.nn.linear import Linear

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class AdapterConfig:
    """The width of the bottlenecks, the linear layers that they stand behind, and the norms that are trained with them.

    `behind` and `norms` are names, such as those of our Llama: an adapter stands behind each layer of that name, and
    each module whose name ends in one of `norms` is trained. `seed` decides the first weights.
    """

    bottleneck: int = 64
    behind: tuple[str, ...] = ("o_proj", "down_proj")
    norms: tuple[str, ...] = ("norm",)
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.bottleneck) is not int or not 1 <= self.bottleneck <= 2**16:
            raise UsageError(f"bottleneck is {self.bottleneck!r}; it must be a whole number from 1 to {2**16}")


def add_adapters(model: M, config: AdapterConfig) -> M:
    """Freeze a model but its norms, and put an adapter behind each layer named. Returns the model, which computes as before.

    A layer's output reaches the residual stream through its adapter. Call it when the model has its final dtype and
    device; adapters are float32. Raises UsageError for a name that no layer has, listing those that exist.
    """
    layers = find_layers(model, (nn.Linear,), config.behind)
    model.requires_grad_(False)
    for path, module in model.named_modules():
        if path.endswith(config.norms):
            module.requires_grad_(True)
    generator = torch.Generator().manual_seed(config.seed)
    for path, linear in layers.items():
        assert isinstance(linear, nn.Linear)
        replace_layer(model, path, AdaptedLinear(linear, Adapter(linear.out_features, config, generator)))
    return model


class Adapter(nn.Module):
    """y = x + W₂ GELU(W₁ x + b₁) + b₂, from D features to a few and back.

    W₁ begins as N(0, 1/D), and W₂ and both biases as zero, so that y = x exactly; the paper draws both matrices with a
    standard deviation of 0.01, which is near the identity but not within 10⁻⁶ of it.
    """

    def __init__(self, d_model: int, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.down, self.up = Linear(d_model, config.bottleneck), Linear(config.bottleneck, d_model)
        with torch.no_grad():
            first = torch.randn(self.down.weight.shape, generator=generator) / math.sqrt(d_model)
            self.down.weight.copy_(first)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        return x + self.up(F.gelu(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with an adapter behind it."""

    def __init__(self, linear: nn.Linear, adapter: Adapter) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.linear, self.adapter = linear, adapter.to(linear.weight.device)

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        return self.adapter(self.linear(x))
