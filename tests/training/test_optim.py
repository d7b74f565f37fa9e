import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from lamoid.data.packed import Batch
from lamoid.errors import UsageError
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.losses import IGNORED
from lamoid.training.loop import Progress, StepReport, train
from lamoid.training.objectives import next_token
from lamoid.training.optim import Schedule, cosine, inverse_sqrt, make_optimizer, make_schedule, warmup_stable_decay

STEPS, WARMUP, PEAK = 50, 7, 3e-3
CONFIG = LlamaConfig(61, 16, 2, 4, 2, 6, 24, 32, attention_bias=True)


def a_model(**changes: Any) -> Llama:
    return Llama(LlamaConfig(**(CONFIG.__dict__ | changes))).initialise(4)


def some_batches(n: int) -> list[Batch]:
    batches = []
    for step in range(n):
        ids = (torch.randint(0, 61, (3, 1)) + 7 * torch.arange(10)) % 61  # something to learn
        labels = ids.roll(-1, dims=1)
        labels[:, -1] = IGNORED
        labels[0, : step % 5] = IGNORED
        batches.append(Batch(ids, labels))
    return batches


def plain_rate(kind: str, step: int) -> float:
    """The schedules once more, from their formulas."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    if kind == "cosine":
        return PEAK * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))))
    if kind == "inverse-sqrt":
        return PEAK * math.sqrt(WARMUP / (step + 1))
    return PEAK * min(1.0, (STEPS - step) / 10)


def train_plainly(
    model: Llama, batches: list[Batch], kind: str, schedule: str, clip_norm: float | None, accumulate: int
) -> list[float]:
    """The loop as anybody writes it: mean loss of all micro-batches at once, PyTorch's clipping, unfused optimizer."""
    decayed = [p for n, p in model.named_parameters() if not ("norm" in n or n.endswith("bias"))]
    others = [p for n, p in model.named_parameters() if "norm" in n or n.endswith("bias")]
    make = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = make(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-5, fused=False, foreach=False)
    losses = []
    for step in range(STEPS):
        micro = batches[step * accumulate : (step + 1) * accumulate]
        ids, labels = torch.cat([b.input_ids for b in micro]), torch.cat([b.labels for b in micro])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = plain_rate(schedule, step)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("kind", "schedule", "clip_norm", "accumulate", "tied"),
    [
        ("adamw", "cosine", 1.0, 1, False),
        ("adamw", "cosine", 0.3, 1, True),
        ("adamw", "cosine", 0.3, 3, False),
        ("adamw", "inverse-sqrt", None, 1, False),
        ("adamw", "warmup-stable-decay", 1.0, 2, False),
        ("adam-l2", "cosine", 1.0, 1, False),
        ("adam-l2", "inverse-sqrt", 0.3, 2, True),
    ],
)
def test_fifty_steps_equal_a_plain_loop(
    kind: Any, schedule: str, clip_norm: float | None, accumulate: int, tied: bool
) -> None:
    batches = some_batches(STEPS * accumulate)
    ours, theirs = a_model(tied_embeddings=tied), a_model(tied_embeddings=tied)
    start = {name: p.detach().clone() for name, p in ours.named_parameters()}
    reports: list[StepReport] = []
    progress = Progress(position=0)
    outcome = train(
        ours,
        lambda position: (batches[position], position + 1),
        next_token,
        make_optimizer(ours.named_parameters(), kind=kind),
        schedule=make_schedule(schedule, PEAK, WARMUP, STEPS),
        max_steps=STEPS,
        progress=progress,
        accumulate=accumulate,
        clip_norm=clip_norm,
        after_step=reports.append,
    )
    losses = train_plainly(theirs, batches, kind, schedule, clip_norm, accumulate)
    assert outcome == "finished" and progress.step == STEPS and progress.position == STEPS * accumulate
    assert [report.loss for report in reports] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.1
    for name, expected in theirs.named_parameters():
        found = dict(ours.named_parameters())[name]
        if not name.endswith("k_proj.bias"):
            assert (expected - start[name]).abs().max() > 1e-3  # it was trained
        assert (found - expected).abs().max() < 1e-5, name


def test_the_two_decays_differ() -> None:
    batches, models = some_batches(STEPS), {}
    for kind in ("adamw", "adam-l2"):
        models[kind] = a_model()
        train_plainly(models[kind], batches, kind, "cosine", 1.0, 1)
    difference = models["adamw"].embedding.weight - models["adam-l2"].embedding.weight
    assert difference.abs().max() > 1e-3


def test_adamw_decays_beside_the_step_and_adam_l2_inside_the_gradient() -> None:
    """One step with a zero gradient from the first moment on: only the decay moves the weight."""
    for kind, expected in (("adamw", 2.0 * (1 - 0.1 * 0.5)), ("adam-l2", 2.0 - 0.1 * 1.0 / (1.0 + 1e-8))):
        weight = nn.Parameter(torch.full((1, 1), 2.0))
        optimizer = make_optimizer([("w", weight)], kind=kind, weight_decay=0.5, eps=1e-8)  # type: ignore[arg-type]
        weight.grad = torch.zeros(1, 1)
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
        assert weight.item() == pytest.approx(expected, rel=1e-6)


def test_only_matrices_decay_and_the_defaults_are_llama_2s() -> None:
    model = a_model()
    optimizer = make_optimizer(model.named_parameters())
    assert type(optimizer) is torch.optim.AdamW
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay.pop(id(parameter)) == (0.0 if "norm" in name or name.endswith("bias") else 0.1)
    assert not decay
    assert all(group["betas"] == (0.9, 0.95) and group["eps"] == 1e-5 for group in optimizer.param_groups)


def test_what_is_frozen_is_left_out() -> None:
    model = a_model()
    model.requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter is trainable"):
        make_optimizer(model.named_parameters())
    model.norm.weight.requires_grad_(True)
    groups = make_optimizer(model.named_parameters()).param_groups
    assert [len(group["params"]) for group in groups] == [1]


# --- schedules


def rates_of(schedule: Schedule, n: int = STEPS + 10) -> list[float]:
    return [schedule(step) for step in range(n)]


def transformers_rates(make: Callable[..., Any], n: int = STEPS + 10, **arguments: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(n):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("floor", [0.1, 0.0, 0.5])
@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
def test_cosine_equals_transformers(floor: float, warmup_steps: int) -> None:
    make = transformers.get_cosine_with_min_lr_schedule_with_warmup
    theirs = transformers_rates(
        make, n=STEPS + 1, num_warmup_steps=warmup_steps, num_training_steps=STEPS, min_lr_rate=floor
    )
    ours = rates_of(cosine(PEAK, warmup_steps, STEPS, floor), STEPS + 1)
    assert ours[warmup_steps:] == pytest.approx(theirs[warmup_steps:], rel=1e-9, abs=1e-15)
    # theirs wastes its first step on a rate of 0; ours is one step ahead while it warms up
    assert ours[:warmup_steps] == pytest.approx(theirs[1 : warmup_steps + 1])
    assert min(ours) > 0 or floor == 0


@pytest.mark.parametrize("warmup_steps", [1, 7])
def test_inverse_sqrt_equals_transformers(warmup_steps: int) -> None:
    theirs = transformers_rates(transformers.get_inverse_sqrt_schedule, num_warmup_steps=warmup_steps)
    assert rates_of(inverse_sqrt(PEAK, warmup_steps))[:-1] == pytest.approx(theirs[1:], rel=1e-9)


def test_inverse_sqrt_is_that_of_the_transformer() -> None:
    """lr = d^(−1/2) · min(step^(−1/2), step · warmup^(−3/2)) with steps from 1, Vaswani et al. 2017, equation 3."""
    d_model, warmup_steps = 512, 4000
    peak = (d_model * warmup_steps) ** -0.5
    for step in (1, 2, 3999, 4000, 4001, 100_000):
        expected = d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)
        assert inverse_sqrt(peak, warmup_steps)(step - 1) == pytest.approx(expected, rel=1e-9)


def test_warmup_stable_decay() -> None:
    rates = rates_of(warmup_stable_decay(PEAK, 5, 50, decay_share=0.2, floor=0.1))
    assert rates[:5] == pytest.approx([PEAK * (i + 1) / 5 for i in range(5)])
    assert rates[5:41] == pytest.approx([PEAK] * 36)
    assert rates[41:51] == pytest.approx([PEAK * (0.1 + 0.9 * (50 - step) / 10) for step in range(41, 51)])
    assert rates[50:] == pytest.approx([PEAK * 0.1] * 10)


@pytest.mark.parametrize("kind", ["cosine", "inverse-sqrt", "warmup-stable-decay"])
def test_named_schedules_are_their_formulas(kind: str) -> None:
    schedule = make_schedule(kind, PEAK, WARMUP, STEPS)
    assert rates_of(schedule, STEPS) == pytest.approx([plain_rate(kind, step) for step in range(STEPS)], rel=1e-12)
    assert max(rates_of(schedule)) == pytest.approx(PEAK)


def test_cosine_ends_at_ten_percent_and_stays_there() -> None:
    schedule = cosine(PEAK, WARMUP, STEPS)
    assert schedule(WARMUP) == PEAK
    assert [schedule(step) for step in (STEPS, STEPS + 1, 10 * STEPS)] == pytest.approx([0.1 * PEAK] * 3)


def test_llama_2s_schedule() -> None:
    """2,000 steps of warm-up to 3e-4, then a cosine to a tenth (Touvron et al. 2023b, section 2.2)."""
    schedule = make_schedule("cosine", 3e-4, 2000, 500_000)
    assert [schedule(step) for step in (0, 999, 1999, 2000, 251_000, 500_000)] == pytest.approx(
        [1.5e-7, 1.5e-4, 3e-4, 3e-4, 1.65e-4, 3e-5]
    )


@pytest.mark.parametrize("warmup_steps", [0, 50, 80])
@pytest.mark.parametrize("kind", ["cosine", "inverse-sqrt", "warmup-stable-decay"])
def test_any_warmup_gives_finite_rates(kind: str, warmup_steps: int) -> None:
    rates = rates_of(make_schedule(kind, PEAK, warmup_steps, STEPS))
    assert all(0 <= rate <= PEAK for rate in rates) and rates[0] > 0


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(UsageError, match="schedule is 'linear'; known are cosine, inverse-sqrt and warmup-stable"):
        make_schedule("linear", PEAK, WARMUP, STEPS)
