"""Small decoders trained alike: what experiments that train share.

All of a run follows from plain values: the variant's parts, the schedule, the seed. Two experiments that ask for the same run,
such as a baseline, share it, and a report that was stopped goes on with the run that it was at.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lamoid.data.packed import PackedRows
from lamoid.data.sources import find_sources
from lamoid.errors import RunError
from lamoid.inference.score import score
from lamoid.models.decoders import DecoderModel
from lamoid.models.variant import Variant, VariantConfig
from lamoid.nn.positions import RoPE
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, RopeScaling, YarnScaling
from lamoid.recipes.lab.experiment import Keep, Settings
from lamoid.recipes.prepare import PreparedText, prepare
from lamoid.recipes.recipe import say
from lamoid.training.loop import Progress, StepReport, train
from lamoid.training.objectives import next_token
from lamoid.training.optim import cosine, make_optimizer

BUDGET = {
    **{"data": "python-docs", "vocabulary": 300, "tokens": None, "context": 128, "rows": 4, "steps": 800, "warmup": 50},
    **{"rate": 5e-3, "floor": 0.1, "kind": "adamw", "weight_decay": 0.1, "heldout_bytes": 40_000},
    **{"width": 64, "layers": 3, "heads": 4, "init_std": 0.1},
}
"""What a run has unless an experiment says otherwise: 0.17 M parameters, 800 steps of 512 tokens, most of them a byte each.

So small a vocabulary and so short a batch let a model of this size learn in ten seconds what a context is for: with words of a
thousand ids and 400 steps it had learned little but their frequencies, and nothing could be told apart. `tokens` is how many of
the text's are there to be read, again and again; `floor` is the share of the rate that is left at the end, 1 for a constant one.
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
"""`loss` on held-out text (nats a token), `curve` of (step, training loss), `parameters`, `diverged`, `step_s` of CPU time."""


def trained(
    keep: Keep,
    settings: Settings,
    changes: Mapping[str, Any],
    seed: int,
    lengths: Sequence[int] = (),
    steps: Sequence[int] = (),
) -> Run:
    """One run, kept. `changes` are fields of the variant or of BUDGET; evaluated at the end, in other `lengths`, at `steps`."""
    budget = {key: changes.get(key, settings[key]) for key in BUDGET}
    parts = {key: value for key, value in changes.items() if key not in BUDGET}
    run = {"budget": budget, "parts": parts, "seed": seed, "lengths": list(lengths), "at": list(steps)}
    said = ", ".join(f"{key} {value}" for key, value in changes.items())
    return keep(f"train: {said}, seed {seed}", run, partial(_train, budget, parts, seed, lengths, steps))


@functools.cache
def _text(data: str, vocabulary: int) -> PreparedText:
    return prepare(find_sources([data]), tokenizer=None, vocab_size=vocabulary, heldout_share=0.05, seed=0, notify=say)


def _train(
    b: Mapping[str, Any], parts: Mapping[str, Any], seed: int, lengths: Sequence[int], steps: Sequence[int]
) -> Run:
    width, heads = b["width"], b["heads"]
    sizes = {"n_heads": heads, "n_kv_heads": heads, "head_dim": width // heads, "d_ff": 8 * width // 3} | dict(parts)
    rest = {"n_layers": b["layers"], "max_seq_len": b["context"], "tied_embeddings": True, "init_std": b["init_std"]}
    model = Variant(VariantConfig(n_tokens(b), width, **rest, **sizes)).initialise(seed)
    at_step = dict[str, float]()
    run = learn(model, b, seed, lambda step: at_step.update({f"{step}": loss(model, b)}) if step in steps else None)
    lost = run["diverged"]
    return run | {
        "loss": math.log(n_tokens(b)) if lost else loss(model, b),
        "at_length": {} if lost else {name: v for n in lengths for name, v in _at_length(model, n, b).items()},
        "at_step": at_step,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def n_tokens(b: Settings) -> int:
    """Ids of a budget's vocabulary."""
    return _text(b["data"], b["vocabulary"]).tokenizer.vocab_size


def learn(model: DecoderModel, b: Settings, seed: int, then: Callable[[int], None] = lambda step: None) -> Run:
    """Train a model by a budget; `then(step)` is called behind each step. The result has `diverged`, `curve` and `step_s`."""
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

    rows = PackedRows(_text(b["data"], b["vocabulary"]).tokens[: b["tokens"]], b["context"], b["rows"], seed)
    rate = cosine(b["rate"], b["warmup"], b["steps"], b["floor"])
    going = {"schedule": rate, "max_steps": b["steps"], "progress": Progress((0, 0)), "after_step": after_step}
    try:
        train(model, rows, next_token, optimizer, **going)
    except RunError:
        diverged = True  # several steps in a row were not finite
    every = max(b["steps"] // 50, 1)
    return {
        "diverged": diverged,
        "curve": [(r.step, round(r.loss, 4)) for r in reports if r.step % every == 0 and math.isfinite(r.loss)],
        "step_s": (time.process_time() - began) / len(reports),
    }


def loss(model: DecoderModel, b: Settings, context: int | None = None) -> float:
    """Nats a token of the held-out passages in one row, each token with at least half of the context before it."""
    passages, n_bytes = _text(b["data"], b["vocabulary"]).heldout_documents(b["heldout_bytes"])
    found = score(model, [[id for passage in passages for id in passage]], n_bytes, context=context or b["context"])
    assert found is not None
    return found.loss


def _at_length(model: Variant, length: int, b: Mapping[str, Any]) -> dict[str, float]:
    """ "length" -> loss; with RoPE also "length, scaling". Learned positions end where training did."""
    if model.config.positions == "learned" and length > b["context"]:
        return {}
    found = {f"{length}": loss(model, b, length)}
    if model.rope is not None and length > b["context"]:
        plain, factor = model.rope, length / b["context"]
        dynamic, yarn = DynamicNTKScaling(1.0, b["context"]), YarnScaling(factor, b["context"])
        scalings: dict[str, RopeScaling] = {"linear": LinearScaling(factor), "dynamic": dynamic, "yarn": yarn}
        for name, scaling in scalings.items():
            model.rope = RoPE(plain.head_dim, plain.base, scaling)
            found[f"{length}, {name}"] = loss(model, b, length)
        model.rope = plain
    return found
