"""Embeddings for new tokens: each begins as the mean of the old pieces that it stands for.

    E[new] = (1/n) Σᵢ E[pieceᵢ], and the same for the rows of an output matrix of its own

Of all rows of its size this is the nearest to what the model saw so far where the new token now stands.
Source: Gee et al. 2022 (fast vocabulary transfer), section 3.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lamoid.errors import UsageError
from lamoid.models.llama import Llama


@torch.no_grad()
def grow_embeddings(model: Llama, pieces: Sequence[Sequence[int]], first_id: int) -> Llama:
    """A copy of the model with a row for each new id: `first_id`, `first_id` + 1, …, from the ids of its old pieces.

    `first_id` is the size of the old tokenizer. Where the model has more rows than that, padding that no token used, the
    new ones take their place first. Raises UsageError for pieces that are no old ids, or none.
    """
    n_old = model.config.vocab_size
    if not 0 < first_id <= n_old:
        raise UsageError(f"the new ids begin at {first_id}; the model has {n_old} rows, so it must be 1 to {n_old}")
    for index, ids in enumerate(pieces, first_id):
        if not ids or not all(0 <= i < first_id for i in ids):
            raise UsageError(f"the new token {index} is made of {list(ids)}; it must be old ids, 0 to {first_id - 1}")
    grown = copy.deepcopy(model)
    grown.config = replace(model.config, vocab_size=max(n_old, first_id + len(pieces)))
    for table in (grown.embedding, grown.lm_head):
        table.weight = nn.Parameter(_with_means(table.weight, pieces, first_id))
    grown.embedding.num_embeddings = grown.lm_head.out_features = grown.config.vocab_size
    grown.tie_weights()
    return grown


def _with_means(
    rows: Float[Tensor, "V D"], pieces: Sequence[Sequence[int]], first_id: int
) -> Float[Tensor, "V_grown D"]:
    means = [rows[list(ids)].float().mean(dim=0).to(rows.dtype) for ids in pieces]
    kept = rows[first_id + len(pieces) :]
    return torch.cat([rows[:first_id], torch.stack(means), kept]) if means else rows.clone()
