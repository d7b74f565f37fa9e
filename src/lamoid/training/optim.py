"""The optimizer and the learning rate over time."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from lamoid.errors import UsageError

Schedule = Callable[[int], float]
"""Step (from 0) -> learning rate."""


def make_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    kind: Literal["adamw", "adam-l2"] = "adamw",
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-5,
    weight_decay: float = 0.1,
) -> torch.optim.Optimizer:
    """AdamW, or Adam with L2 in the gradient; the defaults are Llama 2's (Touvron et al. 2023b, section 2.2).

    AdamW:    w ← w − lr · (m̂ / (√v̂ + ε) + λ w)        the decay stands beside the adaptive step (Loshchilov & Hutter 2019)
    Adam-L2:  g ← g + λ w, then Adam                     the decay is divided by √v̂ as well
    Only matrices decay; norm gains and biases do not.
    """
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if not trainable:
        raise UsageError("no parameter is trainable; nothing would be learned")
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    make = {"adamw": torch.optim.AdamW, "adam-l2": torch.optim.Adam}[kind]
    return make([g for g in groups if g["params"]], betas=betas, eps=eps, fused=True)


def cosine(peak: float, warmup_steps: int, max_steps: int, floor: float = 0.1) -> Schedule:
    """Linear warm-up to `peak`, then half a cosine down to `floor` · peak at `max_steps` (Touvron et al. 2023b)."""

    def rate(step: int) -> float:
        if step < warmup_steps:
            return peak * (step + 1) / warmup_steps
        done = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
        return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))

    return rate


def inverse_sqrt(peak: float, warmup_steps: int) -> Schedule:
    """Linear warm-up to `peak`, then peak · √(warm-up / step) (Vaswani et al. 2017, section 5.3)."""
    warmup_steps = max(warmup_steps, 1)
    return lambda step: peak * min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))


def warmup_stable_decay(
    peak: float, warmup_steps: int, max_steps: int, decay_share: float = 0.2, floor: float = 0.0
) -> Schedule:
    """Linear warm-up, constant, and a linear fall to `floor` · peak over the last `decay_share` of the steps (Hu et al. 2024)."""
    decay_steps = max(int(max_steps * decay_share), 1)

    def rate(step: int) -> float:
        left = min(max((max_steps - step) / decay_steps, 0.0), 1.0)
        return peak * min((step + 1) / max(warmup_steps, 1), 1.0) * (floor + (1 - floor) * left)

    return rate


def make_schedule(kind: str, peak: float, warmup_steps: int, max_steps: int) -> Schedule:
    """The schedule of a name: cosine, inverse-sqrt or warmup-stable-decay."""
    if kind == "cosine":
        return cosine(peak, warmup_steps, max_steps)
    if kind == "inverse-sqrt":
        return inverse_sqrt(peak, warmup_steps)
    if kind == "warmup-stable-decay":
        return warmup_stable_decay(peak, warmup_steps, max_steps)
    raise UsageError(f"schedule is {kind!r}; known are cosine, inverse-sqrt and warmup-stable-decay")
