"""What a user sees: little and to the point."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

LIBRARIES = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "torch.distributed.nn.jit.instantiator")
# Warnings that are right for a library's author, or about what we chose on purpose.
NEEDLESS = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*You are using a CUDA device .* Tensor Cores.*",
    r".*GPU available but not used.*",
    r".*using `devices=1`.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Starting from v1\.9\.0, `tensorboardX`.*",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' adverts, tips and needless warnings from the user, and puts everything back afterwards.

    Deprecations of jsonargparse concern Lightning's use of it, not the user; who develops sees them all the same,
    because Python and pytest are told so with `-W`.
    """
    levels = {name: logging.getLogger(name).level for name in LIBRARIES}
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in NEEDLESS:
                warnings.filterwarnings("ignore", message=message)
            if not sys.warnoptions:
                warnings.filterwarnings(
                    "ignore", category=DeprecationWarning, module=r"(jsonargparse|pytorch_lightning)"
                )
                warnings.filterwarnings("ignore", message=r"(?s).*jsonargparse.*", category=DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def say(text: str) -> None:
    """Prints to the user at once, so that lines come in order with what libraries print."""
    print(text, flush=True)


def scores_line(name: str, scores: Mapping[str, Any], split: str = "val") -> str:
    """One line with a split's scores: `best   epoch 12   top1 98.61 %   top5 99.93 %   loss 0.0412`."""
    words = [f"{name:<6}"]
    if "epoch" in scores:
        words.append(f"epoch {scores['epoch']}")
    for key, value in scores.items():
        if key.startswith(f"{split}/"):
            short = key.removeprefix(f"{split}/")
            words.append(f"{short} {value:.2%}" if short.startswith("top") else f"{short} {value:.4f}")
    return "   ".join(words)


def calibration_line(evaluation: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """One line on a test: its calibration error and the class it knows least."""
    accuracies = {n: value for n, value in enumerate(evaluation["class_top1"]) if value is not None}
    weakest = min(accuracies, key=lambda n: accuracies[n])
    name = class_names[weakest] if weakest < len(class_names) else weakest
    error = f"calibration error {evaluation['calibration_error']:.4f}"
    return f"{'':<6}   {error}   weakest class {name}, top1 {accuracies[weakest]:.2%}"


def cost_line(costs: Mapping[str, int]) -> str:
    """One line on a net: parameters, tokens, operations for one image."""
    words = [f"{costs['parameters']:,} parameters"]
    if "tokens" in costs:
        words.append(f"{costs['tokens']:,} tokens")
    if "flops" in costs:
        words.append(
            f"{costs['flops'] / 1e9:.3g} GFLOPs an image"
            if costs["flops"] >= 1e8
            else f"{costs['flops'] / 1e6:.3g} MFLOPs an image"
        )
    return ", ".join(words)
