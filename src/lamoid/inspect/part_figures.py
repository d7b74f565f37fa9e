"""Pictures of the parts, drawn by running them: RoPE, ALiBi, sinusoidal positions, activations, the KV cache."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lamoid.inspect.charts import line_chart
from lamoid.inspect.svg import Figure, cells, cells_png, legend, svg, text
from lamoid.nn.absolute_positions import SinusoidalPositions
from lamoid.nn.feed_forward import ACTIVATIONS, GATES
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.positions import RoPE, rotate
from lamoid.nn.relative_positions import ALiBi, distances

MIB = 2**20
CIRCLE = 190


def rope_turns(rope: RoPE, query: Float[Tensor, " E"], n_positions: int = 16) -> Figure:
    """Four pairs of a query's features, the fastest to the slowest, at the positions from 0 on, as `rotate` turns them."""
    cos, sin = rope(torch.arange(n_positions)[None])
    turned = rotate(query.float().expand(1, 1, n_positions, -1), cos, sin)[0, 0].unflatten(-1, (2, -1))
    n_pairs = turned.shape[-1]
    pairs = sorted({round(i * (n_pairs - 1) / 3) for i in range(4)})
    size, parts = CIRCLE, []
    for column, pair in enumerate(pairs):
        points = turned[:, :, pair] / query.float().unflatten(0, (2, -1))[:, pair].norm().clamp_min(1e-12)
        degrees = _degrees_per_token(rope, pair)
        middle = (column + 0.5) * size
        parts.append(f'<circle class="rule" cx="{middle}" cy="{size / 2}" r="{size * 0.36}"/>')
        for position, (a, b) in enumerate(points.tolist()):
            x, y = middle + a * size * 0.36, size / 2 - b * size * 0.36
            if position == 0:
                parts.append(f'<path class="curve c0" d="M{middle} {size / 2}L{x:.1f} {y:.1f}"/>')
            opacity = 1 - 0.8 * position / n_positions
            parts.append(f'<circle class="dot c0" cx="{x:.1f}" cy="{y:.1f}" r="4.5" opacity="{opacity:.2f}"/>')
        parts.append(text(middle, size + 8, f"pair {pair}: {degrees:.3g}° a token", "middle"))
        parts.append(text(middle, size + 26, f"a turn in {_tokens(360 / degrees)}", "middle", "soft"))
    caption = (
        f"RoPE turns pair i of a query's or key's features by position × θᵢ. Each dot is the same pair of one query of this "
        f"text at position 0 (with the hand) to {n_positions - 1} (faintest): fast pairs tell neighbours apart, slow ones "
        f"hardly move."
    )
    return Figure("RoPE: pairs of features turn", caption, svg(size * len(pairs), size + 34, *parts))


def _tokens(count: float) -> str:
    return f"{count:,.0f} tokens" if count >= 100 else f"{count:.3g} tokens"


def _degrees_per_token(rope: RoPE, pair: int) -> float:
    """How far a pair turns from one position to the next, read from the cosines and sines themselves."""
    cos, sin = rope(torch.arange(2)[None])
    step = torch.complex(cos, sin)[0, 0, :, pair]
    return abs(float((step[1] / step[0]).angle().rad2deg()))


def rope_decay(rope: RoPE, n_positions: int) -> Figure:
    """How RoPE damps what far tokens can say to each other: two curves over the distance."""
    alike, bound = rope_similarity(rope, n_positions), rope_bound(rope, n_positions)
    series = {
        "a query and a key whose features are all alike: q·k, as a share of that at distance 0": _points(alike),
        "the paper's bound for any query and key: mean of |Sⱼ|, as a share of its largest": _points(bound),
    }
    caption = (
        "Computed with this model's RoPE. The fall is a tendency, not a law: single features can agree at any distance, and a "
        "trained model uses that. Bound: Su et al. 2021, section 3.4.3."
    )
    chart = line_chart("", "distance between query and key (tokens)", "share", series, from_zero=True)
    return Figure("RoPE: the pull of distance", caption, chart)


def rope_similarity(rope: RoPE, n_positions: int) -> Float[Tensor, " S"]:
    """q₀ᵀ k_d of vectors of ones at the distances d = 0 … n − 1, divided by that at 0."""
    cos, sin = rope(torch.arange(n_positions)[None])
    ones = rotate(torch.ones(1, 1, n_positions, rope.head_dim), cos, sin)[0, 0]
    return ones @ ones[0] / (ones[0] @ ones[0])


def rope_bound(rope: RoPE, n_positions: int) -> Float[Tensor, " S"]:
    """mean over j of |S_j| with S_j = Σ_{i<j} e^(√−1 · d · θᵢ), at d = 0 … n − 1, divided by its value at 0."""
    cos, sin = rope(torch.arange(n_positions)[None])
    sums = torch.complex(cos, sin)[0, 0].cumsum(dim=-1).abs().mean(dim=-1)
    return sums / sums[0]


def _points(values: Tensor) -> list[tuple[float, float]]:
    every = -(-len(values) // 700)  # no more points than pixels
    return [(float(x), y) for x, y in enumerate(values.tolist()) if x % every == 0]


def alibi_lines(n_heads: int, n_positions: int = 64) -> Figure:
    """What ALiBi adds to the scores of each head, over the distance."""
    bias = ALiBi(n_heads)(distances(1, n_positions))[:, 0].flip(-1)
    shown = list(range(n_heads)) if n_heads <= 8 else sorted({round(i * (n_heads - 1) / 7) for i in range(8)})
    series = {f"head {h + 1}: −{_slope(bias[h])} a token": _points(bias[h]) for h in shown}
    caption = (
        "ALiBi adds no vectors: it takes a head's slope times the distance off the score before the softmax. Steep heads look "
        "at what is near, flat ones far back. Press et al. 2022."
    )
    chart = line_chart("", "distance between query and key (tokens)", "added to the score", series)
    return Figure(f"ALiBi: the bias of {n_heads} heads", caption, chart)


def _slope(bias: Tensor) -> str:
    return f"{float(bias[0] - bias[1]):.3g}"


def sinusoidal_map(d_model: int = 128, n_positions: int = 128) -> Figure:
    """The vectors of sinusoidal positions, a row for each position."""
    address = cells_png(SinusoidalPositions(d_model)(torch.arange(n_positions)[None])[0].numpy())
    left, width, height = 66, 680, 256
    parts = [cells(address, left, 6, width, height)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(text(left - 8, 10 + share * (height - 2), f"{round(share * (n_positions - 1))}", "end"))
        parts.append(text(left + share * width, height + 24, f"{round(share * (d_model - 1))}", "middle"))
    parts.append(text(left + width / 2, height + 42, "feature", "middle", "soft"))
    parts.append(
        f'<g transform="translate(14 {height / 2}) rotate(-90)">{text(0, 0, "position", "middle", "soft")}</g>'
    )
    caption = (
        f"Sine in even features, cosine in odd ones, of position / 10000^(2i/{d_model}): the left features count tokens, the "
        f"right ones hardly change. Vaswani et al. 2017, section 3.5. Blank is 0, full colour is ±1."
    )
    keys = legend(["above 0", "below 0"])
    return Figure(f"Sinusoidal positions of width {d_model}", caption, svg(760, height + 48, *parts) + keys)


def activation_curves(name: str, before: Tensor) -> Figure:
    """ReLU, GELU and Swish (SwiGLU's gate) over their input, and where inputs of this text lie. `name` is the model's own."""
    z = torch.linspace(-4, 4, 161)
    functions = {"ReLU": ACTIVATIONS["relu"], "GELU": ACTIVATIONS["gelu"], "Swish, the gate of SwiGLU": GATES["swiglu"]}
    series = {label: list(zip(z.tolist(), f(z).tolist(), strict=True)) for label, f in functions.items()}
    caption = (
        "ReLU is 0 below 0, with a slope that jumps; GELU and Swish are smooth and dip below 0. "
        + f"This model's: {name}."
    )
    counts = torch.histc(before.float(), bins=80, min=-4, max=4)
    middles, shares = torch.linspace(-3.95, 3.95, 80), 2 * counts / counts.max().clamp_min(1)
    label = "inputs of this text in this model, all layers: how often, the highest bin drawn as 2"
    series[label] = list(zip(middles.tolist(), shares.tolist(), strict=True))
    chart = line_chart("", "input z", "f(z)", series, areas=[label])
    return Figure("SwiGLU against ReLU", caption, chart + _unit_curves())


def _unit_curves() -> str:
    """What a unit of each network gives where both of its inputs are z: max(0, z), and z · Swish(z)."""
    z = torch.linspace(-3, 3, 121)
    units = {"ReLU: max(0, z)": ACTIVATIONS["relu"](z), "SwiGLU: Swish(z) · z": GATES["swiglu"](z) * z}
    series = {label: list(zip(z.tolist(), y.tolist(), strict=True)) for label, y in units.items()}
    return line_chart("", "both inputs z", "output of the unit", series)


def cache_growth(n_layers: int, heads: tuple[int, int], head_dim: int, max_seq_len: int, dtype: torch.dtype) -> Figure:
    """Bytes of keys and values over the length, measured on `KVCache` without any memory behind it (device "meta").

    `heads` are query heads and key/value heads; the other two lines are what MHA and MQA would take.
    """
    n_heads, n_kv_heads = heads
    used, held = cache_bytes(n_layers, n_kv_heads, head_dim, max_seq_len, dtype)
    series = {
        f"this model: {n_kv_heads} key/value heads, {used[-1][1] / used[-1][0]:,.0f} bytes a token": _mib(used),
        "what the cache holds: its room doubles when it is full": _mib(held),
    }
    others = {f"if each of the {n_heads} heads had its own (MHA)": n_heads, "if all shared one (MQA)": 1}
    for label, kv_heads in others.items():
        if kv_heads != n_kv_heads:
            series[label] = _mib(cache_bytes(n_layers, kv_heads, head_dim, max_seq_len, dtype)[0])
    caption = (
        f"2 · {n_layers} layers · {n_kv_heads} heads · {head_dim} features · {dtype.itemsize} bytes for each token, "
        f"in {str(dtype).removeprefix('torch.')}, up to the {max_seq_len:,} tokens that the model takes. One text."
    )
    return Figure("The KV cache grows with the text", caption, line_chart("", "tokens", "MiB", series, from_zero=True))


def cache_bytes(
    n_layers: int, n_kv_heads: int, head_dim: int, max_seq_len: int, dtype: torch.dtype
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """(tokens, bytes in use) and (tokens, bytes held) at up to 64 lengths, of a cache that is filled step by step."""
    cache, step = KVCache(n_layers), -(-max_seq_len // 64)
    used, held = [(0.0, 0.0)], [(0.0, 0.0)]
    while cache.length < max_seq_len:
        n_new = min(step, max_seq_len - cache.length)
        new = torch.empty(1, n_kv_heads, n_new, head_dim, dtype=dtype, device="meta")
        kept = [tensor for layer in range(n_layers) for tensor in cache.append(layer, new, new)]
        cache.length += n_new
        used.append((float(cache.length), float(sum(tensor.nbytes for tensor in kept))))
        held += [(held[-1][0], float(cache.n_bytes)), (float(cache.length), float(cache.n_bytes))]
    return used, held


def _mib(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, n_bytes / MIB) for x, n_bytes in points]
