"""Charts as SVG: every point inside its frame and in order, every name and unit as text, nothing from elsewhere."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from lamoid.inspect.charts import bar_chart, heat_map, line_chart, number, ticks
from lamoid.inspect.svg import standalone

MEASURED = {  # pixels of 13 px DejaVu Sans, as Chromium laid them out
    "Pre-LN, no residual sums": 161.0,
    "mean of the last layers": 150.1,
    "Grouped-query attention": 161.5,
    "Tiếng Việt có dấu thanh": 154.8,
    "대규모 언어 모델의 주의": 132.0,
    "大规模语言模型的注意力机制": 169.0,
    "sinusoidal": 65.0,
    "524,288": 53.8,
}
SCRIPTS = ["Tiếng Việt", "中文 <b>", '한국어 & "x"']


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("log_y", [False, True])
def test_lines_go_where_their_numbers_are(log_x, log_y):
    """Places on the picture are an affine image of the values, or of their logarithms."""
    xs, ys = [1, 2, 8, 64, 900], [0.02, 3.0, 1.5, 700.0, 40.0]
    svg = line_chart("t", "x (tokens)", "y (s)", {"one": list(zip(xs, ys, strict=True))}, log_x=log_x, log_y=log_y)
    line = ElementTree.fromstring(svg).find("polyline")
    places = [tuple(map(float, place.split(","))) for place in line.get("points").split()]
    for values, seen, is_log, turned in (
        (xs, [p[0] for p in places], log_x, 1),
        (ys, [p[1] for p in places], log_y, -1),
    ):
        true = [math.log(v) if is_log else v for v in values]
        least, most = true.index(min(true)), true.index(max(true))  # places are rounded to tenths of a pixel
        scale = (seen[most] - seen[least]) / (true[most] - true[least])
        assert scale * turned > 0
        for value, place in zip(true, seen, strict=True):
            assert place == pytest.approx(seen[least] + scale * (value - true[least]), abs=0.3)
    assert all(0 < x < 760 and 0 < y < float(ElementTree.fromstring(svg).get("height")) for x, y in places)


def test_names_and_units_are_there_and_escaped():
    curves = {name: [(1, 2.0, 1.5, 2.5), (2, 3.0, 2.0, 4.0)] for name in SCRIPTS}
    svg = line_chart("title", "steps", "loss (nats)", curves)
    assert {"title", "steps", "loss (nats)", *SCRIPTS} <= set(texts(svg))
    assert len(list(ElementTree.fromstring(svg).iter("polygon"))) == 3, "a band for each"
    file = standalone(svg)
    assert not re.search(r"href|url\(|@import|<script", file) and "prefers-color-scheme: dark" in file
    assert ElementTree.fromstring(file).tag == "{http://www.w3.org/2000/svg}svg"
    assert texts(file) == texts(svg) and ElementTree.fromstring(file)[1].get("fill") == "var(--paper)"


def test_bars_begin_at_zero_and_keep_their_sign():
    svg = bar_chart("t", "saved (%)", {"a": {"x": (10.0, 5.0, 15.0), "y": (-20.0, -30.0, -10.0)}, "b": {"x": (40.0,)}})
    bars = [
        e
        for e in ElementTree.fromstring(svg).iter("rect")
        if e.get("class", "").startswith("bar c") and e.get("height") == "13"
    ]
    left, width = ([float(e.get(key)) for e in bars] for key in ("x", "width"))
    assert width[1] == pytest.approx(2 * width[0], abs=0.2) and width[2] == pytest.approx(4 * width[0], abs=0.4)
    assert left[0] == left[2] == pytest.approx(left[1] + width[1], abs=0.2)


def test_a_bar_of_nothing_is_there_and_intervals_stand_out_from_their_bars():
    root = ElementTree.fromstring(
        bar_chart("t", "apart", {"none": {"x": (2e-7, 1e-7, 4e-7)}, "all": {"x": (0.9, 0.5, 1.0)}})
    )
    bars = [e for e in root.iter("rect") if e.get("class") == "bar c0"]
    assert [float(e.get("width")) >= 1 for e in bars] == [True, True]
    spans = [(e.get("class"), e.get("d")) for e in root.iter("path") if e.get("class") in ("halo", "span")]
    assert [kind for kind, _ in spans] == ["halo", "span"] * 2 and all(
        a[1] == b[1] for a, b in zip(spans[::2], spans[1::2], strict=True)
    )


def test_no_text_is_cut_at_the_edges():
    for name, wide in MEASURED.items():
        root = ElementTree.fromstring(bar_chart("t", "x", {name: {"a": (1.0,)}, "other": {"a": (2.0,)}}))
        label = next(text for text in root.iter("text") if text.text == name)
        assert label.get("text-anchor") == "end" and float(label.get("x")) >= wide
        root = ElementTree.fromstring(heat_map("t", "x", "turned", ["a"], [name, "other"], [[1.0], [2.0]]))
        label, turned = (next(text for text in root.iter("text") if text.text == said) for said in (name, "turned"))
        assert float(label.get("x")) - wide >= float(turned.get("x")) + 5, "nor is it written over"
    curve = {"a": [(2048.0, 1.0), (32_768.0, 2.0), (524_288.0, 3.0)]}
    root = ElementTree.fromstring(line_chart("t", "tokens", "s", curve, log_x=True))
    last = next(text for text in root.iter("text") if text.text == "524,288")
    assert float(last.get("x")) + MEASURED["524,288"] / 2 <= float(root.get("width"))


def test_keys_of_a_legend_do_not_overlap():
    root = ElementTree.fromstring(line_chart("t", "x", "y", {name: [(1, 2), (2, 3)] for name in MEASURED}))
    keys = [(float(t.get("y")), float(t.get("x")), MEASURED[t.text]) for t in root.iter("text") if t.text in MEASURED]
    assert len(keys) == len(MEASURED) and all(x + wide <= 760 for _, x, wide in keys)
    for (y, x, wide), (next_y, next_x, _) in zip(keys, keys[1:], strict=False):
        assert next_y > y or next_x - 30 > x + wide, "the next key's line begins 30 px before its name"


def test_a_map_is_darkest_where_it_is_highest():
    svg = heat_map("t", "x", "y", ["a", "b"], ["c", "d"], [[1.0, 2.0], [4.0, math.nan]])
    opacity = [float(e.get("opacity")) for e in ElementTree.fromstring(svg).iter("rect") if e.get("opacity")]
    assert opacity[2] == max(opacity) and opacity[0] == min(opacity) and opacity[0] < opacity[1]
    assert {"1", "2", "4", "–"} <= set(texts(svg))


@pytest.mark.parametrize("values", [[0.0], [0.0, 1.0], [-3.0, 250.0], [1e-9, 3e-9], [5.0, 5.0]])
def test_ticks_cover_the_values_and_are_few(values):
    found = ticks(values, False)
    assert found[0] <= min(values) and found[-1] >= max(values) and len(found) <= 9 and found == sorted(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2048, "2,048"), (0.345, "0.345"), (2.5e6, "2.5 M"), (1.2e-6, "1.2e-06"), (-3.0, "-3")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_no_two_of_sixteen_lines_look_alike():
    root = ElementTree.fromstring(line_chart("t", "x", "y", {str(i): [(1, i), (2, i)] for i in range(16)}))
    looks = [(line.get("class"), line.get("stroke-dasharray")) for line in root.iter("polyline")]
    assert len(set(looks)) == 16


def test_a_legend_breaks_its_rows_before_the_edge():
    names = [
        "mean of the last layers",
        "Tiếng Việt có dấu thanh",
        "大规模语言模型的注意力机制",
        "한국어로 쓴 긴 이름입니다",
    ] * 2
    root = ElementTree.fromstring(
        line_chart("t", "x", "y", {f"{n} {i}": [(1, i), (2, 3)] for i, n in enumerate(names)})
    )
    keys = [text for text in root.iter("text") if text.text.rpartition(" ")[0] in names]
    places = [(float(key.get("x")), float(key.get("y"))) for key in keys]
    assert len(set(places)) == len(names) == len(places) and len({y for _, y in places}) > 1
    assert max(y for _, y in places) < float(root.get("height")) and all(x < 560 for x, _ in places)


@pytest.mark.parametrize(
    "values", [[14.0, 444.0], [0.9, 1.1], [1e-6, 5.0], [2048.0, 2048.0], [0.71, 10.2], [1e-6, 1e5]]
)
def test_logarithmic_ticks_cover_the_values_and_are_few(values):
    found = ticks(values, True)
    assert found[0] <= min(values) and found[-1] >= max(values) and len(found) <= 9 and found == sorted(found)


def test_a_logarithmic_axis_is_not_half_empty():
    assert ticks([0.71, 10.2], True) == [0.5, 1, 2, 5, 10, 20]
