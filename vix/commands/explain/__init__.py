"""`python main.py explain photo.png --ckpt_path RUN`: what a trained net looks at, as pictures and numbers."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from vix.training.trained import Trained

EPILOG = """\
For each image: NAME.png, the rollout from the classified token and every head of every layer; NAME_tokens.png, what a
few single tokens look at, beside exact softmax of the same queries and keys; NAME.json, the numbers. They are explained
in docs/explain.md. Without images it takes some of the run's own validation images.
  python main.py explain cat.png --ckpt_path runs/vip_rope/20261122-101500-ab12
  python main.py explain --samples 3 --ckpt_path runs/vip_rope/20261122-101500-ab12
"""


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(
        prog="main.py explain",
        description="Shows what a trained net looks at, whatever its attention.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder or glob")
    made.add_argument("--ckpt_path", required=True, metavar="RUN", help="run folder or checkpoint")
    made.add_argument("--samples", type=_count, default=3, help="images of the run's own, without IMAGE (default 3)")
    made.add_argument("--out", type=Path, help="folder; `explain` in the run's folder if left out")
    made.add_argument("--trust", type=lambda text: text.split(","), default=[], help="modules the checkpoint may name")
    return made


def main(arguments: list[str]) -> int:
    """Explains images one by one and writes what came out.

    Args:
        arguments: What stands after `main.py explain`.

    Returns:
        0; 1 if a file could not be read; 2 if the command or the checkpoint is wrong.
    """
    options = parser().parse_args(arguments)
    # `--help` need not wait for these.
    from vix.commands.explain.numbers import as_json, as_text
    from vix.commands.explain.pictures import overview, single_tokens
    from vix.explain import explain
    from vix.training.errors import UsageError
    from vix.training.files import write_text
    from vix.training.trained import load_trained

    failures: dict[str, str] = {}
    try:
        trained = load_trained(options.ckpt_path, trusted=options.trust)
        folder = options.out or trained.folder / "explain"
        folder.mkdir(parents=True, exist_ok=True)
        for name, image, pixels in images(trained, options.images, options.samples, failures):
            found = explain(trained.net, image)
            title = f"{type(trained.net).__name__} on {name}"
            overview(found, pixels, title, trained.class_names).savefig(folder / f"{name}.png", dpi=150)
            single_tokens(found, pixels, title).savefig(folder / f"{name}_tokens.png", dpi=150)
            write_text(folder / f"{name}.json", as_json(found, trained.class_names, trained.checkpoint.path))
            print(as_text(found, title, trained.class_names))
    except (UsageError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"written to {folder}: for each image NAME.png, NAME_tokens.png, NAME.json")
    for why in failures.values():
        print(why, file=sys.stderr)
    return int(bool(failures))


def images(
    trained: "Trained", paths: list[str], samples: int, failures: dict[str, str]
) -> Iterator[tuple[str, "Tensor", "Tensor"]]:
    """Yields for each image its name, the image as the net wants it and its pixels from 0 to 1, both (channels y x).

    Args:
        trained: The net, and how its images have to come.
        paths: Files of the user; without any, images of the run's own are taken.
        samples: How many of those.
        failures: Gets for each file that cannot be read the reason.
    """
    import torch

    from vix.training.trained import image_files, sample

    mean, std = (torch.tensor(trained.reading[name])[:, None, None] for name in ("mean", "std"))
    if not paths:
        for number, image in enumerate(sample(trained, samples)):
            yield f"sample_{number + 1}", image, (image * std + mean).clamp(0, 1)
        return
    files = image_files(trained, paths)
    taken: set[str] = set()
    for batch in files:
        for path, image in zip(batch.paths, batch.images, strict=True):
            # Two folders may hold files of one name.
            stem = Path(path).stem
            name = next(each for each in (stem, *(f"{stem}_{i}" for i in range(2, 10**6))) if each not in taken)
            taken.add(name)
            yield name, image, (image * std + mean).clamp(0, 1)
    failures.update(files.failures)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text}")
    return int(text)
