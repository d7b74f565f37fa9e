"""Drawings as SVG, inside HTML or as files, and rectangles of numbers as PNG: by hand, without a library and a network.

Colours are those of STYLE: each is a variable with a value for light and one for dark.
"""

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ACCENT, CONTRARY = (61, 139, 255), (234, 112, 33)
"""Blue for what is above 0, orange for what is below: both can be read on white and on black."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2129; --soft: #5b6472; --line: #d9dde3; --panel: #f4f6f8;
  --c0: #1667d9; --c1: #c4500b; --c2: #16803f; --c3: #8a3ffc; --c4: #8f6b00; --c5: #0b7d8f; --c6: #c2186b; --c7: #667085 }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ee; --soft: #9aa5b4; --line: #343b46;
  --panel: #1d222a; --c0: #6ba6ff; --c1: #ff9a5c; --c2: #5fcf88; --c3: #bd95ff; --c4: #e0b84c; --c5: #4fc9dc;
  --c6: #ff7ab3; --c7: #98a2b3 } }
svg { display: block; max-width: 100%; height: auto; font: 13px system-ui, sans-serif } text { fill: var(--ink) }
text.soft, text.tick { fill: var(--soft) } text.title { font-weight: 600; font-size: 15px }
.rule { stroke: var(--line); fill: none } .axis { stroke: var(--soft) } .span { stroke: var(--ink); stroke-width: 2 }
.halo { stroke: var(--paper); stroke-width: 5 }
.curve { fill: none; stroke: var(--c); stroke-width: 2 } .dot, .bar { fill: var(--c) } .area { fill: var(--c); opacity: .2 }
""" + "".join(f".c{i} {{ --c: var(--c{i}) }} " for i in range(8))
"""Light and dark, for a page as for a drawing that stands alone: `:root` is the page or the drawing itself."""
PAGE_STYLE = """
figure { margin: 1.2rem 0 2.2rem } figcaption p { margin: .2rem 0 .6rem; color: var(--soft) } h3 { margin: 0; font-size: 1.05rem }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .85rem }
.legend i { display: inline-block; width: 1.1rem; height: .65rem; margin-right: .4rem; border-radius: 2px; background: var(--c) }
"""


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


def svg(width: float, height: float, *parts: str, label: str = "") -> str:
    """A drawing of this many pixels, which shrinks with a narrower page. `label` is for readers who cannot see it."""
    said = f' role="img" aria-label="{html.escape(label)}"' if label else ""
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return f"<svg{said} {size}>{''.join(parts)}</svg>"


def standalone(drawing: str) -> str:
    """A drawing as a file of its own, with its colours and its paper."""
    head, rest = drawing.removeprefix("<svg").split(">", 1)
    paper = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg"{head}><style>{STYLE}</style>{paper}{rest}\n'


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "", *, turned: bool = False) -> str:
    """One line of text within an SVG, escaped; `kind` is a class of STYLE; `turned` reads upwards."""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}{turn}>{html.escape(words)}</text>'


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
