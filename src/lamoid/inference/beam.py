"""From a source to a target with an encoder-decoder: greedily, or with a beam."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from lamoid.errors import UsageError
from lamoid.models.transformer import Transformer, TransformerCache


@dataclass(frozen=True)
class Hypothesis:
    """A target: its ids without beginning and end, Σ log p of its tokens (its end included), and whether it ended."""

    ids: list[int]
    log_probability: float
    ended: bool


@torch.inference_mode()
def translate(
    model: Transformer,
    source_ids: Int[Tensor, "B S"],
    source_mask: Int[Tensor, "B S"] | None = None,
    *,
    n_beams: int = 1,
    max_new_tokens: int | None = None,
    length_penalty: float = 0.6,
) -> list[Hypothesis]:
    """The best target of each source: the most likely token each time (`n_beams` 1), or a beam search.

    The beam keeps the `n_beams` most likely unfinished targets of a source; finished ones compete by

        Σ log p / ((5 + length) / 6)^α        (Wu et al. 2016, section 7; α is `length_penalty`, length counts the end)

    and a source is done when none that is unfinished can beat `n_beams` finished ones. The Transformer's paper takes 4
    beams, α = 0.6, and at most 50 tokens more than the source has, which is the default here.
    Raises UsageError for a value out of range.
    """
    if n_beams < 1 or length_penalty < 0:
        raise UsageError(
            f"n_beams is {n_beams}, length_penalty {length_penalty}; at least 1 beam, a penalty of 0 or more"
        )
    limit = source_ids.shape[1] + 50 if max_new_tokens is None else max_new_tokens
    limit = min(limit, model.config.max_seq_len - 1)
    if limit < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; at least 1 is needed")
    model.eval()
    searches = [_Search(n_beams, limit, length_penalty, model.config.eos_id) for _ in range(len(source_ids))]
    memory, cache = model.encode(source_ids, source_mask), TransformerCache(model.config.n_layers)
    going, owners = list(range(len(searches))), list(range(len(searches)))  # the search of each row of the batch
    ids = torch.full((len(searches), 1), model.config.bos_id, device=source_ids.device)
    while going:
        hidden = model.decode(ids, memory, source_mask, cache=cache)
        log_p = model.lm_head(hidden[:, -1]).float().log_softmax(dim=-1)
        rows: list[int] = []
        for index in going:
            first = owners.index(index)
            own = log_p[first : first + owners.count(index)]
            rows += [first + row for row in searches[index].advance(own)]
        going = [index for index in going if not searches[index].finished]
        if rows:
            memory, source_mask = memory[rows], None if source_mask is None else source_mask[rows]
            cache.keep_rows(rows)
        owners = [index for index in going for _ in searches[index].beams]
        ids = torch.tensor([[beam[-1]] for index in going for beam in searches[index].beams], device=source_ids.device)
    return [search.best() for search in searches]


class _Search:
    """The beam of one source: unfinished targets in falling order of likelihood, and finished ones."""

    def __init__(self, n_beams: int, limit: int, length_penalty: float, eos_id: int) -> None:
        self._n_beams, self._limit, self._penalty, self._eos = n_beams, limit, length_penalty, eos_id
        self.beams: list[list[int]] = [[]]
        self._sums = torch.zeros(1)
        self._done: list[Hypothesis] = []
        self.finished = False

    def advance(self, log_p: Tensor) -> list[int]:
        """Extend each beam by every token; returns the old row of each beam that goes on, none where the search is over."""
        sums = (self._sums.to(log_p.device)[:, None] + log_p).flatten()
        n_vocab, length = log_p.shape[1], len(self.beams[0]) + 1
        n_candidates = 1 if self._n_beams == 1 else 2 * self._n_beams  # at most half of them end: the beam stays full
        top = sums.topk(min(n_candidates, len(sums)))
        beams: list[list[int]] = []
        rows: list[int] = []
        kept: list[float] = []
        for total, index in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            row, token = divmod(index, n_vocab)
            if token == self._eos:
                if len(beams) < self._n_beams:
                    self._done.append(Hypothesis(self.beams[row], total, True))
            elif len(beams) < self._n_beams:
                beams.append([*self.beams[row], token])
                rows.append(row)
                kept.append(total)
        self.beams, self._sums = beams, torch.tensor(kept)
        self._done = sorted(self._done, key=self._score, reverse=True)[: self._n_beams]
        if length == self._limit:
            cut = [Hypothesis(beam, total, False) for beam, total in zip(beams, kept, strict=True)]
            self._done, self.finished = self._done or cut, True
        else:
            self.finished = not beams or self._cannot_improve(kept[0])
        if self.finished:
            self.beams = []
        return rows if not self.finished else []

    def best(self) -> Hypothesis:
        """The finished target with the best score; where none ended in time, the best that did not."""
        return max(self._done, key=self._score)

    def _cannot_improve(self, largest_sum: float) -> bool:
        """Whether the most likely beam stays behind the worst finished target even if all its later tokens are certain."""
        if len(self._done) < self._n_beams:
            return False
        longest = ((5 + self._limit) / 6) ** self._penalty
        return largest_sum / longest <= self._score(self._done[-1])

    def _score(self, hypothesis: Hypothesis) -> float:
        length = len(hypothesis.ids) + hypothesis.ended
        return hypothesis.log_probability / ((5 + length) / 6) ** self._penalty
