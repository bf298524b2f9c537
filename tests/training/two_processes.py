"""Trains and tests a small LeViP in two processes, each of which keeps what it saw.

    python -m tests.training.two_processes OUT

A program of its own, since Lightning starts the second process by starting the first one's program again.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from torch.optim import SGD

import vix
from datamodules import Digits
from datamodules.transforms import Augment
from tests.training.test_average import History
from vix.training import ImageClassifier
from vix.training.callbacks import AveragedWeights, BestAndLast, PredictionTable
from vix.training.console import quiet
from vix.training.runs import Run

DECAY = 0.6


def data() -> Digits:
    """260 training images; the test split's 359 are not shared evenly among two."""
    return Digits(batch_size=16, fraction=0.2, augment=Augment(crop=1))


def classifier() -> ImageClassifier:
    """A net with running statistics, and with random features that are drawn anew while it trains."""
    torch.manual_seed(0)
    net = vix.LeViP(image_size=8, num_classes=10, channels=1, dim=(8, 12), depth=1, heads=2, dim_head=4, redraw=3)
    return ImageClassifier(net, optimizer=partial(SGD, lr=0.05))


def main(folder: Path) -> None:
    """Trains two epochs, tests the better one, and saves this process's view."""
    run, history, module = Run(folder / "runs" / "levip" / "1"), History(), classifier()
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
            max_epochs=2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[history, AveragedWeights(DECAY), BestAndLast(run), PredictionTable(run, run.best)],
        )
        trainer.fit(module, datamodule=data())
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        kept = {"steps": history.steps, "validated": history.validated, "scores": scores, "after": module.state_dict()}
        torch.save(kept, folder / f"rank{trainer.global_rank}.pt")
        trainer.test(module, datamodule=data(), ckpt_path=run.best, weights_only=True, verbose=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
