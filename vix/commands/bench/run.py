"""Runs a benchmark: prepares the candidates of a table, counts what can be counted, times them in turn, reports."""

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vix.commands.bench.candidates import Candidate, Mode, Work, parse, prepare, with_baselines
from vix.commands.bench.report import FULL, OK, Row, crossings, plot, table, write
from vix.commands.bench.roofline import Product, Products, Roofline
from vix.commands.bench.timing import (
    bounded_memory,
    interleave,
    machine,
    quartiles,
    seconds_of,
    synchronise,
    unless_out_of_memory,
)
from vix.measure import bytes_kept, count_flops, parameters

SIZES = ("dim", "depth", "heads", "dim_head", "mlp_dim")
KEPT, PEAK = "kept for backward", "allocator's peak"


def run(options: argparse.Namespace) -> list[Row]:
    """Measures all that the options ask for, prints tables and sentences, and writes files.

    Raises:
        ValueError: If a name, an option or a device does not exist.
    """
    device = device_of(options.device)
    chosen = with_baselines([parse(name) for name in options.names])
    sizes = {name: value for name in SIZES if (value := getattr(options, name)) is not None}
    if options.threads:
        torch.set_num_threads(options.threads)
    rows: list[Row] = []
    # A GPU's allocator refuses by itself.
    with bounded_memory() if device.type == "cpu" else contextlib.nullcontext():
        for is_kernel in (False, True):
            group = [candidate for candidate in chosen if candidate.is_kernel == is_kernel]
            for precision in options.precision:
                for mode in options.mode:
                    if not group:
                        continue
                    measured = []
                    for tokens in sorted(set(options.tokens)):
                        settings = {"mode": mode, "precision": precision, "batch": options.batch, "sizes": sizes}
                        measured += cell(
                            group,
                            tokens,
                            device=device,
                            rounds=options.rounds,
                            seconds=options.seconds / len(set(options.tokens)),
                            compiled=options.compile,
                            **settings,
                        )
                    compiled = ", compiled" * options.compile
                    print(f"\n{mode}, {precision}, {device}{compiled}, batch {options.batch}", flush=True)
                    print(table(measured), flush=True)
                    rows += measured
    facts = {"machine": machine(device), "sizes": sizes}
    write(rows, facts, options.out)
    print()
    for said in crossings(rows):
        print(said)
    try:
        plot(rows, options.out)
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
    print(f"\nwritten to {options.out}")
    return rows


def device_of(name: str) -> torch.device:
    """Finds a device; `auto` is a GPU where there is one.

    Raises:
        ValueError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # Each backend has an error of its own for a device that is not there.
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {name}: not on this machine; take cpu, or cuda where torch sees a GPU") from None
    return device


def cell(
    candidates: list[Candidate],
    tokens: int,
    *,
    mode: Mode,
    precision: str,
    device: torch.device,
    batch: int,
    sizes: dict[str, int],
    rounds: int,
    seconds: float,
    compiled: bool = False,
) -> list[Row]:
    """Measures candidates at one size, in turn."""
    works: dict[Candidate, tuple[Work, dict[str, Any], Counter[Product]]] = {}
    outcomes: dict[Candidate, str] = {}
    for candidate in candidates:
        make = partial(
            prepare,
            candidate,
            tokens,
            mode=mode,
            precision=precision,
            device=device,
            batch=batch,
            sizes=sizes,
        )
        try:
            ready = unless_out_of_memory(partial(_counted, make, mode, device, compiled))
        except ValueError as error:
            outcomes[candidate] = f"refused: {error}"
            continue
        if ready is None:
            outcomes[candidate] = FULL
        else:
            works[candidate] = ready
    roofline = Roofline(device, {product for _, _, counts in works.values() for product in counts})
    steps = [partial(_timed, work, device) for work, _, _ in works.values()]
    # Twice without the clock: compilation, caches, the allocator's pools.
    interleave(steps, rounds=2, seconds=seconds)
    times = dict(zip(works, interleave(steps, rounds=rounds, seconds=seconds, between=roofline.probe), strict=True))
    rows = []
    for candidate in candidates:
        common: dict[str, Any] = {
            "candidate": candidate.label,
            "kind": "kernel" if candidate.is_kernel else "system",
            "softmax": candidate.softmax,
            "baselines": tuple(baseline.label for baseline in candidate.baselines),
            "tokens": tokens,
            "batch": batch,
            "mode": mode,
            "precision": precision,
            "device": str(device),
            "compiled": compiled,
        }
        taken = times.get(candidate)
        if taken is None:
            rows.append(Row(**common, sequence=None, outcome=outcomes.get(candidate, FULL)))
            continue
        work, counted, counts = works[candidate]
        first, median, third = (1e3 * value for value in quartiles(taken))
        least = 1e3 * roofline.seconds(counted["flops"], counted.pop("moved"), counts)
        rows.append(
            Row(
                **common,
                **counted,
                sequence=work.sequence,
                outcome=OK,
                rounds=len(taken),
                ms=median,
                ms_q1=first,
                ms_q3=third,
                images_per_s=1e3 * batch / median,
                matrix_rate=roofline.matrix_rate(counts),
                bandwidth=roofline.bandwidth,
                roofline_ms=least,
                roofline=least / median,
            )
        )
    return rows


def _timed(work: Work, device: torch.device) -> float:
    work.reset()
    return seconds_of(work.step, device)


def _counted(
    make: Callable[[], Work], mode: Mode, device: torch.device, compiled: bool
) -> tuple[Work, dict[str, Any], Counter[Product]]:
    """Makes a step and counts its operations, products and bytes, and the memory that it needs."""
    work = make()
    own = list(work.module.parameters())
    weights = sum(tensor.nbytes for tensor in own)
    given = sum(tensor.nbytes for tensor in work.inputs)
    with Products() as products:
        flops = count_flops(work.step)
    if compiled:
        # Inside a compiled net single operations cannot be seen, so they were counted before.
        work.module.compile()
        work.step()
    work.reset()
    kept = bytes_kept(work.forward, own) if mode == "train" else None
    memory, kind = kept, KEPT if mode == "train" else ""
    if device.type == "cuda":
        synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work.step()
        synchronise(device)
        # Without what the other candidates hold.
        memory, kind = torch.cuda.max_memory_allocated(device) - before + weights + given, PEAK
        work.reset()
    # The least traffic: weights once a pass, their gradients once; what is kept is written once and read once.
    moved = given + (weights if kept is None else 3 * weights + 2 * kept)
    counted = {
        "flops": flops,
        "parameters": parameters(work.module),
        "memory": memory,
        "memory_kind": kind,
        "moved": moved,
    }
    return work, counted, products.counts
