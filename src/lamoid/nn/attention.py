"""Scaled dot-product attention with H query heads and K key/value heads."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamoid.nn.kv_cache import KVCache
from lamoid.nn.linear import joined_linears
from lamoid.nn.positions import rotate

AttentionPath = Literal["fused", "explicit"]


def attend_explicitly(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B K S E"],
    v: Float[Tensor, "B K S E"],
    mask: Bool[Tensor, "#B 1 T S"] | None,
) -> Float[Tensor, "B H T E"]:
    """softmax(q kᵀ / √E + log mask) v, written out; each key/value head serves H/K neighbouring query heads.

    The root keeps the variance of a score near 1 when q and k have unit variance: a sum of E products has variance E.
    Without a mask the attention is causal, the last query standing at the last key.
    Source: Vaswani et al. 2017, section 3.2.1; grouped heads: Ainslie et al. 2023.
    """
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is None:
        n_queries, n_keys = scores.shape[-2:]
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n_queries)[None, None]
    weights = scores.masked_fill(~mask, -torch.inf).float().softmax(dim=-1).to(q.dtype)
    return weights @ v


def attend_fused(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B K S E"],
    v: Float[Tensor, "B K S E"],
    mask: Bool[Tensor, "#B 1 T S"] | None,
) -> Float[Tensor, "B H T E"]:
    """The same through PyTorch's fused kernel, which never holds all T × S scores at once.

    A single query is never causally masked, so its heads can be laid out as H/K queries of one
    key/value head: then nothing is repeated, and the cache is read once.
    """
    n_queries, n_keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if n_queries == 1:
        grouped = q.unflatten(1, (-1, group)).squeeze(3)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).flatten(1, 2).unsqueeze(2)
    if mask is None and n_queries != n_keys:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n_queries)[None, None]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


class Attention(nn.Module):
    """Multi-head (K = H), multi-query (K = 1) and grouped-query attention with rotary positions.

    The head size E is free of D/H. Queries and keys are rotated after their projection, values are not.
    Without a mask the attention is causal. With a cache, x holds the new positions only.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        path: AttentionPath = "fused",
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.attend = attend_fused if path == "fused" else attend_explicitly
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * head_dim, d_model, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "#B 1 T S"] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        *,
        rotate_cached_keys: bool = False,
    ) -> Float[Tensor, "B T D"]:
        """`rope` holds cos and sin of x's positions; with `rotate_cached_keys`, of all S positions so far.

        The latter is for RoPE whose frequencies depend on the length: the cache then keeps keys unrotated.
        """
        q, k, v = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projected in joined_linears(x, (self.q_proj, self.k_proj, self.v_proj))
        )
        cos, sin = rope
        n_new = q.shape[2]
        q = rotate(q, cos[:, :, -n_new:], sin[:, :, -n_new:])
        if cache is not None and rotate_cached_keys:
            k, v = cache.append(layer, k, v)
        k = rotate(k, cos, sin)
        if cache is not None and not rotate_cached_keys:
            k, v = cache.append(layer, k, v)
        return self.o_proj(self.attend(q, k, v, mask).transpose(1, 2).flatten(2))
