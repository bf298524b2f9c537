"""`python main.py bench`: what systems and kernels cost on this machine, beside softmax attention.

It needs torch and einops; matplotlib too for its plots.
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

MODES = ("train", "infer")
PRECISIONS = ("fp32", "bf16")
EPILOG = """\
A name is a system (ViN, HybridViP) or a bare kernel (Performer, Nystrom), with options after a colon:
  python main.py bench ViN:num_landmarks=256 ViP FNet --tokens 256 1024 4096
  python main.py bench Linformer Performer Nystrom --mode infer --precision bf16
Softmax attention in the same body is always measured beside it, fused and with explicit matrices.
A training step is forward, cross entropy and backward, without an optimiser, which costs all nets alike.
"""


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(
        prog="main.py bench",
        description="Measures time, memory, operations and the share of this machine's roofline.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("names", nargs="*", default=["ViL", "ViP", "ViN", "FNet"], metavar="NAME[:option=value,...]")
    made.add_argument("--tokens", type=_positive, nargs="+", default=[64, 256, 1024], help="tokens of an image's grid")
    made.add_argument("--mode", nargs="+", choices=MODES, default=["train", "infer"])
    made.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"])
    made.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU where there is one")
    made.add_argument("--compile", action="store_true", help="time the nets after torch.compile")
    made.add_argument("--batch", type=_positive, default=8, help="images of a step (default 8)")
    for name in ("dim", "depth", "heads", "dim_head", "mlp_dim"):
        made.add_argument(
            f"--{name}", type=_positive, help="for all that have it; left out, the published" if name == "dim" else None
        )
    made.add_argument("--rounds", type=_positive, default=21, help="timed steps of each candidate, in turn")
    made.add_argument("--seconds", type=float, default=300, help="most for one table; at least 3 rounds are run")
    made.add_argument("--threads", type=_positive, help="CPU threads; left out, torch's choice")
    made.add_argument("--out", type=Path, help="folder of the results (default runs/bench/<time>)")
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints and writes what the command line asks for.

    Args:
        arguments: As on the command line, which is taken where they are left out.

    Returns:
        The exit code: 0, or 2 where the arguments make no sense.
    """
    options = parser().parse_args(arguments)
    if options.out is None:
        options.out = Path("runs", "bench", datetime.now().strftime("%Y%m%d-%H%M%S"))
    # `--help` need not wait for these.
    from vix.commands.bench.run import run

    try:
        run(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
