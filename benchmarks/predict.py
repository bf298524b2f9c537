"""Images a second of `main.py predict` over a folder of PNGs against a plain loop as in timm's `inference.py`.

    python -m benchmarks.predict

Both read the same 1,000 files and run the same net in float32 on the same threads. Ours: threads decode by the batch,
the batch is normalised at once. Theirs: timm's `create_dataset`, `create_loader` with its evaluation transform and
worker processes, then softmax and top-k by the batch, as the script of that name in timm's repository has it. A turn is
the whole folder, workers included, since that is what a user waits for; neither writes a file.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch import nn

import vix
from benchmarks.harness import RESULTS, columns, in_pairs
from datamodules import ImageFiles
from vix.commands.bench.timing import machine

MEAN = STD = (0.5, 0.5, 0.5)
TOP = 5


def write_pngs(folder: Path, count: int, side: int) -> None:
    """Writes smooth random pictures, which compress about as photographs do."""
    generator = np.random.RandomState(0)
    (folder / "any").mkdir()
    for number in range(count):
        coarse = Image.fromarray(generator.randint(0, 256, (8, 8, 3)).astype(np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + generator.randint(-4, 5, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "any" / f"{number:05}.png")


def ours(folder: Path, net: nn.Module, size: int, batch: int) -> list[tuple[str, list[int]]]:
    """Predicts as the command does."""
    files = ImageFiles([str(folder)], image_size=(size, size), channels=3, mean=MEAN, std=STD, batch_size=batch)
    rows: list[tuple[str, list[int]]] = []
    with torch.inference_mode():
        for each in files:
            best = net(each.images).double().softmax(dim=-1).topk(TOP)
            rows += zip(each.paths, best.indices.tolist(), strict=True)
            best.values.tolist()
    return rows


def theirs(folder: Path, net: nn.Module, size: int, batch: int, workers: int) -> list[tuple[str, list[int]]]:
    """Predicts as timm's script does."""
    dataset = create_dataset(root=str(folder), name="", split="validation", is_training=False)
    loader = create_loader(
        dataset,
        input_size=(3, size, size),
        batch_size=batch,
        use_prefetcher=False,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        crop_pct=1.0,
        device=torch.device("cpu"),
    )
    classes: list[list[int]] = []
    with torch.inference_mode():
        for images, _ in loader:
            best = net(images).softmax(-1).topk(TOP)
            classes += best.indices.tolist()
            best.values.tolist()
    return list(zip(dataset.filenames(absolute=True), classes, strict=True))


def measure(given: argparse.Namespace, side: int, workers: int) -> dict[str, Any]:
    """Compares both over one folder."""
    torch.manual_seed(0)
    net = vix.ViP(image_size=given.size, num_classes=10, patch_size=given.size // 8).eval()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pngs(folder, given.images, side)
        mine = dict(ours(folder, net, given.size, given.batch))
        other = dict(theirs(folder, net, given.size, given.batch, workers))
        agree = sum(mine[path][0] == other[path][0] for path in mine) / len(mine)

        def timed(run: Any, *more: int) -> float:
            start = time.perf_counter()
            run(folder, net, given.size, given.batch, *more)
            return time.perf_counter() - start

        taken = in_pairs(lambda: timed(ours), lambda: timed(theirs, workers), given.pairs, warm_up=0).summary()
    first, median, third = taken["ratio"]
    return {
        "name": f"{side}x{side} pixels, timm with {workers} workers",
        "images_per_s": {
            "ours": 1e3 * given.images / taken["ours_ms"][1],
            "theirs": 1e3 * given.images / taken["theirs_ms"][1],
        },
        "ratio": [first, median, third],
        "met": median >= 1,
        "same_first_class": agree,
        "pairs": given.pairs,
        "images": given.images,
        "batch": given.batch,
        "timm": timm.__version__,
    }


def main() -> int:
    """Measures as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="PNGs of the folder (default 1000)")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 256], help="sides in pixels (default 32 256)")
    parser.add_argument("--size", type=int, default=32, help="what the net sees (default 32)")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch (default 64)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="timm's workers (default 0 2)")
    parser.add_argument("--pairs", type=int, default=5, help="interleaved pairs (default 5)")
    parser.add_argument("--threads", type=int, help="CPU threads of the net; torch's own choice if left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "predict.json", help="JSON file of the results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads or torch.get_num_threads())
    rows = [measure(given, side, workers) for side in given.sides for workers in given.workers]
    lines = [["PNGs", "ours, images/s", "theirs", "faster", "quartiles", "same first class", "met"]]
    for row in rows:
        first, median, third = row["ratio"]
        speeds = [f"{row['images_per_s'][whose]:,.0f}" for whose in ("ours", "theirs")]
        same = f"{row['same_first_class']:.1%}"
        met = "yes" if row["met"] else "NO"
        lines.append([row["name"], *speeds, f"{median:.2f}", f"{first:.2f}-{third:.2f}", same, met])
    print(columns(lines))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"machine": machine(torch.device("cpu")), "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
