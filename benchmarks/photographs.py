"""Every system on CIFAR-10 or Tiny ImageNet with the recipe: the tables that a GPU is needed for.

    python -m benchmarks.photographs cifar10 --list    # the cells, those that are done, and what the rest will cost
    python -m benchmarks.photographs cifar10           # all cells that are not there yet; resumable
    python main.py report --into README.md

A cell is one training with one seed and one test. It is done when its folder is in `results/cifar10`.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.digits import EXPERIMENTS, ROOT, SEEDS, Cell, fill, systems

# The overlay of each, and the images that a validation split of a tenth leaves to train on.
DATA = {"cifar10": ("", 45_000), "tiny_imagenet": ("tiny_imagenet", 90_000)}
# A backward pass costs twice a forward pass.
PASSES = 3


def cells(data: str, seeds: Sequence[int]) -> list[Cell]:
    """The cells of a table, seed by seed, so that a half-filled table is fair."""
    return [Cell(name, seed, data=DATA[data][0]) for seed in seeds for name in systems()]


def epochs() -> int:
    """Epochs of the recipe."""
    recipe = yaml.safe_load((EXPERIMENTS / "defaults.yaml").read_text(encoding="utf-8"))
    return int(recipe["trainer"]["max_epochs"])


def operations(experiment: str, data: str) -> float:
    """Floating-point operations of one training, counted on the net itself."""
    import datamodules
    import vix
    from vix.measure import summary

    net = yaml.safe_load((EXPERIMENTS / f"{experiment}.yaml").read_text(encoding="utf-8"))["model"]["net"]
    kind: Any = {"cifar10": datamodules.CIFAR10, "tiny_imagenet": datamodules.TinyImageNet}[data]
    facts = {"image_size": kind.image_size, "num_classes": kind.num_classes, "channels": kind.channels}
    made = vix.build({**net, "init_args": {**(net.get("init_args") or {}), **facts}})
    return PASSES * float(summary(made)["flops"]) * DATA[data][1] * epochs()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the cells that are missing.

    Returns:
        0, or 1 where a cell failed; the others are filled all the same.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(DATA))
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="these experiments alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="these seeds alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="stop after so many cells")
    parser.add_argument("--list", action="store_true", help="show the cells and what is left to pay, and stop")
    parser.add_argument(
        "--tflops", type=float, default=10.0, help="operations a second that your GPU keeps up, in 1e12"
    )
    parser.add_argument("--results", type=Path, help="default benchmarks/results/<data>")
    parser.add_argument("--work", type=Path, help="folder of the run folders; default runs/<data>")
    options = parser.parse_args(arguments)
    results = options.results or ROOT / "benchmarks" / "results" / options.data
    chosen = [
        cell for cell in cells(options.data, options.seeds) if not options.only or cell.experiment in options.only
    ]
    missing = [cell for cell in chosen if not (results / cell.name).is_dir()]
    if options.list:
        for cell in chosen:
            print(f"{'-' if cell in missing else 'done':<5}{cell.name}")
        cost = {name: operations(name, options.data) for name in {cell.experiment for cell in missing}}
        left = math.fsum(cost[cell.experiment] for cell in missing)
        hours = left / (options.tflops * 1e12) / 3600
        cost_told = f"{left:.3g} operations: {hours:,.0f} hours at {options.tflops:g} TFLOPS"
        print(f"{len(missing)} trainings of {epochs()} epochs, {cost_told}")
        return 0
    print(f"{len(chosen) - len(missing)} of {len(chosen)} cells are done", flush=True)
    work = options.work or Path("runs", options.data)
    return fill(missing[: options.limit], results, work, threads=options.threads, budget=math.inf)


if __name__ == "__main__":
    sys.exit(main())
