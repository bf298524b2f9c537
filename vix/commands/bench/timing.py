"""Clocks: steps in turn, medians and quartiles, and running out of memory as a result like another."""

import contextlib
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
Quartiles = tuple[float, float, float]

# What allocators say, other than by torch.OutOfMemoryError.
WITHOUT_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "could not create a memory object")


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds_of(step: Callable[[], object], device: torch.device) -> float:
    """Times one step, in seconds."""
    synchronise(device)
    start = time.perf_counter()
    step()
    synchronise(device)
    return time.perf_counter() - start


def quartiles(values: Sequence[float]) -> Quartiles:
    """Returns the first quartile, the median and the third; of one value three times that value."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, median, third


def unless_out_of_memory(function: Callable[[], Result]) -> Result | None:
    """Calls a function; None if it does not fit into memory, which is a result. Other errors are errors."""
    try:
        return function()
    except (MemoryError, RuntimeError) as error:
        # torch.OutOfMemoryError is a RuntimeError.
        full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not full and not any(words in str(error) for words in WITHOUT_MEMORY):
            raise
    # Only now is the traceback gone, and with it what the failed step held.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Lets allocations beyond the machine's free memory fail inside, where Linux would kill the process instead."""
    if sys.platform != "linux":
        yield
        return
    import resource

    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(facts["MemAvailable"].split()[0]) * 1024
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped + free if before[1] == resource.RLIM_INFINITY else min(mapped + free, before[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def interleave(
    steps: Sequence[Callable[[], float]],
    *,
    rounds: int,
    seconds: float,
    between: Callable[[], None] = lambda: None,
    fewest: int = 3,
) -> list[list[float] | None]:
    """Times steps in turn, so that what disturbs the machine disturbs all of them.

    Args:
        steps: Each runs once and returns its own seconds.
        rounds: How often each is run.
        seconds: No round begins after so many, once `fewest` are done.
        between: Called after each round.
        fewest: Rounds that are run in any case.

    Returns:
        The seconds of each step; None for one that ran out of memory.
    """
    times: list[list[float] | None] = [[] for _ in steps]
    deadline = time.perf_counter() + seconds
    for turn in range(rounds):
        if turn >= fewest and time.perf_counter() > deadline:
            break
        for place in range(len(steps)):
            # Who comes first changes, since the first finds the caches of the last.
            index = (place + turn) % len(steps)
            taken = times[index]
            if taken is None:
                continue
            lasted = unless_out_of_memory(steps[index])
            if lasted is None:
                times[index] = None
            else:
                taken.append(lasted)
        between()
    return times


def machine(device: torch.device) -> dict[str, object]:
    """Says what the numbers were measured on: hardware, versions, commit, threads and the allocator's settings."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(FileNotFoundError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    facts: dict[str, object] = {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "allocator": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def commit() -> str | None:
    """Returns the commit of the code, `-dirty` where files were changed; None outside a clone."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=here, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
