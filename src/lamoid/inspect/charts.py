"""Charts as SVG: titles, axes with units, legends; no library, no network. They follow the reader's light or dark theme."""

import html
import math
from collections.abc import Mapping, Sequence

Point = tuple[float, ...]
"""(x, y), or (x, y, low, high), whose band is drawn too."""

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 74, 178, 44, 52
COLOURS = 8
STYLE = """
.chart{--ink:#1f2328;--soft:#59636e;--grid:#dde2e8;--paper:#fff;font:13px system-ui,sans-serif;background:var(--paper)}
.chart text{fill:var(--ink)} .chart .title{font-weight:600;font-size:15px} .chart .soft{fill:var(--soft)}
.chart .grid{stroke:var(--grid)} .chart .axis{stroke:var(--soft)} .chart .span{stroke:var(--ink)}
.chart .line{fill:none;stroke-width:2}
.chart{--c0:#0b63b0;--c1:#c2410c;--c2:#137a4b;--c3:#8b3fa8;--c4:#93780a;--c5:#0d8290;--c6:#b3265c;--c7:#5b6470}
@media (prefers-color-scheme:dark){.chart{--ink:#e6edf3;--soft:#9aa5b1;--grid:#343c46;--paper:#14181d;
--c0:#6cb2f7;--c1:#fb9a5b;--c2:#5cc98f;--c3:#cf9cf0;--c4:#dcc04e;--c5:#5bccd8;--c6:#f58bb4;--c7:#a9b3be}}
"""
DASHES = ("", "7 3", "2 3", "9 3 2 3")


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """One line for each name, in its order. A logarithmic axis takes positive values alone."""
    points = [point for curve in series.values() for point in curve]
    xs, ys = [p[0] for p in points], [y for p in points for y in p[1:]]
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) * 0.9, max(xs) * 1.1 or 1.0)
    x_ticks, y_ticks = [x for x in ticks(xs, log_x) if x_range[0] <= x <= x_range[1]], ticks(ys, log_y)
    y_range = (min([*ys, *y_ticks]), max([*ys, *y_ticks]))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(x: float) -> float:
        return LEFT + _share(x, x_range, log_x) * (right - LEFT)

    def up(y: float) -> float:
        return bottom - _share(y, y_range, log_y) * (bottom - TOP)

    parts = [_text(LEFT, 24, title, "title"), *_axes(x_label, y_label)]
    for x in x_ticks:
        parts.append(_text(across(x), bottom + 18, number(x), "soft", anchor="middle"))
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>')
        parts.append(_text(LEFT - 8, up(y) + 4, number(y), "soft", anchor="end"))
    for number_of, (name, curve) in enumerate(series.items()):
        colour, dash = f"var(--c{number_of % COLOURS})", DASHES[(number_of // 2 + number_of // COLOURS) % len(DASHES)]
        places = [(across(p[0]), up(p[1])) for p in curve]
        if len(curve) and len(curve[0]) == 4:
            edge = [(across(p[0]), up(p[3])) for p in curve] + [(across(p[0]), up(p[2])) for p in reversed(curve)]
            parts.append(f'<polygon points="{_places(edge)}" fill="{colour}" opacity=".16"/>')
        parts.append(f'<polyline class="line" points="{_places(places)}" stroke="{colour}" stroke-dasharray="{dash}"/>')
        if len(curve) <= 24:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        parts += _legend(number_of, name, colour, dash)
    return _picture(title, parts, HEIGHT)


def bar_chart(title: str, x_label: str, groups: Mapping[str, Mapping[str, Point]]) -> str:
    """Horizontal bars from 0: for each group, a bar of (value,) or (value, low, high) for each name."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    values = [value for group in groups.values() for point in group.values() for value in point]
    x_ticks = ticks([0.0, *values], False)
    x_range, bar = (min(x_ticks), max([*x_ticks, *values])), 16
    left, right = LEFT + 96, WIDTH - RIGHT
    height = TOP + sum(bar * len(group) + 12 for group in groups.values()) + BOTTOM

    def across(x: float) -> float:
        return left + _share(x, x_range, False) * (right - left)

    parts, y = [_text(LEFT, 24, title, "title")], float(TOP)
    for x in x_ticks:
        line = f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP - 6}" y2="{height - BOTTOM}"/>'
        parts += [line, _text(across(x), height - BOTTOM + 16, number(x), "soft", anchor="middle")]
    parts.append(_text((left + right) / 2, height - 12, x_label, anchor="middle"))
    for group_name, group in groups.items():
        parts.append(_text(left - 8, y + bar * len(group) / 2 + 4, group_name, anchor="end"))
        for name, point in group.items():
            colour, ends = f"var(--c{names.index(name) % COLOURS})", sorted((across(0), across(point[0])))
            parts.append(
                f'<rect x="{ends[0]:.1f}" y="{y:.1f}" width="{ends[1] - ends[0]:.1f}" height="{bar - 3}" fill="{colour}"/>'
            )
            if len(point) == 3:
                low, high, middle = across(point[1]), across(point[2]), y + (bar - 3) / 2
                parts.append(
                    f'<line class="span" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:.1f}" y2="{middle:.1f}" stroke-width="2"/>'
                )
            y += bar
        y += 12
    for number_of, name in enumerate(names if len(names) > 1 else []):
        parts += _legend(number_of, name, f"var(--c{number_of % COLOURS})", "")
    return _picture(title, parts, height)


def heat_map(
    title: str,
    x_label: str,
    y_label: str,
    columns: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Sequence[float]],
) -> str:
    """A square for each value, the darker the higher, with the value in it."""
    flat = [v for row in values for v in row if math.isfinite(v)]
    low, high = min(flat), max(flat)
    left, right = LEFT + 40, WIDTH - 20
    wide, tall = (right - left) / len(columns), 34
    height = TOP + tall * len(rows) + BOTTOM
    parts = [_text(LEFT, 24, title, "title")]
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = TOP + i * tall
        parts.append(_text(left - 8, y + tall / 2 + 4, name, "soft", anchor="end"))
        for j, value in enumerate(row):
            share = (value - low) / (high - low or 1) if math.isfinite(value) else 0.0
            box = f'x="{left + j * wide:.1f}" y="{y}" width="{wide - 2:.1f}" height="{tall - 2}"'
            parts.append(f'<rect {box} fill="var(--c0)" opacity="{0.06 + 0.54 * share:.2f}"/>')
            parts.append(_text(left + (j + 0.5) * wide, y + tall / 2 + 4, number(value), anchor="middle"))
    bottom = TOP + tall * len(rows)
    parts += [_text(left + (j + 0.5) * wide, bottom + 16, c, "soft", anchor="middle") for j, c in enumerate(columns)]
    parts.append(_text((left + right) / 2, height - 12, x_label, anchor="middle"))
    parts.append(_text(16, (TOP + bottom) / 2, y_label, anchor="middle", turned=True))
    return _picture(title, parts, height)


def ticks(values: Sequence[float], logarithmic: bool) -> list[float]:
    """Round numbers that cover the values; of a logarithmic axis, the few values themselves, or powers."""
    low, high = min(values), max(values)
    if logarithmic:
        if len(set(values)) <= 9:
            return sorted(set(values))
        powers = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        if len(powers) > 3:
            return powers[:: -(-len(powers) // 8)]
        return [p * m for p in powers for m in (1, 2, 5) if low / 2 <= p * m <= high * 2]
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


def _axes(x_label: str, y_label: str) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    return [
        f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
        _text((LEFT + right) / 2, HEIGHT - 12, x_label, anchor="middle"),
        _text(16, (TOP + bottom) / 2, y_label, anchor="middle", turned=True),
    ]


def _legend(number_of: int, name: str, colour: str, dash: str) -> list[str]:
    x, y = WIDTH - RIGHT + 14, TOP + 10 + 21 * number_of
    line = (
        f'<line x1="{x}" x2="{x + 22}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>'
    )
    return [line, _text(x + 28, y + 4, name)]


def _places(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start", turned: bool = False) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turn}>{html.escape(text)}</text>'


def _picture(title: str, parts: Sequence[str], height: float) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" aria-label="{html.escape(title)}" {size}>'
    paper = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", paper, *parts, "</svg>"]) + "\n"
