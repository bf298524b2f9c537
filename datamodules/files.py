"""Image files that a user names, decoded ahead by the batch: no labels, and a broken one stops nothing."""

import glob
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.errors import DataError
from datamodules.images import decode

# Pillow knows these names, but has no reader for them or hands them to another program.
UNREADABLE = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
AHEAD = 3


class Decoded(NamedTuple):
    """A batch of the files that could be read.

    Args:
        paths: Their names as the user would write them.
        images: Normalised, float32 (b, c, y, x).
        read: How many files were tried, broken ones included.
    """

    paths: list[str]
    images: Tensor
    read: int


def suffixes() -> frozenset[str]:
    """Endings of the names of all kinds of image that Pillow reads, in lower case and with their dots."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in UNREADABLE)


def find(paths: Sequence[str]) -> list[str]:
    """Lists the files that paths mean, each once: a file itself, a folder its images at any depth, a glob its matches.

    In folders, and among the matches of a glob, what is hidden or no image by its suffix is passed over.

    Raises:
        DataError: If one of them means nothing.
    """
    known, found = suffixes(), dict[str, None]()
    for path in paths:
        if Path(path).is_file():
            found[path] = None
            continue
        if Path(path).is_dir():
            inside = sorted(_walk(path))
        else:
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  # `Path.glob` takes no absolute ones
            inside = [file for match in matches for file in (sorted(_walk(match)) if Path(match).is_dir() else [match])]
        images = [file for file in inside if Path(file).suffix.lower() in known]
        if not images:
            what = "holds no image" if Path(path).is_dir() else "no such file, folder or glob with an image"
            raise DataError(f"{path}: {what}")
        found.update(dict.fromkeys(images))
    return list(found)


def _walk(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        yield from (os.path.join(place, file) for file in files if not file.startswith("."))  # noqa: PTH118  # `Path` is slow


class ImageFiles:
    """Reads files in the order of their names and makes of them what a net wants.

    Threads decode while the caller computes: Pillow decodes outside the interpreter's lock.

    Args:
        paths: Files, folders, globs.
        image_size: Height and width to scale and crop to, as `ImageFolder` does.
        channels: 1 for grey, 3 for colour.
        mean: Subtracted from each channel, on the scale of 0 to 1.
        std: Divides each channel afterwards.
        batch_size: Files of a batch.
        threads: How many decode; the number of processors where left out.

    Raises:
        DataError: If a path means no image.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        image_size: tuple[int, int],
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int = 64,
        threads: int | None = None,
    ) -> None:
        self.names = find(paths)
        self.shape = (channels, *image_size)
        self.batch_size = batch_size
        self.threads = threads or os.cpu_count() or 1
        # (v / 255 - mean) / std as one product and one sum, as the datamodules have it
        means, deviations = (torch.tensor(list(values), dtype=torch.float64)[:, None, None] for values in (mean, std))
        self._scale, self._offset = (1 / (255 * deviations)).float(), (-means / deviations).float()
        self.failures: dict[str, str] = {}
        """Why a file could not be read, by its name; complete once all batches were taken."""

    def __len__(self) -> int:
        """How many files there are."""
        return len(self.names)

    def __iter__(self) -> Iterator[Decoded]:
        self.failures = {}
        batches = [self.names[first : first + self.batch_size] for first in range(0, len(self), self.batch_size)]
        with ThreadPoolExecutor(self.threads) as pool:
            waiting: deque[tuple[list[str], Tensor, list[Future[list[str | None]]]]] = deque()
            try:
                for batch in batches:
                    waiting.append(self._begin(pool, batch))
                    if len(waiting) > AHEAD:
                        yield self._end(*waiting.popleft())
                while waiting:
                    yield self._end(*waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def first(self, count: int) -> Tensor:
        """The first images that can be read, at most `count`, normalised (n c y x).

        Raises:
            DataError: If none of the files can be read.
        """
        kept: list[Tensor] = []
        for batch in self:
            kept.append(batch.images)
            if sum(map(len, kept)) >= count:
                break
        images = torch.cat(kept)[:count]
        if not len(images):
            raise DataError(next(iter(self.failures.values())))
        return images

    def _begin(self, pool: ThreadPoolExecutor, batch: list[str]) -> tuple[list[str], Tensor, list[Future[Any]]]:
        """Has the threads fill a batch, each a part of it."""
        images = torch.empty((len(batch), *self.shape), dtype=torch.uint8)
        part = -(-len(batch) // self.threads)
        cuts = [slice(first, first + part) for first in range(0, len(batch), part)]
        return batch, images, [pool.submit(self._fill, batch[cut], images[cut].numpy()) for cut in cuts]

    def _fill(self, names: list[str], images: np.ndarray[Any, np.dtype[np.uint8]]) -> list[str | None]:
        """Decodes files into their places and says of each what was wrong."""
        channels, height, width = self.shape
        problems: list[str | None] = []
        for name, place in zip(names, images, strict=True):
            try:
                place[:] = decode(Path(name).read_bytes(), name, (height, width), channels)
                problems.append(None)
            except OSError as error:
                problems.append(f"cannot read {name}: {error.strerror}")
            except DataError as error:
                problems.append(str(error))
        return problems

    def _end(self, batch: list[str], images: Tensor, parts: list[Future[list[str | None]]]) -> Decoded:
        problems = [problem for part in parts for problem in part.result()]
        if any(problems):
            self.failures |= {name: why for name, why in zip(batch, problems, strict=True) if why is not None}
            images = images[torch.tensor([problem is None for problem in problems])]
        paths = [name for name, problem in zip(batch, problems, strict=True) if problem is None]
        return Decoded(paths, images.float().mul_(self._scale).add_(self._offset), len(batch))
