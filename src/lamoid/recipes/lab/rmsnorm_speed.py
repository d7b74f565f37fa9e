"""RMSNorm against LayerNorm: time of forward and backward.

Claim: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", abstract: RMSNorm "reduces the running time by 7%–64% on
different models", at equal quality. Their figures are of whole models whose two norms are written in the same way.

Two comparisons are made. Written alike: both out of the same elementary operations of torch, so that RMSNorm is LayerNorm
without its mean and bias. As shipped: those of this library's models, a LayerNorm that is one compiled kernel of PyTorch and an
RMSNorm of several calls. The two norms' share of a Llama block says what a faster norm could save at most.
"""

import math
import statistics
from functools import partial

import torch
from torch import Tensor

from lamoid.inspect.charts import Point, bar_chart
from lamoid.models.variant import Variant, VariantConfig
from lamoid.nn.norms import LayerNorm, RMSNorm
from lamoid.nn.positions import RoPE
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide, in_percent, percent
from lamoid.recipes.lab.paired import effect, ratios
from lamoid.recipes.lab.timing import alternate

KINDS = {"written alike": ("RMSNorm, elementary", "LayerNorm, elementary"), "as shipped": ("RMSNorm", "LayerNorm")}
SAVED = 0.07


def _layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * gain + bias


def _rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain


def measure(s: Settings, keep: Keep) -> Facts:
    """Seconds of each norm over widths and lengths, and of a block with and without its norms' part."""
    shapes = [(length, width) for width in s["widths"] for length in s["lengths"]]
    return {
        **{"shapes": shapes, "widths": s["widths"]},
        "times": [keep(f"norms at {n} x {width}", s, partial(_norms, n, width, s)) for n, width in shapes],
        "blocks": [keep(f"a block of width {width}", s, partial(_block, width, s)) for width in s["widths"]],
    }


def _norms(length: int, width: int, s: Settings) -> dict[str, list[float]]:
    torch.manual_seed(0)
    x, upstream = torch.randn(1, length, width, requires_grad=True), torch.randn(1, length, width)
    ours, theirs = RMSNorm(width), LayerNorm(width)
    sides = {
        "RMSNorm, elementary": lambda: _rms_norm(x, ours.weight).backward(upstream),
        "LayerNorm, elementary": lambda: _layer_norm(x, theirs.weight, theirs.bias).backward(upstream),
        "RMSNorm": lambda: ours(x).backward(upstream),
        "LayerNorm": lambda: theirs(x).backward(upstream),
    }
    return alternate(sides, s["rounds"], s["least_s"])


def _block(width: int, s: Settings) -> dict[str, list[float]]:
    heads = width // 64
    block = Variant(VariantConfig(8, width, 1, heads, heads, 64, width * 8 // 3, 1)).initialise(0).layers[0]
    x, norm = torch.randn(1, s["lengths"][-1], width, requires_grad=True), RMSNorm(width)
    rope = RoPE(64)(torch.arange(x.shape[1])[None])
    whole, norms = (
        lambda: block(x, rope, None, None, None, 0).sum().backward(),
        lambda: norm(norm(x)).sum().backward(),
    )
    return alternate({"block": whole, "two norms": norms}, s["rounds"], s["least_s"])


def judge(facts: Facts) -> list[Check]:
    """For each way of writing them: ln(LayerNorm / RMSNorm), a mean over the shapes, one value a round."""
    checks = []
    for kind, (rms, layer) in KINDS.items():
        by_shape = [[math.log(b / a) for a, b in zip(t[rms], t[layer], strict=True)] for t in facts["times"]]
        more = effect([statistics.fmean(logs) for logs in zip(*by_shape, strict=True)])
        part, numbers = f"RMSNorm saves at least 7 %, {kind}", f"LayerNorm takes {in_percent(more)}"
        checks.append(Check(part, decide(more, -math.log(1 - SAVED)), numbers))
    return checks


def tabulate(facts: Facts) -> Table:
    """Medians for each shape; the last column is what both norms take of a block as shipped, at the longest length."""
    medians = [{name: statistics.median(t) for name, t in times.items()} for times in facts["blocks"]]
    shares = {w: m["two norms"] / m["block"] for w, m in zip(facts["widths"], medians, strict=True)}
    rows = []
    for (length, width), times in zip(facts["shapes"], facts["times"], strict=True):
        microseconds = [f"{1e6 * statistics.median(times[name]):.0f}" for pair in KINDS.values() for name in pair]
        rows.append([f"{length} x {width}", *microseconds, f"{100 * shares[width]:.0f} %"])
    return Table(
        ["length x width", *(f"{n} (µs)" for p in KINDS.values() for n in p), "two norms' share of a block"], rows
    )


def draw(facts: Facts) -> list[str]:
    """For each shape how much more LayerNorm takes, with the interval of its rounds."""
    groups: dict[str, dict[str, Point]] = {}
    for (length, width), times in zip(facts["shapes"], facts["times"], strict=True):
        more = {kind: ratios(times[layer], times[rms]) for kind, (rms, layer) in KINDS.items()}
        groups[f"{length} x {width}"] = {kind: percent(e.mean, e.low, e.high) for kind, e in more.items()}
    return [bar_chart("LayerNorm's time, by length x width", "more than RMSNorm takes (%), 95 % intervals", groups)]


EXPERIMENT = Experiment(
    name="rmsnorm-speed",
    claim="RMSNorm takes at least 7 % less time than LayerNorm.",
    question="How much time does RMSNorm save over widths and lengths, and what part of a whole block is that?",
    budget="half a minute",
    rule="The mean of ln(LayerNorm's time / RMSNorm's) over all shapes, one value a round, sides in turn. A part holds if its "
    "95 % interval lies above a saving of 7 % (LayerNorm takes 7.5 % more), and fails if it lies below.",
    settings={"widths": (256, 512, 1024), "lengths": (64, 512), "rounds": 11, "least_s": 0.02},
    trial={"widths": (64,), "lengths": (8, 16), "rounds": 2, "least_s": 0.0},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
