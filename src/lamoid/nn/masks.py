"""Who sees whom, and at which position a token stands, in batches with padding and in rows of packed documents."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lamoid.errors import UsageError


@dataclass(frozen=True)
class Documents:
    """Rows of `row_length` tokens that are packed with documents, each of which sees nothing but itself.

    `lengths` are those of all documents, row after row. Attention can take each by itself, for the sum of their squares instead
    of the squares of the rows; `mask` says the same as a mask.
    """

    lengths: tuple[int, ...]
    row_length: int

    def mask(self, device: torch.device) -> Bool[Tensor, "B 1 T T"]:
        """Who sees whom: what is not behind it in the same document."""
        number = torch.repeat_interleave(torch.tensor(self.lengths, device=device)).view(-1, self.row_length)
        same = number[:, None, :, None] == number[:, None, None, :]
        return same & torch.ones(self.row_length, self.row_length, dtype=torch.bool, device=device).tril()


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
    return index - torch.where(_begins(segment_ids), index, 0).cummax(dim=1).values


def _begins(segment_ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Where a document begins: at the beginning of a row, and where the number changes."""
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return begins


def causal_mask(
    n_new: int,
    n_cached: int,
    attention_mask: Int[Tensor, "B S"] | None,
    segment_ids: Int[Tensor, "B T"] | None,
) -> Bool[Tensor, "B 1 T S"] | Documents | None:
    """Who sees whom in a decoder; None where causality alone decides. A padded query sees itself, so that no row is empty."""
    documents = None if segment_ids is None or segment_ids.numel() == 0 else _documents(segment_ids)
    if attention_mask is None:
        return documents
    square = torch.ones(n_new, n_cached + n_new, dtype=torch.bool, device=attention_mask.device)
    mask = square.tril(n_cached)[None, None] if documents is None else documents.mask(attention_mask.device)
    itself = mask & ~square.tril(n_cached - 1)[None, None]
    return (mask & attention_mask.bool()[:, None, None, :]) | itself


def _documents(segment_ids: Int[Tensor, "B T"]) -> Documents:
    begins = _begins(segment_ids).flatten().nonzero().flatten()
    ends = torch.cat([begins[1:], begins.new_tensor([segment_ids.numel()])])
    return Documents(tuple((ends - begins).tolist()), segment_ids.shape[1])


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
