"""Charts as SVG, with title, axes with units and legend: by hand, as all that `svg.py` draws.

A chart is as wide as a page of text. Its legend stands beneath it, in as many rows as the names need.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from lamoid.inspect.svg import svg, text

Point = tuple[float, ...]
"""(x, y), or (x, y, low, high), whose band is drawn too."""

WIDTH, PLOT, LEFT, RIGHT = 760, 290, 84, 30
COLOURS, HAIRLINE = 8, 1.5
DASHES = ("", "7 3", "2 3", "9 3 2 3")
LETTER, NARROW, FAT, IDEOGRAPH = 8.3, 5.3, 12.9, 13.0
"""Pixels that a letter takes at most, nearly: of DejaVu Sans, the widest of the usual fonts."""


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
    areas: Collection[str] = (),
) -> str:
    """One line for each name, in its order; those of `areas` are filled down to 0. A logarithmic axis takes positive values.

    Without a title there is no room for one. `from_zero` lets the y axis begin at 0.
    """
    points = [point for curve in series.values() for point in curve]
    xs, ys = [p[0] for p in points], [y for p in points for y in p[1:]] + [0.0] * from_zero
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) * 0.9, max(xs) * 1.1 or 1.0)
    few = log_x and len(set(xs)) <= 9
    x_ticks = sorted(set(xs)) if few else [x for x in ticks(xs, log_x) if x_range[0] <= x <= x_range[1]]
    y_ticks = ticks(ys, log_y)
    y_range = (min([*ys, *y_ticks]), max([*ys, *y_ticks]))
    top, right = 44 if title else 12, WIDTH - RIGHT
    bottom = top + PLOT

    def across(x: float) -> float:
        return LEFT + _share(x, x_range, log_x) * (right - LEFT)

    def up(y: float) -> float:
        return bottom - _share(y, y_range, log_y) * PLOT

    parts = [text(16, 24, title, kind="title")] if title else []
    for y in y_ticks:
        parts.append(f'<path class="rule" d="M{LEFT} {up(y):.1f}H{right}"/>')
        parts.append(text(LEFT - 8, up(y) + 4, number(y), "end", "tick"))
    for x in x_ticks:
        parts.append(f'<path class="rule" d="M{across(x):.1f} {bottom}v5"/>')
        parts.append(text(across(x), bottom + 19, number(x), "middle", "tick"))
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(text((LEFT + right) / 2, bottom + 40, x_label, "middle", "soft"))
    parts.append(text(20, top + PLOT / 2, y_label, "middle", "soft", turned=True))
    for i, (name, curve) in enumerate(series.items()):
        places = [(across(p[0]), up(p[1])) for p in curve]
        ground = up(max(y_range[0], 0)) if name in areas else None
        parts += _curve(i, places, [(across(p[0]), up(p[2]), up(p[3])) for p in curve if len(p) == 4], ground)
    keys, height = _legend(list(series), bottom + 64, areas)
    return svg(WIDTH, height, *parts, *keys, label=title)


def _curve(
    i: int, places: Sequence[tuple[float, float]], band: Sequence[tuple[float, float, float]], ground: float | None
) -> list[str]:
    """A line with its band, or an area above the ground; points are marked where they are few."""
    colour = f"c{i % COLOURS}"
    if ground is not None:
        edge = [(places[0][0], ground), *places, (places[-1][0], ground)]
        return [f'<polygon class="area {colour}" points="{_places(edge)}"/>']
    parts = []
    if band:
        edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
        parts.append(f'<polygon class="area {colour}" points="{_places(edge)}"/>')
    parts.append(f'<polyline class="curve {colour}" points="{_places(places)}"{_dash(i)}/>')
    if len(places) <= 24:
        parts += [f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    return parts


def bar_chart(title: str, x_label: str, groups: Mapping[str, Mapping[str, Point]]) -> str:
    """Horizontal bars from 0: for each group, a bar of (value,) or (value, low, high) for each name; one of 0 is a hairline."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    values = [value for group in groups.values() for point in group.values() for value in point]
    x_ticks, bar, top = ticks([0.0, *values], False), 16, 44
    x_range = (min(x_ticks), max([*x_ticks, *values]))
    left, right = max(LEFT, 24 + max(_wide(name) for name in groups)), WIDTH - RIGHT - 10
    bottom = top + sum(bar * len(group) + 12 for group in groups.values())

    def across(x: float) -> float:
        return left + _share(x, x_range, False) * (right - left)

    parts, y = [text(16, 24, title, kind="title")], float(top)
    for x in x_ticks:
        parts.append(f'<path class="{"rule" if x else "axis"}" d="M{across(x):.1f} {top - 6}V{bottom}"/>')
        parts.append(text(across(x), bottom + 17, number(x), "middle", "tick"))
    parts.append(text((left + right) / 2, bottom + 40, x_label, "middle", "soft"))
    for group_name, group in groups.items():
        parts.append(text(left - 10, y + bar * len(group) / 2 + 3, group_name, "end"))
        for name, point in group.items():
            first, last = sorted((across(0), across(point[0])))
            place = f'x="{first:.1f}" y="{y:.1f}" width="{max(last - first, HAIRLINE):.1f}" height="{bar - 3}"'
            parts.append(f'<rect class="bar c{names.index(name) % COLOURS}" {place}/>')
            if len(point) == 3:
                middle = y + (bar - 3) / 2
                span = f'd="M{across(point[1]):.1f} {middle:.1f}H{across(point[2]):.1f}"'
                parts += [f'<path class="halo" {span}/>', f'<path class="span" {span}/>']
            y += bar
        y += 12
    if len(names) == 1:
        return svg(WIDTH, bottom + 54, *parts, label=title)
    keys, height = _legend(names, bottom + 64, names)
    return svg(WIDTH, height, *parts, *keys, label=title)


def heat_map(
    title: str,
    x_label: str,
    y_label: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float]],
) -> str:
    """A square for each value, the fuller its colour the higher, with the value in it."""
    flat = [v for row in values for v in row if math.isfinite(v)]
    low, high, top, tall = min(flat), max(flat), 44, 36
    left, right, bottom = max(LEFT + 20, 38 + max(map(_wide, rows))), WIDTH - RIGHT, top + 36 * len(rows)
    wide = (right - left) / len(columns)
    parts = [text(16, 24, title, kind="title")]
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + i * tall
        parts.append(text(left - 8, y + tall / 2 + 4, name, "end", "tick"))
        for j, value in enumerate(row):
            share = (value - low) / (high - low or 1) if math.isfinite(value) else 0.0
            place = f'x="{left + j * wide:.1f}" y="{y}" width="{wide - 2:.1f}" height="{tall - 2}"'
            parts.append(f'<rect class="bar c0" {place} opacity="{0.06 + 0.5 * share:.2f}"/>')
            parts.append(text(left + (j + 0.5) * wide, y + tall / 2 + 4, number(value), "middle"))
    parts += [text(left + (j + 0.5) * wide, bottom + 17, c, "middle", "tick") for j, c in enumerate(columns)]
    parts.append(text((left + right) / 2, bottom + 40, x_label, "middle", "soft"))
    parts.append(text(20, (top + bottom) / 2, y_label, "middle", "soft", turned=True))
    return svg(WIDTH, bottom + 54, *parts, label=title)


def ticks(values: Sequence[float], logarithmic: bool) -> list[float]:
    """Round numbers that cover the values; of a logarithmic axis powers of ten, with 2 and 5 times each where they are few."""
    low, high = min(values), max(values)
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers, stride = [10.0**e for e in range(first, last + 1)], (last - first) // 8 + 1
        near = [p * m for p in powers for m in (1, 2, 5)]
        near = [p for p in near if max(n for n in near if n <= low) <= p <= min(n for n in near if n >= high)]
        return near if len(near) <= 9 else [10.0**e for e in range(first, last + stride, stride)]
    step = 10 ** math.floor(math.log10((high - low) or 1))
    step *= next((m for m in (0.2, 0.5, 1, 2) if (high - low) / (step * m) <= 6), 2)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def number(value: float) -> str:
    """A number in few characters: 2,048, 0.35, 1.2e-06, 16 M."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "–"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.4g} M"
    if abs(value) >= 100 and value == round(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:.4g}"


def _share(value: float, whole: tuple[float, float], logarithmic: bool) -> float:
    low, high = whole
    if logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / ((high - low) or 1)


def _legend(names: Sequence[str], y: float, filled: Collection[str]) -> tuple[list[str], float]:
    """Keys from left to right, in rows; and where they end."""
    parts, x = list[str](), 16.0
    for i, name in enumerate(names):
        wide = 52 + _wide(name)
        if x > 16 and x + wide > WIDTH:
            x, y = 16.0, y + 22
        if name in filled:
            parts.append(f'<rect class="bar c{i % COLOURS}" x="{x:.0f}" y="{y - 9}" width="24" height="10"/>')
        else:
            parts.append(f'<path class="curve c{i % COLOURS}" d="M{x:.0f} {y - 4}h24"{_dash(i)}/>')
        parts.append(text(x + 30, y, name))
        x += wide
    return parts, y + 12


def _wide(name: str) -> float:
    """About how many pixels a text takes, rather too many: ideographs and hangul are twice as wide as letters."""
    return sum(map(_width, name))


def _width(letter: str) -> float:
    if ord(letter) >= 0x1100 and ord(letter) not in range(0x1E00, 0x2E80):
        return IDEOGRAPH
    return NARROW if letter in " !',-./:;I()[]|fijlrt" else FAT if letter in "mwMW%@" else LETTER


def _dash(i: int) -> str:
    dash = DASHES[(i // 2 + i // COLOURS) % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _places(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
