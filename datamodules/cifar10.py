"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels in ten classes.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Files as torchvision stores them.
"""

import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule, Split
from datamodules.cache import fingerprint
from datamodules.download import download, read_tar, verify
from datamodules.errors import DataError
from datamodules.samples import ArraySamples, LazySamples

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
# the real archive has 170,498,071 bytes, its contents 186 MB, a batch 31 MB
MAX_ARCHIVE_BYTES = 200_000_000
MAX_UNPACKED_BYTES = 250_000_000
MAX_BATCH_BYTES = 64_000_000


class CIFAR10(ImageDataModule):
    """CIFAR-10, downloaded, or from files placed by hand.

    Under `root` either the archive `cifar-10-python.tar.gz`, read without being unpacked, or the folder
    `cifar-10-batches-py` of its contents will do. Every file is compared with its published checksum before anything in
    it is believed, and the pickles are read by an unpickler that knows arrays, numbers, strings, lists and dicts only:
    torchvision's reader would run whatever a file under another checksum holds.

    Args:
        mirror: Address of a folder that holds the archive; the official one where left out.
        checksum: md5 or sha256 of the archive; the published md5 where left out.
        **common: Arguments of every data set, see `ImageDataModule`.
    """

    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    image_size = (32, 32)
    channels = 3
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    valid_augmentations = frozenset(
        {"crop", "flip", "rotate", "randaugment", "trivialaugment", "erase", "mixup", "cutmix"}
    )
    slug = "cifar10"

    official: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/"
    # md5 of what is in the folder
    files: ClassVar[dict[Split, dict[str, str]]] = {
        "train": {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
    }

    def __init__(
        self, *, mirror: str | None = None, checksum: str = "c58f30108f718f92721af3b95e74349a", **common: Any
    ) -> None:
        super().__init__(**common)
        self.mirror = mirror or self.official
        self.checksum = checksum

    @property
    def folder(self) -> Path:
        """Where the files lie that were placed by hand."""
        return self.root / FOLDER

    @property
    def archive(self) -> Path:
        """Where the archive lies."""
        return self.root / ARCHIVE

    def fetch_source(self) -> None:
        if self.folder.is_dir() or self.archive.is_file():
            return
        address = f"{self.mirror.rstrip('/')}/{ARCHIVE}"
        try:
            download(address, self.archive, self.checksum, MAX_ARCHIVE_BYTES)
        except DataError as error:
            raise DataError(f"{error}\n{self._by_hand()}") from None

    def read(self, split: Split) -> LazySamples | None:
        if split == "val":
            return None
        files = [self.folder / name for name in self.files[split]] if self.folder.is_dir() else [self.archive]
        if missing := [str(path) for path in files if not path.is_file()]:
            raise DataError(f"CIFAR-10 is not there: {missing[0]} is missing\n{self._by_hand()}")
        return LazySamples(
            fingerprint(((path.name, path.stat()) for path in files), checksums=[self.checksum, self.files[split]]),
            (self.channels, *self.image_size),
            partial(self._load, self.files[split]),
        )

    def _load(self, checksums: dict[str, str]) -> ArraySamples:
        if self.folder.is_dir():
            contents = {}
            for name, checksum in checksums.items():
                verify(self.folder / name, checksum)
                contents[name] = (self.folder / name).read_bytes()
        else:
            verify(self.archive, self.checksum)
            contents = read_tar(self.archive, set(checksums), MAX_BATCH_BYTES, MAX_UNPACKED_BYTES)
        batches = [read_batch(contents[name], f"{name} of CIFAR-10") for name in checksums]
        return ArraySamples(torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]))

    def _by_hand(self) -> str:
        return (
            f"Put {ARCHIVE} (from {self.official}) into {self.root}, or name a mirror, or work without download:\n"
            "python main.py fit --config experiments/vip_rope.yaml --config experiments/overlays/digits.yaml"
        )


class _ArrayUnpickler(pickle.Unpickler):
    """Reads what NumPy arrays, numbers, strings and containers need, and nothing else."""

    # the function that NumPy names in its own pickles; where it lives has changed with versions
    _reconstruct = np.empty(0).__reduce__()[0]
    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def read_batch(data: bytes, name: str) -> tuple[Tensor, Tensor]:
    """Images, uint8 (n, 3, 32, 32), and labels, int64 (n,), of one pickled batch.

    Args:
        data: The pickle.
        name: Its name, for errors.

    Raises:
        DataError: If it holds anything but that.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[b"labels"])
        sound = (
            images.dtype == np.uint8
            and images.shape == (len(labels), 3 * 32 * 32)
            and labels.dtype == np.int64
            and labels.min() >= 0
            and labels.max() < CIFAR10.num_classes
        )
    # bytes that are no pickle can raise nearly anything
    except Exception as error:
        raise DataError(f"{name} cannot be read: {error!r}") from None
    if not sound:
        raise DataError(f"{name} cannot be read: it holds {images.dtype} {images.shape}, labels {labels.dtype}")
    return torch.from_numpy(images.reshape(-1, 3, 32, 32)), torch.from_numpy(labels)
