"""The losses of encoders against those of transformers' heads, and that accumulation changes nothing."""

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from lamoid.data.padded import EncoderBatch
from lamoid.nn.losses import IGNORED
from lamoid.training.encoder_objectives import classes, masked_tokens, span_logits, spans
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


class Twin(nn.Module):
    """A model of transformers with the two parts that our objectives use."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        torch.manual_seed(0)
        is_span = kind is transformers.BertForQuestionAnswering
        self.theirs = theirs = kind(SPAN_CONFIG if is_span else CONFIG).double()
        self.rows_of_logits: list[int] = []
        if kind is transformers.BertForPreTraining:
            mlm = theirs.cls.predictions
            mlm.register_forward_hook(lambda module, args, out: self.rows_of_logits.append(len(out)))
            nsp = lambda hidden: theirs.cls.seq_relationship(theirs.bert.pooler(hidden))  # noqa: E731
            self.head = SimpleNamespace(mlm=mlm, nsp=nsp)
        elif kind is transformers.BertForMaskedLM:
            self.head = theirs.cls.predictions
        elif kind is transformers.BertForSequenceClassification:
            self.head = lambda hidden: theirs.classifier(theirs.bert.pooler(hidden))
        elif kind is transformers.BertForTokenClassification:
            self.head = theirs.classifier
        else:
            self.head = theirs.qa_outputs

    def encoder(self, ids, mask, segments):
        return self.theirs.bert(ids, attention_mask=mask, token_type_ids=segments).last_hidden_state


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


def test_the_mlm_loss_is_that_of_transformers():
    model, batch = Twin(transformers.BertForMaskedLM), batch_of()
    loss, n = masked_tokens(model, batch)
    assert n == (batch.labels != IGNORED).sum()
    torch.testing.assert_close(loss / n, model.theirs(**inputs(batch), labels=batch.labels).loss, check_dtype=False)


def test_logits_are_made_at_masked_positions_alone():
    model, batch = Twin(transformers.BertForPreTraining), batch_of(next_sentence=torch.tensor([0, 1, 1, 0, 1, 0]))
    _, n = masked_tokens(model, batch)
    assert model.rows_of_logits == [n]
    assert n < batch.input_ids.numel() / 3


def test_mlm_and_nsp_together_are_berts_loss_on_equal_rows():
    """mean MLM + mean NSP, as transformers adds them; gradients too."""
    answers = torch.tensor([0, 1, 1, 0, 1, 1])
    model, batch = Twin(transformers.BertForPreTraining), batch_of(equal=True, next_sentence=answers)
    loss, n = masked_tokens(model, batch)
    (loss / n).backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected = model.theirs(**inputs(batch), labels=batch.labels, next_sentence_label=answers).loss
    expected.backward()
    torch.testing.assert_close(loss / n, expected, check_dtype=False)
    for grad, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, atol=1e-6, rtol=1e-4)  # losses are in fp32


def test_rows_weigh_by_their_masked_tokens_in_nsp():
    answers = torch.tensor([0, 1, 1, 0, 1, 1])
    model, batch = Twin(transformers.BertForPreTraining), batch_of(next_sentence=answers)
    loss, n = masked_tokens(model, batch)
    out = model.theirs(**inputs(batch))
    per_row = nn.functional.cross_entropy(out.seq_relationship_logits, answers, reduction="none")
    mlm = nn.functional.cross_entropy(out.prediction_logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
    weights = (batch.labels != IGNORED).sum(1) / n
    assert len(set(weights.tolist())) > 2 and abs(weights.sum() - 1) < 1e-6
    torch.testing.assert_close(loss / n, mlm + (weights * per_row).sum(), check_dtype=False)


def step_gradients(model, batches):
    """The gradients of one step of the loop over these micro-batches."""
    seen = {}

    class Keep(torch.optim.SGD):
        def step(self, closure=None):
            seen.update({name: p.grad.clone() for name, p in model.named_parameters()})

    progress = Progress(0)
    options = {"schedule": lambda step: 0.0, "max_steps": 1, "progress": progress, "clip_norm": None}
    optimizer = Keep(model.parameters(), lr=0.0)
    train(model, lambda i: (batches[i], i + 1), model.objective, optimizer, accumulate=len(batches), **options)
    return seen


@pytest.mark.parametrize("sizes", [[1, 5], [3, 3], [2, 1, 3], [1] * 6])
def test_accumulation_over_unequal_micro_batches_is_one_batch(sizes):
    cases = [
        (transformers.BertForPreTraining, masked_tokens, {"next_sentence": torch.tensor([0, 1, 1, 0, 1, 1])}),
        (transformers.BertForSequenceClassification, classes(torch.arange(1.0, 6).double().float()), class_labels()),
        (transformers.BertForQuestionAnswering, spans, {"labels": torch.tensor([[1, 2], [0, 0], [3, 3]] * 2)}),
    ]
    for kind, objective, labels in cases:
        model, batch = Twin(kind), batch_of(**labels)
        model.objective = objective
        whole, parts = step_gradients(model, [batch]), step_gradients(model, split(batch, sizes))
        for name, gradient in whole.items():
            torch.testing.assert_close(parts[name], gradient, atol=1e-6, rtol=1e-4)


def class_labels():
    return {"labels": torch.tensor([[0], [4], [2], [1], [3], [4]])}


def test_the_class_loss_is_that_of_transformers():
    model, batch = Twin(transformers.BertForSequenceClassification), batch_of(**class_labels())
    loss, n = classes()(model, batch)
    assert n == 6
    expected = model.theirs(**inputs(batch), labels=batch.labels[:, 0]).loss
    torch.testing.assert_close(loss / n, expected, check_dtype=False)


def test_class_weights_are_torchs():
    model, batch = Twin(transformers.BertForSequenceClassification), batch_of(**class_labels())
    weights = torch.tensor([0.5, 2.0, 1.0, 1.5, 0.25])
    loss, _ = classes(weights)(model, batch)
    logits = model.theirs(**inputs(batch)).logits.float()
    expected = nn.functional.cross_entropy(logits, batch.labels[:, 0], weights, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_the_token_loss_is_that_of_transformers():
    tags = batch_of().labels.where(batch_of().labels == IGNORED, batch_of().labels % 5)
    model, batch = Twin(transformers.BertForTokenClassification), batch_of(labels=tags)
    loss, n = classes()(model, batch)
    torch.testing.assert_close(loss / n, model.theirs(**inputs(batch), labels=tags).loss, check_dtype=False)


def test_the_span_loss_is_that_of_transformers():
    places = torch.tensor([[1, 2], [0, 0], [3, 5], [2, 2], [4, 5], [0, 1]])
    model, batch = Twin(transformers.BertForQuestionAnswering), batch_of(equal=True, labels=places)
    loss, n = spans(model, batch)
    expected = model.theirs(**inputs(batch), start_positions=places[:, 0], end_positions=places[:, 1]).loss
    torch.testing.assert_close(loss / n, expected, check_dtype=False)


def test_an_answer_cannot_lie_in_padding():
    model, batch = Twin(transformers.BertForQuestionAnswering), batch_of(labels=torch.zeros(6, 2, dtype=torch.long))
    logits = span_logits(model, batch)
    assert (logits[batch.attention_mask == 0] == -torch.inf).all()
    assert logits[batch.attention_mask == 1].isfinite().all()
    assert spans(model, batch)[0].isfinite()


def test_a_batch_without_a_masked_token_trains_nothing():
    batch = batch_of(labels=torch.full((6, 13), IGNORED))
    loss, n = masked_tokens(Twin(transformers.BertForMaskedLM), batch)
    assert (loss.item(), n) == (0.0, 0)
