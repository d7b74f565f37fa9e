"""Fewer key/value heads: multi-head attention to grouped-query or multi-query attention, for a smaller cache.

The K old heads fall into K' groups of neighbours. With mean-pooling each new head is its group's mean,

    W'ᵢ = (K'/K) Σⱼ Wⱼ over the group's heads j, for keys and for values, biases too,

so that a group whose heads are all alike computes what it did. RoPE turns every head by the same angles, so the mean of
the rotated keys is the rotated mean. "aligned" first turns the heads of a group towards each other (`align_heads.py`) and
then takes the mean. Source: Ainslie et al. 2023, sections 2.1 and 2.2; there, as here, "first" takes each group's first head
and "random" draws new ones, to compare with.
"""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.adapt.align_heads import align_heads
from lamoid.errors import DataError, UsageError
from lamoid.models.llama import Block, Llama

POOLINGS = ("aligned", "mean", "first", "random")


@torch.no_grad()
def group_kv_heads(model: Llama, n_kv_heads: int, *, pooling: str = "aligned", seed: int = 0) -> Llama:
    """A copy of the model with `n_kv_heads` key/value heads, 1 for multi-query attention.

    "random" draws weights as for a new model, N(0, init_std²) with biases of 0, by the seed.
    Raises UsageError unless the number divides the model's and is below it, and DataError for weights that are not finite.
    """
    n_old = model.config.n_kv_heads
    if n_old == 1:
        raise UsageError("the model has one key/value head already; there is nothing to join")
    if not 0 < n_kv_heads < n_old or n_old % n_kv_heads:
        below = [n for n in range(1, n_old) if n_old % n == 0]
        raise UsageError(
            f"n_kv_heads is {n_kv_heads}; it must divide the model's {n_old} and be below it: one of {below}"
        )
    if pooling not in POOLINGS:
        raise UsageError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}")
    std, generator = model.config.init_std, torch.Generator().manual_seed(seed)

    def draw(heads: Tensor) -> Tensor:
        new = torch.randn(n_kv_heads, *heads.shape[2:], generator=generator) * std
        return (new if new.dim() > 2 else torch.zeros_like(new)).to(heads)

    def mean(heads: Tensor) -> Tensor:
        return heads.mean(dim=1)

    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "aligned": mean,
        "mean": mean,
        "first": lambda heads: heads[:, 0].clone(),
        "random": draw,
    }
    grouped = copy.deepcopy(model)
    grouped.config = replace(model.config, n_kv_heads=n_kv_heads)
    for layer, block in enumerate(grouped.layers):
        assert isinstance(block, Block)
        for linear in block.attention.children():
            if not isinstance(linear, nn.Linear):
                raise UsageError(
                    f"a layer is a {type(linear).__name__}, no plain weights; merge a LoRA with lamoid merge"
                )
        if not all(bool(parameter.isfinite().all()) for parameter in block.attention.parameters()):
            raise DataError(
                f"layers.{layer}.attention has weights that are not finite; take another checkpoint of the model"
            )
        if pooling == "aligned":
            align_heads(block.attention, n_kv_heads)
        for linear in (block.attention.k_proj, block.attention.v_proj):
            _pool(linear, n_kv_heads, n_old, pools[pooling])
    return grouped


def _pool(linear: nn.Linear, n_new: int, n_old: int, pool: Callable[[Tensor], Tensor]) -> None:
    for name, parameter in linear.named_parameters():
        heads: Float[Tensor, "new group E ..."] = parameter.unflatten(0, (n_new, n_old // n_new, -1))
        setattr(linear, name, nn.Parameter(pool(heads).flatten(0, 1)))
    linear.out_features = len(linear.weight)


def cache_bytes_per_token(model: Llama) -> int:
    """Bytes that one position takes in the KV cache: keys and values of every layer, 2 · layers · K · E · bytes of the type."""
    c = model.config
    return 2 * c.n_layers * c.n_kv_heads * c.head_dim * model.embedding.weight.element_size()
