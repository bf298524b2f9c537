"""The report as one HTML file that needs no other: tables that sort by a click, learning curves, accuracy by cost."""

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from vix.commands.report.charts import curves, legend, pareto, shares
from vix.commands.report.drawing import STYLE
from vix.commands.report.papers import Paper
from vix.commands.report.runs import Row
from vix.commands.report.tables import Table, by_share, circumstances, data_sets, published, results

PAGE_STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; background: #fff; max-width: 1100px;
  margin: 2em auto; padding: 0 1.2em }
h1 { font-size: 1.6em } h2 { margin-top: 2em; border-bottom: 2px solid #ddd } h3 { margin: 1.8em 0 .4em }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; white-space: nowrap }
th, td { padding: .22em .75em; text-align: right; border-bottom: 1px solid #e8e8e8 }
th { background: #f3f5f7; cursor: pointer; font-weight: 600 } th:hover { background: #e6eaee }
tbody tr:hover { background: #f8fafc }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0 }
td:first-child { background: #fff; font-weight: 600 }
td.words { text-align: left; white-space: normal; min-width: 16em }
svg { display: block; width: 100%; height: auto; font-size: 11px }
.legend svg { display: inline-block; width: 14px; vertical-align: -2px; margin-right: .3em }
.legend { line-height: 1.9 } .legend span { margin-right: 1.1em; white-space: nowrap }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1em }
.note { color: #555; max-width: 60em }
"""
# Sorts a table by the first number in the column's cells, else by their text; empty cells stay at the end.
SCRIPT = """
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], column = head.cellIndex, down = head.dataset.down !== '1';
  head.dataset.down = down ? '1' : '0';
  const key = row => {
    const text = row.cells[column].textContent.replaceAll(',', ''), number = parseFloat(text);
    return text === '' ? null : isNaN(number) ? text : number;
  };
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? 1 : x > y ? -1 : 0) * (down ? 1 : -1);
  });
  body.append(...rows);
});
"""


def page(rows: Sequence[Row], papers: Sequence[Paper]) -> str:
    """The whole page; every text from a file is escaped, and nothing is fetched from anywhere."""
    parts = [
        "<h1>Runs compared</h1>",
        '<p class="note">Means ± standard deviations (n − 1) over seeds. Test: the checkpoint `best`, of the epoch '
        "told below, on the official test split. Hover over a point or a curve for its name; click a head to sort.</p>",
    ]
    for data in data_sets(rows, papers):
        parts.append(f"<h2>{escape(data)}</h2>")
        here = [row for row in rows if row.first.data == data]
        parts += _ours(here) if here else ["<p>Not yet measured.</p>"]
        for paper in papers:
            if paper.data == data:
                parts.append(f"<h3>{escape(paper.title)}</h3>")
                parts.append(f'<p class="note">{escape(paper.protocol)} Source: {escape(paper.source)}</p>')
                parts.append(_table(published(paper, here)))
    content = "\n".join(part for part in parts if part)
    # the page is made of strangers' files: what slipped through escaping could load nothing, and run nothing
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>ViX: runs compared</title>\n<style>{PAGE_STYLE}{STYLE}</style>\n</head>\n<body>\n{content}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _ours(rows: Sequence[Row]) -> list[str]:
    whole = [row for row in rows if row.first.share == 1]
    parts = [_table(results(whole)) if whole else "<p>Not yet measured on all training images.</p>"]
    drawn = whole or list(rows)
    charts = {
        "Accuracy against operations": pareto(drawn, "flops", "MFLOPs an image", 1e6),
        "Accuracy against parameters": pareto(drawn, "parameters", "parameters"),
        "Accuracy against memory": pareto(drawn, "peak_memory_bytes", "MiB at the peak", 2**20),
        "Learning curves": curves(drawn),
    }
    found: dict[str, dict[float, float]] = {}
    stands_for: dict[str, Row] = {}
    for row in rows:
        if row.score is not None:
            found.setdefault(row.label, {})[row.first.share] = row.score
            stands_for[row.label] = row
    charts["Accuracy by the amount of data"] = shares(found, stands_for)
    parts.append(legend(drawn))
    for title, chart in charts.items():
        if chart:
            parts += [f"<h3>{title}</h3>", chart]
    table = by_share(rows)
    if table[1]:
        parts.append(_table(table))
    parts += [f'<p class="note">{escape(text)}</p>' for text in circumstances(rows)]
    return parts


def _table(table: Table) -> str:
    head, lines = table
    words = head.index("remark") if "remark" in head else -1
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="words">{escape(cell)}</td>' if place == words else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(line)
        )
        + "</tr>"
        for line in lines
    )
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
