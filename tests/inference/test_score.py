"""Scores against a token-by-token recomputation in the plainest way, and against transformers' loss."""

import math

import pytest
import torch
import transformers

from lamoid.checkpoints.hf import write_model
from lamoid.errors import DataError, UsageError
from lamoid.inference.score import Score, score
from lamoid.models.llama import Llama, LlamaConfig

VOCAB_SIZE, CONTEXT = 40, 16


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(VOCAB_SIZE, 24, 2, 3, 1, 8, 40, max_seq_len=CONTEXT, init_std=0.4)
    return Llama(config).initialise(1)


def documents(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]


def plainly(model, ids, context, stride):
    """−log p of each id but the first: from the first window, of those that begin every `stride`, that reaches it."""
    total = 0.0
    for target in range(1, len(ids)):
        begin = next(b for b in range(0, len(ids), stride) if b + context >= target)
        with torch.no_grad():
            logits = model(torch.tensor([ids[begin:target]]))[0, -1]
        total -= float(logits.double().log_softmax(dim=-1)[ids[target]])
    return total


@pytest.mark.parametrize("length", [2, 3, CONTEXT, CONTEXT + 1, CONTEXT + 2, 33, 50])
@pytest.mark.parametrize("stride", [1, 5, 8, 15, 16, None])
def test_a_score_equals_a_plain_recomputation(model, length, stride):
    (ids,) = documents(length)
    result = score(model, [ids], length, context=CONTEXT, stride=stride)
    assert result.tokens == length - 1
    assert result.nats == pytest.approx(plainly(model, ids, CONTEXT, stride or CONTEXT // 2), rel=1e-5)


def test_documents_are_scored_apart(model):
    texts = documents(5, 40, 1, 0, 17, 2, 30)
    result = score(model, texts, 77, context=CONTEXT, stride=7)
    assert result.tokens == sum(max(len(ids) - 1, 0) for ids in texts)
    assert result.nats == pytest.approx(sum(plainly(model, ids, CONTEXT, 7) for ids in texts), rel=1e-5)
    again = score(model, texts[::-1], 77, context=CONTEXT, stride=7)
    assert again.nats == pytest.approx(result.nats, rel=1e-6)


def test_groups_of_windows_change_nothing(model, monkeypatch):
    texts = documents(*range(2, 40))
    whole = score(model, texts, 1, context=CONTEXT)
    monkeypatch.setattr("lamoid.inference.score.BATCH_TOKENS", 1)
    single = score(model, texts, 1, context=CONTEXT)
    assert single.tokens == whole.tokens
    assert single.nats == pytest.approx(whole.nats, rel=1e-6)


def test_the_loss_equals_transformers(model, tmp_path):
    write_model(tmp_path, model, None)
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    (ids,) = documents(CONTEXT)
    row = torch.tensor([ids])
    with torch.no_grad():
        expected = float(twin(row, labels=row).loss)
    assert score(model, [ids], 1, context=CONTEXT).loss == pytest.approx(expected, rel=1e-5)


def test_more_context_is_used_where_the_stride_is_small(model):
    """With a stride of 1 every token but the first ones sees a full window: other numbers than with no overlap."""
    (ids,) = documents(60)
    assert score(model, [ids], 1, context=CONTEXT, stride=1).nats != pytest.approx(
        score(model, [ids], 1, context=CONTEXT, stride=CONTEXT).nats, rel=1e-3
    )


def test_figures_by_hand():
    result = Score(nats=20.0, tokens=8, n_bytes=10)
    assert result.loss == 2.5
    assert result.perplexity == pytest.approx(math.e**2.5)
    assert result.bits_per_byte == pytest.approx(20 / 0.6931471805599453 / 10)
    assert Score(1e6, 1, 1).perplexity == math.inf


def test_a_uniform_model_needs_log2_of_the_vocabulary_bits(model):
    flat = Llama(model.config)
    with torch.no_grad():
        for parameter in flat.parameters():
            parameter.zero_()
    result = score(flat, documents(30), 29, context=CONTEXT)  # a byte a token
    assert result.bits_per_byte == pytest.approx(math.log2(VOCAB_SIZE), rel=1e-6)


@pytest.mark.parametrize("stride", [0, -1, CONTEXT + 1])
def test_a_stride_out_of_range_is_refused(model, stride):
    with pytest.raises(UsageError, match=rf"stride is {stride}; it must be from 1 to the context of 16"):
        score(model, documents(5), 1, context=CONTEXT, stride=stride)


@pytest.mark.parametrize("lengths", [(), (1,), (0, 1, 1)])
def test_too_little_to_score_is_refused(model, lengths):
    with pytest.raises(DataError, match="too short to score"):
        score(model, documents(*lengths), 1, context=CONTEXT)


def test_it_stops_when_told_to_and_leaves_the_mode_as_it_was(model):
    model.train()
    assert score(model, documents(40), 1, context=CONTEXT, should_stop=lambda: True) is None
    assert model.training
    score(model, documents(40), 1, context=CONTEXT)
    assert model.training
    model.eval()
    score(model, documents(40), 1, context=CONTEXT)
    assert not model.training


def test_progress_counts_every_token(model):
    seen = []
    score(model, documents(40, 7, 2), 1, context=CONTEXT, on_tokens=seen.append)
    assert sum(seen) == 39 + 6 + 1
