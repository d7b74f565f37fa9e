"""Small decoders trained alike: what experiments that train share.

All of a run follows from plain values: the variant's parts, the schedule, the seed. Two experiments that ask for the same run,
such as a baseline, share it, and a report that was stopped goes on with the run that it was at.
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from lamoid.data.packed import PackedRows
from lamoid.data.sources import find_sources
from lamoid.errors import RunError
from lamoid.inference.score import score
from lamoid.models.variant import Variant, VariantConfig
from lamoid.nn.positions import RoPE
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, RopeScaling, YarnScaling
from lamoid.recipes.lab.experiment import Keep, Settings
from lamoid.recipes.prepare import PreparedText, prepare
from lamoid.recipes.progress import progress
from lamoid.recipes.recipe import say
from lamoid.training.loop import Progress, StepReport, train
from lamoid.training.objectives import next_token
from lamoid.training.optim import cosine, make_optimizer

BUDGET = {
    **{"data": "python-docs", "vocabulary": 1024, "context": 128, "rows": 8, "steps": 400, "warmup": 40, "rate": 3e-3},
    **{"width": 96, "layers": 4, "heads": 4, "kind": "adamw", "weight_decay": 0.1, "heldout_bytes": 60_000},
}
"""What a run has unless an experiment says otherwise: 0.6 M parameters, 400 steps of 1,024 tokens."""
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
"""`loss` on held-out text (nats a token), `curve` of (step, training loss), `step_s`, `parameters`, `diverged`."""


def trained(keep: Keep, settings: Settings, changes: Mapping[str, Any], seed: int, lengths: Sequence[int] = ()) -> Run:
    """One run, kept. `changes` are fields of the variant or of BUDGET; `lengths` are contexts to evaluate it in besides."""
    budget = {key: changes.get(key, settings[key]) for key in BUDGET}
    parts = {key: value for key, value in changes.items() if key not in BUDGET}
    run = {"budget": budget, "parts": parts, "seed": seed, "lengths": list(lengths)}
    said = ", ".join(f"{key} {value}" for key, value in changes.items())
    return keep(f"train: {said}, seed {seed}", run, partial(_train, budget, parts, seed, lengths))


@functools.cache
def _text(data: str, vocabulary: int) -> PreparedText:
    return prepare(find_sources([data]), tokenizer=None, vocab_size=vocabulary, heldout_share=0.05, seed=0, notify=say)


def _train(b: Mapping[str, Any], parts: Mapping[str, Any], seed: int, lengths: Sequence[int]) -> Run:
    text = _text(b["data"], b["vocabulary"])
    heads, width = b["heads"], b["width"]
    sizes = {"n_heads": heads, "n_kv_heads": heads, "head_dim": width // heads, "d_ff": 8 * width // 3} | dict(parts)
    rest = {"n_layers": b["layers"], "max_seq_len": b["context"], "tied_embeddings": True}
    model = Variant(VariantConfig(text.tokenizer.vocab_size, width, **rest, **sizes)).initialise(seed)
    optimizer = make_optimizer(model.named_parameters(), kind=b["kind"], weight_decay=b["weight_decay"])
    torch.manual_seed(seed)
    reports, diverged = list[StepReport](), False
    with progress("training", b["steps"], "step") as bar:

        def after_step(report: StepReport) -> None:
            reports.append(report)
            bar.update(1)

        rows, rate = PackedRows(text.tokens, b["context"], b["rows"], seed), cosine(b["rate"], b["warmup"], b["steps"])
        going = {"schedule": rate, "max_steps": b["steps"], "progress": Progress((0, 0)), "after_step": after_step}
        try:
            train(model, rows, next_token, optimizer, **going)
        except RunError:
            diverged = True  # several steps in a row were not finite
    every = max(b["steps"] // 50, 1)
    return {
        "loss": math.log(text.tokenizer.vocab_size) if diverged else _loss(model, b["context"], b),
        "diverged": diverged,
        "at_length": {} if diverged else {name: v for n in lengths for name, v in _at_length(model, n, b).items()},
        "curve": [(r.step, round(r.loss, 4)) for r in reports if r.step % every == 0 and math.isfinite(r.loss)],
        "step_s": statistics.median(report.seconds for report in reports),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _loss(model: Variant, context: int, b: Mapping[str, Any]) -> float:
    """Nats a token of the held-out passages in one row, each token with at least half of the context before it."""
    passages, n_bytes = _text(b["data"], b["vocabulary"]).heldout_documents(b["heldout_bytes"])
    found = score(model, [[id for passage in passages for id in passage]], n_bytes, context=context)
    assert found is not None
    return found.loss


def _at_length(model: Variant, length: int, b: Mapping[str, Any]) -> dict[str, float]:
    """ "length" -> loss; with RoPE also "length, scaling". Learned positions end where training did."""
    if model.config.positions == "learned" and length > b["context"]:
        return {}
    found = {f"{length}": _loss(model, length, b)}
    if model.rope is not None and length > b["context"]:
        plain, factor = model.rope, length / b["context"]
        dynamic, yarn = DynamicNTKScaling(1.0, b["context"]), YarnScaling(factor, b["context"])
        scalings: dict[str, RopeScaling] = {"linear": LinearScaling(factor), "dynamic": dynamic, "yarn": yarn}
        for name, scaling in scalings.items():
            model.rope = RoPE(plain.head_dim, plain.base, scaling)
            found[f"{length}, {name}"] = _loss(model, length, b)
        model.rope = plain
    return found
