"""Next-token prediction: against transformers' loss; packed and separate conversations train alike (faults F9, F17)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from lamoid.checkpoints.hf import write_model
from lamoid.data.conversations import Conversation
from lamoid.data.instruct import Example
from lamoid.data.packed import Batch
from lamoid.data.packing import PackedConversations
from lamoid.data.pairs import EncodedPair, PairRows
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.nn.losses import IGNORED
from lamoid.training.loop import Progress, train
from lamoid.training.objectives import next_token, target_tokens

CONFIG = LlamaConfig(
    61, d_model=24, n_layers=2, n_heads=3, n_kv_heads=1, head_dim=10, d_ff=32, max_seq_len=64, init_std=0.3
)


def a_model(**changes: object) -> Llama:
    return Llama(replace(CONFIG, **changes)).double().initialise(0)


def some_examples(n: int = 11) -> list[Example]:
    generator = np.random.default_rng(3)
    lengths = generator.integers(2, 14, n)
    examples = [
        Example(generator.integers(0, 61, k).astype(np.int32), generator.random(k) < 0.5, Conversation((), "text", "a"))
        for k in lengths
    ]
    for example in examples:
        example.trained[0] = False
    examples[4].trained[:] = False  # a conversation whose labels are all masked (F9)
    return examples


def alone(model: Llama, example: Example) -> tuple[torch.Tensor, int]:
    """The loss of one example by itself, with torch's cross-entropy on all logits."""
    ids = torch.from_numpy(example.ids.astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(example.trained), ids[0], IGNORED)[1:]
    loss = torch.nn.functional.cross_entropy(model(ids)[0, :-1], labels, ignore_index=IGNORED, reduction="sum")
    return loss, int((labels != IGNORED).sum())


def gradients(model: Llama, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("row_tokens", [14, 20, 31, 200])
@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": True}, {"n_heads": 2, "n_kv_heads": 2}], ids=str)
def test_packed_and_separate_conversations_train_alike(row_tokens: int, changes: dict[str, object]) -> None:
    model, examples = a_model(**changes), some_examples()
    packing = PackedConversations(examples, row_tokens, 100, 0)
    packing.batch_rows = packing.rows_per_epoch
    batch, position = packing((0, 0))
    assert position == (1, 0) and batch.input_ids.shape[0] < len(examples)
    loss, n_trained = next_token(model, batch)
    each = [alone(model, example) for example in examples]
    expected = torch.stack([loss for loss, _ in each]).sum()
    assert n_trained == sum(n for _, n in each) == sum(int(e.trained.sum()) for e in examples)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_without_segments_it_would_differ() -> None:
    """What the test above can see: attention that reaches into the neighbour changes the loss."""
    model = a_model()
    batch, _ = PackedConversations(some_examples(), 200, 1, 0)((0, 0))
    mixed = Batch(batch.input_ids, batch.labels)
    assert abs(float(next_token(model, batch)[0].detach() - next_token(model, mixed)[0].detach())) > 0.1


def test_loss_is_that_of_transformers(tmp_path) -> None:
    """Its labels are not shifted: it shifts them itself."""
    model = Llama(CONFIG).initialise(1)
    write_model(tmp_path, model, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for example in some_examples():
        if not example.trained.any():
            continue
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        labels = torch.where(torch.from_numpy(example.trained)[None], ids, IGNORED)
        batch, _ = PackedConversations([example], len(example), 1, 0)((0, 0))
        loss, n_trained = next_token(model, batch)
        torch.testing.assert_close(loss / n_trained, theirs(ids, labels=labels).loss, rtol=1e-5, atol=1e-6)


def test_rows_without_segments_are_plain_rows() -> None:
    """Pretraining's path: one causal attention, every position trained."""
    model = Llama(CONFIG).initialise(1)
    ids = torch.randint(0, 61, (3, 12))
    loss, n_trained = next_token(model, Batch(ids[:, :-1], ids[:, 1:]))
    logits = model(ids[:, :-1]).flatten(0, 1)
    assert n_trained == 33
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_accumulated_micro_batches_with_unequal_numbers_of_trained_tokens_are_one_batch() -> None:
    """F17, with rows of conversations: eight rows at once, and one by one."""
    weights = []
    for batch_rows, accumulate in ((8, 1), (1, 8), (2, 4)):
        model = a_model()
        packing = PackedConversations(some_examples(40), 20, batch_rows, 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = dict(schedule=lambda step: 0.1, max_steps=3, progress=Progress((0, 0)), accumulate=accumulate)
        assert train(model, packing, next_token, optimizer, **settings) == "finished"
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-10, atol=1e-12)


def test_a_targets_loss_is_torchs_row_by_row():
    """Padding changes nothing: the batch's loss is the sum over its rows alone, smoothed as torch smooths."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(37, 24, 2, 3, 40, dropout=0.0)).double().initialise(0)
    generator = np.random.default_rng(0)
    lengths = [(5, 9), (1, 1), (8, 3), (2, 0)]
    pairs = [
        EncodedPair(generator.integers(3, 37, s).tolist(), generator.integers(3, 37, t).tolist()) for s, t in lengths
    ]
    batch = next(iter(PairRows(pairs, 4, 0, 1, 2, 0).in_order()))
    for smoothing in (0.0, 0.1, 0.3):
        model.zero_grad()
        loss, n = target_tokens(smoothing)(model, batch)
        loss.backward()
        ours = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        expected = torch.zeros((), dtype=torch.float64)
        for pair in pairs:
            logits = model(torch.tensor([pair.source]), torch.tensor([[1, *pair.target]]))[0]
            labels = torch.tensor([*pair.target, 2])
            expected = expected + nn.functional.cross_entropy(
                logits, labels, label_smoothing=smoothing, reduction="sum"
            )
        expected.backward()
        assert n == sum(t + 1 for _, t in lengths)
        torch.testing.assert_close(loss, expected)
        for gradient, parameter in zip(ours, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


def test_micro_batches_of_pairs_make_the_update_of_one_batch():
    generator = np.random.default_rng(1)
    pairs = [
        EncodedPair(generator.integers(3, 37, s).tolist(), generator.integers(3, 37, 9 - s).tolist())
        for s in range(1, 8)
    ]
    models = []
    for rows in (7, 2):
        model = Transformer(TransformerConfig(37, 24, 1, 3, 40, dropout=0.0)).double().initialise(0)
        batches = list(PairRows(pairs, rows, 0, 1, 2, 0).in_order())
        options = {"schedule": lambda step: 0.1, "max_steps": 1, "progress": Progress(0), "accumulate": len(batches)}
        optimizer = torch.optim.SGD(model.parameters())
        train(model, lambda i, own=batches: (own[i], i + 1), target_tokens(0.1), optimizer, **options)
        models.append(model)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)
