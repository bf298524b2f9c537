"""What holds of our nets alone: growth with tokens, memory of a large image, checkpointing, defaults as published.

    python -m benchmarks.growth

growth          time and bytes per token, 1 image of 16,384 tokens over 16 images of 1,024 (at most 1.15; FNet 1.5)
memory          peak of a process that trains one 256x256 image at patch 1, 65,536 tokens (at most 8 GiB)
checkpointing   bytes kept (at most 1/4) and time (at most 1.4) over those without, at the published sizes, batch 8
defaults        time and bytes of the defaults over those as published (at most 1; time by the lower quartile)
"""

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import vix
from benchmarks.harness import TrainingStep, chosen, columns, in_pairs, in_processes, options

PUBLISHED = {
    "ViT": partial(vix.ViT),
    "ViL": partial(vix.ViL, one_kv_head=True, share_kv=True),
    "ViP": partial(vix.ViP, as_published=True, qkv_bias=True),
    "ViN": partial(vix.ViN, as_published=True),
}
DEFAULTS: dict[str, Callable[..., nn.Module]] = {
    "ViL": vix.ViL,
    # With the biases that it has as published, so that only the stabiliser differs.
    "ViP": partial(vix.ViP, qkv_bias=True),
    "ViN": vix.ViN,
    "ViP without biases": vix.ViP,
}
MOST_MEMORY = 8 * 2**30


def over(
    name: str,
    first: TrainingStep,
    second: TrainingStep,
    pairs: int,
    time: float,
    kept: float,
    *,
    equals: bool = False,
) -> dict[str, Any]:
    """Compares the first step's time and bytes with the second's, which are the measure."""
    taken = in_pairs(second.seconds, first.seconds, pairs).summary()
    ratio = taken["ratio"]
    of_bytes = first.bytes() / second.bytes()
    return {
        "name": name,
        "time": ratio,
        "bytes": of_bytes,
        "at_most": {"time": time, "bytes": kept},
        "ms": [taken["theirs_ms"], taken["ours_ms"]],
        # Of two equals half of the pairs are above 1: there a quartile at the bound will do.
        "met": ratio[0 if equals else 1] <= time and of_bytes <= kept,
        "pairs": pairs,
    }


def step(net: nn.Module, side: int, batch: int) -> TrainingStep:
    """Makes a training step on square images."""
    return TrainingStep(net, torch.randn(batch, 3, side, side))


def growth(given: Namespace) -> Iterator[dict[str, Any]]:
    """One large image against many small ones of as many tokens."""
    for name, system, most in (
        ("ViL", vix.ViL, 1.15),
        ("ViP", vix.ViP, 1.15),
        ("ViN", vix.ViN, 1.15),
        ("FNet", vix.FNet, 1.5),
    ):
        if chosen(f"growth {name}", given.rows):
            small = system(image_size=given.small, patch_size=1)
            large = system(image_size=4 * given.small, patch_size=1)
            yield over(
                f"growth {name}", step(large, 4 * given.small, 1), step(small, given.small, 16), given.pairs, most, most
            )


def memory(given: Namespace) -> Iterator[dict[str, Any]]:
    """The peak of a process of its own; Linux counts it in KiB, macOS in bytes."""
    for name in ("ViP", "ViN"):
        if chosen(f"memory {name}", given.rows):
            script = (
                "import resource, sys, time, torch, vix\n"
                "from benchmarks.harness import TrainingStep\n"
                f"torch.set_num_threads({given.threads})\n"
                f"net = vix.{name}(image_size={given.large}, patch_size=1)\n"
                f"step = TrainingStep(net, torch.randn(1, 3, {given.large}, {given.large}))\n"
                "start = time.perf_counter(); step(); seconds = time.perf_counter() - start\n"
                "unit = 1 if sys.platform == 'darwin' else 1024\n"
                "print(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, seconds)"
            )
            done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
            peak, seconds = (float(word) for word in done.stdout.split())
            yield {
                "name": f"memory {name}",
                "tokens": given.large**2,
                "peak_bytes": int(peak),
                "seconds": seconds,
                "at_most": {"bytes": MOST_MEMORY},
                "met": peak <= MOST_MEMORY,
            }


def checkpointing(given: Namespace) -> Iterator[dict[str, Any]]:
    """Each system with its blocks recomputed against itself without."""
    for name in vix.SYSTEMS:
        if chosen(f"checkpointing {name}", given.rows):
            # The pyramids' own sizes differ by stage; the plain ones' are the published.
            plain, checkpointed = (vix.SYSTEMS[name](image_size=given.small) for _ in range(2))
            checkpointed.load_state_dict(plain.state_dict())
            checkpointed.set_grad_checkpointing()
            yield over(
                f"checkpointing {name}",
                step(checkpointed, given.small, given.batch),
                step(plain, given.small, given.batch),
                given.pairs,
                1.4,
                1 / 4,
            )


def defaults(given: Namespace) -> Iterator[dict[str, Any]]:
    """What users get against what was published."""
    for name, system in DEFAULTS.items():
        if chosen(f"defaults {name}", given.rows):
            published = PUBLISHED[name.partition(" ")[0]]
            ours, theirs = (make(image_size=given.small) for make in (system, published))
            yield over(
                f"defaults {name}",
                step(ours, given.small, given.batch),
                step(theirs, given.small, given.batch),
                given.pairs,
                1.0,
                1.0,
                equals=True,
            )


def measure(given: Namespace) -> list[dict[str, Any]]:
    """Measures all rows."""
    torch.manual_seed(0)
    rows = []
    # A process inherits the peak of the one that starts it, so memory comes first.
    for part in (memory, growth, checkpointing, defaults):
        for row in part(given):
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def told(rows: list[dict[str, Any]]) -> str:
    """Sets rows as a table."""
    lines = [["row", "time", "quartiles", "at most", "bytes", "at most", "met"]]
    for row in rows:
        verdict = "yes" if row["met"] else "NO"
        if "peak_bytes" in row:
            peak, most = (f"{value / 2**30:.2f} GiB" for value in (row["peak_bytes"], row["at_most"]["bytes"]))
            lines.append([row["name"], f"{row['seconds']:.1f} s", "", "", peak, most, verdict])
            continue
        first, median, third = row["time"]
        bounds = [f"{row['at_most'][cost]:.3g}" for cost in ("time", "bytes")]
        lines.append(
            [
                row["name"],
                f"{median:.2f}",
                f"{first:.2f}-{third:.2f}",
                bounds[0],
                f"{row['bytes']:.2f}",
                bounds[1],
                verdict,
            ]
        )
    return columns(lines)


def main() -> int:
    """Measures as the command line asks."""
    parser = options(__doc__, "growth")
    parser.add_argument("--batch", type=int, default=8, help="images of a step, growth excepted (default 8)")
    parser.add_argument("--small", type=int, default=32, help="side of the small images (default 32)")
    parser.add_argument("--large", type=int, default=256, help="side of the image of the memory rows (default 256)")
    return in_processes("benchmarks.growth", parser.parse_args(), measure, told)


if __name__ == "__main__":
    sys.exit(main())
