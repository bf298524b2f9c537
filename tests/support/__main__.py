"""`python -m tests.support`: tries out every cell and writes docs/support.md."""

import argparse
import fcntl
import os
import sys
import warnings

import torch

from tests.support.cells import COLUMNS, ROWS
from tests.support.matrix import DOCUMENT, Table, compute, problems, read, render


def add(found: Table) -> Table:
    """Writes answers into the document and gives all that it has; several calls may do so at the same time."""
    DOCUMENT.parent.mkdir(exist_ok=True)
    folder = os.open(DOCUMENT.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        before = read(DOCUMENT.read_text(encoding="utf-8")) if DOCUMENT.exists() else {}
        table = {row: before.get(row, {}) | found.get(row, {}) for row in ROWS}
        DOCUMENT.write_text(render(table), encoding="utf-8")
    finally:
        os.close(folder)
    return table


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.support", description=__doc__)
    options.add_argument(
        "--columns", nargs="+", choices=COLUMNS, metavar="NAME", help="columns to try; all if left out"
    )
    options.add_argument("--systems", nargs="+", choices=ROWS, metavar="NAME", help="rows to try; all if left out")
    given = options.parse_args()
    chosen, rows = given.columns or list(COLUMNS), given.systems or list(ROWS)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    table: Table = {}
    for column in chosen:
        # Row by row, so that it may be stopped; processes are started once for all rows.
        for part in [rows] if column == "DDP" else [[row] for row in rows]:
            found = compute([column], part)
            table = add(found)
            sys.stdout.write("".join(f"{row}, {column}: {found[row][column]}\n" for row in part))
            sys.stdout.flush()
    if missing := problems(table):
        sys.stdout.write(f"not whole: {missing[0]}, and {len(missing) - 1} more\n")
    return int(bool(missing))


if __name__ == "__main__":
    sys.exit(main())
