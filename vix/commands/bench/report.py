"""How results are told: a table for the eye, CSV and JSON for machines, plots with growth exponents."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from vix.commands.bench.findings import crossing, growth_exponent, refusal, sentence

OK, FULL = "ok", "out of memory"


@dataclass(frozen=True)
class Row:
    """One candidate at one size, in one mode and precision; None stands for what could not be measured.

    `tokens` are those of the grid, `sequence` those that the first block sees. `memory` is in bytes, of the kind that
    `memory_kind` names. `roofline_ms` is the least time this machine needs, `roofline` the share of it that was
    reached.
    """

    candidate: str
    kind: str
    softmax: str
    baselines: tuple[str, ...]
    tokens: int
    sequence: int | None
    batch: int
    mode: str
    precision: str
    device: str
    compiled: bool
    outcome: str
    rounds: int = 0
    ms: float | None = None
    ms_q1: float | None = None
    ms_q3: float | None = None
    images_per_s: float | None = None
    memory: int | None = None
    memory_kind: str = ""
    flops: int | None = None
    parameters: int | None = None
    matrix_rate: float | None = None
    bandwidth: float | None = None
    roofline_ms: float | None = None
    roofline: float | None = None


def table(rows: Sequence[Row]) -> str:
    """Sets rows of one mode and precision as a table."""
    head = ["n", "candidate", "ms", "quartiles", "images/s", "MiB", "GFLOP", "parameters", "roofline"]
    lines = [head]
    for row in rows:
        start = [str(row.tokens), row.candidate]
        if row.outcome != OK:
            lines.append([*start, row.outcome, *[""] * 6])
            continue
        assert row.ms is not None
        assert row.ms_q1 is not None
        assert row.ms_q3 is not None
        lines.append(
            [
                *start,
                f"{row.ms:.2f}",
                f"{row.ms_q1:.2f}-{row.ms_q3:.2f}",
                f"{row.images_per_s:.1f}",
                "" if row.memory is None else f"{row.memory / 2**20:.1f}",
                "" if row.flops is None else f"{row.flops / 1e9:.3f}",
                "" if row.parameters is None else f"{row.parameters:,}",
                "" if row.roofline is None else f"{row.roofline:.0%}",
            ]
        )
    # A reason why something was not measured may be longer than a column of numbers.
    widths = [max(len(line[i]) for line in lines if i != 2 or line[3] or line is head) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i in (1, 3) else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def series(rows: Sequence[Row]) -> Iterator[tuple[tuple[str, str, str], list[Row]]]:
    """Groups rows by (kind, mode, precision)."""

    def key(row: Row) -> tuple[str, str, str]:
        return row.kind, row.mode, row.precision

    for name, group in groupby(sorted(rows, key=key), key):
        yield name, list(group)


def _curves(rows: Sequence[Row], cost: str) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    for row in rows:
        value = math.inf if row.outcome == FULL else getattr(row, cost)
        if value is not None:
            curves.setdefault(row.candidate, {})[row.tokens] = value
    return curves


def growth(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Fits how each candidate's time and memory grow with its tokens."""
    found = []
    for (kind, mode, precision), group in series(rows):
        for cost in ("ms", "memory"):
            for candidate, curve in _curves(group, cost).items():
                exponent = growth_exponent(list(curve), list(curve.values()))
                if exponent is not None:
                    found.append(
                        {
                            "kind": kind,
                            "mode": mode,
                            "precision": precision,
                            "cost": cost,
                            "candidate": candidate,
                            "exponent": exponent,
                        }
                    )
    return found


def crossings(rows: Sequence[Row]) -> list[str]:
    """Says from where on each candidate is cheaper than softmax attention in its place, and who is not."""
    said = []
    for (_, mode, precision), group in series(rows):
        compared = {row.candidate: row.baselines for row in group if not row.softmax}
        kept = any(row.memory_kind.startswith("kept") for row in group)
        verbs = {"ms": "trains faster" if mode == "train" else "infers faster"}
        verbs["memory"] = "keeps fewer bytes" if kept else "needs less memory"
        for cost, verb in verbs.items():
            curves = _curves(group, cost)
            refused: dict[tuple[str, int], dict[str, float]] = {}
            for candidate, baseline in ((name, other) for name, others in compared.items() for other in others):
                ours, theirs = curves.get(candidate, {}), curves.get(baseline, {})
                sizes = sorted(ours.keys() & theirs.keys())
                if not sizes or (cost == "memory" and all(map(math.isinf, (*ours.values(), *theirs.values())))):
                    continue
                found = crossing(sizes, [ours[n] for n in sizes], [theirs[n] for n in sizes])
                if found.tokens is None:
                    refused.setdefault((baseline, sizes[-1]), {})[candidate] = found.ratio
                else:
                    said.append(f"{precision}: {sentence(found, candidate, baseline, verb, sizes[-1])}")
            said += [
                f"{precision}: {refusal(shares, baseline, verb, largest)}"
                for (baseline, largest), shares in refused.items()
            ]
    return said


def write(rows: Sequence[Row], facts: dict[str, Any], folder: Path) -> None:
    """Writes results.csv and results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Row) if field.name != "baselines"]
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    results = {**facts, "rows": [asdict(row) for row in rows], "growth": growth(rows), "crossings": crossings(rows)}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def plot(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws time and memory against tokens, both axes logarithmic, one picture for each kind, mode and precision.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    # Half a second, and only for those who want pictures.
    from matplotlib.figure import Figure

    written = []
    for (kind, mode, precision), group in series(rows):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        for axes, cost, unit in zip(figure.subplots(1, 2), ("ms", "memory"), (1, 2**20), strict=True):
            for candidate, curve in _curves(group, cost).items():
                points = [(n, value / unit) for n, value in sorted(curve.items()) if 0 < value < math.inf]
                exponent = growth_exponent([n for n, _ in points], [value for _, value in points])
                label = candidate if exponent is None else f"{candidate}  ~n^{exponent:.2f}"
                if points:
                    axes.plot(*zip(*points, strict=True), marker="o", label=label)
            batch = group[0].batch
            axes.set(xscale="log", yscale="log", xlabel="tokens")
            kinds = {row.memory_kind for row in group if row.memory_kind} or {"memory"}
            axes.set_ylabel(f"ms a step of {batch}" if cost == "ms" else f"MiB, {', '.join(sorted(kinds))}")
            if axes.has_data():
                axes.legend(fontsize="small")
        figure.suptitle(f"{kind}s, {mode}, {precision}, {group[0].device}{', compiled' * group[0].compiled}")
        written.append(folder / f"{kind}-{mode}-{precision}.png")
        figure.savefig(written[-1], dpi=120)
    return written
