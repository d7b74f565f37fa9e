"""How far two tokens are apart: Shaw's vectors, T5's bias, ALiBi. All of them know the distance alone, key − query.

T5's bias and ALiBi are modules from distances (T, S) to terms (H, T, S) that attention adds to its scores; they can be
asked for any tile of the T × S square, which is how `flash.py` uses them.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

ScoreBias = Callable[[Tensor], Tensor]
"""From distances (T, S) to terms (H, T, S) of the scores."""


def distances(
    n_queries: int, n_keys: int, device: torch.device | str | None = None, *, causal: bool = True
) -> Int[Tensor, "T S"]:
    """Key position minus query position; causal: the last query stands at the last key, else the first at the first."""
    offset = n_keys - n_queries if causal else 0
    keys, queries = torch.arange(n_keys, device=device), torch.arange(n_queries, device=device) + offset
    return keys[None, :] - queries[:, None]


class ALiBi(nn.Module):
    """−m_h · |key − query|, with a slope m_h for each head that is set and not learned.

    The slopes are 2^(−8h/H) for h = 1 … H where H is a power of two. Otherwise those of the power below are taken, and
    then every other one of the power above. Source: Press et al. 2022, "Train Short, Test Long", section 3 and its code.
    """

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def slopes(self) -> list[float]:
        """m_h of each head."""
        below = 2 ** int(math.log2(self.n_heads))
        return (_geometric(below) + _geometric(2 * below)[::2])[: self.n_heads]

    def forward(self, distances: Int[Tensor, "T S"]) -> Float[Tensor, "H T S"]:
        slopes = torch.tensor(self.slopes(), device=distances.device)
        return -slopes[:, None, None] * distances.abs()


def _geometric(n: int) -> list[float]:
    return [2.0 ** (-8 * (i + 1) / n) for i in range(n)]


class T5Bias(nn.Module):
    """A learned term for each head and bucket of distances, shared by all layers.

    The nearer half of the buckets holds one distance each; the further ones grow logarithmically up to `max_distance`,
    and the last holds all beyond. Bidirectional models use half of the buckets for keys behind the query.
    Source: Raffel et al. 2020 (T5), section 2.1, and its code.
    """

    def __init__(self, n_heads: int, n_buckets: int = 32, max_distance: int = 128, *, bidirectional: bool = False):
        super().__init__()
        self.n_buckets, self.max_distance, self.bidirectional = n_buckets, max_distance, bidirectional
        self.weight = nn.Parameter(torch.zeros(n_buckets, n_heads))

    def buckets(self, distances: Int[Tensor, "T S"]) -> Int[Tensor, "T S"]:
        """The bucket of each distance."""
        if self.bidirectional:
            n_buckets = self.n_buckets // 2
            start, away = n_buckets * (distances > 0), distances.abs()
        else:
            n_buckets = self.n_buckets
            start, away = torch.zeros_like(distances), (-distances).clamp_min(0)
        n_single = n_buckets // 2
        growth = (away.clamp_min(1).float() / n_single).log() / math.log(self.max_distance / n_single)
        far = n_single + (growth * (n_buckets - n_single)).long()
        return start + torch.where(away < n_single, away, far.clamp_max(n_buckets - 1))

    def forward(self, distances: Int[Tensor, "T S"]) -> Float[Tensor, "H T S"]:
        return self.weight[self.buckets(distances)].permute(2, 0, 1)


class ShawPositions(nn.Module):
    """A learned vector for each distance, clipped to ±k, added to the keys and another one to the values, for all heads alike:

        scoreᵢⱼ = qᵢ · (kⱼ + a^K_{clip(j − i)}) / √E        zᵢ = Σⱼ weightᵢⱼ (vⱼ + a^V_{clip(j − i)})

    Neither sum is made key by key: q meets each of the 2k + 1 vectors once, and weights of one clipped distance are
    added up before they meet its vector. Source: Shaw et al. 2018, section 3.
    """

    def __init__(self, head_dim: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.keys = nn.Parameter(torch.zeros(2 * max_distance + 1, head_dim))
        self.values = nn.Parameter(torch.zeros(2 * max_distance + 1, head_dim))

    def scores(self, q: Float[Tensor, "B H T E"], distances: Int[Tensor, "T S"]) -> Float[Tensor, "B H T S"]:
        """qᵢ · a^K, before the scores are scaled."""
        rows = self._rows(distances)
        return (q @ self.keys.T).gather(-1, rows.expand(*q.shape[:2], *rows.shape))

    def summed_values(
        self, weights: Float[Tensor, "B H T S"], distances: Int[Tensor, "T S"]
    ) -> Float[Tensor, "B H T E"]:
        """Σⱼ weightᵢⱼ a^V."""
        rows = self._rows(distances).expand_as(weights)
        by_distance = weights.new_zeros(*weights.shape[:3], len(self.values)).scatter_add(-1, rows, weights)
        return by_distance @ self.values

    def _rows(self, distances: Int[Tensor, "T S"]) -> Int[Tensor, "T S"]:
        return distances.clamp(-self.max_distance, self.max_distance) + self.max_distance
