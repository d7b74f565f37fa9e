"""FlashAttention: softmax(q kᵀ / √E + bias) v in tiles, without ever holding the T × S scores.

Forward, for a tile of queries: walk over the tiles of keys and keep, for each query, the largest score so far m, the sum
l of exp(score − m), and the output o so far; where m grows, l and o shrink by exp(m_old − m_new). Kept for the backward
pass are q, k, v, the output and L = m + log l, all linear in T.

Backward, tile by tile again, with the scores computed anew:

    P = exp(S − L)    dV += Pᵀ dO    dP = dO Vᵀ    dS = P ∘ (dP − rowsum(dO ∘ O))    dQ += dS K / √E    dK += dSᵀ Q / √E

Source: Dao et al. 2022, algorithms 1, 2 and 4; one pair of loops over queries, then keys, as in Dao 2023. There a tile
fits a GPU's on-chip memory; here it fits the processor's cache, and the point is the memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lamoid.nn.relative_positions import ScoreBias

TILE = 256


def attend_tiled(
    q: Float[Tensor, "B H T E"],
    k: Float[Tensor, "B K S E"],
    v: Float[Tensor, "B K S E"],
    mask: Bool[Tensor, "#B 1 #T S"] | None,
    *,
    causal: bool = True,
    bias: ScoreBias | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    tile: int = TILE,
) -> Float[Tensor, "B H T E"]:
    """What `attention.attend_explicitly` computes, in memory linear in T. Arguments as there.

    A bias is asked for the distances of one tile at a time; where it is a module, its parameters get their gradients.
    Dropped weights are drawn again in the backward pass, from a seed that is drawn from torch's generator.
    """
    n_queries, n_keys, group = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    problem = _Problem(
        n_queries=n_queries,
        n_keys=n_keys,
        offset=n_keys - n_queries if causal else 0,
        causal=causal and mask is None,
        mask=None if mask is None else mask[:, :, None],
        bias=bias,
        scale=1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        dropout=dropout,
        seed=int(torch.randint(2**48, ())) if dropout else 0,
        tile=tile,
    )
    parameters = tuple(bias.parameters()) if isinstance(bias, nn.Module) else ()
    grouped = q.unflatten(1, (-1, group))
    return _FlashAttention.apply(grouped, k[:, :, None], v[:, :, None], problem, *parameters).flatten(1, 2)


@dataclass(frozen=True)
class _Problem:
    """All that is no tensor of its own in a call. `offset` is the position of the first query among the keys."""

    n_queries: int
    n_keys: int
    offset: int
    causal: bool
    mask: Tensor | None
    bias: ScoreBias | None
    scale: float
    dropout: float
    seed: int
    tile: int

    def query_tiles(self) -> Iterator[slice]:
        return (slice(i, min(i + self.tile, self.n_queries)) for i in range(0, self.n_queries, self.tile))

    def key_tiles(self, rows: slice) -> Iterator[slice]:
        """The tiles of keys that some query of these rows may see."""
        end = min(rows.stop + self.offset, self.n_keys) if self.causal else self.n_keys
        return (slice(i, min(i + self.tile, end)) for i in range(0, end, self.tile))

    def distances(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        queries = torch.arange(rows.start, rows.stop, device=device) + self.offset
        return torch.arange(columns.start, columns.stop, device=device)[None, :] - queries[:, None]

    def scores(self, q: Tensor, k: Tensor, rows: slice, columns: slice, bias: Tensor | None) -> Tensor:
        """The tile of S, (B, K, H/K, t, s), at least in fp32; −∞ where a key is hidden."""
        scores = (q @ k.transpose(-2, -1)).to(_wide(q)) * self.scale
        if bias is not None:
            scores = scores + bias.unflatten(0, scores.shape[1:3])
        if self.mask is not None:
            its_rows = rows if self.mask.shape[3] > 1 else slice(None)
            scores = scores.masked_fill(~self.mask[:, :, :, its_rows, columns], -math.inf)
        elif self.causal and columns.stop - 1 > rows.start + self.offset:
            scores = scores.masked_fill(self.distances(rows, columns, q.device) > 0, -math.inf)
        return scores

    def bias_of(self, rows: slice, columns: slice, device: torch.device) -> Tensor | None:
        return None if self.bias is None else self.bias(self.distances(rows, columns, device))

    def kept(self, weights: Tensor, rows: slice, columns: slice) -> Tensor | None:
        """1 / (1 − p) for weights that stay and 0 for those that are dropped, the same at each call."""
        if not self.dropout:
            return None
        generator = torch.Generator(weights.device).manual_seed(self.seed + rows.start * self.n_keys + columns.start)
        drawn = torch.rand(weights.shape, generator=generator, device=weights.device)
        return (drawn >= self.dropout).to(weights.dtype) / (1 - self.dropout)


class _FlashAttention(torch.autograd.Function):
    """q is (B, K, H/K, T, E), k and v are (B, K, 1, S, E): products broadcast over the group."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: _Problem, *parameters: Tensor) -> Tensor:
        out, log_sums = torch.empty_like(q), q.new_empty(*q.shape[:-1], 1, dtype=_wide(q))
        for rows in problem.query_tiles():
            q_tile = q[..., rows, :]
            top = log_sums.new_full((*q_tile.shape[:-1], 1), -math.inf)
            total, summed = torch.zeros_like(top), torch.zeros_like(q_tile, dtype=top.dtype)
            for columns in problem.key_tiles(rows):
                bias = problem.bias_of(rows, columns, q.device)
                scores = problem.scores(q_tile, k[..., columns, :], rows, columns, bias)
                new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
                finite_top = new_top.masked_fill(new_top == -math.inf, 0)  # no key of this query was visible yet
                weights, shrink = (scores - finite_top).exp_(), (top - finite_top).exp_()
                total = total * shrink + weights.sum(-1, keepdim=True)
                kept = problem.kept(weights, rows, columns)
                weights = weights if kept is None else weights * kept
                summed = summed * shrink + (weights.to(v.dtype) @ v[..., columns, :])
                top = new_top
            out[..., rows, :] = (summed / total).to(q.dtype)
            log_sums[..., rows, :] = top + total.log()
        ctx.problem, ctx.parameters = problem, parameters
        ctx.save_for_backward(q, k, v, out, log_sums)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v, out, log_sums), problem, d_out = ctx.saved_tensors, ctx.problem, upstream[0]
        dq, dk, dv = (torch.zeros_like(x, dtype=log_sums.dtype) for x in (q, k, v))
        learned = [p for p, needed in zip(ctx.parameters, ctx.needs_input_grad[4:], strict=True) if needed]
        gradients = [torch.zeros_like(p) for p in learned]
        for rows in problem.query_tiles():
            q_tile, d_tile = q[..., rows, :], d_out[..., rows, :]
            along = (d_tile * out[..., rows, :]).to(dq.dtype).sum(-1, keepdim=True)
            for columns in problem.key_tiles(rows):
                k_tile, v_tile = k[..., columns, :], v[..., columns, :]
                with torch.set_grad_enabled(bool(learned)):
                    bias = problem.bias_of(rows, columns, q.device)
                plain_bias = None if bias is None else bias.detach()
                scores = problem.scores(q_tile, k_tile, rows, columns, plain_bias)
                weights = (scores - log_sums[..., rows, :]).exp_()
                d_weights = (d_tile @ v_tile.transpose(-2, -1)).to(dq.dtype)
                kept = problem.kept(weights, rows, columns)
                used = weights if kept is None else weights * kept
                d_weights = d_weights if kept is None else d_weights * kept
                dv[..., columns, :] += (used.transpose(-2, -1).to(v.dtype) @ d_tile).sum(2, keepdim=True)
                d_scores = weights.mul_(d_weights - along)
                if learned and bias is not None:
                    d_bias = d_scores.sum(0).flatten(0, 1).to(bias.dtype)
                    for total, part in zip(gradients, torch.autograd.grad(bias, learned, d_bias), strict=True):
                        total += part
                d_scores = (d_scores * problem.scale).to(q.dtype)
                dq[..., rows, :] += d_scores @ k_tile
                dk[..., columns, :] += (d_scores.transpose(-2, -1) @ q_tile).sum(2, keepdim=True)
        of_parameters = iter(gradients)
        rest = [next(of_parameters) if needed else None for needed in ctx.needs_input_grad[4:]]
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, *rest


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
