"""docs/support.md: made from the cells, read back, and the part of it that a day checks."""

import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.support.cells import COLUMNS, ROWS, YES

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "support.md"
PARTS = 10
UNTRIED = "?"
Table = dict[str, dict[str, str]]

HEAD = """\
# What works with which system

Made by tests, not by hand, on nets of a few thousand parameters and a CPU:

    python -m tests.support                                    # all of it
    python -m tests.support --columns compile --systems ViP    # these cells; the others stay as they are
    VIX_SUPPORT_ALL=1 python -m pytest -m slow tests/support   # compares all of it with what is tried

CI tries the cheap columns and a tenth of the dear ones (*), another with each commit, and fails where the table says
something else. RoPE stands for `position="rope"`.
"""


def compute(columns: Iterable[str], rows: Sequence[str] = tuple(ROWS)) -> Table:
    """Tries columns out; gives the answers by row and column."""
    found: Table = {row: {} for row in rows}
    for column in columns:
        for row, answer in COLUMNS[column].check(rows).items():
            found[row][column] = answer
    return found


def render(table: Table) -> str:
    """The document; what was not tried yet is a `?`, which `problems` finds."""
    reasons: list[str] = []
    lines = [HEAD, "| column | what is tried |", "|---|---|"]
    lines += [f"| {name}{'*' if each.dear else ''} | {each.asks} |" for name, each in COLUMNS.items()]
    lines += ["", f"| system | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for row in ROWS:
        cells = []
        for column in COLUMNS:
            word, _, reason = table[row].get(column, UNTRIED).partition(": ")
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append(f"{word} ({reasons.index(reason) + 1})" if reason else word)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", *(f"({number}) {reason}\n" for number, reason in enumerate(reasons, 1))]
    return "\n".join(lines).rstrip() + "\n"


def read(text: str) -> Table:
    """The answers that a document gives; cells that are no answer are kept as they are."""
    reasons = dict(re.findall(r"^\((\d+)\) (.+)$", text, re.MULTILINE))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head = next((row for row in rows if row[0] == "system"), ["system"])
    table: Table = {}
    for name, *cells in rows[rows.index(head) + 1 :] if head in rows else []:
        table[name] = {}
        for column, cell in zip(head[1:], cells, strict=False):
            note = re.fullmatch(r"(.+) \((\d+)\)", cell)
            table[name][column] = f"{note[1]}: {reasons.get(note[2], '')}" if note else cell
    return table


def turn() -> int:
    """Which tenth is checked: by the commit, or by the day where there is no repository."""
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    if done.returncode == 0:
        return int(done.stdout.strip(), 16) % PARTS
    return datetime.now(UTC).toordinal() % PARTS


def dear_part(turn: int) -> list[tuple[str, str]]:
    """The cells (row, column) of the dear columns that a turn checks; ten turns check each once."""
    cells = [(row, column) for row in ROWS for column, each in COLUMNS.items() if each.dear]
    return cells[turn::PARTS]


def problems(table: Table) -> list[str]:
    """What a table lacks: rows, columns, answers, reasons."""
    found = [f"row {row} is no system" for row in table if row not in ROWS]
    for row in ROWS:
        for column in COLUMNS:
            word, _, reason = table.get(row, {}).get(column, "").partition(": ")
            if word not in (YES, "no", "n/a"):
                found.append(f"{row}, {column}: {word!r} is no answer")
            elif word != YES and not reason:
                found.append(f"{row}, {column}: {word} without a reason")
    return found
