"""`python main.py import-published FILE.pth`: weights of the original code as a run folder, like one of `fit`.

`test`, `predict`, `explain` and `export` take the folder as `--ckpt_path`. What the file does not tell is taken from
the authors' scripts, and said; `--set` gives it.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vix.backbones import Backbone

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments" / "published"
# By number of classes a file with the data as the authors prepared it; all of theirs on one data set agree in that.
DATA = {10: EXPERIMENTS / "vip.yaml", 200: EXPERIMENTS / "mlp_mixer.yaml"}

# Families whose weights belong to no size, so that no file tells one.
ANY_SIZE = ("fnet2d", "cvt", "levit")


def main(arguments: list[str]) -> int:
    """Makes the run folder.

    Args:
        arguments: What stands after `main.py import-published`.

    Returns:
        0; 1 if the file is missing or holds no published model; 2 if an option is wrong.
    """
    options = parser().parse_args(arguments)
    # `--help` need not wait for these
    from vix.published import load, original, read_file
    from vix.training.errors import UsageError
    from vix.training.imported import write_run
    from vix.training.runs import new_run

    try:
        given = dict(_setting(text) for text in options.set)
        data = _data(options.config)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        file = read_file(options.file, options.system, **given)
        net = load(file.system, file.arguments, file.state_dict).float()
    except (ValueError, OSError) as error:
        text = str(error) if isinstance(error, ValueError) else f"{options.file}: {error.strerror}"
        print(text if text.startswith(str(options.file)) else f"{options.file}: {text}", file=sys.stderr)
        return 1
    assumed = ", ".join(f"{name}={value!r}" for name, value in file.assumed.items())
    print(f"{file.system}; not in the file, so as in the authors' script: {assumed or 'nothing'}")
    run = new_run(options.experiment or f"published_{file.system.lower()}", options.runs)
    about = {
        "file": options.file.name,
        "sha256": hashlib.sha256(options.file.read_bytes()).hexdigest(),
        "system": file.system,
        "arguments": {name: _plain(value) for name, value in file.arguments.items()},
        "assumed": {name: _plain(value) for name, value in file.assumed.items()},
    }
    try:
        net, data = _with_data(net, data, original(file.system).family in ANY_SIZE)
        known = write_run(run, net, data, imported=about)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    if not known:
        print(f"no data set of ours has its {net.num_classes} classes and images: give a YAML with `data:` (--config)")
    print(f"run    {run.folder}\ntest   python main.py test --ckpt_path {run.folder}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(prog="main.py import-published", description=__doc__)
    made.add_argument("file", type=Path, metavar="FILE.pth", help="a bare state dict, as the original code saves it")
    made.add_argument("--system", help="the published model, such as ViP; the names of the weights tell it if left out")
    made.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of its constructor that the file does not tell: heads=8 pool=mean image_size=64",
    )
    made.add_argument(
        "--config",
        type=Path,
        help="YAML whose `data:` it was trained on; CIFAR-10 for 10 classes and Tiny ImageNet for 200 if left out",
    )
    made.add_argument("--experiment", help="name of the experiment; published_<system> if left out")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default runs)")
    return made


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    from vix.training.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--set {text}: give NAME=VALUE, such as heads=8")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        read = value
    return name, tuple(read) if isinstance(read, list) else read


def _data(config: Path | None) -> dict[str, Any] | None:
    """The `data:` of a YAML."""
    from vix.training.errors import UsageError
    from vix.training.sources import read_yaml

    if config is None:
        return None
    data = read_yaml(config).get("data")
    if not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        raise UsageError(f"--config {config}: has no `data:` with a class_path")
    return data


def _with_data(
    net: "Backbone", data: dict[str, Any] | None, any_size: bool
) -> tuple["Backbone", dict[str, Any] | None]:
    """The net with the data it was trained on: that given, else the data set with its classes and images, if any.

    Args:
        net: The net.
        data: The data given.
        any_size: Whether nothing in the net belongs to a size, so that the data's is as good as any.
    """
    from vix.training.trained import make_data

    guess = _data(DATA.get(net.num_classes)) if data is None else data
    if guess is None:
        return net, None
    if any_size:
        net = net.resized(make_data(guess).image_size)
    if data is None:
        known = make_data(guess)
        fits = (known.channels, tuple(known.image_size)) == (net.channels, net.image_size)
        return net, guess if fits else None
    return net, guess


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
