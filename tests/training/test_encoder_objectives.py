"""The losses of encoders against those of transformers' heads, and that accumulation changes nothing."""

import copy
from functools import partial

import pytest
import torch
import transformers
from torch import nn

from lamoid.checkpoints.hf import read_model
from lamoid.data.padded import EncoderBatch
from lamoid.nn.losses import IGNORED
from lamoid.training.encoder_objectives import class_loss, head_logits, masked_tokens, on_labels, span_loss
from lamoid.training.loop import Progress, train

CONFIG = transformers.BertConfig(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=20,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=5,
)
SPAN_CONFIG = copy.deepcopy(CONFIG)
SPAN_CONFIG.num_labels = 2


class Twins:
    """A random model of transformers, and ours with its weights."""

    def __init__(self, kind: type, folder) -> None:
        self.theirs = kind(SPAN_CONFIG if kind is transformers.BertForQuestionAnswering else CONFIG).train()
        self.theirs.save_pretrained(folder)
        self.ours = read_model(folder).train()


@pytest.fixture
def twins(tmp_path):
    return lambda kind: Twins(kind, tmp_path / kind.__name__)


def batch_of(rows=6, tokens=13, *, equal=False, seed=0, **labels):
    """Random rows, padded unequally; 3 masked in each, or 1 to 4."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 61, (rows, tokens), generator=g)
    lengths = torch.full((rows,), tokens) if equal else torch.randint(6, tokens + 1, (rows,), generator=g)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    masked = torch.full((rows, tokens), IGNORED)
    for row in range(rows):
        n = 3 if equal else int(torch.randint(1, 5, (), generator=g))
        places = torch.randperm(int(lengths[row]), generator=g)[:n]
        masked[row, places] = ids[row, places]
    segments = (torch.arange(tokens) >= 5).long().expand(rows, -1) * mask
    return EncoderBatch(ids * mask, mask, segments, labels.get("labels", masked), labels.get("next_sentence"))


def inputs(batch):
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "token_type_ids": batch.segment_ids}


def split(batch, sizes):
    parts = [None if part is None else part.split(sizes) for part in vars(batch).values()]
    return [EncoderBatch(*(None if p is None else p[i] for p in parts)) for i in range(len(sizes))]


def test_the_mlm_loss_is_that_of_transformers(twins):
    model, batch = twins(transformers.BertForMaskedLM), batch_of()
    loss, n = masked_tokens(model.ours, batch)
    assert n == (batch.labels != IGNORED).sum()
    torch.testing.assert_close(loss / n, model.theirs(**inputs(batch), labels=batch.labels).loss)


def test_logits_are_made_at_masked_positions_alone(twins):
    model, batch = twins(transformers.BertForPreTraining), batch_of(next_sentence=torch.tensor([0, 1, 1, 0, 1, 0]))
    rows_of_logits = []
    model.ours.head.mlm.decoder.register_forward_hook(lambda module, args, out: rows_of_logits.append(len(out)))
    _, n = masked_tokens(model.ours, batch)
    assert rows_of_logits == [n]
    assert n < batch.input_ids.numel() / 3


def test_mlm_and_nsp_together_are_berts_loss_on_equal_rows(twins):
    """mean MLM + mean NSP, as transformers adds them; gradients too."""
    answers = torch.tensor([0, 1, 1, 0, 1, 1])
    model, batch = twins(transformers.BertForPreTraining), batch_of(equal=True, next_sentence=answers)
    loss, n = masked_tokens(model.ours, batch)
    (loss / n).backward()
    expected = model.theirs(**inputs(batch), labels=batch.labels, next_sentence_label=answers).loss
    expected.backward()
    torch.testing.assert_close(loss / n, expected)
    bert, heads = model.theirs.bert, model.theirs.cls
    for ours, theirs in (
        (model.ours.encoder.embedding, bert.embeddings.word_embeddings),
        (model.ours.encoder.segment_embedding, bert.embeddings.token_type_embeddings),
        (model.ours.encoder.layers[0].feed_forward_norm, bert.encoder.layer[0].output.LayerNorm),
        (model.ours.head.nsp.pooler.dense, bert.pooler.dense),
        (model.ours.head.nsp.linear, heads.seq_relationship),
        (model.ours.head.mlm.dense, heads.predictions.transform.dense),
    ):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-6, rtol=1e-4)


def test_rows_weigh_by_their_masked_tokens_in_nsp(twins):
    answers = torch.tensor([0, 1, 1, 0, 1, 1])
    model, batch = twins(transformers.BertForPreTraining), batch_of(next_sentence=answers)
    loss, n = masked_tokens(model.ours, batch)
    out = model.theirs(**inputs(batch))
    per_row = nn.functional.cross_entropy(out.seq_relationship_logits, answers, reduction="none")
    mlm = nn.functional.cross_entropy(out.prediction_logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    weights = (batch.labels != IGNORED).sum(1) / n
    assert len(set(weights.tolist())) > 2 and abs(weights.sum() - 1) < 1e-6
    torch.testing.assert_close(loss / n, mlm + (weights * per_row).sum())


def step_gradients(model, objective, batches):
    """The gradients of one step of the loop over these micro-batches."""
    seen = {}

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            seen.update({name: p.grad.clone() for name, p in model.named_parameters()})

    progress = Progress(0)
    options = {"schedule": lambda step: 0.0, "max_steps": 1, "progress": progress, "clip_norm": None}
    optimizer = Keep(model.parameters(), lr=0.0)
    train(model, lambda i: (batches[i], i + 1), objective, optimizer, accumulate=len(batches), **options)
    return seen


@pytest.mark.parametrize("sizes", [[1, 5], [3, 3], [2, 1, 3], [1] * 6])
def test_accumulation_over_unequal_micro_batches_is_one_batch(twins, sizes):
    spans = torch.tensor([[1, 2], [0, 0], [3, 3]] * 2)
    weighted = on_labels(partial(class_loss, weights=torch.arange(1.0, 6)))
    cases = [
        (transformers.BertForPreTraining, masked_tokens, {"next_sentence": torch.tensor([0, 1, 1, 0, 1, 1])}),
        (transformers.BertForSequenceClassification, weighted, class_labels()),
        (transformers.BertForQuestionAnswering, on_labels(span_loss), {"labels": spans}),
    ]
    for kind, objective, labels in cases:
        model, batch = twins(kind).ours, batch_of(**labels)
        whole, parts = (step_gradients(model, objective, batches) for batches in ([batch], split(batch, sizes)))
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


def class_labels():
    return {"labels": torch.tensor([[0], [4], [2], [1], [3], [4]])}


def test_the_class_loss_is_that_of_transformers(twins):
    model, batch = twins(transformers.BertForSequenceClassification), batch_of(**class_labels())
    loss, n = on_labels(class_loss)(model.ours, batch)
    assert n == 6
    expected = model.theirs(**inputs(batch), labels=batch.labels[:, 0]).loss
    torch.testing.assert_close(loss / n, expected)


def test_class_weights_are_torchs(twins):
    model, batch = twins(transformers.BertForSequenceClassification), batch_of(**class_labels())
    weights = torch.tensor([0.5, 2.0, 1.0, 1.5, 0.25])
    loss, _ = on_labels(partial(class_loss, weights=weights))(model.ours, batch)
    logits = model.theirs(**inputs(batch)).logits.float()
    expected = nn.functional.cross_entropy(logits, batch.labels[:, 0], weights, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_the_token_loss_is_that_of_transformers(twins):
    tags = batch_of().labels.where(batch_of().labels == IGNORED, batch_of().labels % 5)
    model, batch = twins(transformers.BertForTokenClassification), batch_of(labels=tags)
    loss, n = on_labels(class_loss)(model.ours, batch)
    torch.testing.assert_close(loss / n, model.theirs(**inputs(batch), labels=tags).loss)


def test_the_span_loss_is_that_of_transformers(twins):
    places = torch.tensor([[1, 2], [0, 0], [3, 5], [2, 2], [4, 5], [0, 1]])
    model, batch = twins(transformers.BertForQuestionAnswering), batch_of(equal=True, labels=places)
    loss, n = on_labels(span_loss)(model.ours, batch)
    expected = model.theirs(**inputs(batch), start_positions=places[:, 0], end_positions=places[:, 1]).loss
    torch.testing.assert_close(loss / n, expected)


def test_an_answer_cannot_lie_in_padding(twins):
    model, batch = twins(transformers.BertForQuestionAnswering), batch_of(labels=torch.zeros(6, 2, dtype=torch.long))
    logits = head_logits(model.ours, batch)
    assert (logits[batch.attention_mask == 0] == -torch.inf).all()
    assert logits[batch.attention_mask == 1].isfinite().all()
    assert on_labels(span_loss)(model.ours, batch)[0].isfinite()


def test_a_batch_without_a_masked_token_trains_nothing(twins):
    batch = batch_of(labels=torch.full((6, 13), IGNORED))
    loss, n = masked_tokens(twins(transformers.BertForMaskedLM).ours, batch)
    assert (loss.item(), n) == (0.0, 0)
