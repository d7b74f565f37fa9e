"""Pictures of one traced text: attention, the residual stream, the logit lens, what comes next. A batch of one."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lamoid.inspect.charts import line_chart
from lamoid.inspect.svg import Figure, cells, cells_png, svg, text
from lamoid.inspect.trace import LayerTrace, Trace, layer_logits

STYLE = """
.scroll { overflow-x: auto } table.lens { border-collapse: collapse; font-size: .8rem; white-space: nowrap }
.lens td, .lens th { padding: .1rem .45rem; text-align: center; font-weight: 400; max-width: 9rem;
  overflow: hidden; text-overflow: ellipsis }
.lens td { background: rgb(61 139 255 / calc(var(--p) * .7)); border: 1px solid var(--paper) }
.lens td.hit { border: 2px solid var(--c1) } .lens thead th { color: var(--soft) }
.lens th:first-child { position: sticky; left: 0; background: var(--paper); color: var(--soft); text-align: right }
.next { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .8rem; max-width: 46rem; align-items: center }
.next b { font-weight: 500; text-align: right } .next i { display: inline-block; height: .9rem; margin-right: .5rem;
  vertical-align: middle; background: var(--c0); border-radius: 2px }
.map { display: none } .map:target { display: block } .map:target ~ .first { display: none } .map.first { display: block }
.map nav { display: flex; gap: 1rem } .map h4 { margin: .8rem 0 .2rem } a { color: var(--c0) }
svg .well { fill: var(--panel) } svg a:hover .well { stroke: var(--c1); stroke-width: 2 }
.shades { display: flex; gap: 1rem; font-size: .85rem } .shades i { display: inline-block; width: 1.1rem; height: .7rem;
  margin-right: .35rem; background: rgb(61 139 255) }
"""
_SHADES = (0.01, 0.05, 0.2, 0.5, 1.0)
_LABEL = 12  # characters of a token beside a map


@dataclass(frozen=True)
class Guess:
    """A token with its probability."""

    id: int
    probability: float


def attention_maps(layers: Sequence[LayerTrace], labels: Sequence[str]) -> Figure:
    """Every layer's and head's weights: small in a table, and each large behind a link. No script is needed."""
    n_layers, n_heads, n = len(layers), layers[0].weights.shape[1], len(labels)
    pictures = {
        (layer, head): cells_png(layers[layer].weights[0, head].float().sqrt().cpu().numpy())
        for layer in range(n_layers)
        for head in range(n_heads)
    }
    symbols = (
        f'<symbol id="a{layer}-{head}" viewBox="0 0 {n} {n}">{cells(address, 0, 0, n, n)}</symbol>'
        for (layer, head), address in pictures.items()
    )
    large = _LargeMap(n_layers, n_heads, labels)
    defined = f'<svg width="0" height="0" style="position:absolute"><defs>{"".join(symbols)}{large.axes()}</defs></svg>'
    shades = "".join(f'<span><i style="opacity:{weight**0.5:.2f}"></i>{weight:g}</span>' for weight in _SHADES)
    caption = (
        "A row is a token that looks, a column a token that it looks at; the weights of a row add up to 1. The opacity is the "
        "square root of the weight, so that small ones show. Click on a picture to see it large."
    )
    maps = [large.map(layer, head) for layer, head in pictures if (layer, head) != (0, 0)]
    overview, shown = _overview(n_layers, n_heads), "".join([*maps, large.map(0, 0)])
    return Figure("Attention", caption, f'{defined}<div class="shades">weight {shades}</div>{overview}{shown}')


def _overview(n_layers: int, n_heads: int) -> str:
    """Layers from left to right, heads from top to bottom."""
    size = _thumb(n_layers, n_heads)
    parts = [
        text(44 + n_layers * size / 2, 12, "layer", "middle", "soft"),
        text(0, 30 + size / 2, "head", kind="soft"),
    ]
    every = math.ceil(22 / size)
    parts += [text(44 + (i + 0.5) * size, 28, str(i + 1), "middle") for i in range(0, n_layers, every)]
    parts += [text(40, 36 + (i + 0.5) * size, str(i + 1), "end") for i in range(0, n_heads, every)]
    for layer in range(n_layers):
        for head in range(n_heads):
            x, y = 45 + layer * size, 33 + head * size
            place = f'x="{x:.1f}" y="{y:.1f}" width="{size - 2:.1f}" height="{size - 2:.1f}"'
            title = f"<title>layer {layer + 1}, head {head + 1}</title>"
            picture = f'<rect class="well" {place}/><use href="#a{layer}-{head}" {place}/>'
            parts.append(f'<a href="#m{layer}-{head}">{title}{picture}</a>')
    return svg(48 + n_layers * size, 36 + n_heads * size, *parts)


def _thumb(n_layers: int, n_heads: int) -> float:
    """Pixels of a small picture, so that the table is as wide as the page at most, and not too high where it can be helped."""
    return min(64.0, 860 / n_layers, max(24.0, 420 / n_heads))


class _LargeMap:
    """Large maps with tokens on both axes; the axes are drawn once and used by all."""

    def __init__(self, n_layers: int, n_heads: int, labels: Sequence[str]) -> None:
        self.n_layers, self.n_heads = n_layers, n_heads
        self.labels = [label if len(label) <= _LABEL else label[: _LABEL - 1] + "…" for label in labels]
        self.cell = min(max(600 / len(labels), 5.0), 30.0)
        self.side, self.left, self.below = self.cell * len(labels), 150, 100
        self.above = 36 + (n_heads + 1) * _thumb(n_layers, n_heads)

    def axes(self) -> str:
        every = math.ceil(9 / self.cell)
        size = min(max(0.85 * every * self.cell, 9.0), 12.0)
        parts = []
        for i in range(0, len(self.labels), every):
            at = (i + 0.5) * self.cell
            parts.append(text(self.left - 6, at + size / 3, self.labels[i], "end"))
            turned = text(0, 0, self.labels[i], "end")
            parts.append(
                f'<g transform="translate({self.left + at + 3:.1f} {self.side + 9:.1f}) rotate(-60)">{turned}</g>'
            )
        names = f'<g style="font-size:{size:g}px">{"".join(parts)}</g>'
        across = text(
            self.left + self.side / 2, self.side + self.below - 6, "the token that is looked at", "middle", "soft"
        )
        down = text(14, self.side / 2, "the token that looks", "middle", "soft", turned=True)
        return f'<g id="axes">{names}{across}{down}</g>'

    def map(self, layer: int, head: int) -> str:
        steps = {
            "← layer": (layer - 1, head),
            "layer →": (layer + 1, head),
            "↑ head": (layer, head - 1),
            "head ↓": (layer, head + 1),
        }
        links = (
            f'<a href="#m{to[0]}-{to[1]}">{name}</a>'
            for name, to in steps.items()
            if 0 <= to[0] < self.n_layers and 0 <= to[1] < self.n_heads
        )
        place = f'x="{self.left}" y="0" width="{self.side:.1f}" height="{self.side:.1f}"'
        parts = (f'<rect class="well" {place}/>', f'<use href="#a{layer}-{head}" {place}/>', '<use href="#axes"/>')
        drawing = svg(self.left + self.side + 10, self.side + self.below, *parts)
        kind = "map first" if (layer, head) == (0, 0) else "map"
        top = f"<h4>Layer {layer + 1}, head {head + 1}</h4><nav>{''.join(links)}</nav>"
        return f'<div class="{kind}" id="m{layer}-{head}" style="scroll-margin-top:{self.above:.0f}px">{top}{drawing}</div>'


def stream_norms(found: Trace) -> Figure:
    """The lengths of the residual stream's vectors through depth, and of what each sublayer adds."""
    stream = [(0.0, found.embeddings)]
    for depth, layer in enumerate(found.layers):
        stream += [(depth + 0.5, layer.middle), (depth + 1.0, layer.residual)]
    first = [(depth, float(_lengths(x)[0])) for depth, x in stream]
    series = {"stream: first token": first}
    if found.embeddings.shape[1] > 1:
        series["stream: median of the others"] = [(depth, _median(x[:, 1:])) for depth, x in stream]
    series["attention gives (median)"] = [(d + 0.5, _median(x.attention)) for d, x in enumerate(found.layers)]
    series["feed-forward gives (median)"] = [(d + 1.0, _median(x.feed_forward)) for d, x in enumerate(found.layers)]
    values = [y for points in series.values() for _, y in points]
    log_y = min(values) > 0 and max(values) > 20 * min(values)
    caption = (
        "Depth 0 are the embeddings, n + ½ is behind the attention of layer n + 1, n + 1 behind its feed-forward network. In "
        "many decoders the first token's vector is huge: heads look there that have nothing to look for."
    )
    chart = line_chart("", "depth (layers)", "Euclidean length", series, log_y=log_y, from_zero=not log_y)
    return Figure("The residual stream through depth", caption, chart)


def _lengths(x: Tensor) -> Tensor:
    return x[0].float().norm(dim=-1)


def _median(x: Tensor) -> float:
    return float(_lengths(x).median())


def stream_lengths(found: Trace) -> list[list[float]]:
    """The length of every token's vector at depth 0 (embeddings) and behind each layer."""
    return [[round(value, 4) for value in _lengths(x).tolist()] for x in found.residuals]


def lens_guesses(model: nn.Module, found: Trace, most: int = 3) -> list[list[list[Guess]]]:
    """The most probable tokens, at each depth and position, by the logit lens."""
    rows = []
    for logits in layer_logits(model, found):
        top = logits[0].float().softmax(dim=-1).topk(min(most, logits.shape[-1]), dim=-1)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        rows.append([[Guess(i, p) for i, p in zip(ids, shares, strict=True)] for ids, shares in pairs])
    return rows


def lens_table(
    guesses: Sequence[Sequence[Sequence[Guess]]],
    labels: Sequence[str],
    expected: Sequence[int | None],
    name: Callable[[int], str],
) -> Figure:
    """Depth down, positions across; `expected` is what stands there in fact, where that is known."""
    head = "".join(f"<th>{html.escape(label)}</th>" for label in labels)
    rows = []
    for depth, row in enumerate(guesses):
        found = "".join(_lens_cell(cell, wanted, name) for cell, wanted in zip(row, expected, strict=True))
        rows.append(f"<tr><th>{depth or 'embeddings'}</th>{found}</tr>")
    body = f"<thead><tr><th>behind layer</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    own = "the token that follows in the text" if expected[-1] is None else "the text's own token"
    caption = (
        "What the model's last norm and output layer make of the residual stream behind each layer, as if it ended there: the "
        f"most probable token, the bluer the surer; framed where it is {own}. Point at a cell for the runners-up."
    )
    return Figure("Logit lens", caption, f'<div class="scroll"><table class="lens">{body}</table></div>')


def _lens_cell(guesses: Sequence[Guess], wanted: int | None, name: Callable[[int], str]) -> str:
    title = ", ".join(f"{name(guess.id)} {guess.probability:.1%}" for guess in guesses)
    kind = ' class="hit"' if guesses[0].id == wanted else ""
    said = html.escape(name(guesses[0].id))
    return f'<td{kind} style="--p:{guesses[0].probability:.3f}" title="{html.escape(title)}"><bdi>{said}</bdi></td>'


def next_guesses(logits: Tensor, most: int = 15) -> list[Guess]:
    """The most probable tokens behind the text."""
    top = logits[0, -1].float().softmax(dim=-1).topk(min(most, logits.shape[-1]))
    return [Guess(i, p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def entropy_bits(logits: Tensor) -> float:
    """−Σ p log₂ p of what comes next."""
    shares = logits[0, -1].double().softmax(dim=-1)
    return float(-torch.xlogy(shares, shares).sum() / torch.tensor(2.0).log())


def next_tokens(guesses: Sequence[Guess], logits: Tensor, name: Callable[[int], str]) -> Figure:
    """Bars of the most probable next tokens."""
    widest = guesses[0].probability
    bars = "".join(
        f'<b><bdi>{html.escape(name(g.id))}</bdi></b><span><i style="width:{80 * g.probability / widest:.1f}%"></i>'
        f"{g.probability:.1%}</span>"
        for g in guesses
    )
    rest, bits, n_others = (
        1 - sum(g.probability for g in guesses),
        entropy_bits(logits),
        logits.shape[-1] - len(guesses),
    )
    caption = (
        f"Probabilities of the token behind the text, at temperature 1. The other {n_others:,} tokens share "
        f"{rest:.1%}; the entropy is {bits:.2f} bits, as if {2**bits:,.0f} tokens were equally likely."
    )
    return Figure("What comes next", caption, f'<div class="next">{bars}</div>')
