"""What the comparisons share: training steps, timing by pairs, the allocator's settings, committed JSON."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vix.commands.bench.roofline import Products, Roofline
from vix.commands.bench.timing import machine, quartiles, seconds_of
from vix.measure import bytes_kept, count_flops

CPU = torch.device("cpu")
ALLOCATORS = {
    # Without these glibc hands every large block back to the system and gets it again, page fault by page fault.
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "8589934592",
        "MALLOC_TOP_PAD_": "268435456",
    },
    # What users have.
    "default": {},
}
RESULTS = Path(__file__).parent / "results"


class TrainingStep:
    """Forward, cross entropy and backward of a net, without an optimiser: its cost is the same on both sides.

    Args:
        net: The net, in training mode.
        images: What it reads.
    """

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.net, self.images = net.train(), images
        self.labels = torch.arange(len(images)) % 10

    def forward(self) -> Tensor:
        """Returns the loss."""
        return functional.cross_entropy(self.net(self.images), self.labels)

    def __call__(self) -> None:
        """Runs the step; gradients are those of this step alone."""
        self.forward().backward()

    def seconds(self) -> float:
        """Times the step; the gradients of the last one are dropped before the clock starts."""
        self.net.zero_grad(set_to_none=True)
        return seconds_of(self, CPU)

    def bytes(self) -> int:
        """Counts what a forward keeps for its backward, parameters excluded."""
        return bytes_kept(self.forward, self.net.parameters())


@dataclass(frozen=True)
class Pairs:
    """Times of two things, taken in turn.

    Args:
        ours: Seconds of ours.
        theirs: Seconds of the other, each beside one of ours.
    """

    ours: list[float]
    theirs: list[float]

    def summary(self) -> dict[str, Any]:
        """Medians and quartiles: milliseconds of both, and how many times longer the other takes, by pairs."""
        ratios = [theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return {
            "pairs": len(ratios),
            "ours_ms": [1e3 * value for value in quartiles(self.ours)],
            "theirs_ms": [1e3 * value for value in quartiles(self.theirs)],
            "ratio": list(quartiles(ratios)),
        }


def in_pairs(
    ours: Callable[[], float],
    theirs: Callable[[], float],
    pairs: int,
    *,
    between: Callable[[], None] = lambda: None,
    warm_up: int = 2,
) -> Pairs:
    """Times two things in turn, now the one first and now the other."""
    for _ in range(warm_up):
        ours()
        theirs()
    taken = Pairs([], [])
    for pair in range(pairs):
        turns = [(ours, taken.ours), (theirs, taken.theirs)]
        for step, times in turns if pair % 2 == 0 else reversed(turns):
            times.append(step())
        between()
    return taken


def compare(ours: TrainingStep, theirs: TrainingStep, pairs: int) -> dict[str, Any]:
    """Compares two training steps in time and bytes kept, and ours with its roofline, probed between the pairs."""
    with Products() as products:
        flops = count_flops(ours)
    roofline = Roofline(CPU, products.counts)
    taken = in_pairs(ours.seconds, theirs.seconds, pairs, between=roofline.probe)
    kept = {"ours": ours.bytes(), "theirs": theirs.bytes()}
    weights = sum(parameter.nbytes for parameter in ours.net.parameters())
    # The least traffic: weights once a pass, gradients once, what is kept written once and read once.
    least = roofline.seconds(flops, 3 * weights + 2 * kept["ours"] + ours.images.nbytes, products.counts)
    summary = taken.summary()
    return {
        **summary,
        "bytes": {**kept, "ratio": kept["ours"] / kept["theirs"]},
        "roofline": {
            "flops": flops,
            "matrix_gflops": roofline.matrix_rate(products.counts) / 1e9,
            "best_gflops": max(product.flops / seconds for product, seconds in roofline.best.items()) / 1e9,
            "bandwidth_gb": roofline.bandwidth / 1e9,
            "ms": 1e3 * least,
            "times": summary["ours_ms"][1] / (1e3 * least),
        },
    }


def options(description: str | None, name: str) -> argparse.ArgumentParser:
    """Makes the command line that all comparisons share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--pairs", type=int, default=21, help="interleaved pairs (default 21)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of both sides (default 2)")
    parser.add_argument("--allocator", nargs="+", choices=[*ALLOCATORS], default=[*ALLOCATORS])
    parser.add_argument("--rows", nargs="+", help="only rows whose names contain one of these")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="JSON file of the results")
    # A process of its own for each allocator: glibc reads its settings when a process starts.
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def chosen(name: str, wanted: Sequence[str] | None) -> bool:
    """Whether a row is asked for."""
    return wanted is None or any(word.lower() in name.lower() for word in wanted)


def in_processes(
    module: str,
    given: argparse.Namespace,
    measure: Callable[[argparse.Namespace], list[dict[str, Any]]],
    told: Callable[[list[dict[str, Any]]], str],
) -> int:
    """Measures in a process for each allocator, prints what they found and writes it all into one file.

    Args:
        module: The module whose command line this is.
        given: The options.
        measure: Measures all rows; called in the worker.
        told: Sets rows as a table.

    Returns:
        The exit code.
    """
    if given.worker:
        torch.set_num_threads(given.threads)
        rows = measure(given)
        given.out.write_text(json.dumps({"machine": machine(CPU), "rows": rows}))
        return 0
    runs = {}
    for allocator in given.allocator:
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder, "part.json")
            kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
            command = [sys.executable, "-m", module, *sys.argv[1:], "--worker", allocator, "--out", str(part)]
            subprocess.run(command, env=kept | ALLOCATORS[allocator], check=True)
            runs[allocator] = json.loads(part.read_text())
        print(f"\nallocator: {allocator}\n{told(runs[allocator]['rows'])}", flush=True)
    settings = {"pairs": given.pairs, "threads": given.threads}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n")
    print(f"\nwritten to {given.out}")
    return 0


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Sets lines of cells in columns, the first to the left and the others to the right."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
