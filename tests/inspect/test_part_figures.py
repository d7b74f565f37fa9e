"""The pictures of parts: what is drawn, read back from the SVG and PNG, against transformers and the papers' formulas."""

import base64
import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lamoid.inspect.charts import line_chart
from lamoid.inspect.part_figures import (
    activation_curves,
    alibi_lines,
    cache_bytes,
    cache_growth,
    rope_bound,
    rope_decay,
    rope_similarity,
    rope_turns,
    sinusoidal_map,
)
from lamoid.inspect.svg import cells_png
from lamoid.nn.kv_cache import KVCache
from lamoid.nn.positions import RoPE
from lamoid.nn.rope_scaling import Llama3Scaling

SCALED = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)  # fmt: skip
ROPES = {
    "plain": (RoPE(10, 1e4), dict(rope_type="default", rope_theta=1e4)),
    "llama3": (RoPE(64, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 64)), SCALED),
}


def frequencies(head_dim: int, parameters: dict) -> np.ndarray:
    config = transformers.LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, rope_parameters=parameters
    )
    return LlamaRotaryEmbedding(config).inv_freq.double().numpy()


def curves(html: str) -> list[list[tuple[float, float]]]:
    """The points of each curve or area, in pixels, in the order of the legend."""
    chart = html.split("</svg>")[0]
    paths = re.findall(r'<poly(?:line|gon) class="(?:curve|area) c\d" points="([^"]*)"', chart)
    return [[tuple(map(float, p.split(","))) for p in re.findall(r"-?[\d.]+,-?[\d.]+", path)] for path in paths]


def axis(html: str) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset from pixels to values, of x and of y, from the tick labels alone."""
    texts = re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)" text-anchor="(\w+)" class="tick">([^<]*)</text>', html)
    across = [(float(x), float(t.replace(",", ""))) for x, _, anchor, t in texts if anchor == "middle"]
    down = [(float(y) - 4, float(t.replace(",", ""))) for _, y, anchor, t in texts if anchor == "end"]
    return np.polyfit(*zip(*across, strict=True), 1), np.polyfit(*zip(*down, strict=True), 1)


def read_back(html: str) -> list[np.ndarray]:
    """The curves in the chart's own units, as a reader with a ruler would find them."""
    x_scale, y_scale = axis(html)
    return [np.array([(np.polyval(x_scale, x), np.polyval(y_scale, y)) for x, y in points]) for points in curves(html)]


def test_a_chart_can_be_read_with_a_ruler():
    wanted = [[(0, -3.0), (50, 12.5), (120, 7.0)], [(0, 1.0), (120, 2.0)]]
    html = line_chart("", "x & x", "y", {"a <b>": wanted[0], "c": wanted[1]})
    for found, expected in zip(read_back(html), wanted, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.15)
    ElementTree.fromstring(html[: html.index("</svg>") + 6])
    assert "a &lt;b&gt;" in html and "x &amp; x" in html and "<b>" not in html
    log = line_chart("", "x", "y", {"a": [(0, 2.0), (3, 90.0)]}, log_y=True)
    labels = re.findall(r'y="([\d.]+)" text-anchor="end" class="tick">([^<]*)<', log)
    heights = {float(t.replace(",", "")): float(y) - 4 for y, t in labels}
    (_, low), (_, high) = curves(log)[0]
    slope, offset = np.polyfit([math.log10(v) for v in heights], list(heights.values()), 1)
    assert (low - offset) / slope == pytest.approx(math.log10(2), abs=0.01)
    assert (high - offset) / slope == pytest.approx(math.log10(90), abs=0.01)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (5, 5), (0, 1e-7), (-1e9, 1e9), (0, 131072), (0.3, 0.31)])
def test_axes_of_any_size_have_ticks(low: float, high: float):
    html = line_chart("", "x", "y", {"a": [(0, low), (1, high)]})
    assert "nan" not in html and html.count('text-anchor="end"') in range(1, 9)


def pixels(address: str) -> np.ndarray:
    raw = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGBA")).astype(float)


def test_cells_are_a_png_whose_opacity_is_the_number():
    shares = np.linspace(-1, 1, 7 * 13).reshape(7, 13)
    found = pixels(cells_png(shares))
    assert found.shape == (7, 13, 4)
    np.testing.assert_allclose(found[..., 3] / 255, np.abs(shares), atol=0.5 / 31 + 0.5 / 255)
    seen = np.abs(shares) > 0.1
    assert (found[seen & (shares > 0)][:, 2] == 255).all() and (found[seen & (shares < 0)][:, 2] == 33).all()


@pytest.mark.parametrize("name", ROPES)
def test_rope_turns_by_the_angles_of_transformers(name: str):
    rope, parameters = ROPES[name]
    theta, query = frequencies(rope.head_dim, parameters), torch.randn(rope.head_dim)
    half, html = rope.head_dim // 2, rope_turns(rope, query, 16).html()
    pairs = [int(p) for p in re.findall(r"pair (\d+):", html)]
    assert pairs[0] == 0 and pairs[-1] == half - 1
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle class="dot c0" cx="([\d.]+)" cy="([\d.]+)"', html)]
    radius = 190 * 0.36
    for column, pair in enumerate(pairs):
        start = complex(query[pair], query[pair + half])
        for position, (x, y) in enumerate(dots[16 * column : 16 * column + 16]):
            expected = start / abs(start) * np.exp(1j * position * theta[pair])
            found = complex((x - (column + 0.5) * 190) / radius, (95 - y) / radius)
            assert abs(found - expected) < 0.002
        degrees = float(re.findall(r"pair \d+: ([\d.e-]+)°", html)[column])
        assert degrees == pytest.approx(math.degrees(theta[pair]), rel=0.006)


@pytest.mark.parametrize("name", ROPES)
def test_rope_decay_is_the_papers(name: str):
    rope, parameters = ROPES[name]
    theta, distance = frequencies(rope.head_dim, parameters), np.arange(200)
    turns = np.exp(1j * distance[:, None] * theta)
    np.testing.assert_allclose(rope_similarity(rope, 200), np.cos(distance[:, None] * theta).mean(1), atol=2e-5)
    bound = np.abs(np.cumsum(turns, axis=1)).mean(1)
    np.testing.assert_allclose(rope_bound(rope, 200), bound / bound[0], atol=2e-5)
    drawn = read_back(rope_decay(rope, 200).html())
    np.testing.assert_allclose(drawn[1][:, 1], bound / bound[0], atol=0.004)


@pytest.mark.parametrize("n_heads", [1, 4, 6, 9, 12])
def test_alibi_is_that_of_bloom(n_heads: int):
    """Bloom's tensor has slope times key position; at the last query that is our bias up to one constant."""
    theirs = build_alibi_tensor(torch.ones(1, 64), n_heads, torch.float32).reshape(n_heads, 64)
    expected = theirs - theirs[:, -1:]
    html = alibi_lines(n_heads).html()
    heads = [int(h) - 1 for h in re.findall(r"head (\d+): −", html)]
    for head, drawn in zip(heads, read_back(html), strict=True):
        np.testing.assert_allclose(drawn[:, 1], expected[head].flip(0), atol=0.2)
        slope = float(re.findall(rf"head {head + 1}: −([\d.e-]+) a token", html)[0])
        assert slope == pytest.approx(float(theirs[head, 1]), rel=0.006)


def test_the_sinusoidal_map_is_the_papers_formula():
    html = sinusoidal_map(20, 30).html()
    found = pixels(re.findall(r'href="(data:[^"]*)"', html)[0])
    position, i = np.arange(30)[:, None], np.arange(10)[None]
    angles = position / 10_000 ** (2 * i / 20)
    expected = np.stack((np.sin(angles), np.cos(angles)), -1).reshape(30, 20)
    np.testing.assert_allclose(found[..., 3] / 255, np.abs(expected), atol=0.02)
    assert ((found[..., 0] == 61) | (expected <= 0.02)).all() and ((found[..., 0] == 234) | (expected >= -0.02)).all()


def test_activations_are_those_of_torch():
    before = torch.tensor([0.03] * 30 + [-2.02] * 15 + [9.0])
    html = activation_curves("swiglu", before).html()
    upper, lower = html.split("</svg>", 1)
    relu, gelu, swish, often = read_back(upper)
    for drawn, function in ((relu, F.relu), (gelu, F.gelu), (swish, F.silu)):
        np.testing.assert_allclose(drawn[:, 1], function(torch.tensor(drawn[:, 0])), atol=0.03)
    peaks = [(x, y) for x, y in often if y > 0.1]
    assert [y for _, y in peaks] == pytest.approx([1.0, 2.0], abs=0.02)
    assert [x for x, _ in peaks] == pytest.approx([-2.05, 0.05], abs=0.02), "the middles of their bins"
    relu_unit, gated = (torch.tensor(drawn) for drawn in read_back(lower))
    np.testing.assert_allclose(gated[:, 1], F.silu(gated[:, 0]) * gated[:, 0], atol=0.08)
    np.testing.assert_allclose(relu_unit[:, 1], F.relu(relu_unit[:, 0]), atol=0.08)


def test_cache_bytes_are_those_of_a_real_cache():
    used, held = cache_bytes(3, 2, 10, 1000, torch.bfloat16)
    assert used[0] == held[0] == (0, 0) and used[-1] == (1000, 2 * 3 * 1000 * 2 * 10 * 2)
    cache, real = KVCache(3), {0: 0}
    while cache.length < 1000:
        new = torch.zeros(1, 2, 1, 10, dtype=torch.bfloat16)
        for layer in range(3):
            cache.append(layer, new, new)
        cache.length += 1
        real[cache.length] = cache.n_bytes
    ends = held[2::2]  # every other point is the beginning of a step
    assert [length for length, _ in ends] == [length for length, _ in used[1:]]
    assert all(real[int(length)] == n_bytes for length, n_bytes in ends)
    assert all(in_use <= n_bytes for (_, in_use), (_, n_bytes) in zip(used[1:], ends, strict=True))


def test_cache_growth_compares_with_mha_and_mqa():
    html = cache_growth(30, (9, 3), 64, 8192, torch.float32).html()
    own, held, mha, mqa = (drawn[-1, 1] for drawn in read_back(html))
    assert (own, mha, mqa) == pytest.approx((360, 1080, 120), abs=3) and held == pytest.approx(360, abs=3)
    assert "3 key/value heads, 46,080 bytes a token" in html
    assert len(curves(cache_growth(2, (4, 1), 8, 64, torch.float32).html())) == 3  # MQA is the model itself
