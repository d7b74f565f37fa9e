"""The budget of a small training: its text, its schedule, its batches. What models of the laboratory learn and are judged by."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from lamoid.data.packed import PackedRows
from lamoid.data.sources import find_sources
from lamoid.errors import RunError
from lamoid.inference.score import score
from lamoid.models.decoders import DecoderModel
from lamoid.recipes.lab.experiment import Settings
from lamoid.recipes.prepare import PreparedText, prepare
from lamoid.recipes.recipe import say
from lamoid.training.loop import Batches, Objective, Progress, StepReport, train
from lamoid.training.objectives import next_token
from lamoid.training.optim import cosine, make_optimizer

BUDGET: dict[str, Any] = {
    **{"data": "python-docs", "vocabulary": 300, "tokens": None, "context": 128, "rows": 4, "steps": 800, "warmup": 50},
    **{"rate": 5e-3, "floor": 0.1, "kind": "adamw", "weight_decay": 0.1, "heldout_bytes": 40_000},
    **{"width": 64, "layers": 3, "heads": 4, "init_std": 0.1},
}
"""What a run has unless an experiment says otherwise: 0.17 M parameters, 800 steps of 512 tokens, most of them a byte each.

So small a vocabulary and so short a batch let a model of this size learn in ten seconds what a context is for: with words of a
thousand ids and 400 steps it had learned little but their frequencies, and nothing could be told apart. `tokens` is how many of
the text's are there to be read, again and again; `floor` is the share of the rate that is left at the end, 1 for a constant one.
A budget may also name, in `spelled_as`, another text whose vocabulary is taken.
"""
TRIAL = {
    "vocabulary": 300,
    "context": 16,
    "rows": 2,
    "steps": 3,
    "warmup": 1,
    "width": 16,
    "layers": 2,
    "heldout_bytes": 2000,
}
Run = dict[str, Any]
"""`loss` on held-out text (nats a token), `curve` of (step, training loss), `parameters`, `diverged`, `step_s` of CPU time,
`state_bytes` of the optimizer."""


def _text(b: Settings) -> PreparedText:
    return _prepared(b["data"], b["vocabulary"], b.get("spelled_as", b["data"]))


@functools.cache
def _prepared(data: str, vocabulary: int, spelled_as: str) -> PreparedText:
    known = None if data == spelled_as else _prepared(spelled_as, vocabulary, spelled_as).tokenizer
    sources = find_sources([data])
    return prepare(sources, tokenizer=known, vocab_size=vocabulary, heldout_share=0.05, seed=0, notify=say)


def n_tokens(b: Settings) -> int:
    """Ids of a budget's vocabulary."""
    return _text(b).tokenizer.vocab_size


def learn(
    model: torch.nn.Module,
    b: Settings,
    seed: int,
    then: Callable[[int], None] = lambda step: None,
    batches: Batches | None = None,
    objective: Objective = next_token,
) -> Run:
    """Train a model by a budget; `then(step)` is called behind each step. The result has no `loss` and no `parameters`.

    Without `batches` it reads the budget's text as decoders do.
    """
    optimizer = make_optimizer(model.named_parameters(), kind=b["kind"], weight_decay=b["weight_decay"])
    torch.manual_seed(seed)
    reports, diverged = list[StepReport](), False
    began = time.process_time()

    def after_step(report: StepReport) -> None:
        nonlocal began
        reports.append(report)
        aside = time.process_time()
        then(report.step)
        began += time.process_time() - aside

    if batches is None:
        batches = PackedRows(_text(b).tokens[: b["tokens"]], b["context"], b["rows"], seed)
    rate = cosine(b["rate"], b["warmup"], b["steps"], b["floor"])
    going = {"schedule": rate, "max_steps": b["steps"], "progress": Progress((0, 0)), "after_step": after_step}
    try:
        train(model, batches, objective, optimizer, **going)
    except RunError:
        diverged = True  # several steps in a row were not finite
    every = max(b["steps"] // 50, 1)
    return {
        "diverged": diverged,
        "curve": [(r.step, round(r.loss, 4)) for r in reports if r.step % every == 0 and math.isfinite(r.loss)],
        "step_s": (time.process_time() - began) / len(reports),
        "state_bytes": sum(moment.nbytes for moments in optimizer.state.values() for moment in moments.values()),
    }


def loss(model: DecoderModel, b: Settings, context: int | None = None) -> float:
    """Nats a token of the held-out passages in one row, each token with at least half of the context before it."""
    passages, n_bytes = _text(b).heldout_documents(b["heldout_bytes"])
    found = score(model, [[id for passage in passages for id in passage]], n_bytes, context=context or b["context"])
    assert found is not None
    return found.loss
