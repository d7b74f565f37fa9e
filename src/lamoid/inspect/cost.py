"""What a model costs before it runs: parameters, operations, what attention moves, the KV cache, as a table.

All of it follows from the configuration in closed form; nothing is allocated. `flops.py` counts parameters and operations,
`memory.py` the memory of training.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from lamoid.inspect.anatomy import Anatomy, Heads, anatomy
from lamoid.inspect.flops import Method, Work, count_pairs, count_parameters, forward_flops, training_flops


def kv_cache_bytes(parts: Anatomy, tokens: int, rows: int = 1, bytes_per_value: int = 4) -> int:
    """Keys and values of `tokens` positions in every layer: 2 · layers · K · E values each, of every attention of a decoder."""
    values = 0
    for stack in parts.stacks:
        if stack.side == "target":
            own = [part.heads for part in stack.sublayers if part.heads is not None and not part.heads.is_cross]
            values += stack.n_layers * sum(2 * heads.n_kv_heads * heads.head_dim for heads in own)
    return values * tokens * rows * bytes_per_value


@dataclass(frozen=True)
class AttentionCost:
    """Operations of one attention layer, and values that pass between memory and the processor."""

    operations: int
    values_moved: int

    @property
    def ratio(self) -> float:
        """Values moved for each operation: above what a machine moves while it computes one, memory is the limit."""
        return self.values_moved / self.operations


def attention_cost(d_model: int, heads: Heads, rows: int, tokens: int, *, cached: bool) -> AttentionCost:
    """A causal attention layer over `tokens` positions of each of b = `rows` rows; n tokens, D = d_model, W = H · E.

    Both ways, every position passes 2 (2 D W + 2 D K E) operations of the projections, and every pair 4 W.
    Not cached, all positions at once: weights move once, scores are written and read, and so is each product's input and
    output; the whole square is computed:

        P + b n (2 D + 4 W + 4 K E) + 2 b H n²,    with P = 2 D W + 2 D K E        ratio ~ 1/E + 1/(b n)

    Cached, position by position: the weights move at every step, and so do the keys and values of all positions so far,
    the K heads of them:

        n P + b n (2 D + 4 W + 2 K E) + b (K E + H) n (n + 1)                      ratio ~ K E n / D² + 1/b

    Multi-query attention (K = 1) and grouped-query attention (1 < K < H) shrink the term that grows with n.
    Source: Shazeer 2019, "Fast Transformer Decoding", sections 2.3 and 3; grouped: Ainslie et al. 2023.
    """
    width, kv_width = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
    weights = 2 * d_model * width + 2 * d_model * kv_width
    n_pairs = rows * count_pairs(tokens, tokens, causal=cached)
    operations = 2 * rows * tokens * weights + 4 * width * n_pairs
    streams = rows * tokens * (2 * d_model + 4 * width + 2 * kv_width)
    if cached:
        return AttentionCost(operations, tokens * weights + streams + 2 * n_pairs * (kv_width + heads.n_heads))
    streams += rows * tokens * 2 * kv_width
    return AttentionCost(operations, weights + streams + 2 * n_pairs * heads.n_heads)


def attention_cases(parts: Anatomy, rows: int, tokens: int) -> dict[str, AttentionCost]:
    """The four cases of the write-ups, for the first decoding attention of a model: without a cache, with one, and with one
    for one key/value head (MQA) and for a group of heads (GQA: the model's own, or a quarter of the heads)."""
    own = next((heads for heads in parts.heads() if heads.causal), parts.heads()[0])
    h, e = own.n_heads, own.head_dim
    grouped = own.n_kv_heads if 1 < own.n_kv_heads < h else next(k for k in range(max(h // 4, 1), h + 1) if h % k == 0)
    cases = {
        "without a cache": (h, False),
        "with a cache": (h, True),
        "MQA, with a cache": (1, True),
        f"GQA with {grouped} key/value heads, with a cache": (grouped, True),
    }
    return {
        name: attention_cost(parts.d_model, Heads(h, k, e, True), rows, tokens, cached=cached)
        for name, (k, cached) in cases.items()
    }


class Row(NamedTuple):
    """A line of the table: part, figure, value, unit."""

    section: str
    name: str
    value: float
    unit: str


def cost_rows(config: Any, *, tokens: int, rows: int = 1, bytes_per_value: int = 4) -> list[Row]:
    """What a model of this configuration costs, as plain rows to print or to write as JSON: parameters and what each method
    trains, operations of a row of `tokens`, attention in four cases, the KV cache.

    For an encoder-decoder, sources and targets have `tokens` each. For `lamoid inspect MODEL --cost`.
    """
    parts = anatomy(config)
    full, table = count_parameters(parts), []
    table.append(Row("parameters", "all", full.total, "parameters"))
    table.append(Row("parameters", "memory of the weights", full.total * bytes_per_value, "bytes"))
    methods = (Method("lora"), Method("qlora"), Method("houlsby"))
    for method in methods:
        n = count_parameters(parts, method)
        size = f"rank {method.rank}" if method.kind != "houlsby" else f"width {method.bottleneck}"
        table.append(Row("parameters", f"trained by {method.kind}, {size}", n.trainable, "parameters"))
    work = Work(rows, tokens, rows * tokens, tokens)
    section = f"operations of {rows} x {tokens} tokens"
    table.append(Row(section, "forward", forward_flops(parts, work), "FLOP"))
    for method in (Method(), *methods):
        table.append(Row(section, f"training, {method.kind}", training_flops(parts, work, method), "FLOP"))
    for name, cost in attention_cases(parts, rows, tokens).items():
        section = f"an attention layer, {name}"
        table.append(Row(section, "operations", cost.operations, "FLOP"))
        table.append(Row(section, "memory traffic", cost.values_moved * bytes_per_value, "bytes"))
        table.append(Row(section, "values moved for each operation", cost.ratio, "values/FLOP"))
    if any(heads.causal for heads in parts.heads()):
        lengths = {"one token": 1, f"{tokens} tokens": tokens, "the whole context": config.max_seq_len}
        for name, length in lengths.items():
            table.append(Row("KV cache", name, kv_cache_bytes(parts, length, rows, bytes_per_value), "bytes"))
    return table
