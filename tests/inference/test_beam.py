"""Greedy and beam search against a walk through every target that there is."""

import itertools
from typing import Any

import pytest
import torch
from tests.models.twins import scatter
from torch import Tensor

from lamoid.errors import UsageError
from lamoid.inference.beam import _Search, translate
from lamoid.models.transformer import Transformer, TransformerConfig

V, END = 5, 2


def a_model(seed: int, n_vocab: int = V) -> Transformer:
    torch.manual_seed(seed)
    return scatter(Transformer(TransformerConfig(n_vocab, 12, 2, 3, 20, max_seq_len=64)))


@torch.no_grad()
def log_p(model: Transformer, source: Tensor, target: list[int]) -> float:
    """Σ log p of a target, its end included if it has one, without a cache."""
    logits = model(source[None], torch.tensor([[model.config.bos_id, *target[:-1]]]))[0]
    return float(logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)].sum())


def best_of_all(model: Transformer, source: Tensor, limit: int, penalty: float) -> list[int]:
    others = [i for i in range(V) if i != END]
    targets = [[*t, END] for n in range(limit) for t in itertools.product(others, repeat=n)]
    return max(targets, key=lambda t: log_p(model, source, t) / ((5 + len(t)) / 6) ** penalty)[:-1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_target(seed: int, penalty: float) -> None:
    model, source = a_model(seed), torch.randint(V, (1, 4))
    found = translate(model, source, n_beams=300, max_new_tokens=4, length_penalty=penalty)[0]
    assert found.ended and found.ids == best_of_all(model, source[0], 4, penalty)
    assert found.log_probability == pytest.approx(log_p(model, source[0], [*found.ids, END]), abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_one_beam_takes_the_most_likely_token_each_time(seed: int) -> None:
    model, source = a_model(seed, 11), torch.randint(11, (1, 6))
    expected: list[int] = []
    with torch.no_grad():
        while len(expected) < 12 and (not expected or expected[-1] != END):
            logits = model(source, torch.tensor([[1, *expected]]))[0, -1]
            expected.append(int(logits.argmax()))
    found = translate(model, source, max_new_tokens=12)[0]
    assert found.ids == [i for i in expected if i != END] and found.ended == (END in expected)


@pytest.mark.parametrize("n_beams", [1, 4])
def test_a_batch_gives_what_each_source_gives_alone(n_beams: int) -> None:
    model = a_model(3, 11)
    sources = [torch.randint(11, (n,)) for n in (3, 8, 5, 1)]
    ids, mask = torch.zeros(4, 8, dtype=torch.int64), torch.zeros(4, 8, dtype=torch.int64)
    for row, source in enumerate(sources):
        ids[row, : len(source)], mask[row, : len(source)] = source, 1
    settings: dict[str, Any] = dict(n_beams=n_beams, max_new_tokens=15)
    together = translate(model, ids, mask, **settings)
    for source, found in zip(sources, together, strict=True):
        alone = translate(model, source[None], **settings)[0]
        assert found.ids == alone.ids and found.log_probability == pytest.approx(alone.log_probability, abs=1e-3)


@torch.no_grad()
def plain_beam(model: Transformer, source: Tensor, width: int, limit: int, penalty: float) -> list[int]:
    """Without batches, cache or early stop: every beam is extended by every token, to the very end."""
    beams: list[list[int]] = [[]]
    done: list[tuple[float, list[int]]] = []
    for length in range(1, limit + 1):
        longer = [([*beam, token], log_p(model, source, [*beam, token])) for beam in beams for token in range(V)]
        longer.sort(key=lambda pair: -pair[1])
        beams = []
        for target, total in longer:
            if len(beams) == width:
                break
            if target[-1] == END:
                done.append((total / ((5 + length) / 6) ** penalty, target[:-1]))
            else:
                beams.append(target)
    return max(done)[1] if done else beams[0]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("penalty", [0.6, 3.0])
def test_a_narrow_beam_is_the_plain_search(seed: int, width: int, penalty: float) -> None:
    model, source = a_model(seed), torch.randint(V, (1, 6))
    with torch.no_grad():
        for parameter in model.decoder_layers[-1].feed_forward_norm.parameters():
            parameter.mul_(0.2)  # flatter, so that targets end and beams differ
    found = translate(model, source, n_beams=width, max_new_tokens=8, length_penalty=penalty)[0]
    assert found.ids == plain_beam(model, source[0], width, 8, penalty)


def test_the_default_length_is_that_of_the_paper() -> None:
    model, source = a_model(0, 11), torch.randint(11, (1, 6))
    with torch.no_grad():
        model.lm_head.weight[END] = 0
        model.decoder_layers[-1].feed_forward_norm.bias.copy_(model.lm_head.weight[4] * 100)  # it never ends
    found = translate(model, source)[0]
    assert not found.ended and len(found.ids) == 56


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(n_beams=0), "n_beams is 0"),
        (dict(length_penalty=-1.0), "length_penalty -1"),
        (dict(max_new_tokens=0), "is 0"),
    ],
)
def test_values_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        translate(a_model(0), torch.zeros(1, 3, dtype=torch.int64), **settings)


def test_the_beam_stays_full_where_some_targets_end():
    """Of three likely tokens the first is the end: both others go on, and the end competes with what they become."""
    search = _Search(2, 10, 0.6, 0)
    assert search.advance(torch.tensor([[0.5, 0.3, 0.2]]).log()) == [0, 0]
    assert search.beams == [[1], [2]] and not search.finished
