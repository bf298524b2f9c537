"""Trainings of a few steps with Lightning, for the columns EMA and resume."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from tests.nets import images
from tests.training.standin import Batch
from vix.backbones import Backbone
from vix.training import ImageClassifier
from vix.training.callbacks import AveragedWeights, BestAndLast, RandomState
from vix.training.console import quiet
from vix.training.runs import Run

DECAY = 0.5


class Few(LightningDataModule):
    """Twelve images of noise in three batches, the same in every epoch."""

    def __init__(self, net: Backbone) -> None:
        super().__init__()
        self.num_classes, self.channels, self.image_size = net.num_classes, net.channels, net.image_size
        pictures, labels = images(net, 12), torch.arange(12) % net.num_classes
        indices = torch.arange(12)
        self.batches = [Batch(*(each[n : n + 4] for each in (pictures, labels, indices))) for n in (0, 4, 8)]

    def train_dataloader(self) -> DataLoader[Batch]:
        # With a generator of its own: torch's loader would draw from the one that dropout draws from.
        return DataLoader(self.batches, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


class Diary(Callback):
    """Keeps the weights after each optimiser step."""

    def __init__(self) -> None:
        self.pages: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.pages.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})


def train(net: Backbone, folder: Path, epochs: int, callbacks: list[Callback], ckpt_path: Path | None = None) -> Run:
    """Trains a net and keeps the last epoch's checkpoint."""
    run = Run(folder / "runs" / "support" / "1")
    with quiet():
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[*callbacks, RandomState(), BestAndLast(run)],
        )
        trainer.fit(ImageClassifier(net), datamodule=Few(net), ckpt_path=ckpt_path, weights_only=True)
    return run


def state(run: Run) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(run.last, weights_only=True)["state_dict"]
    return found


def average_of_a_training(net: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a checkpoint keeps, and the average of the weights after each step by its definition."""
    diary = Diary()
    expected = {f"net.{name}": value.detach().clone() for name, value in net.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        kept = state(train(net, Path(folder), 1, [diary, AveragedWeights(DECAY)]))
    for update, page in enumerate(diary.pages):
        decay = min(DECAY, (1 + update) / (10 + update))
        expected = {name: decay * value + (1 - decay) * page[name] for name, value in expected.items()}
    return kept, expected


def in_one_go_and_in_two(net: Backbone) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state after two epochs, and after one epoch and one more from its checkpoint."""
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.2
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole = state(train(copy.deepcopy(net), Path(one), 2, []))
        first = train(copy.deepcopy(net), Path(two), 1, [])
        halves = state(train(copy.deepcopy(net), Path(two), 2, [], first.last))
    return whole, halves
