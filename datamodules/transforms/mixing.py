"""MixUp and CutMix: each image mixed with its neighbour in the batch, and its label likewise.

Sources: Zhang et al., "mixup", ICLR 2018, arXiv:1710.09412; Yun et al., "CutMix", ICCV 2019, arXiv:1905.04899. The
papers draw one weight for a batch; here each image draws its own, so that two images never share a coin. The partner
is the image before it in the batch, so this alone of all augmentations depends on the batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.draws import Draws


def symmetric_beta(uniform: Tensor, alpha: float) -> Tensor:
    """Turns two uniform draws, (b, 2), into one of Beta(alpha, alpha), float64 (b,).

    Bailey's polar method for Student's t with 2 alpha degrees of freedom, in the form of Devroye, "Random variate
    generation in one line of code", WSC 1996.
    """
    radius, turn = uniform.double().unbind(1)
    # the draws have 24 bits: one at zero stands for half a step
    radius = radius.clamp(min=2.0**-25)
    t = (radius.pow(-1 / alpha) - 1).sqrt() * (2 * math.pi * turn).cos()
    return 0.5 + 0.5 * t / (1 + t.square()).sqrt()


def mixup(images: Tensor, weight: Tensor) -> Tensor:
    """`weight` (b,) of each image and the rest of the one before it."""
    return images.lerp(images.roll(1, 0), (1 - weight).to(images.dtype)[:, None, None, None])


def cutmix(images: Tensor, weight: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Pastes a box of the image before into each image.

    Args:
        images: (b, c, y, x).
        weight: Part of the area that each image keeps, if its box lies inside, (b,).
        centre: Centre of the box, y and x from 0 to 1, (b, 2).

    Returns:
        Images, and the part that each really kept, float64 (b,).
    """
    height, width = images.shape[-2:]
    size = images.new_tensor([height, width], dtype=torch.float64)
    half = ((1 - weight).sqrt()[:, None] * size / 2).trunc()
    middle = (centre.double() * size).trunc()
    low = (middle - half).clamp_(min=0)
    high = torch.minimum(middle + half, size)
    y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    rows = (y >= low[:, :1]) & (y < high[:, :1])
    columns = (x >= low[:, 1:]) & (x < high[:, 1:])
    box = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(box, images.roll(1, 0), images), 1 - (high - low).prod(1) / (height * width)


class Mixing:
    """MixUp, CutMix, or for each image one of the two.

    Args:
        mixup: Alpha of MixUp's weights, Beta(alpha, alpha); 0 is off.
        cutmix: Alpha of CutMix's; 0 is off.
        num_classes: Length of a soft label.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if alpha < 0:
                raise ValueError(f"{name} must be at least 0, got {alpha}")
        self.mixup = mixup
        self.cutmix = cutmix
        self.num_classes = num_classes

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Mixes normalised images (b, c, y, x); labels int64 (b,) become float32 (b, classes)."""
        uniform = draws.uniform("mixing", 5)
        pasted = uniform[:, 4] < (0.5 if self.mixup else 1.0)
        mixed, weight = images, torch.ones(len(images), dtype=torch.float64, device=images.device)
        if self.mixup:
            weight = symmetric_beta(uniform[:, :2], self.mixup)
            mixed = mixup(images, weight)
        if self.cutmix:
            boxed, kept = cutmix(images, symmetric_beta(uniform[:, :2], self.cutmix), uniform[:, 2:4])
            mixed = torch.where(pasted[:, None, None, None], boxed, mixed)
            weight = torch.where(pasted, kept, weight)
        targets = F.one_hot(labels, self.num_classes).float()
        return mixed, targets.lerp(targets.roll(1, 0), (1 - weight).float()[:, None])
