"""The loop by itself, with a user's own model, batches and objective (F8, F9, F17)."""

import math
import weakref

import pytest
import torch
from torch import nn

from lamoid.errors import DataError, RunError
from lamoid.training.loop import Progress, gradient_norm, train


class Line(nn.Module):
    """y = w x + b, so that every gradient can be worked out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -1.0]))
        self.b = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return x @ self.w + self.b


def squared_error(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).sum(), len(x)


def rows(sizes, poison=()):
    """Batches of the given sizes, repeated; the positions in `poison` have infinite targets."""

    def batches(position):
        generator = torch.Generator().manual_seed(position)
        n = sizes[position % len(sizes)]
        x = torch.randn(n, 2, generator=generator)
        y = x @ torch.tensor([2.0, 3.0]) + 1
        return (x, y * math.inf if position in poison else y), position + 1

    return batches


def run(model, batches, steps, **arguments):
    reports = []
    optimizer = arguments.pop("optimizer", None) or torch.optim.AdamW(model.parameters(), lr=0.1)
    progress = Progress(arguments.pop("position", 0))
    outcome = train(
        model,
        batches,
        arguments.pop("objective", squared_error),
        optimizer,
        schedule=lambda step: 0.1,
        max_steps=steps,
        progress=progress,
        after_step=reports.append,
        **arguments,
    )
    return outcome, progress, reports


def test_learns():
    model = Line()
    outcome, progress, reports = run(model, rows([8]), 200)
    assert outcome == "finished" and progress.step == 200 and progress.tokens == 1600 and progress.position == 200
    assert reports[-1].loss < 0.01 * reports[0].loss


def test_micro_batches_of_unequal_size_make_the_update_of_one_batch():
    together, apart = Line(), Line()
    parts = rows([1, 5, 3])

    def whole(position):
        batches = [parts(3 * position + i)[0] for i in range(3)]
        return (torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])), position + 1

    _, _, whole_reports = run(together, whole, 10)
    _, _, part_reports = run(apart, parts, 10, accumulate=3)
    torch.testing.assert_close(apart.w, together.w, rtol=1e-6, atol=1e-6)
    assert [r.tokens for r in part_reports] == [r.tokens for r in whole_reports] == [9] * 10
    for a, b in zip(part_reports, whole_reports, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-6) and a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-5)


def test_a_graph_is_gone_before_the_next_is_made():
    """Also that of a batch without a trained token, through which nothing goes backward."""
    before = []

    def objective(model, batch):
        assert all(loss() is None for loss in before)
        loss, count = squared_error(model, batch)
        before.append(weakref.ref(loss))
        return loss, count if len(before) % 3 else 0

    run(Line(), rows([3]), 3, objective=objective, accumulate=2)
    assert len(before) == 6


def test_step_that_is_not_finite_is_skipped_and_named():
    model = Line()
    before = None

    def remember(position):
        nonlocal before
        if position == 3:
            before = model.w.detach().clone()
        if position == 4:
            assert torch.equal(model.w, before)
        return rows([4], poison={3})(position)

    _, progress, reports = run(model, remember, 6)
    assert [r.step for r in reports if r.skipped] == [4] and "loss is inf" in reports[3].skipped
    assert progress.skipped_steps == 1 and progress.step == 6
    assert torch.isfinite(model.w).all()


def test_infinite_gradient_with_a_finite_loss_is_skipped():
    class Infinite(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            return upstream * math.inf

    def objective(model, batch):
        return Infinite.apply(squared_error(model, batch)[0]), len(batch[0])

    model = Line()
    before = model.w.detach().clone()
    _, _, reports = run(model, rows([4]), 1, objective=objective)
    assert "gradient" in reports[0].skipped and torch.equal(model.w, before)


def test_several_bad_steps_in_a_row_stop_the_run():
    with pytest.raises(RunError, match="3 steps in a row"):
        run(Line(), rows([4], poison=range(2, 99)), 50, max_skipped_in_a_row=3)


def test_batch_without_trained_tokens_is_skipped_and_counted():
    def objective(model, batch):
        loss, count = squared_error(model, batch)
        return (loss * 0, 0) if count == 1 else (loss, count)

    model = Line()
    _, progress, reports = run(model, rows([4, 1]), 4, objective=objective)
    assert [bool(r.skipped) for r in reports] == [False, True, False, True]
    assert progress.skipped_steps == 2 and progress.tokens == 8 and torch.isfinite(model.w).all()
    alone, mixed = Line(), Line()
    run(alone, rows([4]), 1, objective=objective)
    run(mixed, rows([4, 1]), 1, objective=objective, accumulate=2)
    assert torch.equal(alone.w, mixed.w)


def test_data_with_nothing_to_train_is_an_error():
    with pytest.raises(DataError, match="every label is masked"):
        run(Line(), rows([4]), 50, objective=lambda model, batch: (model(batch[0]).sum() * 0, 0))


def test_stop_during_a_step_discards_it():
    model, asked = Line(), []

    def should_stop():
        asked.append(1)
        return len(asked) > 4  # asked before each of two micro-batches and behind the step

    outcome, progress, _ = run(model, rows([4]), 50, accumulate=2, should_stop=should_stop)
    assert outcome == "stopped" and progress.step == 1 and progress.position == 2


def test_after_step_can_end_the_run():
    model, progress = Line(), Progress(0)
    outcome = train(
        model,
        rows([4]),
        squared_error,
        torch.optim.SGD(model.parameters()),
        schedule=lambda step: 0.1,
        max_steps=50,
        progress=progress,
        after_step=lambda report: report.step == 7,
    )
    assert outcome == "stopped" and progress.step == 7


def test_clipping_scales_the_mean_gradient():
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    _, _, reports = run(model, rows([8]), 1, optimizer=optimizer, clip_norm=0.01)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert reports[0].gradient_norm > 1
    assert float(moved.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_gradient_norm_is_the_norm_of_all():
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([1.0, 2.0, 2.0]), torch.full((2, 2), 2.0)
    assert gradient_norm(parameters) == pytest.approx(5.0)
