"""Small decoders trained alike: what experiments that train share.

All of a run follows from plain values: the variant's parts, the budget, the seed. Two experiments that ask for the same run,
such as a baseline, share it, and a report that was stopped goes on with the run that it was at.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.variant import Variant, VariantConfig
from lamoid.nn.positions import RoPE
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, RopeScaling, YarnScaling
from lamoid.recipes.lab.budget import BUDGET, Run, learn, loss, n_tokens
from lamoid.recipes.lab.experiment import Keep, Settings


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


def small_llama(b: Settings, seed: int) -> Llama:
    """A Llama of a budget's size with its first weights, for what a decoder of the laboratory cannot stand in for."""
    width, heads = b["width"], b["heads"]
    sizes = {"n_layers": b["layers"], "n_heads": heads, "n_kv_heads": heads, "head_dim": width // heads}
    rest = {"d_ff": 8 * width // 3, "max_seq_len": b["context"], "tied_embeddings": True, "init_std": b["init_std"]}
    return Llama(LlamaConfig(vocab_size=n_tokens(b), d_model=width, **sizes, **rest)).initialise(seed)


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
