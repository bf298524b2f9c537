"""Any folder of class folders of images."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.base import ImageDataModule, Split
from datamodules.cache import fingerprint
from datamodules.errors import DataError
from datamodules.images import EncodedSamples, FolderStore
from datamodules.sampling import fixed_test_cut

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SPLITS: tuple[Split, ...] = ("train", "val", "test")
# names that look like ours and are not
MISNAMED = frozenset({"valid", "validation", "dev", "eval"})


class ImageFolder(ImageDataModule):
    """Images in one folder for each class, named after it: `<root>/<class>/*.jpg`, at any depth below the class.

    Where `root` holds a folder `train`, and beside it no others than `val` and `test`, these are the splits, each a
    folder of class folders. A split that is missing is cut out of train: the test split a fixed, stratified fifth, that
    no argument changes, and the validation split by `val_fraction`, which is not used where there is a folder `val`.

    Classes are numbered in the order of their names. Files and folders whose names begin with a dot, and files that are
    no images by their suffix, are passed over.

    Args:
        root: The folder.
        image_size: Side, or height and width, in pixels. Images are scaled until they cover it, with antialiasing, and
            cropped at the centre.
        channels: 3 for colour, 1 for grey.
        **common: Arguments of every data set, see `ImageDataModule`. Decoded images go to `<root>/.cache` where `cache`
            is left out; `in_memory: false` keeps none, decodes each image each time and wants `num_workers`. `mean` and
            `std` are 0.5 where left out.
    """

    valid_augmentations = frozenset(
        {"crop", "flip", "rotate", "randaugment", "trivialaugment", "erase", "mixup", "cutmix"}
    )

    def __init__(
        self,
        *,
        root: str | Path = "data/images",
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        cache: str | Path | None = None,
        **common: Any,
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        root = Path(root)
        self.image_size = (height, width)
        self.channels = channels
        self.mean = self.std = (0.5,) * channels
        self.folders = _split_folders(root)
        self.class_names = tuple(_visible_folders(self.folders["train"]))
        self.num_classes = len(self.class_names)
        if self.num_classes < 2:
            raise DataError(f"{self.folders['train']} needs at least two class folders, it has {self.num_classes}")
        self.slug = f"{height}x{width}x{channels}"
        super().__init__(root=root, cache=root / ".cache" if cache is None else cache, **common)

    def read(self, split: Split) -> EncodedSamples | None:
        if split in self.folders:
            folder = self.folders[split]
        elif split == "val":
            return None
        else:
            folder = self.folders["train"]
        files, labels = self._list(folder)
        rows = torch.arange(len(files))
        if "test" not in self.folders and split != "val":
            train, test = fixed_test_cut(labels)
            rows = test if split == "test" else train
        names = [files[row] for row in rows.tolist()]
        return EncodedSamples(
            FolderStore(folder),
            names,
            labels[rows],
            rows,
            size=self.image_size,
            channels=self.channels,
            fingerprint=self._fingerprint(folder, names) if self.in_memory else "",
        )

    def _fingerprint(self, folder: Path, names: list[str]) -> str:
        return fingerprint(
            ((name, (folder / name).stat()) for name in names),
            folder=str(folder.resolve()),
            shape=[*self.image_size, self.channels],
            classes=self.class_names,
        )

    def _list(self, folder: Path) -> tuple[list[str], Tensor]:
        """Files of a split by name, and their classes."""
        if strange := [name for name in _visible_folders(folder) if name not in self.class_names]:
            raise DataError(f"{folder / strange[0]} is of a class that {self.folders['train']} does not have")
        files: list[str] = []
        labels: list[int] = []
        for number, name in enumerate(self.class_names):
            found = sorted(_images(folder, name))
            if not found and folder == self.folders["train"]:
                raise DataError(f"{folder / name} holds no images ({', '.join(sorted(SUFFIXES))})")
            files += found
            labels += [number] * len(found)
        if not files:
            raise DataError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
        return files, torch.tensor(labels, dtype=torch.int64)


def _visible_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split_folders(root: Path) -> dict[Split, Path]:
    if not root.is_dir():
        raise DataError(
            f"{root} is not a folder\nPut one folder of images for each class into it, or name another: root."
        )
    names = set(_visible_folders(root))
    if "train" in names and names <= {*SPLITS, *MISNAMED}:
        if wrong := sorted(names & MISNAMED):
            raise DataError(f"{root / wrong[0]} is not read: name it `val`, or `test`, beside `train`")
        return {split: root / split for split in SPLITS if split in names}
    return {"train": root}


def _images(folder: Path, name: str) -> list[str]:
    found: list[Path] = []
    for place, folders, files in os.walk(folder / name):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        found += [Path(place) / file for file in files if not file.startswith(".")]
    return [path.relative_to(folder).as_posix() for path in found if path.suffix.lower() in SUFFIXES]
