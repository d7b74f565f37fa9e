"""Charts as SVG inside HTML, and rectangles of numbers as PNG: by hand, so that a page needs no library and no network.

Colours are the page's (STYLE): each is a variable with a value for light and one for dark.
"""

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ACCENT, CONTRARY = (61, 139, 255), (234, 112, 33)
"""Blue for what is above 0, orange for what is below: both can be read on white and on black."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2129; --soft: #5b6472; --line: #d9dde3; --panel: #f4f6f8;
  --c0: #1667d9; --c1: #c4500b; --c2: #16803f; --c3: #8a3ffc; --c4: #8f6b00; --c5: #0b7d8f; --c6: #c2186b; --c7: #667085 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ee; --soft: #9aa5b4; --line: #343b46;
  --panel: #1d222a; --c0: #6ba6ff; --c1: #ff9a5c; --c2: #5fcf88; --c3: #bd95ff; --c4: #e0b84c; --c5: #4fc9dc;
  --c6: #ff7ab3; --c7: #98a2b3 } }
figure { margin: 1.2rem 0 2.2rem } figcaption p { margin: .2rem 0 .6rem; color: var(--soft) } h3 { margin: 0; font-size: 1.05rem }
svg { display: block; max-width: 100%; height: auto; font: 12px system-ui, sans-serif } text { fill: var(--ink) }
text.soft { fill: var(--soft) } svg .rule { stroke: var(--line); stroke-width: 1; fill: none }
svg .curve { fill: none; stroke: var(--c); stroke-width: 2 } svg .dot { fill: var(--c) }
svg .area { fill: var(--c); opacity: .22 } .legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem }
.legend i { display: inline-block; width: 1.1rem; height: .65rem; margin-right: .4rem; border-radius: 2px; background: var(--c) }
""" + "".join(f".c{i} {{ --c: var(--c{i}) }} " for i in range(8))

WIDTH, HEIGHT = 760, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 10, 46


@dataclass(frozen=True)
class Series:
    """Points (x, y) with a name; an area is filled down to 0."""

    label: str
    points: Sequence[tuple[float, float]]
    kind: Literal["line", "area"] = "line"


@dataclass(frozen=True)
class Figure:
    """A picture under its title and a sentence about it, both plain text. `body` is HTML."""

    title: str
    caption: str
    body: str

    def html(self) -> str:
        """The whole as HTML."""
        heading = f"<h3>{html.escape(self.title)}</h3><p>{html.escape(self.caption)}</p>"
        return f"<figure><figcaption>{heading}</figcaption>{self.body}</figure>"


def legend(labels: Sequence[str]) -> str:
    """The names of colours 0, 1, 2 …, in order."""
    keys = (f'<span class="c{i % 8}"><i></i>{html.escape(label)}</span>' for i, label in enumerate(labels))
    return f'<div class="legend">{"".join(keys)}</div>'


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, *, log_y: bool = False, from_zero: bool = False
) -> str:
    """Curves over one pair of axes, with their legend. `log_y` takes values above 0; `from_zero` begins the y axis at 0."""
    xs = [x for one in series for x, _ in one.points]
    ys = [math.log10(y) if log_y else y for one in series for _, y in one.points]
    x_range, y_range = (min(xs), max(xs)), (0.0 if from_zero else min(ys), max(ys))
    y_ticks = _log_ticks(*y_range) if log_y else _ticks(*y_range)
    y_range = (min(y_range[0], y_ticks[0][0]), max(y_range[1], y_ticks[-1][0]))
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def across(x: float) -> float:
        return _LEFT + (x - x_range[0]) / ((x_range[1] - x_range[0]) or 1) * (right - _LEFT)

    def down(y: float) -> float:
        return bottom - (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1) * (bottom - _TOP)

    parts = []
    for value, label in y_ticks:
        parts.append(f'<path class="rule" d="M{_LEFT} {down(value):.1f}H{right}"/>')
        parts.append(text(_LEFT - 8, down(value) + 4, label, "end"))
    for value, label in _ticks(*x_range):
        parts.append(f'<path class="rule" d="M{across(value):.1f} {bottom}v5"/>')
        parts.append(text(across(value), bottom + 18, label, "middle"))
    parts.append(text((_LEFT + right) / 2, HEIGHT - 8, x_label, "middle", soft=True))
    parts.append(
        f'<g transform="translate(14 {(bottom + _TOP) / 2}) rotate(-90)">{text(0, 0, y_label, "middle", True)}</g>'
    )
    for i, one in enumerate(series):
        path = " ".join(f"{across(x):.1f},{down(math.log10(y) if log_y else y):.1f}" for x, y in one.points)
        if one.kind == "area":
            first, last = across(one.points[0][0]), across(one.points[-1][0])
            ground = down(max(y_range[0], 0))
            parts.append(
                f'<path class="area c{i % 8}" d="M{first:.1f},{ground:.1f} L{path} L{last:.1f},{ground:.1f}Z"/>'
            )
        else:
            parts.append(f'<path class="curve c{i % 8}" d="M{path}"/>')
    return svg(WIDTH, HEIGHT, *parts) + legend([one.label for one in series])


def svg(width: float, height: float, *parts: str) -> str:
    """A drawing of this many pixels, which shrinks with a narrower page."""
    return f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}">{"".join(parts)}</svg>'


def text(x: float, y: float, words: str, anchor: str = "start", soft: bool = False) -> str:
    """One line of text within an SVG, escaped."""
    kind = ' class="soft"' if soft else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{html.escape(words)}</text>'


def _ticks(low: float, high: float, most: int = 7) -> list[tuple[float, str]]:
    """At most `most` round values with their labels, the last one at or below `high`."""
    raw = (high - low) / (most - 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    values = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value:,.10g}") for value in values] or [(low, f"{low:g}")]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten around the values, with 2 and 5 times each where they are few. Takes and gives logarithms."""
    powers = range(math.floor(low + 1e-9), math.ceil(high - 1e-9) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    ticks = [(p + math.log10(m), f"{m * 10.0**p:,g}") for p in powers for m in factors]
    below = max((t for t, _ in ticks if t <= low + 1e-9), default=low)
    above = min((t for t, _ in ticks if t >= high - 1e-9), default=high)
    return [(t, label) for t, label in ticks if below <= t <= above]


def cells_png(shares: np.ndarray, levels: int = 32) -> str:
    """A rectangle of numbers from −1 to 1, a pixel each, as the address of a PNG: nothing at 0, full colour at 1.

    Pixels differ in opacity alone, so that the picture fits a light page and a dark one. Numbers are rounded to `levels`
    steps on either side, which makes the file small.
    """
    rounded = np.rint(np.clip(shares, -1, 1) * (levels - 1)).astype(np.int16)
    palette = b"".join(bytes(CONTRARY) for _ in range(levels - 1)) + b"".join(bytes(ACCENT) for _ in range(levels))
    alphas = bytes(round(abs(i) * 255 / (levels - 1)) for i in range(1 - levels, levels))
    rows = (rounded + levels - 1).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"tRNS", alphas),
        (b"IDAT", zlib.compress(raw, 9)),
        (b"IEND", b""),
    )
    png = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def cells(address: str, x: float, y: float, width: float, height: float) -> str:
    """A PNG of cells within an SVG, its pixels kept sharp."""
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<image {place} preserveAspectRatio="none" style="image-rendering:pixelated" href="{address}"/>'
