"""Run folders with tiny nets that were never trained, for the commands that take one."""

from pathlib import Path
from typing import Any

import torch

import vix
from tests.nets import tiny
from vix.backbones import Backbone
from vix.training.imported import write_run
from vix.training.runs import Run

# The recipe's crop is too much for eight pixels.
DIGITS = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 32, "augment": {"crop": 0}}}


def digits_net(name: str = "ViT", **options: Any) -> Backbone:
    """A tiny net for Digits, of which no logit is as good as another."""
    return tiny(vix.SYSTEMS[name], image_size=8, channels=1, num_classes=10, **options).eval()


def run_with(net: Backbone, folder: Path, data: dict[str, Any] | None = None) -> Run:
    """Puts a net into a run folder."""
    run = Run(folder / "runs" / "tiny" / "1")
    write_run(run, net, DIGITS if data is None else data, imported={"system": "tiny", "file": "nothing"})
    return run


@torch.no_grad()
def logits(net: Backbone, images: torch.Tensor) -> torch.Tensor:
    """What a net says."""
    return net(images)
