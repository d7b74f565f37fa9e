"""Who sees whom, and at which position a token stands, in batches with padding and in rows of packed documents."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lamoid.errors import UsageError


def token_positions(
    input_ids: Int[Tensor, "B T"],
    n_cached: int,
    attention_mask: Int[Tensor, "B S"] | None,
    segment_ids: Int[Tensor, "B T"] | None,
) -> Int[Tensor, "#B S"]:
    """The position of every cached and new token: counted without padding, and from 0 in every segment."""
    if attention_mask is None:
        index = torch.arange(n_cached + input_ids.shape[1], device=input_ids.device)[None]
    else:
        index = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
    if segment_ids is None:
        return index
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def causal_mask(
    n_new: int,
    n_cached: int,
    attention_mask: Int[Tensor, "B S"] | None,
    segment_ids: Int[Tensor, "B T"] | None,
) -> Bool[Tensor, "B 1 T S"] | None:
    """Who sees whom in a decoder; None where causality alone decides. A padded query sees itself, so that no row is empty."""
    if attention_mask is None and segment_ids is None:
        return None
    device = (attention_mask if attention_mask is not None else segment_ids).device  # type: ignore[union-attr]
    square = torch.ones(n_new, n_cached + n_new, dtype=torch.bool, device=device)
    mask = square.tril(n_cached)[None, None]
    if segment_ids is not None:
        mask = mask & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    if attention_mask is not None:
        itself = mask & ~square.tril(n_cached - 1)[None, None]
        mask = (mask & attention_mask.bool()[:, None, None, :]) | itself
    return mask


def padding_mask(attention_mask: Int[Tensor, "B S"] | None) -> Bool[Tensor, "B 1 1 S"] | None:
    """Everyone sees every token and no padding. A row of padding alone sees all of it, so that no row is empty."""
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    return (mask | ~mask.any(dim=1, keepdim=True))[:, None, None, :]


def check_covers(
    attention_mask: Int[Tensor, "B S"] | None, segment_ids: Int[Tensor, "B T"] | None, n_cached: int, n_new: int
) -> None:
    """Raise UsageError for a decoder's mask of another length than the tokens', or for packed rows behind a cache."""
    if attention_mask is not None and attention_mask.shape[1] != n_cached + n_new:
        raise UsageError(
            f"attention_mask covers {attention_mask.shape[1]} positions; it must cover {n_cached} cached + {n_new} new"
        )
    if segment_ids is not None and n_cached:
        raise UsageError(f"segment_ids were given with {n_cached} cached positions; pack rows only without a cache")
