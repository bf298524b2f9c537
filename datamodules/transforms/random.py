"""Single augmentations whose parameters are drawn for each image."""

import math

import torch
from torch import Tensor

from datamodules.draws import Draws, below, unit
from datamodules.transforms.geometry import crop_flip, rotate


class RandomCropFlip:
    """Pads with black, crops to the old size at a random place, and mirrors some images.

    Args:
        padding: Pixels added on each side, so the image moves by as many at most; 0 leaves it where it is.
        flip: Probability that an image is mirrored.
    """

    def __init__(self, padding: int = 0, flip: float = 0.0) -> None:
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}")
        _check_probability("flip", flip)
        self.padding = padding
        self.flip = flip

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        bits = draws.bits("crop and flip", 3)
        top, left = below(bits[:, :2], 2 * self.padding + 1).unbind(1)
        return crop_flip(images, top, left, unit(bits[:, 2]) < self.flip, self.padding)


class RandomRotation:
    """Turns each image by up to `degrees` either way, bilinearly, with black outside."""

    def __init__(self, degrees: float) -> None:
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees must be in 0 to 180, got {degrees}")
        self.degrees = degrees

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return rotate(images, (draws.uniform("rotate", 1)[:, 0] * 2 - 1) * self.degrees)


class RandomErasing:
    """Sets a rectangle of some normalised images to zero, the data set's mean.

    Source: Zhong et al., "Random Erasing Data Augmentation", AAAI 2020, arXiv:1708.04896; areas and ratios as in
    torchvision. Of ten rectangles drawn the first that is smaller than the image is taken; where none is, nothing.

    Args:
        probability: How often an image has a rectangle erased.
        scale: Least and largest part of the image's area.
        ratio: Least and largest height over width.
    """

    attempts = 10

    def __init__(
        self,
        probability: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
    ) -> None:
        _check_probability("erase", probability)
        if not 0 <= scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two ascending numbers in [0, 1], got {scale}")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be two ascending positive numbers, got {ratio}")
        self.probability = probability
        self.scale = scale
        self.ratio = ratio

    def boxes(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First row, first column, height and width of each image's rectangle, int64 (b,); 0 high: none."""
        uniform = draws.uniform("erase", 3 + 2 * self.attempts)
        area, aspect = uniform[:, 3:].chunk(2, dim=1)
        area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        aspect = (low + aspect * (high - low)).exp()
        heights, widths = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fits = (heights < height) & (widths < width)
        first = fits.byte().argmax(1, keepdim=True)
        erased = fits.any(1) & (uniform[:, 0] < self.probability)
        h = heights.gather(1, first)[:, 0] * erased
        w = widths.gather(1, first)[:, 0] * erased
        y, x = uniform[:, 1:3].unbind(1)
        return (y * (height - h + 1)).long(), (x * (width - w + 1)).long(), h, w

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Erases in place, float images (b, c, y, x)."""
        height, width = images.shape[-2:]
        top, left, h, w = (value[:, None] for value in self.boxes(draws, height, width))
        y, x = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
        rows, columns = (y >= top) & (y < top + h), (x >= left) & (x < left + w)
        erased = rows[:, None, :, None].to(images.dtype) * columns[:, None, None, :].to(images.dtype)
        return images.mul_(1 - erased)


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
