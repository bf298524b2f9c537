"""The rows as tables: Markdown for reading, CSV for machines."""

import csv
import io
from collections.abc import Sequence

from vix.commands.report.papers import Paper, Published
from vix.commands.report.runs import Row

HEAD = (
    "system",
    "seeds",
    "test top-1 %",
    "test top-5 %",
    "val top-1 %, best",
    "val top-1 %, last",
    "parameters",
    "MFLOPs",
    "memory MiB",
    "time",
)
PUBLISHED_HEAD = ("system", "top-1 %", "top-5 %", "epoch", "parameters", "batch", "s an epoch", "remark")
# Commits that are named; a table that is filled over days has many.
MOST_COMMITS = 4
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def percent(row: Row, name: str) -> str:
    """`98.61 ± 0.28`, or empty."""
    mean, deviation = row.mean(name), row.deviation(name)
    if mean is None:
        return ""
    return f"{mean:.2%}".rstrip("%") + ("" if deviation is None else f" ± {deviation * 100:.2f}")


def results(rows: Sequence[Row]) -> Table:
    """The rows of one data set at one share; columns that are empty in all of them are left out."""
    lines = [
        (
            row.label,
            str(len(row.runs)),
            percent(row, "test/top1"),
            percent(row, "test/top5"),
            percent(row, "best/top1"),
            percent(row, "last/top1"),
            _number(row.mean("parameters")),
            _number(row.mean("flops"), 1e6, 1),
            _number(row.mean("peak_memory_bytes"), 2**20),
            _time(row.mean("wall_seconds")),
        )
        for row in rows
    ]
    kept = [place for place in range(len(HEAD)) if place < 2 or any(line[place] for line in lines)]
    return tuple(HEAD[place] for place in kept), [tuple(line[place] for place in kept) for line in lines]


def by_share(rows: Sequence[Row]) -> Table:
    """Test top-1 (validation, where untested) by the share of training images, of systems with more than one share."""
    shares = sorted({row.first.share for row in rows})
    cells: dict[str, dict[float, str]] = {}
    for row in rows:
        name = "test/top1" if row.values("test/top1") else "best/top1"
        cells.setdefault(row.label, {})[row.first.share] = percent(row, name)
    chosen = {label: found for label, found in cells.items() if len(found) > 1}
    # rows come best first within a share, all images before the rest: that order stays
    lines = [(label, *(found.get(share, "") for share in shares)) for label, found in chosen.items()]
    return ("system", *(f"{share:.0%} of train" for share in shares)), lines


def circumstances(rows: Sequence[Row]) -> list[str]:
    """How the rows' scores were taken, and on which machines with which code."""
    runs = [run for row in rows for run in row.runs]
    machines, commits = (sorted({getattr(run, name) for run in runs} - {""}) for name in ("machine", "commit"))
    lines = sorted({run.protocol for run in runs} - {""})
    if machines:
        more = f" and {len(commits) - MOST_COMMITS} more" if len(commits) > MOST_COMMITS else ""
        named = f"; commit {', '.join(commits[:MOST_COMMITS])}{more}" if commits else ""
        lines.append(f"Run on {' / '.join(machines)}{named}{' (+: changed since)' if '+' in named else ''}.")
    return lines


def published(paper: Paper, rows: Sequence[Row]) -> Table:
    """A source's numbers, with ours of the same YAML beside them where there are any."""
    ours = {row.first.experiment: percent(row, "test/top1") for row in reversed(rows) if row.first.share == 1}
    head = (*PUBLISHED_HEAD[:3], "ours, top-1 %", *PUBLISHED_HEAD[3:]) if rows else PUBLISHED_HEAD

    def line(row: Published) -> tuple[str, ...]:
        epoch = "" if row.epoch is None else f"{row.epoch} of {row.epochs}"
        rest = (epoch, _number(row.parameters), _number(row.batch_size), _number(row.seconds_per_epoch, digits=1))
        scores = ("" if row.top1 is None else f"{row.top1:.2f}", "" if row.top5 is None else f"{row.top5:.2f}")
        own = ours.get(row.experiment, ours.get(f"published_{row.experiment}", ""))
        return (row.system, *scores, *((own,) if rows else ()), *rest, row.remark)

    return head, [line(row) for row in paper.rows]


def as_markdown(rows: Sequence[Row], papers: Sequence[Paper]) -> str:
    """All tables, one section a data set."""
    parts = []
    for data in data_sets(rows, papers):
        here = [row for row in rows if row.first.data == data]
        whole = [row for row in here if row.first.share == 1]
        parts.append(f"## {markdown(data)}")
        parts.append(markdown_table(results(whole)) if whole else "Not yet measured on all training images.")
        shares = by_share(here)
        if shares[1]:
            parts += ["Test top-1 % by the share of the training images:", markdown_table(shares)]
        parts += [markdown(line) for line in circumstances(here)]
        for paper in papers:
            if paper.data == data:
                parts.append(f"**{markdown(paper.title)}** ({markdown(paper.source)})")
                parts += [markdown_table(published(paper, here)), markdown(paper.protocol)]
    return "\n\n".join(part for part in parts if part) + "\n"


def data_sets(rows: Sequence[Row], papers: Sequence[Paper]) -> list[str]:
    """Names of the data sets, those with runs before those that are only published."""
    ours = {row.first.data for row in rows}
    return [*sorted(ours), *sorted({paper.data for paper in papers} - ours)]


def as_csv(rows: Sequence[Row]) -> str:
    """One line a row, unrounded: means and deviations of every score that a run has."""
    names = sorted({name for row in rows for run in row.runs for name in run.scores})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    head = ["system", "data", "share", "settings", "seeds"]
    writer.writerow([*head, *(f"{name}{kind}" for name in names for kind in ("", " sd"))])
    for row in rows:
        run = row.first
        seeds = " ".join(str(each.seed) for each in row.runs)
        numbers = [value for name in names for value in (row.mean(name), row.deviation(name))]
        line = [row.label, run.data, f"{run.share:g}", run.settings, seeds]
        writer.writerow([*line, *("" if value is None else f"{value:.10g}" for value in numbers)])
    return file.getvalue()


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    plain = (
        " ".join(str(text).split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    )
    for mark in ("`", "*", "[", "]"):
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def markdown_table(table: Table) -> str:
    """A table with numbers to the right."""
    head, lines = table
    aligned = ["---" if place == 0 or name == "remark" else "---:" for place, name in enumerate(head)]
    rows = [[markdown(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows))


def _number(value: float | None, unit: float = 1, digits: int = 0) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{seconds / 3600:.1f} h"
