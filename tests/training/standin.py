"""A net and data of the fewest lines that training can do with, and a trainer that leaves nothing behind."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

import vix
from vix.training.callbacks import BestAndLast
from vix.training.console import quiet
from vix.training.files import WholeCheckpoints
from vix.training.runs import Run

TINY: dict[str, Any] = {"dim": 8, "depth": 1, "heads": 2, "dim_head": 4, "mlp_dim": 8, "patch_size": 2}


class Batch(NamedTuple):
    images: Tensor
    labels: Tensor
    indices: Tensor


class Noise(LightningDataModule):
    """Forty noisy 4x4 images of three classes whose brightness tells the class."""

    num_classes, channels, image_size = 3, 1, (4, 4)
    class_names, mean, std = ("dark", "grey", "bright"), (0.5,), (0.25,)

    def __init__(self, *, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed

    def _loader(self, count: int) -> DataLoader[Batch]:
        indices = torch.arange(count)
        labels = indices % 3
        images = (
            torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(count)) + labels[:, None, None, None]
        )
        batches = [
            Batch(*(each[n : n + self.batch_size] for each in (images, labels, indices)))
            for n in range(0, count, self.batch_size)
        ]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(40)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(13)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(11)


class Foreign(nn.Module):
    """A net that knows nothing of ours: no spec, no tokens."""

    def __init__(self, *, num_classes: int = 3, image_size: tuple[int, int] = (4, 4), channels: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(channels * image_size[0] * image_size[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1))


def net(**arguments: Any) -> vix.ViP:
    # one feature more than a head of four has by default, with which it fits noise only after twice as many epochs
    return vix.ViP(**{"features": 5, "image_size": 4, "num_classes": 3, "channels": 1, **TINY, **arguments})


def fit(module: LightningModule, folder: Path, **options: Any) -> tuple[Trainer, Run]:
    """Trains on `Noise` and keeps both checkpoints in the folder of a run."""
    run = Run(folder / "runs" / "noise" / "1")
    settings: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_progress_bar": False}
    callbacks = [BestAndLast(run), *options.pop("callbacks", [])]
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            default_root_dir=folder,
            enable_model_summary=False,
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            **{**settings, **options},
        )
        trainer.fit(module, datamodule=Noise())
    return trainer, run
