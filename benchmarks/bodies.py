"""LeViT, CvT and CCT with every attention: parameters, operations, bytes kept for backward, milliseconds.

    python -m benchmarks.bodies

Default sizes, batch 8, float32, 2 threads, the default allocator: 32x32 images in 10 classes and 64x64 in 200. All nets
of a body take their steps in turn; the medians are reported, and for LeViT the time of a forward with and without its
BatchNorms fused. Writes results/bodies.json and prints the tables of README.md.
"""

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import vix
from benchmarks.harness import CPU, RESULTS, TrainingStep
from vix.commands.bench.timing import interleave, machine, quartiles, seconds_of
from vix.measure import bytes_kept, summary

Make = Callable[..., vix.backbones.Backbone]
BODIES: dict[str, dict[str, Make]] = {
    "LeViT": {
        "softmax": vix.LeViT,
        "N": vix.LeViN,
        "P": vix.LeViP,
        "L": partial(vix.LeViT, attention=vix.Linformer, position="values"),
    },
    "CvT": {"softmax": vix.CvT, "N": vix.CvN, "P": vix.CvP, "L": partial(vix.CvT, attention=vix.Linformer)},
    "CCT": {"softmax": vix.CCT, "N": vix.CCN, "P": vix.CCP, "L": partial(vix.CCT, attention=vix.Linformer)},
}
PLACES = {32: 10, 64: 200}


def step(net: vix.backbones.Backbone, batch: int) -> TrainingStep:
    """Makes the training step of a net on random images: its speed does not depend on what they show."""
    return TrainingStep(net, torch.randn(batch, net.channels, *net.image_size))


def rows_of(body: str, side: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures one body with each attention at one size."""
    torch.manual_seed(0)
    nets = {name: make(image_size=side, num_classes=PLACES[side]) for name, make in BODIES[body].items()}
    steps = {name: step(net, given.batch) for name, net in nets.items()}
    for warm in steps.values():
        warm.seconds()
    times = interleave([one.seconds for one in steps.values()], rounds=given.rounds, seconds=given.seconds)
    rows = []
    for (name, net), taken in zip(nets.items(), times, strict=True):
        kept = bytes_kept(steps[name].forward, exclude=net.parameters())
        milliseconds = [1e3 * value for value in quartiles(taken or [])]
        rows.append({"body": body, "attention": name, "side": side, **summary(net), "bytes": kept, "ms": milliseconds})
    return rows


def fusion(side: int, given: argparse.Namespace) -> dict[str, Any]:
    """Measures LeViT's forward before and after its BatchNorms are fused into their linear maps."""
    torch.manual_seed(0)
    plain = vix.LeViT(image_size=side, num_classes=PLACES[side])
    images = torch.randn(given.batch, 3, side, side)
    with torch.no_grad():
        plain.train()(images)
        plain.eval()
        fused = copy.deepcopy(plain)
        fused.fuse()
        apart = ((fused(images) - plain(images)).abs().max() / plain(images).abs().max()).item()

        def forward(net: nn.Module) -> float:
            return seconds_of(partial(net, images), CPU)

        pairs = interleave([partial(forward, plain), partial(forward, fused)], rounds=41, seconds=60)
    before, after = (statistics.median(taken or []) * 1e3 for taken in pairs)
    return {"side": side, "logits": apart, "ms": before, "fused_ms": after, "faster": before / after}


def told(rows: list[dict[str, Any]], fusions: list[dict[str, Any]]) -> str:
    """Sets the results as the Markdown of README.md."""
    lines = ["| body | attention | parameters | MFLOPs | MiB kept | ms a step |", "|---|---|---|---|---|---|"]
    for body in BODIES:
        for attention in BODIES[body]:
            small, large = (
                next(row for row in rows if (row["body"], row["attention"], row["side"]) == (body, attention, side))
                for side in PLACES
            )
            cells = [
                f"{small['parameters']:,} / {large['parameters']:,}",
                f"{small['flops'] / 1e6:.0f} / {large['flops'] / 1e6:.0f}",
                f"{small['bytes'] / 2**20:.0f} / {large['bytes'] / 2**20:.0f}",
                f"{small['ms'][1]:.0f} / {large['ms'][1]:.0f}",
            ]
            lines.append(f"| {body} | {attention} | {' | '.join(cells)} |")
    lines += (
        f"\nLeViT fused, {one['side']}x{one['side']}: {one['ms']:.1f} to {one['fused_ms']:.1f} ms a forward "
        f"({one['faster']:.2f}x), logits within {one['logits']:.0e} of the largest."
        for one in fusions
    )
    return "\n".join(lines)


def main() -> int:
    """Measures as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images of a step (default 8)")
    parser.add_argument("--rounds", type=int, default=15, help="timed steps of each net (default 15)")
    parser.add_argument("--seconds", type=float, default=60, help="most for one body at one size")
    given = parser.parse_args()
    torch.set_num_threads(2)
    rows = [row for side in PLACES for body in BODIES for row in rows_of(body, side, given)]
    fusions = [fusion(side, given) for side in PLACES]
    print(told(rows, fusions))
    RESULTS.mkdir(exist_ok=True)
    facts = {"machine": machine(CPU), "batch": given.batch, "rows": rows, "fusion": fusions}
    (RESULTS / "bodies.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
