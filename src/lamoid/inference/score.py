"""How well a model predicts a text: every token scored once, each with as much context as the window leaves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lamoid.errors import DataError, UsageError
from lamoid.models.decoders import DecoderModel
from lamoid.nn.losses import IGNORED, chunked_cross_entropy

BATCH_TOKENS = 4096
Window = tuple[list[int], list[int]]
"""Input ids and labels of one window; labels that another window scores are IGNORED."""


@dataclass(frozen=True)
class Score:
    """Sum of −log p over `tokens` tokens in nats, and the UTF-8 bytes that they stand for."""

    nats: float
    tokens: int
    n_bytes: int

    @property
    def loss(self) -> float:
        """Mean −log p of a token, in nats."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nats / (bytes · ln 2): comparable between tokenizers."""
        return self.nats / (self.n_bytes * math.log(2))


@torch.inference_mode()
def score(
    model: DecoderModel,
    documents: Sequence[Sequence[int]],
    n_bytes: int,
    *,
    context: int,
    stride: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_tokens: Callable[[int], object] = lambda n: None,
) -> Score | None:
    """Score every id of every document but its first, which has nothing before it (a begin-of-text token).

    A document longer than `context` is read in windows that begin `stride` tokens apart (half the context, unless
    given); a token is scored in the first window that reaches it, so it has at least context − stride tokens before
    it, or all there are. Returns None when `should_stop()` said so.
    """
    stride = stride if stride is not None else max(context // 2, 1)
    if not 1 <= stride <= context:
        raise UsageError(f"stride is {stride}; it must be from 1 to the context of {context}")
    windows = [window for ids in documents for window in _windows(ids, context, stride)]
    if not windows:
        raise DataError("the text is too short to score; it needs at least one token behind the first")
    was_training = model.training
    model.eval()
    nats, tokens = 0.0, 0
    for group in _groups(windows):
        if should_stop():
            break
        longest = max(len(ids) for ids, _ in group)
        input_ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in group])
        labels = torch.tensor([row + [IGNORED] * (longest - len(row)) for _, row in group])
        device = model.embedding.weight.device
        hidden = model.hidden_states(input_ids.to(device))  # padding stands behind every token that is scored
        nats += float(chunked_cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, labels.flatten().to(device)))
        n_scored = int((labels != IGNORED).sum())
        tokens += n_scored
        on_tokens(n_scored)
    model.train(was_training)
    return None if should_stop() else Score(nats, tokens, n_bytes)


def _windows(ids: Sequence[int], context: int, stride: int) -> list[Window]:
    windows, scored = [], 0
    last = len(ids) - 1
    start = 0
    while scored < last:
        end = min(start + context, last)
        labels = [IGNORED] * (scored - start) + list(ids[scored + 1 : end + 1])
        windows.append((list(ids[start:end]), labels))
        scored, start = end, start + stride
    return windows


def _groups(windows: list[Window]) -> list[list[Window]]:
    """Windows of like length together, at most BATCH_TOKENS tokens at once."""
    groups: list[list[Window]] = []
    for window in sorted(windows, key=lambda w: len(w[0])):
        if groups and (len(groups[-1]) + 1) * len(window[0]) <= BATCH_TOKENS:
            groups[-1].append(window)
        else:
            groups.append([window])
    return groups
