"""Augmentation by the batch, as a trainer calls it on the device, against torchvision image by image on the CPU."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from datamodules import Batch
from datamodules.base import ImageDataModule, Split
from datamodules.samples import ArraySamples
from datamodules.transforms import Augment

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIDE, MEAN, STD = 16, (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)
OURS, THEIRS = 4000, 600


class Photos(ImageDataModule):
    """Two smooth photos of two classes, again and again: whatever differs between two of a kind has been drawn."""

    num_classes, class_names, image_size, channels = 2, ("a", "b"), (SIDE, SIDE), 3
    mean, std, slug = MEAN, STD, "photos"
    valid_augmentations = frozenset(
        {"crop", "flip", "rotate", "randaugment", "trivialaugment", "erase", "mixup", "cutmix"}
    )

    def read(self, split: Split) -> ArraySamples:
        return ArraySamples(*batch(OURS))


def photos() -> Tensor:
    """Bytes (2, 3, y, x): all pixels and channels differ."""
    coarse = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=True)
    return (40 + 170 * fine).to(torch.uint8)


def batch(count: int) -> Batch:
    labels = torch.arange(count) % 2
    return Batch(photos()[labels], labels, torch.arange(count))


def augmented(augment: Augment, device: str, count: int = OURS) -> Batch:
    """What a net sees in training, drawn on a device."""
    data = Photos(augment=augment)
    data.trainer = SimpleNamespace(training=True)  # type: ignore[assignment]
    given = Batch(*(each.to(device) for each in batch(count)))
    seen = data.on_after_batch_transfer(given, 0)
    assert seen.images.device.type == device
    return Batch(*(each.cpu() for each in seen))


normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([*MEAN], [*STD])])
ALONE: dict[str, tuple[Augment, Callable[[Tensor], Tensor]]] = {
    "crop and flip": (
        Augment(crop=3, flip=0.3),
        v2.Compose([v2.RandomCrop(SIDE, padding=3), v2.RandomHorizontalFlip(0.3), normalise]),
    ),
    "rotate": (
        Augment(rotate=20),
        # with its default fill of 0 torchvision would darken what lies across the edge twice
        v2.Compose([v2.RandomRotation([-20, 20], InterpolationMode.BILINEAR, fill=None), normalise]),
    ),
    "randaugment": (Augment(randaugment=(2, 9)), v2.Compose([v2.RandAugment(2, 9), normalise])),
    "trivialaugment": (Augment(trivialaugment=True), v2.Compose([v2.TrivialAugmentWide(), normalise])),
    "erase": (Augment(erase=0.25), v2.Compose([normalise, v2.RandomErasing(0.25)])),
    "the recipe": (
        Augment(crop=2, flip=0.5, randaugment=(2, 9), erase=0.25),
        v2.Compose(
            [
                v2.RandomCrop(SIDE, padding=2),
                v2.RandomHorizontalFlip(0.5),
                v2.RandAugment(2, 9),
                normalise,
                v2.RandomErasing(0.25),
            ]
        ),
    ),
}
MIXED: dict[str, tuple[Augment, Any]] = {
    "mixup": (Augment(mixup=0.8), v2.MixUp(alpha=0.8, num_classes=2)),
    "cutmix": (Augment(cutmix=1.0), v2.CutMix(alpha=1.0, num_classes=2)),
}


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Compares means and spreads of each pixel, and the whole distribution of the images' brightness and contrast."""
    for power in (1, 2):
        one, other = (each.double().flatten(1) ** power for each in (ours, theirs))
        error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
        # of 768 pixels, none is five standard errors away but once in some thousand such tests
        assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-3).all()
    for summary in (lambda images: images.mean((1, 2, 3)), lambda images: images.std((1, 2, 3))):
        # rounded, so that images which nothing was done to are equal whatever the order of the arithmetic was
        one, other = (summary(each).mul(500).round() for each in (ours, theirs))
        assert stats.ks_2samp(one.numpy(), other.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ALONE)
def test_a_device_draws_the_distribution_that_torchvision_draws_image_by_image(name: str, device: str) -> None:
    torch.manual_seed(1)
    augment, reference = ALONE[name]
    ours = augmented(augment, device)
    assert ours.labels.equal(torch.arange(OURS) % 2)
    for label, photo in enumerate(photos()):
        theirs = torch.stack([reference(photo) for _ in range(THEIRS // 2)])
        assert_same_distribution(ours.images[label::2], theirs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MIXED)
def test_a_device_mixes_by_the_distribution_that_torchvision_mixes_batches_by(name: str, device: str) -> None:
    torch.manual_seed(2)
    augment, reference = MIXED[name]
    ours, pair = augmented(augment, device), normalise(photos())
    # torchvision draws one weight for a batch: a batch of two gives one sample of each
    theirs = [reference(pair, torch.tensor([0, 1])) for _ in range(THEIRS)]
    images, labels = (torch.stack(each) for each in zip(*theirs, strict=True))
    torch.testing.assert_close(ours.labels.sum(1), torch.ones(OURS))
    for label in (0, 1):
        assert_same_distribution(ours.images[label::2], images[:, label])
        share = stats.ks_2samp(ours.labels[label::2, label].numpy(), labels[:, label, label].numpy())
        assert share.pvalue > 1e-3


def test_evaluation_is_not_augmented() -> None:
    data = Photos(augment=Augment(crop=2, flip=0.5, erase=0.5, mixup=1.0))
    data.trainer = SimpleNamespace(training=False)  # type: ignore[assignment]
    seen = data.on_after_batch_transfer(batch(2), 0)
    torch.testing.assert_close(seen.images, normalise(photos()), atol=2e-6, rtol=0)
    assert seen.labels.equal(torch.tensor([0, 1]))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*ALONE, *MIXED])
def test_both_devices_make_the_same_images_and_labels(name: str) -> None:
    augment = {**ALONE, **MIXED}[name][0]
    here, there = (augmented(augment, device, 512) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.labels, here.labels)
    # where a pixel's value or place hangs on the last bit, one level of brightness or a neighbour may come out
    assert ((there.images - here.images).abs() > 1e-4).float().mean() < 1e-3
