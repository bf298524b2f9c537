"""`python main.py plan`: the largest batches that fit into a memory, found without a GPU and without a real step."""

import argparse
import re
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments"
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
EPILOG = """\
A name is a system, with options after a colon; left out, all systems are planned:
  python main.py plan --memory 8GB
  python main.py plan ViN:num_landmarks=256 ViP:position=rope --memory 24GB --data CIFAR10 --batch 1024
  python main.py plan ViP --memory 6GB --image_size 128 --classes 37      for images of your own
A step is run on tensors that have sizes but no values, and every byte that it would hold is counted: parameters,
gradients, the optimiser's two moments, the weights' average, what is kept for backward, and what comes and goes.
`ckpt` is --model.grad_checkpointing=true, `bf16` is --trainer.precision=bf16-mixed. docs/plan.md says how good it is.
"""


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(
        prog="main.py plan",
        description="Finds the largest batches that fit into a memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("names", nargs="*", metavar="NAME[:option=value,...]")
    made.add_argument("--memory", type=_bytes, help="such as 8GB (of 2^30 bytes); left out, that of this machine's GPU")
    made.add_argument(
        "--data", nargs="+", help="data sets of experiments/, such as CIFAR10 (default: all of known size)"
    )
    made.add_argument(
        "--image_size", type=_positive, nargs="+", help="side, or height and width, of images of your own"
    )
    made.add_argument("--channels", type=_positive, default=3, help="of images of your own (default 3)")
    made.add_argument("--classes", type=_positive, default=10, help="of images of your own (default 10)")
    made.add_argument("--batch", type=_positive, help="images that a step should see; tells how to accumulate them")
    made.add_argument(
        "--free", type=_share, default=0.1, help="share of the memory to leave free (default 0.1), see docs/plan.md"
    )
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {value}")
    return value


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"a memory looks like 8GB or 512MB, got {text!r}")
    return int(float(found[1]) * UNITS[found[2]])


def main(arguments: list[str] | None = None) -> int:
    """Plans, and prints each system as soon as it is planned.

    Args:
        arguments: As on the command line, which is taken where they are left out.

    Returns:
        The exit code: 0, or 2 where the arguments make no sense.
    """
    options = parser().parse_args(arguments)
    # `--help` need not wait for these.
    from vix.commands.plan.page import print_plan

    try:
        print_plan(options, EXPERIMENTS)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
