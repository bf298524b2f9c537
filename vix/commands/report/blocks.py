"""Tables inside a page that people write: what stands between two marks is made from runs, the rest is left alone.

A block begins with a line that names a folder of runs, seen from the page's own folder, and a part, and ends with
another:

    <!-- report: benchmarks/results/digits, results -->
    <!-- /report -->

The part `picture` is an image of scores against operations, in a file beside the folder that has its name.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vix.commands.report.charts import picture
from vix.commands.report.runs import Row, collect, group
from vix.commands.report.tables import by_share, circumstances, markdown, markdown_table, results

BLOCK = re.compile(
    r"^(?P<head><!-- report: (?P<what>[^\n]*) -->)\n(?P<body>.*?)^(?P<foot><!-- /report -->)$", re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"^<!-- /?report\b", re.MULTILINE)
HOW = "<!-- report: FOLDER, PART --> in a line of its own, and <!-- /report -->"
UNMEASURED = "Not yet measured."


def _results(rows: Sequence[Row]) -> str:
    whole = [row for row in rows if row.first.share == 1]
    return markdown_table(results(whole)) if whole else UNMEASURED


def _shares(rows: Sequence[Row]) -> str:
    table = by_share(rows)
    return markdown_table(table) if table[1] else UNMEASURED


def _circumstances(rows: Sequence[Row]) -> str:
    return "\n".join(markdown(line) for line in circumstances(rows))


PARTS: dict[str, Callable[[Sequence[Row]], str]] = {
    "results": _results,
    "shares": _shares,
    "circumstances": _circumstances,
}
PICTURE = "picture"


@dataclass(frozen=True)
class Filled:
    """A page whose blocks were made anew.

    Args:
        text: The page.
        pictures: The files that it shows.
        left_out: Why runs were left out.
    """

    text: str
    pictures: dict[Path, str]
    left_out: list[str]


def fill(text: str, folder: Path) -> Filled:
    """Makes the blocks of a page anew; writes nothing.

    Args:
        text: The page.
        folder: The page's own folder.

    Raises:
        ValueError: If there is no block, or one of them asks for what there is not.
    """
    pictures: dict[Path, str] = {}
    left_out: dict[str, None] = {}

    def made(block: re.Match[str]) -> str:
        place, part, rows, reasons = _runs(block["what"], folder)
        left_out.update(dict.fromkeys(reasons))
        if part != PICTURE:
            content = PARTS[part](rows) if rows else UNMEASURED
        elif drawn := picture([row for row in rows if row.first.share == 1]):
            pictures[folder / f"{place}.svg"] = drawn
            content = f"![Test accuracy against operations for an image]({place}.svg)"
        else:
            content = UNMEASURED
        return f"{block['head']}\n{content}\n{block['foot']}"

    count = len(BLOCK.findall(text))
    if len(MARK.findall(text)) != 2 * count:
        raise ValueError(f"a block of the report has no end, or no beginning: {HOW}")
    if not count:
        raise ValueError(f"no block to fill: give it {HOW}")
    filled = BLOCK.sub(made, text)
    return Filled(filled, pictures, list(left_out))


def _runs(what: str, folder: Path) -> tuple[str, str, list[Row], list[str]]:
    """The folder and the part that a block names, the runs there, and why some were left out."""
    place, _, part = (word.strip() for word in what.rpartition(","))
    if not place or part not in (*PARTS, PICTURE):
        raise ValueError(f"report: {what}: expected a folder and one of {_parts()}, joined by a comma")
    if not any((folder / place).rglob("results.json")):
        return place, part, [], []
    runs, left_out = collect([folder / place])
    if len(names := sorted({run.data for run in runs})) > 1:
        raise ValueError(f"report: {what}: the folder has runs on {' and '.join(names)}; a block is about one data set")
    return place, part, group(runs), left_out


def _parts() -> str:
    return ", ".join((*PARTS, PICTURE))
