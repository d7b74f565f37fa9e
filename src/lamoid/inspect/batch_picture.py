"""A batch as a picture: in a terminal, with colours or marks, and as a page of HTML that needs nothing else."""

import html
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from itertools import groupby
from typing import Any

from lamoid.inspect.batch_view import BatchView, Document, State, Token

COLOURS: dict[State, str] = {"trained": "\x1b[1;32m", "masked": "\x1b[2m", "padding": "\x1b[2;34m"}
MARKS: dict[State, tuple[str, str]] = {"trained": ("⟦", "⟧"), "masked": ("", ""), "padding": ("", "")}
_RESET = "\x1b[0m"
_BIDI = {chr(c) for c in (0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def facts(view: BatchView, warnings: Iterable[str]) -> dict[str, Any]:
    """Everything as plain values for JSON: counts, warnings, documents, and every token of every row."""
    names = [field.name for field in fields(Document) if field.name != "example"]
    return {
        "trained": view.count("trained"),
        "masked": view.count("masked"),
        "padding": view.count("padding"),
        "share_trained": view.share_trained,
        "documents_see_each_other": view.sees_all,
        "warnings": list(warnings),
        "documents": [{name: getattr(document, name) for name in names} for document in view.documents],
        "rows": [[asdict(token) for token in row] for row in view.rows],
    }


def summary(view: BatchView) -> str:
    """The counts in one line."""
    n_tokens = sum(map(len, view.rows))
    sees = "see" if view.sees_all else "do not see"
    return (
        f"{len(view.rows)} rows, {n_tokens:,} tokens: {view.count('trained'):,} trained ({view.share_trained:.0%} of all "
        f"but padding), {view.count('masked'):,} masked, {view.count('padding'):,} padding; "
        f"documents of a row {sees} each other"
    )


def legend(*, colour: bool) -> str:
    """What the colours or marks mean."""
    return ", ".join(_marked(state, state, colour=colour) for state in COLOURS) + ", ⏎ line end"


def lines(view: BatchView, *, colour: bool) -> Iterator[str]:
    """The rows, each document under a line about it. What could steer a terminal is written as an escape."""
    for number, row in enumerate(view.rows):
        for document in (d for d in view.documents if d.row == number):
            yield f"── row {number + 1}, {_about(document)} ──"
            yield "".join(_stretches(row[document.start : document.end], colour=colour))
        n_padding = sum(token.state == "padding" for token in row)
        if n_padding:
            yield _marked(f"({n_padding} × padding)", "padding", colour=colour)


def _about(document: Document) -> str:
    parts = [f"document {document.number + 1}"]
    parts += [visible(document.source).replace("⏎\n", "⏎")] if document.source else []
    parts += [f"{document.end - document.start} tokens, {document.n_trained} trained"]
    parts += [f"✂ cut: {document.cut}"] if document.cut else []
    return ", ".join(parts)


def _stretches(tokens: Iterable[Token], *, colour: bool) -> Iterator[str]:
    for state, run in groupby(tokens, key=lambda token: token.state):
        yield _marked(visible("".join(token.text for token in run)), state, colour=colour)


def _marked(text: str, state: State, *, colour: bool) -> str:
    if colour:
        return "\n".join(f"{COLOURS[state]}{line}{_RESET}" if line else "" for line in text.split("\n"))
    before, after = MARKS[state]
    return f"{before}{text}{after}"


def visible(text: str) -> str:
    """The text with its line ends shown, and with every character that could steer a terminal as an escape."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    steers = unicodedata.category(character) == "Cc" or character in _BIDI
    return character.encode("unicode_escape").decode() if steers and character != "\t" else character


_STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace; padding: .6rem }
.text { border: 1px solid #ccc } .text span:hover { outline: 1px solid #000 }
.trained { background: #b7e4c0 } .masked { background: #eee; color: #555 } .padding { background: #dde6f7; color: #88a }
.part { padding: 0 2px } .special { font-weight: 600 } .cut { color: #b00020 } h2 { font-size: 1rem; margin: 1.2rem 0 .3rem }
.warning { background: #fde9c8; border-left: 4px solid #d98200; padding: .3rem .8rem; margin: .4rem 0 }
"""


def page(view: BatchView, warnings: Iterable[str], title: str) -> str:
    """A page of HTML by itself: no script, no network; every text in it is escaped. A token's id and place show on hover."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(summary(view))}</p>",
        "<p>" + " ".join(f'<span class="{state}">{state}</span>' for state in COLOURS) + "</p>",
        *(f'<p class="warning">{html.escape(visible(warning))}</p>' for warning in warnings),
    ]
    for number, row in enumerate(view.rows):
        for document in (d for d in view.documents if d.row == number):
            kind = ' class="cut"' if document.cut else ""
            parts.append(f"<h2{kind}>row {number + 1}, {html.escape(_about(document))}</h2>")
            parts.append(f'<div class="text" dir="auto">{_spans(row[document.start : document.end])}</div>')
        padding = [token for token in row if token.state == "padding"]
        if padding:
            parts.append(f'<div class="text">{_spans(padding)}</div>')
    return "\n".join([*parts, "</body></html>\n"])


def _spans(tokens: Iterable[Token]) -> str:
    return "".join(map(_span, tokens))


def _span(token: Token) -> str:
    """A token that ends inside a character is a narrow span without a text; the text is in the one that completes it."""
    kind = f"{token.state}{' special' if token.is_special else '' if token.text else ' part'}"
    place = f"id {token.id}, position {token.position}, {token.state}"
    return f'<span class="{kind}" title="{place}">{html.escape(visible(token.text))}</span>'
