"""`python main.py export --ckpt_path RUN --format onnx`: a trained net as a file for use elsewhere.

The file is compared with the net on real images, in batches of 1, 3 and 17, before it is kept.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vix.commands import side

if TYPE_CHECKING:
    from torch import Tensor

    from vix.training.trained import Trained

FORMATS = ("onnx", "torch_export", "safetensors")
MOST = 1e-4
COUNT = 17


def main(arguments: list[str]) -> int:
    """Writes the files.

    Args:
        arguments: What stands after `main.py export`.

    Returns:
        0; 1 if a file differed from the net and was not kept; 2 if the command or a file it names is wrong.
    """
    options = parser().parse_args(arguments)
    # `--help` need not wait for these
    from vix.training.errors import UsageError
    from vix.training.trained import load_trained, sample

    try:
        trained = load_trained(options.ckpt_path, trusted=options.trust, image_size=options.image_size)
        images = sample(trained, COUNT, options.images)
        codes = [export(trained, name, images, _path(options.out, trained, name)) for name in options.format]
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return max(codes)


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog="main.py export", description=__doc__)
    made.add_argument("--ckpt_path", required=True, metavar="RUN", help="run folder or checkpoint")
    made.add_argument("--format", required=True, nargs="+", choices=FORMATS, help="one or several formats")
    made.add_argument("--out", type=Path, help="file without suffix; export/model in the run's folder if left out")
    made.add_argument("--image_size", type=side, help="export the net for images of another size: 64, or 64x48")
    made.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="images for the comparison; the run's own if left out"
    )
    made.add_argument("--trust", type=lambda text: text.split(","), default=[], help="modules the checkpoint may name")
    return made


def export(trained: "Trained", name: str, images: "Tensor", path: Path) -> int:
    """Writes one file, or none if it does not compute what the net computes.

    Args:
        trained: The net.
        name: The format.
        images: Real ones (17 c y x), normalised.
        path: The file.

    Returns:
        0, or 1 if it was not kept.

    Raises:
        UsageError: If a package is missing or the folder cannot be written.
    """
    from vix.commands.export.formats import FORMATS as BY_NAME
    from vix.commands.export.formats import difference
    from vix.training.errors import UsageError

    form = BY_NAME[name]
    if missing := [package for package in form.needs if find_spec(package) is None]:
        raise UsageError(f"--format {name} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    part = path.with_name(f".{path.name}.part{form.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        form.write(trained.net, images[:3], part, about(trained))
        worst = difference(
            form.read(part, (f"{type(trained.net).__module__.partition('.')[0]}.",))[0], trained.net, images
        )
        # not `worst > MOST`: a file may give no numbers at all
        if not worst <= MOST:
            print(f"{name}: logits differ from torch's by {worst:.1e}, allowed is {MOST:.0e}; no file", file=sys.stderr)
            return 1
        part.replace(path)
    except OSError as error:
        raise UsageError(f"--out: cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; over {COUNT} images logits differ from torch's by {worst:.1e}")
    return 0


def about(trained: "Trained") -> dict[str, str]:
    """What travels with the weights, each value as JSON."""
    import vix
    from vix.commands.export.formats import facts_of

    checkpoint = trained.checkpoint
    return facts_of(
        class_names=trained.class_names,
        **trained.reading,
        input="float32 (batch, channels, height, width): values of 0 to 1, less mean, over std, channel by channel",
        net=trained.spec,
        experiment=checkpoint.experiment,
        epoch=checkpoint.epoch,
        vix=vix.__version__,
    )


def _path(out: Path | None, trained: "Trained", name: str) -> Path:
    from vix.commands.export.formats import FORMATS as BY_NAME

    stem = trained.folder / "export" / "model" if out is None else out
    suffix = BY_NAME[name].suffix
    return stem if stem.suffix == suffix else stem.with_name(stem.name + suffix)
