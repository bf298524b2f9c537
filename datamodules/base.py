"""The one base class: splits, loaders, augmentation and normalisation for every data set."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from datamodules.cache import memory_map
from datamodules.draws import Draws
from datamodules.loader import Loader
from datamodules.samples import Batch, Samples
from datamodules.sampling import BatchOrder, stratified_cut, stratified_subset
from datamodules.transforms import Augment, Pipeline

Split = Literal["train", "val", "test"]
# the commands that need only the official test split
TEST_STAGES = ("test", "predict")
NO_AUGMENTATION = Augment()


class ImageDataModule(LightningDataModule, ABC):
    """Images with one label each, fetched and augmented by the batch.

    The validation split is cut out of train, stratified; it and the subset `fraction` depend on `split_seed`, never on
    `seed`, so that runs of several seeds share them. The official test split is read by `test` and `predict` alone.

    Every random number is a function of (seed, epoch, position of the image, what it is for): see `draws`.

    Args:
        root: Folder of the data sets.
        batch_size: Images of a batch, on each device.
        val_fraction: Part of the official train split that is used for validation instead, in [0, 1).
        fraction: Part of the remaining train split that is used, in (0, 1]; smaller ones are subsets of larger ones.
        split_seed: Seed of the validation split and the subset.
        seed: Seed of the order and the augmentation.
        num_workers: Processes that fetch batches; 0, fetching in this process, is right for images in memory.
        in_memory: Whether the images are decoded once and mapped into memory, else when they are asked for.
        augment: What is done to training images.
        mean: Subtracted from each channel, on the scale of 0 to 1; the data set's own where left out.
        std: Divides each channel afterwards; the data set's own where left out.
        cache: Folder of the decoded images; `<root>/cache` where left out.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # facts of the data set
    num_classes: int
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    # names of the fields of `Augment` that leave a label as it is
    valid_augmentations: frozenset[str]

    # begins the names of cached files
    slug: str

    def __init__(
        self,
        *,
        root: str | Path = "data",
        batch_size: int = 128,
        val_fraction: float = 0.1,
        fraction: float = 1.0,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        in_memory: bool = True,
        augment: Augment = NO_AUGMENTATION,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {fraction}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}")
        self.root = Path(root)
        self.cache = self.root / "cache" if cache is None else Path(cache)
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.fraction = fraction
        self.split_seed = split_seed
        self.seed = seed
        self.num_workers = num_workers
        self.in_memory = in_memory
        self.augment = augment
        self.mean = self._per_channel("mean", mean, self.mean)
        self.std = self._per_channel("std", std, self.std)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        self.pipeline = Pipeline(
            augment.only(self.valid_augmentations), self.image_size, self.mean, self.std, self.num_classes
        )
        self._opened: dict[Split, Samples | None] = {}
        self._rows: tuple[Tensor, Tensor] | None = None
        self._train_loader: Loader | None = None
        self._resumed: dict[str, Any] = {}

    def _per_channel(self, name: str, given: Sequence[float] | None, fact: tuple[float, ...]) -> tuple[float, ...]:
        values = fact if given is None else tuple(float(value) for value in given)
        if len(values) != self.channels:
            raise ValueError(f"{name} must have one number for each of {self.channels} channels, got {values}")
        return values

    def __str__(self) -> str:
        """The facts in one line; Lightning's own text would take a loader for a data set."""
        height, width = self.image_size
        return f"{type(self).__name__}: {self.num_classes} classes, {self.channels} x {height} x {width}"

    # what a data set provides

    def fetch_source(self) -> None:
        """Downloads what is missing; by default nothing can be downloaded."""

    @abstractmethod
    def read(self, split: Split) -> Samples | None:
        """The images of one official split, opened as late as possible; None for a `val` that is to be cut from train.

        Raises:
            DataError: If they are missing or damaged.
        """

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Downloads and decodes, in one process of each machine, what the command at hand needs."""
        self.fetch_source()
        testing = self.trainer is not None and self.trainer.state.fn in (TrainerFn.TESTING, TrainerFn.PREDICTING)
        splits: tuple[Split, ...] = ("test",) if testing else ("train", "val")
        for split in splits:
            self._open(split)

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits of a stage: `fit` and `validate` never open the test split; None opens all."""
        if stage not in TEST_STAGES:
            self._split()
        if stage not in TEST_STAGES and stage != "validate":
            for name in self.augment.active:
                if name not in self.valid_augmentations:
                    rank_zero_info(
                        f"{type(self).__name__} does without augment.{name}: it would change what its labels say"
                    )
        if stage is None or stage in TEST_STAGES:
            self._open("test")

    def train_dataloader(self) -> Loader:
        """Batches of the training images, in each epoch's own order."""
        # `overfit_batches` asks for the same batches in every epoch
        shuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        self._train_loader = self._loader("train", self._split()[0], train=True, shuffle=shuffle)
        if self._resumed:
            self._train_loader.load_state_dict(self._resumed)
            self._resumed = {}
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """Where training stands in its data.

        Lightning keeps a loader's state too, but gives it back too late where a schedule asked for the number of steps.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Has the next training loader go on where the state was taken."""
        self._resumed = state_dict

    def val_dataloader(self) -> Loader | list[Loader]:
        """Batches of the validation images; none where there are no such images."""
        rows = self._split()[1]
        return self._loader(self._val_from, rows) if len(rows) else []

    def test_dataloader(self) -> Loader:
        """Batches of the official test split."""
        return self._loader("test", torch.arange(len(self._must_open("test"))))

    def predict_dataloader(self) -> Loader:
        """Batches of the official test split."""
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalises on the device, and in training augments."""
        return self.transform(batch, train=self.trainer is not None and self.trainer.training)

    def transform(self, batch: Batch, *, train: bool) -> Batch:
        """What the net sees of a batch out of a loader: float32, normalised, augmented if `train`."""
        if not train:
            return batch._replace(images=self.pipeline.normalise(batch.images))
        epoch = 0 if self._train_loader is None else self._train_loader.epoch
        images, labels = self.pipeline(batch.images, batch.labels, Draws(self.seed, epoch, batch.indices))
        return Batch(images, labels, batch.indices)

    # the splits

    @property
    def train_indices(self) -> Tensor:
        """Positions in the official train split of the images that are trained on, ascending int64."""
        return self._must_open("train").positions[self._split()[0]]

    @property
    def val_indices(self) -> Tensor:
        """Positions of the validation images in the official split that they are from, ascending int64."""
        return self._must_open(self._val_from).positions[self._split()[1]]

    def val_images(self, indices: Tensor) -> Tensor:
        """Validation images by their positions in the official split, as the loaders give them: uint8 (n, c, y, x)."""
        samples = self._must_open(self._val_from)
        rows = {position: row for row, position in enumerate(samples.positions.tolist())}
        return samples.fetch(torch.tensor([rows[index] for index in indices.tolist()], dtype=torch.int64))

    def split(self) -> dict[str, Any]:
        """Which images are trained on and validated on, in plain types, to be saved with a run."""
        train, val = self.train_indices.tolist(), self.val_indices.tolist()
        return {
            "data": type(self).__name__,
            "split_seed": self.split_seed,
            "val_fraction": self.val_fraction,
            "fraction": self.fraction,
            "val_from": self._val_from,
            "sha256": hashlib.sha256(json.dumps([train, val]).encode()).hexdigest(),
            "train": train,
            "val": val,
        }

    @property
    def _val_from(self) -> Split:
        return "train" if self._open("val") is None else "val"

    def _open(self, split: Split) -> Samples | None:
        if split not in self._opened:
            samples = self.read(split)
            if samples is not None and samples.fingerprint and self.in_memory:
                samples = memory_map(samples, self.cache, f"{self.slug}-{split}")
            self._opened[split] = samples
        return self._opened[split]

    def _must_open(self, split: Split) -> Samples:
        samples = self._open(split)
        assert samples is not None, "only val may be missing"
        return samples

    def _split(self) -> tuple[Tensor, Tensor]:
        """Rows to train on and rows to validate on."""
        if self._rows is None:
            train = self._must_open("train")
            val = self._open("val")
            if val is None:
                rows, val_rows = stratified_cut(
                    train.labels, train.positions, self.val_fraction, seed=self.split_seed, stream="validation"
                )
            else:
                rows, val_rows = torch.arange(len(train)), torch.arange(len(val))
            kept = stratified_subset(train.labels[rows], train.positions[rows], self.fraction, seed=self.split_seed)
            self._rows = rows[kept], val_rows
        return self._rows

    def _loader(self, split: Split, rows: Tensor, *, train: bool = False, shuffle: bool = False) -> Loader:
        samples = self._must_open(split)
        order = BatchOrder(
            rows,
            samples.positions[rows],
            batch_size=self.batch_size,
            train=train,
            shuffle=shuffle,
            seed=self.seed,
            rank=0 if self.trainer is None else self.trainer.global_rank,
            world_size=1 if self.trainer is None else self.trainer.world_size,
        )
        return Loader(samples, order, num_workers=self.num_workers)
