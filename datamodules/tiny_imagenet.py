"""Tiny ImageNet: 110,000 labelled colour photographs of 64 x 64 pixels in 200 classes.

Source: the course CS231n of Stanford University, 2015; a subset of ImageNet.
"""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from datamodules.base import ImageDataModule, Split
from datamodules.cache import fingerprint
from datamodules.download import download, verify, zip_members
from datamodules.errors import DataError
from datamodules.images import EncodedSamples, FolderStore, Store, ZipStore
from datamodules.samples import LazySamples
from datamodules.tiny_imagenet_classes import CLASSES

FOLDER = "tiny-imagenet-200"
ARCHIVE = "tiny-imagenet-200.zip"
# the real archive has 248,100,043 bytes, its largest file (words.txt) 2.7 MB
MAX_ARCHIVE_BYTES = 300_000_000
# JPEGs and a few lists hardly shrink
MAX_UNPACKED_BYTES = 600_000_000
MAX_FILE_BYTES = 8_000_000


class TinyImageNet(ImageDataModule):
    """Tiny ImageNet, downloaded, or from files placed by hand.

    Under `root` either the archive `tiny-imagenet-200.zip`, read without being unpacked, or the folder
    `tiny-imagenet-200` of its contents will do; no file is moved. The labels of the official test split were never
    published, so the official validation split, 10,000 images labelled by `val_annotations.txt`, is the test split
    here, and validation is cut out of the 100,000 of train. A class is its place in `wnids.txt`.

    Args:
        mirror: Address of a folder that holds the archive; the official one where left out.
        checksum: md5 or sha256 of the archive; the published md5 where left out.
        **common: Arguments of every data set, see `ImageDataModule`.
    """

    num_classes = 200
    class_names = tuple(CLASSES.values())
    image_size = (64, 64)
    channels = 3
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2770, 0.2691, 0.2821)
    valid_augmentations = frozenset(
        {"crop", "flip", "rotate", "randaugment", "trivialaugment", "erase", "mixup", "cutmix"}
    )
    slug = "tiny_imagenet"

    official: ClassVar[str] = "http://cs231n.stanford.edu/"
    # images of a class; a folder has no checksum, so they are counted
    per_class: ClassVar[dict[Split, int]] = {"train": 500, "test": 50}

    def __init__(
        self, *, mirror: str | None = None, checksum: str = "90528d7ca1a48142e341f4ef8d21d0de", **common: Any
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
        part = "val" if split == "test" else "train"
        if self.folder.is_dir():
            files = {path.relative_to(self.root).as_posix(): path for path in (self.folder / part).rglob("*.*")}
        else:
            files = {ARCHIVE: self.archive}
        if not all(path.is_file() for path in files.values()) or not files:
            raise DataError(f"Tiny ImageNet is not in {self.root}\n{self._by_hand()}")
        return LazySamples(
            fingerprint(((name, path.stat()) for name, path in files.items()), checksum=self.checksum),
            (self.channels, *self.image_size),
            partial(self._load, split, part, sorted(files)),
        )

    def _load(self, split: Split, part: str, names: list[str]) -> EncodedSamples:
        if not self.folder.is_dir():
            verify(self.archive, self.checksum)
            members = zip_members(self.archive, MAX_FILE_BYTES, MAX_UNPACKED_BYTES)
            return self._samples(ZipStore(self.archive), sorted(members), part)
        samples = self._samples(FolderStore(self.root), names, part)
        counts = samples.labels.bincount(minlength=self.num_classes).tolist()
        if wrong := [n for n, count in enumerate(counts) if count != self.per_class[split]]:
            raise DataError(
                f"{self.folder / part} has {len(samples)} images, not {self.per_class[split]} of each class: "
                f"of {list(CLASSES)[wrong[0]]} it has {counts[wrong[0]]}\n"
                "Copy the whole folder again, or put the archive in its place."
            )
        return samples

    def _samples(self, store: Store, names: list[str], part: str) -> EncodedSamples:
        """The images of `train` or of `val`, in the order of their names."""
        classes = {wnid: number for number, wnid in enumerate(CLASSES)}
        listed = store.read(f"{FOLDER}/wnids.txt").decode(errors="replace").split()
        if sorted(listed) != sorted(classes):
            raise DataError(f"{store.where(f'{FOLDER}/wnids.txt')} does not list the 200 classes of Tiny ImageNet")
        images = [name for name in names if name.startswith(f"{FOLDER}/{part}/") and name.endswith(".JPEG")]
        if part == "train":
            # tiny-imagenet-200/train/<class>/images/<class>_<number>.JPEG
            named = {name: name.split("/")[2] for name in images}
        else:
            annotations = f"{FOLDER}/val/val_annotations.txt"
            # <file> <class> <four numbers of a box>
            rows = [line.split("\t") for line in store.read(annotations).decode(errors="replace").splitlines()]
            by_file = {f"{FOLDER}/val/images/{row[0]}": row[1] for row in rows if len(row) > 1}
            if unlabelled := [name for name in images if name not in by_file]:
                raise DataError(f"{store.where(annotations)} has no class for {unlabelled[0]}")
            named = {name: by_file[name] for name in images}
        for name, wnid in named.items():
            if wnid not in classes:
                raise DataError(f"{store.where(name)} is of the class {wnid!r}, which wnids.txt does not list")
        labels = torch.tensor([classes[wnid] for wnid in named.values()], dtype=torch.int64)
        return EncodedSamples(store, images, labels, size=self.image_size, channels=self.channels)

    def _by_hand(self) -> str:
        return (
            f"Put {ARCHIVE} (from {self.official}) into {self.root}, or name a mirror, or work without download:\n"
            "python main.py fit --config experiments/vip_rope.yaml --config experiments/overlays/digits.yaml"
        )
