"""Augmented training images a second: our datamodules from memory against torchvision image by image.

    python -m benchmarks.data_pipeline

Ours fetches, augments and normalises by the batch in this process. Theirs is what most code does: a data set that makes
a PIL image of each row, as `torchvision.datasets.CIFAR10` does, torchvision's v2 transforms, and a DataLoader with 2
workers, which live through all epochs. Images are random noise of CIFAR-10's shape: this is about speed.
A turn is a whole epoch, so that no worker of theirs fetches ahead while ours is timed.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.harness import chosen, columns, in_pairs, in_processes, options
from datamodules.base import ImageDataModule, Split
from datamodules.cifar10 import CIFAR10
from datamodules.samples import ArraySamples
from datamodules.transforms import Augment

PIPELINES = {
    "with RandAugment": (Augment(crop=4, flip=0.5, randaugment=(2, 9), erase=0.25), 8),
    "crop + flip + erase": (Augment(crop=4, flip=0.5, erase=0.25), 15),
}


def noise(count: int) -> tuple[Tensor, Tensor]:
    """Makes random images (n, 3, 32, 32), uint8, and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 10


class Noise(ImageDataModule):
    """Random images of CIFAR-10's shape, in memory.

    Args:
        count: Number of images.
        options: The arguments of `ImageDataModule`.
    """

    num_classes, class_names, image_size, channels = 10, CIFAR10.class_names, (32, 32), 3
    mean, std = CIFAR10.mean, CIFAR10.std
    valid_augmentations = CIFAR10.valid_augmentations
    slug = "noise"

    def __init__(self, count: int, **options: Any) -> None:
        super().__init__(**options)
        self.samples = ArraySamples(*noise(count))

    def read(self, split: Split) -> ArraySamples | None:
        """The images, whatever the split; validation is none."""
        return None if split == "val" else self.samples


class PerImage(Dataset[tuple[Tensor, int]]):
    """The same images one by one, as PIL images through transforms.

    Args:
        count: Number of images.
        transform: From a PIL image to a tensor.
    """

    def __init__(self, count: int, transform: Callable[[Image.Image], Tensor]) -> None:
        images, labels = noise(count)
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def per_image(augment: Augment) -> v2.Compose:
    """Makes torchvision's pipeline that does what `augment` says."""
    policy = [v2.RandAugment(*augment.randaugment)] if augment.randaugment else []
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=augment.crop),
            v2.RandomHorizontalFlip(augment.flip),
            *policy,
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(Noise.mean, Noise.std),
            v2.RandomErasing(augment.erase),
        ]
    )


def measure(given: Namespace) -> list[dict[str, Any]]:
    """Compares both pipelines."""
    rows = []
    for name, (augment, target) in PIPELINES.items():
        if not chosen(name, given.rows):
            continue
        module = Noise(given.images, batch_size=given.batch, val_fraction=0.0, augment=augment)
        module.setup("fit")
        ours = module.train_dataloader()
        theirs = DataLoader(
            PerImage(given.images, per_image(augment)),
            batch_size=given.batch,
            shuffle=True,
            num_workers=given.workers,
            persistent_workers=True,
        )

        def our_epoch(loader: Any = ours, module: Noise = module) -> float:
            start = time.perf_counter()
            seen = sum(len(module.transform(batch, train=True).images) for batch in loader)
            return (time.perf_counter() - start) / seen

        def their_epoch(loader: Any = theirs) -> float:
            start = time.perf_counter()
            seen = sum(len(images) for images, _ in loader)
            return (time.perf_counter() - start) / seen

        taken = in_pairs(our_epoch, their_epoch, given.pairs, warm_up=1).summary()
        first, median, third = taken["ratio"]
        rows.append(
            {
                "name": name,
                "images_per_s": {"ours": 1e3 / taken["ours_ms"][1], "theirs": 1e3 / taken["theirs_ms"][1]},
                "ratio": [first, median, third],
                "at_least": target,
                "met": median >= target,
                "pairs": given.pairs,
                "images": given.images,
                "batch": given.batch,
                "workers": given.workers,
                "versions": {"torchvision": torchvision.__version__},
            }
        )
    return rows


def told(rows: list[dict[str, Any]]) -> str:
    """Sets rows as a table."""
    lines = [["pipeline", "ours, images/s", "theirs", "faster", "quartiles", "at least", "met"]]
    for row in rows:
        first, median, third = row["ratio"]
        speeds = [f"{row['images_per_s'][side]:,.0f}" for side in ("ours", "theirs")]
        verdict = "yes" if row["met"] else "NO"
        lines.append([row["name"], *speeds, f"{median:.1f}", f"{first:.1f}-{third:.1f}", f"{row['at_least']}", verdict])
    return columns(lines)


def main() -> int:
    """Measures as the command line asks."""
    parser = options(__doc__, "data_pipeline")
    parser.add_argument("--images", type=int, default=10_000, help="images of an epoch (default 10000)")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch (default 128)")
    parser.add_argument("--workers", type=int, default=2, help="workers of torchvision's DataLoader (default 2)")
    return in_processes("benchmarks.data_pipeline", parser.parse_args(), measure, told)


if __name__ == "__main__":
    sys.exit(main())
