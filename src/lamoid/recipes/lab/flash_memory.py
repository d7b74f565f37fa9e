"""FlashAttention: the same numbers in memory that grows with the length and not with its square.

Claim: Dao et al. 2022, "FlashAttention", theorem 1: exact attention with O(T) memory beyond inputs and output, where the
textbook's way holds T × T scores. The speed that the paper also claims is that of a GPU, whose fast memory a tile fits: on a
processor it is measured here, and no part of the verdict.

Three paths of `nn/attention.py`, forward and backward, causal: explicit (the formula), tiled (`nn/flash.py`: the paper's
algorithm in torch) and fused (PyTorch's kernel). The peak is that of all memory that torch takes meanwhile, as its profiler
sees it: outputs and gradients included, inputs not.
"""

import os
import statistics
from functools import partial

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lamoid.inspect.charts import Point, line_chart
from lamoid.nn.attention import PATHS
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide_exactly
from lamoid.recipes.lab.paired import slope
from lamoid.recipes.lab.timing import alternate

LINEAR, SQUARE, SAME = 1.2, 1.8, 1e-4


def measure(s: Settings, keep: Keep) -> Facts:
    """Peak bytes and seconds of each path at each length; the largest difference from the explicit path at the shortest."""
    outputs = {name: _run(name, *_inputs(s["lengths"][0], s)) for name in PATHS}
    apart = {
        name: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(out, outputs["explicit"], strict=True))
        for name, out in outputs.items()
    }
    facts: Facts = {"lengths": list(s["lengths"]), "apart": apart, "bytes": [], "times": []}
    for length in s["lengths"]:
        inputs = _inputs(length, s)
        facts["bytes"].append({name: _peak_bytes(name, inputs) for name in PATHS})
        sides = {str(name): partial(_run, name, *inputs) for name in PATHS}
        timed = partial(alternate, sides, s["rounds"], s["least_s"])
        facts["times"].append(keep(f"attention over {length}", {**s, "lengths": length}, timed))
    return facts


def _inputs(length: int, s: Settings) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, s["heads"], length, s["head_dim"], requires_grad=True) for _ in range(3)]


def _run(path: str, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    out = PATHS[path](*inputs, None)  # type: ignore[index]
    return [out.detach(), *torch.autograd.grad(out, inputs, torch.ones_like(out))]


def _peak_bytes(path: str, inputs: list[Tensor]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else the profiler talks; torch 2.13 has no function for it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = _run(path, *inputs)
    del kept
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held, peak = 0, 0
    for _, n_bytes in changes:
        held += n_bytes
        peak = max(peak, held)
    return peak


def judge(facts: Facts) -> list[Check]:
    """Exponents of the peaks over the length, and equality."""
    power = {name: slope(facts["lengths"], [peaks[name] for peaks in facts["bytes"]]) for name in PATHS}
    most = max(facts["apart"].values())
    checks = [Check("the same outputs and gradients", decide_exactly(most <= SAME), f"apart by {most:.1e} at most")]
    for name in ("tiled", "fused"):
        part = f"memory of the {name} path is linear"
        checks.append(Check(part, decide_exactly(power[name] <= LINEAR), f"grows as T^{power[name]:.2f}"))
    numbers = f"grows as T^{power['explicit']:.2f}"
    return [*checks, Check("of the explicit path quadratic", decide_exactly(power["explicit"] >= SQUARE), numbers)]


def tabulate(facts: Facts) -> Table:
    """Peaks, and medians of the times."""
    rows = []
    for length, peaks, times in zip(facts["lengths"], facts["bytes"], facts["times"], strict=True):
        megabytes = [f"{peaks[name] / 1e6:.1f}" for name in PATHS]
        rows.append([length, *megabytes, *(f"{1e3 * statistics.median(times[name]):.1f}" for name in PATHS)])
    return Table(["tokens T", *(f"{n} (MB)" for n in PATHS), *(f"{n} (ms)" for n in PATHS)], rows)


def draw(facts: Facts) -> list[str]:
    """Memory and time over the length."""
    memory, time = dict[str, list[Point]](), dict[str, list[Point]]()
    for name in PATHS:
        memory[name] = [(n, peaks[name] / 1e6) for n, peaks in zip(facts["lengths"], facts["bytes"], strict=True)]
        spans = [sorted(1e3 * t for t in times[name]) for times in facts["times"]]
        time[name] = [(n, statistics.median(t), t[0], t[-1]) for n, t in zip(facts["lengths"], spans, strict=True)]
    loglog, across = partial(line_chart, log_x=True, log_y=True), "tokens T"
    return [
        loglog("Peak memory of attention, forward and backward", across, "MB beside the inputs", memory),
        loglog("Time of attention, forward and backward", across, "ms (median, least and most)", time),
    ]


EXPERIMENT = Experiment(
    name="flash-memory",
    claim="FlashAttention computes the same in memory that is linear in the length.",
    question="What do peak memory and time of the three paths do as the text grows?",
    budget="a minute",
    rule=f"Outputs and gradients differ by at most {SAME:g} of the largest. Over the lengths the peak grows at most as "
    f"T^{LINEAR} (tiled, fused), and at least as T^{SQUARE} (explicit). Times are shown without a verdict.",
    settings={"lengths": (512, 1024, 2048, 4096), "heads": 2, "head_dim": 64, "rounds": 5, "least_s": 0.0},
    trial={"lengths": (8, 16), "head_dim": 8, "rounds": 2},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
