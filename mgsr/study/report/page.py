"""One HTML file that opens offline: tables that sort, plots inside, readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from mgsr.study.report.table import Table

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; --ink: #1f2328; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --line: #3d444d; --soft: #161b22; --ink: #e6edf3; --back: #0d1117; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 0 auto;
       max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
td:last-child, th:last-child { text-align: left; } th { cursor: pointer; background: var(--soft); }
th:first-child { background: var(--soft); } th[aria-sort=ascending]::after { content: " \\25B2"; }
th[aria-sort=descending]::after { content: " \\25BC"; }
.better { color: #1a7f37; } .worse { color: #cf222e; } figure { margin: 1rem 0; } figcaption { font-size: .9rem; }
figure svg { max-width: 100%; height: auto; background: #fff; border-radius: .4rem; }
.answer { background: var(--soft); padding: .8rem 1rem; border-left: 4px solid #0969da; }
code { background: var(--soft); padding: 0 .25rem; } pre { overflow-x: auto; background: var(--soft); padding: .8rem; }
"""

_SCRIPT = """
document.querySelectorAll("th").forEach(head => {
  const sort = () => {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const up = head.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => { const text = row.cells[column].textContent.replace("< ", ""); const n = parseFloat(text);
      return [isNaN(n), isNaN(n) ? text : n]; };
    [...body.rows].sort((a, b) => { const [x, p] = key(a), [y, q] = key(b);
      if (x !== y) return x ? 1 : -1;
      return (p < q ? -1 : p > q ? 1 : 0) * (up ? 1 : -1); }).forEach(row => body.append(row));
  };
  head.tabIndex = 0;
  head.addEventListener("click", sort);
  head.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(); } });
});
"""


def page(
    title: str,
    answers: Sequence[str],
    facts: Sequence[str],
    command: str,
    tables: Sequence[Table],
    plots: Mapping[str, tuple[str, str]],
) -> str:
    """The whole report. Everything that comes from a file is escaped."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(
            ['<div class="answer">', *(f"<p>{_inline(answer)}</p>" for answer in answers), "</div>"]
            if answers
            else []
        ),
        f"<pre>{escape(command)}</pre>",
        *(f"<p>{_inline(fact)}</p>" for fact in facts),
    ]
    figures = [
        f"<figure>{_bare(svg, name)}<figcaption>{escape(caption)}</figcaption></figure>"
        for name, (caption, svg) in plots.items()
    ]
    for index, table in enumerate(tables):
        parts.append(_table(table))
        if index == 0:
            parts += figures
    return "\n".join([*parts, f"<script>{_SCRIPT}</script></body></html>"]) + "\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name.strip())}</th>" for name in table.header)
    body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in table.rows)
    text = f"<p>{_inline(table.text)}</p>" if table.text else ""
    return (
        f"<h2>{escape(table.title)}</h2>{text}\n<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _cell(cell: str) -> str:
    kind = next((f" class={name}" for name in ("better", "worse") if cell == name), "")
    return f"<td{kind}>{_inline(cell)}</td>"


def _inline(text: str) -> str:
    """Escaped, with `code` and **bold** as Markdown has them."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _bare(svg: str, name: str) -> str:
    """SVG to stand inside HTML: no prologue, and ids of its own, as several plots share one document."""
    body = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W", "_", name)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    return re.sub(r"url\(#", f"url(#{prefix}-", body)
