"""Run folders as rows: what each run says of itself, and which runs are one row."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any


@dataclass(frozen=True)
class Run:
    """One finished run.

    Args:
        folder: Where it lies.
        experiment: Name of its YAML.
        net: Name of the net's class, and its position where it has one.
        data: Name of the data set's class.
        share: Part of the training images that was used.
        overlays: Names of the YAMLs given after the system's.
        settings: The same in runs that may be averaged.
        seed: None where nothing was random.
        written: When, as text that sorts.
        scores: Numbers by name; only what was measured.
        curve: Validation top-1 by epoch.
        protocol: How the scores were taken, in words.
        machine: What it ran on, with which torch; empty where the file does not say.
        commit: Of the code, with a mark where something was changed since.
    """

    folder: Path
    experiment: str
    net: tuple[str, str]
    data: str
    share: float
    overlays: tuple[str, ...]
    settings: str
    seed: int | None
    written: str
    scores: dict[str, float]
    curve: dict[int, float] = field(default_factory=dict)
    protocol: str = ""
    machine: str = ""
    commit: str = ""


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    Args:
        label: The experiment, and what tells it from its namesakes.
        runs: By seed.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """A run that stands for all in what they share."""
        return self.runs[0]

    def values(self, name: str) -> list[float]:
        """One number a run, of those that have it."""
        return [run.scores[name] for run in self.runs if name in run.scores]

    def mean(self, name: str) -> float | None:
        """Mean over seeds, None where no run has the number."""
        values = self.values(name)
        return fmean(values) if values else None

    def deviation(self, name: str) -> float | None:
        """Standard deviation over seeds (n - 1), None where fewer than two runs have the number."""
        values = self.values(name)
        return stdev(values) if len(values) > 1 else None

    @property
    def score(self) -> float | None:
        """What rows are compared by: test top-1, or where none was tested yet the best validation top-1."""
        tested = self.mean("test/top1")
        return self.mean("best/top1") if tested is None else tested

    @property
    def curve(self) -> dict[int, float]:
        """Mean validation top-1 by epoch, of epochs that all runs have."""
        shared = set.intersection(*(set(run.curve) for run in self.runs))
        return {epoch: fmean(run.curve[epoch] for run in self.runs) for epoch in sorted(shared)}


def collect(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads all runs below some folders.

    Returns:
        The runs, and why others were left out.

    Raises:
        ValueError: If a folder is missing, or no run is found.
    """
    found: dict[tuple[str, str, str, int | None], Run] = {}
    left_out: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give folders with runs, such as runs or runs/vip_rope")
    for path in sorted({path for folder in folders for path in folder.rglob("results.json")}):
        try:
            run = read(path)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            left_out.append(f"{path}: not a run's results ({type(error).__name__}: {error})")
            continue
        if run is None:
            left_out.append(f"{path.parent}: not finished")
            continue
        key = (run.experiment, run.data, run.settings, run.seed)
        other = found.get(key)
        if other is None or other.written < run.written:
            found[key] = run
        if other is not None:
            older = min(run, other, key=lambda each: each.written)
            left_out.append(f"{older.folder}: the same settings and seed were run again")
    if not found:
        raise ValueError(f"no finished run in {', '.join(map(str, folders))}; `main.py fit` makes them")
    return list(found.values()), left_out


def read(path: Path) -> Run | None:
    """Reads one run, None where it is not finished.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: If the file is not what `fit` writes.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not content["finished"]:
        return None
    net, data = content.get("net") or {}, content["data"]
    scores: dict[str, Any] = {}
    for which in ("best", "last"):
        scores |= {key.replace("val/", f"{which}/"): value for key, value in (content.get(which) or {}).items()}
    test = content.get("test") or {}
    scores |= {key: value for key, value in test.items() if key.startswith("test/")}
    scores |= {name: content.get(name) for name in ("parameters", "flops", "peak_memory_bytes", "wall_seconds")}
    return Run(
        folder=path.parent,
        experiment=str(content["experiment"]),
        net=(
            str(net.get("class_path", "")).rpartition(".")[2],
            str((net.get("init_args") or {}).get("position", "")),
        ),
        data=str(data["class_path"]).rpartition(".")[2],
        share=float((data.get("init_args") or {}).get("fraction", 1.0)),
        overlays=tuple(map(str, content.get("overlays") or ())),
        settings=str(content.get("settings", "")),
        seed=content.get("seed"),
        written=str(content.get("written", "")),
        scores={
            key: float(value)
            for key, value in scores.items()
            if isinstance(value, int | float) and math.isfinite(value)
        },
        curve=read_curve(path.with_name("metrics.csv")),
        protocol=str(content.get("protocol", "")),
        machine=machine(content),
        commit=""
        if content.get("commit") is None
        else f"{content['commit'][:8]}{'+' if content.get('changed') else ''}",
    )


def machine(content: Mapping[str, Any]) -> str:
    """`NVIDIA H100, torch 2.15.0` or `Xeon, 2 threads, torch 2.15.0`, from what a run says of itself."""
    device, torch = content.get("device") or {}, (content.get("versions") or {}).get("torch")
    processes, threads = device.get("processes", 1), device.get("threads")
    words = [
        f"{processes} x {device['name']}" if processes > 1 else device.get("name"),
        f"{threads} thread{'s' * (threads > 1)}" if threads and device.get("type") == "cpu" else None,
        f"torch {torch}" if torch else None,
    ]
    return ", ".join(word for word in words if word)


def read_curve(path: Path) -> dict[int, float]:
    """Validation top-1 by epoch; empty where there is no such table."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {int(row["epoch"]): float(row["val/top1"]) for row in csv.DictReader(file) if row.get("val/top1")}


def group(runs: Iterable[Run]) -> list[Row]:
    """Joins runs that differ in the seed alone; by data set and share, the best first."""
    groups: dict[tuple[str, str, float, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data, run.experiment, run.share, run.settings), []).append(run)
    shared = {
        data: set.intersection(*(set(run.overlays) for key, each in groups.items() if key[0] == data for run in each))
        for data in {key[0] for key in groups}
    }
    labels = {}
    for (data, experiment, share, settings), members in groups.items():
        more = [name for name in members[0].overlays if name not in shared[data]]
        labels[data, experiment, share, settings] = " + ".join([experiment, *more])
    rows = []
    for key, members in groups.items():
        data, _, share, settings = key
        namesakes = [
            other for other in labels if (other[0], other[2]) == (data, share) and labels[other] == labels[key]
        ]
        label = labels[key] if len(namesakes) == 1 else f"{labels[key]} [{settings}]"
        rows.append(Row(label, tuple(sorted(members, key=lambda run: (run.seed or 0, str(run.folder))))))
    return sorted(rows, key=lambda row: (row.first.data, -row.first.share, -(row.score or 0), row.label))
