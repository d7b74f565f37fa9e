"""The only training loop.

One step: gradients of the summed loss over some micro-batches, divided by the number of trained tokens, clipped, applied.
Everything else (evaluation, saving, printing, the method that made the model) is passed in. From your own Python:

    progress = Progress(position=(0, 0))
    train(model, batches, objective, optimizer, schedule=lambda step: 1e-3, max_steps=100, progress=progress)

with `batches(position) -> (batch, next position)` and `objective(model, batch) -> (loss sum, trained tokens)`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lamoid.errors import DataError, RunError

Batches = Callable[[Any], tuple[Any, Any]]
Objective = Callable[[Any, Any], tuple[Tensor, int]]
Outcome = Literal["finished", "stopped"]


@dataclass
class Progress:
    """How far a run is. Plain values: written as JSON, they are all that the loop needs to go on."""

    position: Any
    step: int = 0
    tokens: int = 0
    skipped_steps: int = 0


@dataclass(frozen=True)
class StepReport:
    """One step in numbers: mean loss in nats per trained token, norm of the mean gradient before clipping, rate, seconds.

    `skipped` gives the reason where no update was made: the loss or gradient was not finite, or nothing was trained.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    skipped: str | None = None


def train(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Callable[[int], float],
    max_steps: int,
    progress: Progress,
    accumulate: int = 1,
    clip_norm: float | None = 1.0,
    max_skipped_in_a_row: int = 5,
    after_step: Callable[[StepReport], bool | None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
    sum_up: Callable[[float, int], tuple[float, int]] = lambda loss_sum, n_trained: (loss_sum, n_trained),
) -> Outcome:
    """Train until `max_steps`, or until `should_stop()` or `after_step(report)` says True.

    A stop during a step discards it: `progress` then stands before it, as if it had not begun. A step whose loss or
    gradient is not finite changes nothing but the counters; `max_skipped_in_a_row` of them raise RunError.
    Raises DataError when as many steps in a row have no trained token. Of several processes each gets its part of a batch;
    `sum_up` adds the gradients, the sum of the loss and the trained tokens of all of them.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    skipped_in_a_row = 0
    while progress.step < max_steps:
        began = time.perf_counter()
        model.train()
        position, loss_sum, n_trained = progress.position, 0.0, 0
        optimizer.zero_grad(set_to_none=True)
        for _ in range(accumulate):
            if should_stop():
                return "stopped"
            batch, position = batches(position)
            loss, count = objective(model, batch)
            if count:
                loss.backward()
                loss_sum, n_trained = loss_sum + float(loss.detach()), n_trained + count
            del loss  # and its graph, before the next one is made
        loss_sum, n_trained = sum_up(loss_sum, n_trained)
        rate = schedule(progress.step)
        mean_loss = loss_sum / n_trained if n_trained else math.nan
        norm = gradient_norm(parameters) / max(n_trained, 1)
        reason = _reason_to_skip(n_trained, mean_loss, norm)
        if reason is None:
            scale_gradients(parameters, min(1.0, (clip_norm or math.inf) / (norm + 1e-6)) / n_trained)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            skipped_in_a_row = 0
        else:
            skipped_in_a_row += 1
            progress.skipped_steps += 1
        progress.position, progress.step, progress.tokens = position, progress.step + 1, progress.tokens + n_trained
        seconds = time.perf_counter() - began
        report = StepReport(progress.step, mean_loss, norm, rate, n_trained, seconds, reason)
        enough = after_step(report)
        if skipped_in_a_row >= max_skipped_in_a_row:
            kind = RunError if n_trained else DataError
            raise kind(f"{skipped_in_a_row} steps in a row were skipped, the last ({progress.step}) because {reason}")
        if enough or should_stop():
            return "stopped"
    return "finished"


def _reason_to_skip(n_trained: int, loss: float, norm: float) -> str | None:
    if not n_trained:
        return "no token of its batches is trained: every label is masked"
    if not math.isfinite(loss):
        return f"the loss is {loss}; lower the learning rate, or look at the batch named in metrics.jsonl"
    if not math.isfinite(norm):
        return f"the gradient's norm is {norm}; lower the learning rate, or look at the batch named in metrics.jsonl"
    return None


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """√Σ g² over all gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients])))


@torch.no_grad()
def scale_gradients(parameters: list[nn.Parameter], factor: float) -> None:
    """Multiply every gradient in place."""
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
