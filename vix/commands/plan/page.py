"""What `plan` prints: for each data set a table, a system a line, and how to give the settings."""

import argparse
from functools import partial
from pathlib import Path

import torch

from vix.commands.bench.candidates import Candidate, parse
from vix.commands.plan.bytes import Planner, Setting
from vix.commands.plan.places import Place, choose, own_place, places
from vix.systems import SYSTEMS

TRAIN = [Setting("train", bf16, checkpointing) for bf16 in (False, True) for checkpointing in (False, True)]
SETTINGS = [*TRAIN, *(Setting("infer", bf16) for bf16 in (False, True))]
NONE = "-"


def print_plan(options: argparse.Namespace, experiments: Path) -> None:
    """Prints the tables.

    Raises:
        ValueError: If a system, an option, a data set or a size does not exist, or the memory is not known.
    """
    memory = options.memory or _of_this_machine()
    usable = int(memory * (1 - options.free))
    candidates = [parse(name) for name in options.names] or [Candidate(kind) for kind in SYSTEMS.values()]
    for candidate in candidates:
        if candidate.is_kernel:
            raise ValueError(f"{candidate.label} is a bare kernel: plan needs a system, there are {', '.join(SYSTEMS)}")
    if options.image_size:
        chosen = [own_place(options.image_size, options.channels, options.classes)]
    else:
        known = places(experiments)
        chosen = choose(known, options.data) if options.data else known
    print(f"Largest batch in {_words(memory)}, of which {options.free:.0%} stays free; {NONE}: not one image fits.")
    if options.batch:
        print(
            f"In brackets, for {options.batch:,} images a step: --data.batch_size x --trainer.accumulate_grad_batches"
        )
    width = max(len(candidate.label) for candidate in candidates)
    for place in chosen:
        height, breadth = place.image_size
        print(f"\n{place.name}: {place.channels} x {height} x {breadth}, {place.classes} classes")
        columns = (f"{setting.label:>{_width(options)}}" for setting in SETTINGS)
        print(f"{'':{width}} {'parameters':>11} {' '.join(columns)}")
        for candidate in candidates:
            print(f"{candidate.label:{width}} {_line(candidate, place, usable, options)}", flush=True)


def _line(candidate: Candidate, place: Place, memory: int, options: argparse.Namespace) -> str:
    arguments = dict(candidate.options)
    try:
        planner = Planner(
            partial(
                candidate.kind,
                image_size=place.image_size,
                channels=place.channels,
                num_classes=place.classes,
                **arguments,
            )
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{candidate.label} on {place.name}: {error}") from error
    cells = []
    for setting in SETTINGS:
        need = planner.largest(memory, setting)
        cell = NONE if need is None else f"{need.batch:,}"
        if need is not None and options.batch and setting.mode == "train":
            size, times = accumulation(need.batch, options.batch)
            cell += f" ({size} x {times})"
        cells.append(f"{cell:>{_width(options)}}")
    return " ".join([f"{planner.parameters:>11,}", *cells])


def _width(options: argparse.Namespace) -> int:
    return 24 if options.batch else 15


def accumulation(largest: int, wanted: int) -> tuple[int, int]:
    """Splits a wanted batch into equal ones that fit: their size, and how many of them.

    Args:
        largest: The largest batch that fits.
        wanted: Images that a step should see.
    """
    size = next(size for size in range(min(largest, wanted), 0, -1) if wanted % size == 0)
    return size, wanted // size


def _of_this_machine() -> int:
    if not torch.cuda.is_available():
        raise ValueError("this machine has no GPU, so say which memory to plan for: --memory 8GB")
    return int(torch.cuda.get_device_properties(0).total_memory)


def _words(size: int) -> str:
    return f"{size / 2**30:.3g} GB" if size >= 2**30 else f"{size / 2**20:.3g} MB"
