"""`python main.py predict photos/ --ckpt_path RUN`: the likeliest classes of image files, as CSV and JSON.

A path is a file, a folder (its images at any depth) or a glob in quotes; any image that Pillow reads will do. Files
that cannot be read are listed at the end. Without a path, the trainer predicts the images of the official test split:
`python main.py predict --ckpt_path RUN`, with the options of `test`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vix.commands import positive, side

if TYPE_CHECKING:
    from vix.training.trained import Trained

TOP = 5


def main(arguments: list[str]) -> int:
    """Predicts files and writes what came out.

    Args:
        arguments: What stands after `main.py predict`, with at least one path.

    Returns:
        0; 1 if a file could not be read; 2 if the command or the checkpoint is wrong.
    """
    options = parser().parse_args(arguments)
    # `--help` need not wait for these
    from vix.commands.predict.tables import as_csv, as_json
    from vix.training.errors import UsageError
    from vix.training.files import write_text
    from vix.training.trained import image_files, load_trained

    try:
        trained = load_trained(options.ckpt_path, trusted=options.trust, image_size=options.image_size)
        files = image_files(trained, options.paths, batch_size=options.batch_size)
        device = _device(options.device)
        start = time.perf_counter()
        rows = predict(trained, files, device, options.top)
        seconds = time.perf_counter() - start
        stem = trained.folder / "predict_files" if options.out is None else options.out
        stem = stem.with_suffix("") if stem.suffix in (".csv", ".json") else stem
        names, failures = trained.class_names, files.failures
        for suffix, text in {
            ".csv": as_csv(rows, names),
            ".json": as_json(rows, names, failures, trained.checkpoint.path),
        }.items():
            write_text(stem.with_name(stem.name + suffix), text)
    except (UsageError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(rows):,} images, {len(rows) / seconds:,.0f} a second, on {device}; {stem}.csv and {stem}.json")
    if failures:
        print(f"{len(failures):,} of {len(files):,} files could not be read:", file=sys.stderr)
        print("\n".join(failures.values()), file=sys.stderr)
    return int(bool(failures))


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog="main.py predict", description=__doc__)
    made.add_argument("paths", nargs="+", metavar="PATH", help="file, folder or glob")
    made.add_argument("--ckpt_path", required=True, metavar="RUN", help="run folder or checkpoint")
    made.add_argument("--out", type=Path, help="file without suffix; predict_files in the run's folder if left out")
    made.add_argument("--image_size", type=side, help="have the net see images of another size: 64, or 64x48")
    made.add_argument("--top", type=positive, default=TOP, help=f"how many classes (default {TOP})")
    made.add_argument("--batch_size", type=positive, default=64, help="images at once (default 64)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps ... (default auto)")
    made.add_argument("--trust", type=lambda text: text.split(","), default=[], help="modules the checkpoint may name")
    return made


def predict(trained: "Trained", files: Any, device: str, top: int) -> list[tuple[str, list[int], list[float]]]:
    """Asks the net for all files.

    Args:
        trained: The net.
        files: The reader.
        device: Where the net runs.
        top: How many classes.

    Returns:
        For each file that could be read its name, its likeliest classes, the likeliest first, and their probabilities.
    """
    import torch

    from vix.commands.predict.progress import bar

    net = trained.net.to(device)
    rows: list[tuple[str, list[int], list[float]]] = []
    with bar(len(files)) as advance, torch.inference_mode():
        for batch in files:
            if batch.paths:
                probabilities = net(batch.images.to(device)).double().softmax(dim=-1)
                best, classes = (value.tolist() for value in probabilities.topk(min(top, probabilities.shape[-1])))
                rows += zip(batch.paths, classes, best, strict=True)
            advance(batch.read)
    return rows


def _device(name: str) -> str:
    import torch

    from vix.training.errors import UsageError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).partition(chr(10))[0]}") from error
    return name
