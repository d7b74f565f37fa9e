"""Multi-head, grouped-query and multi-query attention: decoding time and cache over batch sizes.

Claims: Shazeer 2019, "Fast Transformer Decoding": a step of decoding reads all keys and values, so one key/value head makes it
faster the more text and sequences there are; Ainslie et al. 2023: GQA is nearly as fast as MQA. The loss: `gqa-quality`.

Three Llamas with random weights, alike but for their key/value heads, make one token behind a long text for some sequences.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lamoid.inspect.charts import Point, line_chart
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.kv_cache import KVCache
from lamoid.recipes.lab.experiment import (
    Check,
    Experiment,
    Facts,
    Keep,
    Settings,
    Table,
    decide,
    decide_at_most,
    in_percent,
)
from lamoid.recipes.lab.experiment import decide_exactly as exactly
from lamoid.recipes.lab.paired import ratios
from lamoid.recipes.lab.timing import alternate

NAMES = ("MHA", "GQA", "MQA")
LONG = {"layers": 2, "tokens": 1024, "least_s": 0.05}
NEAR = 0.4054651081081644  # ln 1.5


@torch.inference_mode()
def measure(s: Settings, keep: Keep) -> Facts:
    """Seconds of a step and bytes of the cache for each batch size; heads, a quarter of them, and one."""
    heads = dict(zip(NAMES, (s["heads"], s["heads"] // 4, 1), strict=True))
    facts: Facts = {"batches": list(s["batches"]), "heads": heads, "times": [], "bytes": []}
    for batch in s["batches"]:
        steps, caches = dict[str, Callable[[], Tensor]](), dict[str, KVCache]()
        for name, n_kv_heads in heads.items():
            caches[name] = KVCache(s["layers"], capacity=s["tokens"] + 1)
            steps[name] = _step(n_kv_heads, batch, caches[name], s)
        what, timed = f"a step of {batch} sequences", partial(alternate, steps, s["rounds"], s["least_s"])
        facts["times"].append(keep(what, {**s, "batches": batch}, timed))
        facts["bytes"].append({name: cache.n_bytes for name, cache in caches.items()})
    return facts


def _step(n_kv_heads: int, batch: int, cache: KVCache, s: Settings) -> Callable[[], Tensor]:
    width, heads, size = s["heads"] * s["head_dim"], s["heads"], s["head_dim"]
    shape = {"vocab_size": 64, "d_model": width, "n_layers": s["layers"], "n_heads": heads, "n_kv_heads": n_kv_heads}
    model = Llama(LlamaConfig(**shape, head_dim=size, d_ff=2 * width, max_seq_len=s["tokens"] + 1)).initialise(0).eval()
    for layer in range(s["layers"]):
        cache.append(layer, *torch.randn(2, batch, n_kv_heads, s["tokens"], size))

    def step() -> Tensor:
        cache.length = s["tokens"]  # the same token again
        return model.hidden_states(torch.zeros(batch, 1, dtype=torch.long), cache=cache)

    step()
    return step


def judge(facts: Facts) -> list[Check]:
    """At the largest batch; and the bytes of all."""
    times, most = facts["times"][-1], facts["batches"][-1]
    slower, near = ratios(times["MHA"], times["MQA"]), ratios(times["GQA"], times["MQA"])
    per_head = {facts["bytes"][-1][name] / facts["heads"][name] for name in NAMES}
    shares = f"{facts['bytes'][-1]['MHA'] / 1e6:.0f} MB with MHA, {facts['bytes'][-1]['MQA'] / 1e6:.0f} MB with MQA"
    return [
        Check(f"MQA is faster than MHA for {most} sequences", decide(slower, 0.0), f"MHA takes {in_percent(slower)}"),
        Check("GQA takes at most half more than MQA", decide_at_most(near, NEAR), f"GQA takes {in_percent(near)}"),
        Check("the cache is as large as the key/value heads are many", exactly(len(per_head) == 1), shares),
    ]


def tabulate(facts: Facts) -> Table:
    """Medians."""
    rows = []
    for batch, times, n_bytes in zip(facts["batches"], facts["times"], facts["bytes"], strict=True):
        ms = [f"{1e3 * statistics.median(times[name]):.2f}" for name in NAMES]
        rows.append([batch, *ms, *(f"{n_bytes[name] / 1e6:.1f}" for name in NAMES)])
    return Table(
        ["sequences", *(f"{name} (ms a step)" for name in NAMES), *(f"{name} cache (MB)" for name in NAMES)], rows
    )


def draw(facts: Facts) -> list[str]:
    """Time of a step over the batch."""
    curves: dict[str, list[Point]] = {}
    for name in NAMES:
        spans = [sorted(1e3 * t for t in times[name]) for times in facts["times"]]
        curves[name] = [(b, statistics.median(t), t[0], t[-1]) for b, t in zip(facts["batches"], spans, strict=True)]
    return [line_chart("A decoding step", "sequences", "ms (median, least and most)", curves, log_x=True, log_y=True)]


EXPERIMENT = Experiment(
    name="gqa-speed",
    claim="GQA decodes nearly as fast as MQA, and both faster than MHA.",
    question="What do fewer key/value heads change in the time of a decoding step and in the cache?",
    budget="half a minute",
    rule="For most sequences, sides in turn, 95 % intervals of ln(time / time): MHA takes more than MQA, GQA at most 1.5 times "
    "as much as MQA. The bytes of the cache are in proportion to the key/value heads.",
    settings=LONG | {"heads": 8, "head_dim": 64, "batches": (1, 4, 16), "rounds": 9},
    trial={"heads": 4, "head_dim": 4, "tokens": 8, "batches": (1, 2), "rounds": 2, "least_s": 0.0},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
