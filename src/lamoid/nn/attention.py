"""Scaled dot-product attention with H query heads and K key/value heads: explicit, fused, and in tiles (`flash.py`)."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamoid.errors import UsageError
from lamoid.nn.flash import attend_tiled
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.linear import Linear, joined_linears
from lamoid.nn.masks import Documents
from lamoid.nn.positions import rotate
from lamoid.nn.relative_positions import ScoreBias, ShawPositions, distances
from lamoid.nn.remade import made_again

AttentionPath = Literal["fused", "explicit", "tiled"]


def attend_explicitly(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B K S E"],
    v: Float[Tensor, "B K S E"],
    mask: Bool[Tensor, "#B 1 #T S"] | None,
    *,
    causal: bool = True,
    bias: ScoreBias | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    shaw: ShawPositions | None = None,
) -> Float[Tensor, "B H T E"]:
    """softmax(scores) v, written out, with the scores of `attention_scores`; v is repeated for the heads that share it.

    `dropout` is the share of weights that are set to 0. Source: Vaswani et al. 2017, section 3.2.1.
    """
    scores = attention_scores(q, k, mask, causal=causal, bias=bias, scale=scale, shaw=shaw)
    weights = scores.to(torch.promote_types(q.dtype, torch.float32)).softmax(dim=-1).to(q.dtype)
    weights = F.dropout(weights, dropout) if dropout else weights
    out = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    if shaw is None:
        return out
    return out + shaw.summed_values(weights, distances(q.shape[2], k.shape[2], q.device, causal=causal))


def attention_scores(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B K S E"],
    mask: Bool[Tensor, "#B 1 #T S"] | None,
    *,
    causal: bool = True,
    bias: ScoreBias | None = None,
    scale: float | None = None,
    shaw: ShawPositions | None = None,
) -> Float[Tensor, "B H T S"]:
    """q kᵀ / √E + bias + log mask: −∞ for what is not seen. Each key head serves H/K neighbouring query heads.

    The root keeps the variance of a score near 1 when q and k have unit variance: a sum of E products has variance E;
    `scale` takes the place of 1/√E. A mask alone says who sees whom; without one, `causal` attention has the last query
    stand at the last key and see what is not behind it, and other attention sees all. `bias` makes terms of the scores
    from distances, `shaw` vectors beside keys and values.
    Source: Vaswani et al. 2017, section 3.2.1; grouped heads: Ainslie et al. 2023.
    """
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-2, -1)
    apart = distances(q.shape[2], k.shape[2], q.device, causal=causal)
    if shaw is not None:
        scores = scores + shaw.scores(q, apart)
    scores = scores / math.sqrt(q.shape[-1]) if scale is None else scores * scale
    if bias is not None:
        scores = scores + bias(apart)
    if mask is None and causal:
        mask = (apart <= 0)[None, None]
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def attend_fused(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B K S E"],
    v: Float[Tensor, "B K S E"],
    mask: Bool[Tensor, "#B 1 #T S"] | Documents | None,
    *,
    causal: bool = True,
    bias: ScoreBias | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T E"]:
    """The same through PyTorch's fused kernel, which never holds all T × S scores at once; a bias it does hold.

    Packed documents are taken one by one, without a mask. A single query is never causally masked, so its heads can be laid
    out as H/K queries of one key/value head: then nothing is repeated, and the cache is read once.
    """
    if isinstance(mask, Documents):
        one = partial(attend_fused, mask=None, causal=causal, bias=bias, scale=scale, dropout=dropout)
        return _attend_each(one, q, k, v, mask.lengths)
    n_queries, n_keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    if mask is None and causal and n_queries > 1 and (n_queries != n_keys or bias is not None):
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n_queries)[None, None]
    added = mask
    if bias is not None:
        added = bias(distances(n_queries, n_keys, q.device, causal=causal)).to(q.dtype)[None]
        added = added if mask is None else added.masked_fill(~mask, -torch.inf)
    attend = partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=scale)
    if n_queries == 1:
        grouped = q.unflatten(1, (-1, group)).squeeze(3)
        if bias is not None and added is not None:
            added = added.unflatten(1, (-1, group)).squeeze(3)
        return attend(grouped, k, v, attn_mask=added).flatten(1, 2).unsqueeze(2)
    if group > 1:
        return _attend_repeated(attend, q, k, v, group, attn_mask=added, is_causal=causal and added is None)
    return attend(q, k, v, attn_mask=added, is_causal=causal and added is None)


def _attend_each(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """The rows one behind the other, (B T) H E, cut into documents, each of which is a batch of its own."""
    each = zip(*(part.transpose(1, 2).flatten(0, 1).split(lengths) for part in (q, k, v)), strict=True)
    outs = [attend(*(part.transpose(0, 1)[None] for part in parts))[0].transpose(0, 1) for parts in each]
    return torch.cat(outs).unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def _attend_repeated(attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, group: int, **how: Any) -> Tensor:
    """With every key/value head `group` times, which the backward pass makes again."""
    repeat_k, repeat_v = (partial(torch.repeat_interleave, part, group, dim=1) for part in (k, v))
    k, v = repeat_k(), repeat_v()
    with made_again(k, repeat_k), made_again(v, repeat_v):
        return attend(q, k, v, **how)


PATHS: dict[AttentionPath, Callable[..., Tensor]] = {
    "fused": attend_fused,
    "explicit": attend_explicitly,
    "tiled": attend_tiled,
}


class Attention(nn.Module):
    """Multi-head (K = H), multi-query (K = 1) and grouped-query attention; causal or not, within x or across to a memory.

    The head size E is free of D/H. `rope` turns queries and keys after their projection, values are not turned.
    Without a mask, `causal` decides who sees whom. With a cache, x (or `memory`) holds the new positions only.
    `scale` takes the place of 1/√E; `dropout` holds while training; `shaw` needs the explicit path.
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
        causal: bool = True,
        scale: float | None = None,
        dropout: float = 0.0,
        shaw: ShawPositions | None = None,
    ) -> None:
        super().__init__()
        if shaw is not None and path != "explicit":
            raise UsageError(f"attention path is {path!r}; Shaw's positions change keys and values: take 'explicit'")
        self.head_dim, self.dropout = head_dim, dropout
        self.attend = PATHS[path]
        self.shaw = shaw
        self.settings = {"causal": causal, "scale": scale} | ({"shaw": shaw} if shaw is not None else {})
        self.q_proj = Linear(d_model, n_heads * head_dim, bias=bias)
        self.k_proj = Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o_proj = Linear(n_heads * head_dim, d_model, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        rope: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "#B 1 #T S"] | Documents | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
        *,
        rotate_cached_keys: bool = False,
        memory: Float[Tensor, "B M D"] | None = None,
        bias: ScoreBias | None = None,
    ) -> Float[Tensor, "B T D"]:
        """`rope` holds cos and sin of x's positions; with `rotate_cached_keys`, of all S positions so far.

        The latter is for RoPE whose frequencies depend on the length: the cache then keeps keys unrotated.
        `memory` gives the keys and values in place of x (cross-attention); `bias` adds to the scores by distance.
        """
        q, k, v = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for projected in self._project(x, memory)
        )
        n_new = q.shape[2]
        if rope is not None:
            q = rotate(q, rope[0][:, :, -n_new:], rope[1][:, :, -n_new:])
        if cache is not None and rotate_cached_keys:
            k, v = cache.append(layer, k, v)
        if rope is not None:
            k = rotate(k, *rope)
        if cache is not None and not rotate_cached_keys:
            k, v = cache.append(layer, k, v)
        if isinstance(mask, Documents) and self.attend is not attend_fused:
            mask = mask.mask(x.device)
        dropout = self.dropout if self.training else 0.0
        out = self.attend(q, k, v, mask, bias=bias, dropout=dropout, **self.settings)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, memory: Tensor | None) -> list[Tensor]:
        if memory is None:
            return joined_linears(x, (self.q_proj, self.k_proj, self.v_proj))
        return [self.q_proj(x), *joined_linears(memory, (self.k_proj, self.v_proj))]
