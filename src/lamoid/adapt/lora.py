"""LoRA: a frozen linear layer plus a product of two thin matrices that are trained.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. The scale α/√r instead of α/r:
Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA". On a base in NF4 (`nf4.py`) it is
QLoRA: Dettmers et al. 2023.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.adapt.nf4 import Nf4Linear
from lamoid.adapt.paths import ALL_LINEAR, find_layers, replace_layer
from lamoid.errors import UsageError
from lamoid.nn.linear import add_linear, has_hooks, linear

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get which LoRA.

    `targets` are names such as `q_proj`, whole paths, or `all-linear`, which is every linear layer but the output layer.
    `rslora` scales by α/√r instead of α/r. `seed` decides the first A.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = (ALL_LINEAR,)
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= 2**16:
            raise UsageError(f"rank is {self.rank!r}; it must be a whole number from 1 to {2**16}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"alpha is {self.alpha}; it must be finite and above 0")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}; it must be from 0 to less than 1")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def add_lora(model: M, config: LoraConfig) -> M:
    """Freeze a model and put a LoRA on every target, which may be in NF4. Returns the model, which computes as before.

    Call it when the model has its final dtype and device: A and B are float32 whatever the model's dtype, since steps of
    10⁻⁴ would be lost in bfloat16. Raises UsageError for a target that no layer has, listing the names that exist.
    """
    layers = find_layers(model, (nn.Linear, Nf4Linear), config.targets)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(config.seed)
    for path, layer in layers.items():
        replace_layer(model, path, LoraLinear(layer, config, generator))  # type: ignore[arg-type]
    return model


class LoraLinear(nn.Module):
    """y = W x + b + s · B A dropout(x), with s = α/r or α/√r; W and b are frozen, A [r, in] and B [out, r] are trained.

    A begins as N(0, 1/in), so that A x has the mean square of x; B begins as zero, so that nothing changes at first.
    The paper says Gaussian and leaves the variance open; peft draws a uniform A of a third of this variance.
    """

    def __init__(self, linear: nn.Linear | Nf4Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.linear, self.config, self.dropout = linear, config, nn.Dropout(config.dropout)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        device = (linear.codes if isinstance(linear, Nf4Linear) else linear.weight).device
        a = torch.randn(config.rank, self.in_features, generator=generator) / math.sqrt(self.in_features)
        self.lora_A = nn.Parameter(a.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, config.rank, device=device))

    def forward(self, x: Float[Tensor, "*rest in"]) -> Float[Tensor, "*rest out"]:
        rows = x.reshape(-1, self.in_features)
        low = linear(self.dropout(rows.to(self.lora_A.dtype)), self.lora_A) * self.config.scale
        y = self.linear(rows)
        if y.dtype == low.dtype and not has_hooks(self.linear):  # a hook may keep y, and one on its gradient needs it
            y = add_linear(y, low, self.lora_B)
        else:
            y = y + linear(low, self.lora_B).to(y.dtype)
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def bias(self) -> Tensor | None:
        """b."""
        return self.linear.bias

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """W + s · B A in the dtype of W: what the loss is made from where this is the output layer.

        Raises UsageError while dropout is at work, which no matrix can stand for.
        """
        if self.training and self.config.dropout:
            raise UsageError(
                f"dropout is {self.config.dropout} on an output layer, whose loss is made from one matrix; "
                f"set it to 0, or leave that layer out of the targets"
            )
        return merged_weight(self).to(self.linear.weight.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.config.rank}, scale={self.config.scale:g}"


def merged_weight(layer: nn.Module) -> Float[Tensor, "out in"]:
    """The matrix that a layer amounts to, in float32: W, or W + s · B A, where a W in NF4 is what products are made with."""
    if isinstance(layer, LoraLinear):
        return merged_weight(layer.linear) + layer.config.scale * layer.lora_B @ layer.lora_A
    assert isinstance(layer, nn.Linear | Nf4Linear)
    return layer.weight.float()
