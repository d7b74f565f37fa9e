"""A KV cache: the same logits, less time for each token, and the memory that it takes.

Claims: "keys and values of earlier tokens never change", so a step needs the new token's query alone and nothing of the result
changes (Shazeer 2019, "Fast Transformer Decoding", section 2.2; Pope et al. 2022, section 2). Without a cache a token costs a
pass over all tokens before it. The memory is 2 · layers · K · E values a token.

A Llama with random weights reads so many tokens and then makes one: with the cache from that one alone, without it from all.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lamoid.inspect.charts import line_chart
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.kv_cache import KVCache
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide, in_percent
from lamoid.recipes.lab.experiment import decide_exactly as exactly
from lamoid.recipes.lab.paired import ratios
from lamoid.recipes.lab.timing import alternate

SAME = 1e-4
WITH, WITHOUT = "with cache", "without cache"


@torch.inference_mode()
def measure(s: Settings, keep: Keep) -> Facts:
    """The largest difference of logits, and at each length the seconds of a token and the bytes of the cache."""
    c = LlamaConfig(**s["model"], max_seq_len=max(s["lengths"]) + 1)
    model = Llama(c).initialise(0).eval()
    ids = torch.randint(c.vocab_size, (1, max(s["lengths"]) + 1), generator=torch.Generator().manual_seed(0))
    facts: Facts = {"difference": _difference(model, ids[:, : s["compared"]]), "lengths": list(s["lengths"])}
    facts["bytes_per_token"] = 2 * c.n_layers * c.n_kv_heads * c.head_dim * 4
    facts["times"], facts["bytes"] = [], []
    for length in s["lengths"]:
        sides, cache = _sides(model, ids[:, : length + 1])
        facts["bytes"].append(cache.n_bytes)
        timed = partial(alternate, sides, s["rounds"], s["least_s"])
        facts["times"].append(keep(f"a token behind {length}", {**s, "lengths": length}, timed))
    return facts


def _difference(model: Llama, ids: Tensor) -> float:
    """Of logits token by token and all at once, in shares of the largest logit."""
    cache = KVCache(model.config.n_layers)
    steps = torch.cat([model(ids[:, i : i + 1], cache=cache) for i in range(ids.shape[1])], dim=1)
    whole = model(ids)
    return float((steps - whole).abs().max() / whole.abs().max())


def _sides(model: Llama, ids: Tensor) -> tuple[dict[str, Callable[[], Tensor]], KVCache]:
    length = ids.shape[1] - 1
    cache = KVCache(model.config.n_layers, capacity=length + 1)
    model.hidden_states(ids[:, :-1], cache=cache)

    def step() -> Tensor:
        cache.length = length  # the same token again
        return model.lm_head(model.hidden_states(ids[:, -1:], cache=cache)[:, -1])

    return {WITH: step, WITHOUT: lambda: model.lm_head(model.hidden_states(ids)[:, -1])}, cache


def judge(facts: Facts) -> list[Check]:
    """Equality, the formula of the memory, and ratios of times at the shortest and the longest length."""
    expected = [facts["bytes_per_token"] * (length + 1) for length in facts["lengths"]]
    faster = [ratios(times[WITHOUT], times[WITH]) for times in facts["times"]]
    first, last = (
        [a / b for a, b in zip(facts["times"][i][WITHOUT], facts["times"][i][WITH], strict=True)] for i in (0, -1)
    )
    grows, at = ratios(last, first), f"behind {facts['lengths'][-1]:,} tokens"
    return [
        Check("the same logits", exactly(facts["difference"] <= SAME), f"apart by {facts['difference']:.1e} at most"),
        Check("2 · layers · K · E values a token", exactly(facts["bytes"] == expected), f"{expected[0]:,} bytes"),
        Check(f"faster {at}", decide(faster[-1], 0.0), f"without the cache {in_percent(faster[-1])}"),
        Check("the gain grows with length", decide(grows, 0.0), f"{in_percent(grows)} from first to last length"),
    ]


def tabulate(facts: Facts) -> Table:
    """Medians over the rounds."""
    rows = []
    for length, times, n_bytes in zip(facts["lengths"], facts["times"], facts["bytes"], strict=True):
        ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        gain = ms[WITHOUT] / ms[WITH]
        rows.append([length, round(ms[WITH], 2), round(ms[WITHOUT], 2), f"{gain:.1f} x", f"{n_bytes / 1e6:.2f}"])
    return Table(["tokens before", f"{WITH} (ms)", f"{WITHOUT} (ms)", "gain", "cache (MB)"], rows)


def draw(facts: Facts) -> list[str]:
    """Time and memory over the length."""
    curves = {}
    for name in (WITHOUT, WITH):
        spans = [sorted(1e3 * t for t in times[name]) for times in facts["times"]]
        curves[name] = [(n, statistics.median(t), t[0], t[-1]) for n, t in zip(facts["lengths"], spans, strict=True)]
    memory = {"cache": [(n, b / 1e6) for n, b in zip(facts["lengths"], facts["bytes"], strict=True)]}
    across = "tokens before the new one"
    return [
        line_chart("Time of one new token", across, "ms (median, least and most)", curves, log_x=True, log_y=True),
        line_chart("Memory of the cache", across, "MB", memory),
    ]


SHAPE = {"vocab_size": 512, "d_model": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "head_dim": 64, "d_ff": 688}
EXPERIMENT = Experiment(
    name="kv-cache",
    claim="A KV cache changes nothing in the result, and the time that it saves grows with the length.",
    question="Are the logits equal; what do a token's time and the cache's memory do as the text grows?",
    budget="a minute",
    rule=f"Logits differ by at most {SAME:g} of the largest (fp32). The bytes equal the formula. Behind the longest text the "
    "ratio of times, in turn, lies above 1, and above that behind the shortest (95 % intervals of the logarithms).",
    settings={"model": SHAPE, "lengths": (64, 128, 256, 512, 1024, 2048), "compared": 96, "rounds": 9, "least_s": 0.05},
    trial={"model": SHAPE | {"d_model": 32, "d_ff": 48}, "lengths": (4, 9), "compared": 5, "rounds": 2, "least_s": 0.0},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
