"""Image files decoded to uint8 arrays of one size, whatever a camera or scanner made of them."""

import io
import os
import threading
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.errors import DataError
from datamodules.samples import Samples


class Store(ABC):
    """Where encoded images lie."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file."""

    @abstractmethod
    def where(self, name: str) -> str:
        """How to name that file to a user."""


class FolderStore(Store):
    """Files under a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.where(name)}: {error.strerror}") from None

    def where(self, name: str) -> str:
        return str(self.root / name)


class ZipStore(Store):
    """Members of a zip archive, which is never unpacked.

    Each process opens it for itself: a forked one would share the position in the file with its parent.
    """

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self._file: zipfile.ZipFile | None = None
        self._process = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"archive": self.archive}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["archive"])  # type: ignore[misc]

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                if self._file is None or self._process != os.getpid():
                    self._file = zipfile.ZipFile(self.archive)
                    self._process = os.getpid()
            size = self._file.getinfo(name).file_size
            with self._file.open(name) as member:
                # `ZipFile.read` would unpack beyond the size that the archive states, and then throw that away
                return member.read(size)
        except (
            OSError,
            EOFError,
            KeyError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise DataError(f"cannot read {self.where(name)}: {error}") from None

    def where(self, name: str) -> str:
        return f"{self.archive}: {name}"


def decode(data: bytes, where: str, size: tuple[int, int], channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as uint8 (c, y, x).

    It is turned upright as its EXIF data say, scaled until it covers `size`, with antialiasing, and cropped at its
    centre. Sixteen bits a channel become eight, a palette its colours, CMYK RGB; transparency is dropped; of an
    animation the first frame is taken.

    Args:
        data: The file's bytes.
        where: How to name it in an error.
        size: Height and width of the result.
        channels: 1 for grey, 3 for colour.

    Raises:
        DataError: If it is no image, is damaged, or is of an unknown kind.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as file:
            # Pillow warns of images that unpack to enormous sizes, and of metadata that we do not need
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _eight_bits(ImageOps.exif_transpose(file))
            image = image.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise DataError(f"cannot read the image {where}: it is no image of a known kind") from None
    # a file of a stranger can make Pillow's readers raise nearly anything
    except Exception as error:
        raise DataError(f"cannot read the image {where}: {error}") from None
    height, width = size
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its values are floating-point numbers, whose range is unknown; save it with 8 or 16 bits")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its values do not fit 16 bits; save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


class EncodedSamples(Samples):
    """Image files that are decoded each time they are asked for.

    Args:
        store: Where they lie.
        names: Name of each in the store.
        labels: Class of each, int64 (n,).
        positions: Position of each in its official split; counts from 0 where left out.
        size: Height and width to decode to.
        channels: 1 or 3.
        fingerprint: Changes when the files change; empty where the caller sees to that.
    """

    def __init__(
        self,
        store: Store,
        names: list[str],
        labels: Tensor,
        positions: Tensor | None = None,
        *,
        size: tuple[int, int],
        channels: int,
        fingerprint: str = "",
    ) -> None:
        self.store = store
        # an array of bytes: a list of strings would be copied page by page into every worker as it counts references
        self.names = np.array([os.fsencode(name) for name in names])
        self._labels = labels
        self._positions = torch.arange(len(labels)) if positions is None else positions
        self.shape = (channels, *size)
        self.fingerprint = fingerprint

    @property
    def labels(self) -> Tensor:
        return self._labels

    @property
    def positions(self) -> Tensor:
        return self._positions

    def fetch(self, rows: Tensor) -> Tensor:
        channels, height, width = self.shape
        images = np.empty((len(rows), *self.shape), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            name = os.fsdecode(self.names[row])
            images[place] = decode(self.store.read(name), self.store.where(name), (height, width), channels)
        return torch.from_numpy(images)
