"""Results for people: as text in a terminal, and as one page of HTML that needs no network and follows light and dark."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from lamoid.inspect.charts import number
from lamoid.inspect.svg import STYLE

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
body { color: var(--ink); background: var(--paper) } a { color: var(--c0) }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92em }
td, th { padding: .25rem .7rem; border-bottom: 1px solid var(--line) }
td + td, th + th { text-align: right } .words td, .words th { text-align: left; vertical-align: top } h2 { margin-top: 2.6rem }
.scroll { overflow-x: auto } svg { margin: .8rem 0 } .soft, pre { color: var(--soft) } pre { white-space: pre-wrap }
.verdict { font-weight: 600; padding: .1rem .5rem; border-radius: .3rem; white-space: nowrap; color: #1f2328 }
.holds { background: #b7e4c0 } .does { background: #f7c6c0 } .undecided { background: #e3e6ea }
"""


def as_text(result: Mapping[str, Any]) -> str:
    """Question, rule, table, what each part came to, and the verdict."""
    lines = [result["claim"], result["question"], f"rule: {result['rule']}", ""]
    if result["table"]:
        rows = [result["table"]["columns"], *([_cell(cell) for cell in row] for row in result["table"]["rows"])]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            cells = [
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines.append("")
    lines += [f"{check['verdict']}: {check['part']}: {check['numbers']}" for check in result["checks"]]
    reason = f" ({result['reason']})" if result["reason"] else ""
    return "\n".join([*lines, f"verdict: {result['verdict']}{reason}"])


def html_page(results: Sequence[Mapping[str, Any]], pictures: Mapping[str, str]) -> str:
    """The page: a table of all verdicts, then each experiment. `pictures` holds the SVG of every figure by its name."""
    machines = {tuple(result["machine"].items()) for result in results}
    where = "; ".join(", ".join(f"{key} {value}" for key, value in one) for one in sorted(machines))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Lamoid's laboratory</title><style>{STYLE}{_STYLE}</style></head><body><h1>Lamoid's laboratory</h1>",
        f"<p>What is said about the parts of a Llama, measured here: {html.escape(where)}. "
        "A verdict follows from a rule that was written before the run; intervals are 95 %.</p>",
        '<div class="scroll"><table class="words"><tr><th>experiment</th><th>claim</th><th>verdict</th></tr>',
        *(_summary(result) for result in results),
        "</table></div>",
        *(_section(result, pictures) for result in results),
    ]
    return "\n".join([*parts, "</body></html>\n"])


def _summary(result: Mapping[str, Any]) -> str:
    name, claim = html.escape(result["name"]), html.escape(result["claim"])
    return f'<tr><td><a href="#{name}">{name}</a></td><td>{claim}</td><td>{_badge(result["verdict"])}</td></tr>'


def _section(result: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    name, escape = html.escape(result["name"]), html.escape
    parts = [f'<h2 id="{name}">{name} {_badge(result["verdict"])}</h2><p><b>{escape(result["claim"])}</b></p>']
    parts.append(f"<p>{escape(result['question'])}</p>")
    parts += [f"<p>{escape(result['reason'])}.</p>"] if result["reason"] else []
    parts += [pictures[figure] for figure in result["figures"]]
    if result["table"]:
        parts.append(_table(result["table"]["columns"], result["table"]["rows"], ""))
    checks = [(check["part"], check["verdict"], check["numbers"]) for check in result["checks"]]
    parts += [_table(("part of the claim", "verdict", "numbers"), checks, "words")] if checks else []
    settings = ", ".join(f"{key} = {value}" for key, value in result["settings"].items())
    took = f"{result['seconds']:.0f} s on {result['date']}; {settings}"
    parts.append(f"<p><b>Rule:</b> {escape(result['rule'])}</p><p class='soft'>{escape(took)}</p>")
    return "\n".join([*parts, f"<details><summary>about</summary><pre>{escape(result['about'])}</pre></details>"])


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], kind: str) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def _badge(verdict: str) -> str:
    return f'<span class="verdict {verdict.split()[0]}">{html.escape(verdict)}</span>'


def _cell(cell: Any) -> str:
    return cell if isinstance(cell, str) else number(cell)
