"""What is done to a batch of training images: one typed switchboard, and the pipeline that it sets up."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from datamodules.draws import Draws
from datamodules.transforms.mixing import Mixing
from datamodules.transforms.policies import RandAugment, TrivialAugmentWide
from datamodules.transforms.random import RandomCropFlip, RandomErasing, RandomRotation


@dataclass(frozen=True)
class Augment:
    """Augmentations, each off by default; applied in this order, normalisation between `trivialaugment` and `erase`.

    In YAML: `augment: {crop: 4, flip: 0.5, randaugment: [2, 9], erase: 0.25}`.

    Args:
        crop: Pixels of black padding on each side before a random crop to the old size, so the largest shift.
        flip: Probability of a left-right mirror image.
        rotate: Largest rotation either way, in degrees, bilinear.
        randaugment: Number of operations and their magnitude (0 to 30); [2, 9] is torchvision's default.
        trivialaugment: Whether to apply one random operation of TrivialAugment's wide ranges.
        erase: Probability of erasing a rectangle.
        mixup: Alpha of MixUp; 0.8 is usual for transformers.
        cutmix: Alpha of CutMix; 1 is usual. With both, each image has one of the two.
    """

    crop: int = 0
    flip: float = 0.0
    rotate: float = 0.0
    randaugment: tuple[int, int] | None = None
    trivialaugment: bool = False
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the augmentations that are on."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name))

    def only(self, valid: frozenset[str]) -> "Augment":
        """The same without what is not in `valid`."""
        return Augment(**{name: getattr(self, name) for name in self.active if name in valid})


class Pipeline:
    """Augments and normalises batches on the device that they are on.

    Args:
        augment: What is on.
        image_size: Height and width of the images.
        mean: Subtracted from each channel, on the scale of 0 to 1.
        std: Divides each channel afterwards.
        num_classes: Length of soft labels.

    Raises:
        ValueError: If a part of `augment` is out of its range, or a crop could move a quarter of the image out.
    """

    def __init__(
        self,
        augment: Augment,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        num_classes: int,
    ) -> None:
        limit = min(image_size) // 4
        if augment.crop > limit:
            raise ValueError(f"augment.crop must be at most {limit}, a quarter of the image's side, got {augment.crop}")
        self.augment = augment
        moves = augment.crop or augment.flip
        self.steps = [
            step
            for step in (
                RandomCropFlip(augment.crop, augment.flip) if moves else None,
                RandomRotation(augment.rotate) if augment.rotate else None,
                RandAugment(*augment.randaugment) if augment.randaugment else None,
                TrivialAugmentWide() if augment.trivialaugment else None,
            )
            if step is not None
        ]
        self.erase = RandomErasing(augment.erase) if augment.erase else None
        self.mix = Mixing(augment.mixup, augment.cutmix, num_classes) if augment.mixup or augment.cutmix else None
        # (v / 255 - mean) / std as one product and one sum
        self._scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        self._offset = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (b, c, y, x) as float32, each channel less its mean, over its standard deviation."""
        if images.device not in self._constants:
            scale, offset = (v.float()[:, None, None].to(images.device) for v in (self._scale, self._offset))
            self._constants[images.device] = scale, offset
        scale, offset = self._constants[images.device]
        return images.float().mul_(scale).add_(offset)

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Augmented and normalised images, float32, and labels, soft where images were mixed."""
        for step in self.steps:
            images = step(images, draws)
        images = self.normalise(images)
        if self.erase is not None:
            images = self.erase(images, draws)
        return (images, labels) if self.mix is None else self.mix(images, labels, draws)
