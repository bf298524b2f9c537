"""Where images come from: rows of uint8 images with labels, fetched by the batch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """What a loader yields and a step receives.

    Out of the loader `images` is uint8 (b, c, y, x); after `on_after_batch_transfer` it is float32, normalised.
    `labels` is int64 (b,), or float (b, classes) once images were mixed. `indices` is the position of each image in
    its official split, int64 (b,).
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


class Samples(ABC):
    """The images of one official split, or of part of one.

    Attributes:
        fingerprint: Changes when the source's files change; empty where the images need no cache.
        shape: Channels, height and width of every image.
    """

    fingerprint: str
    shape: tuple[int, int, int]

    @property
    @abstractmethod
    def labels(self) -> Tensor:
        """Class of each row, int64 (n,)."""

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """Position of each row in its official split, int64 (n,)."""

    @abstractmethod
    def fetch(self, rows: Tensor) -> Tensor:
        """Images of these rows, uint8 (b, c, y, x)."""

    def batch(self, rows: Tensor) -> Batch:
        """These rows as a batch."""
        return Batch(self.fetch(rows), self.labels[rows], self.positions[rows])

    def __len__(self) -> int:
        return len(self.labels)


class ArraySamples(Samples):
    """Images that are in memory.

    Args:
        images: uint8 (n, c, y, x).
        labels: int64 (n,).
        positions: int64 (n,); counts from 0 where left out.
    """

    fingerprint = ""

    def __init__(self, images: Tensor, labels: Tensor, positions: Tensor | None = None) -> None:
        self.images = images
        self._labels = labels
        self._positions = torch.arange(len(labels)) if positions is None else positions
        channels, height, width = images.shape[1:]
        self.shape = (channels, height, width)

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def positions(self) -> Tensor:
        return self._positions

    def fetch(self, rows: Tensor) -> Tensor:
        # copies whole images, where an index in brackets goes from byte to byte
        return self.images.index_select(0, rows)


class LazySamples(Samples):
    """Images that are opened when the first of them, or its label, is asked for.

    Args:
        fingerprint: Changes when the source's files change.
        shape: Channels, height and width of every image.
        load: Opens them.
    """

    def __init__(self, fingerprint: str, shape: tuple[int, int, int], load: Callable[[], Samples]) -> None:
        self.fingerprint = fingerprint
        self.shape = shape
        self._load = load

    @cached_property
    def opened(self) -> Samples:
        """The images themselves."""
        return self._load()

    @property
    def labels(self) -> Tensor:
        return self.opened.labels

    @property
    def positions(self) -> Tensor:
        return self.opened.positions

    def fetch(self, rows: Tensor) -> Tensor:
        return self.opened.fetch(rows)

    def __getstate__(self) -> dict[str, Any]:
        # a worker gets them opened: what opens them may not travel
        return {"fingerprint": self.fingerprint, "shape": self.shape, "opened": self.opened}
