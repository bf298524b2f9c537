"""Changes of colour, each image by its own amount.

Every function takes uint8 images (b, c, y, x) with 1 or 3 channels and one parameter for each image, (b,), and equals
the function of torchvision.transforms.v2.functional named in its docstring, called image by image. Where that
multiplies, float32 may be rounded in another order, which moves a value across a whole number now and then: one level.
"""

import torch
from torch import Tensor

from datamodules.transforms.pixels import LEVELS, to_uint8


def grey(images: Tensor) -> Tensor:
    """`rgb_to_grayscale` rounded down, float32 (b, 1, y, x)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def blend(images: Tensor, factor: Tensor, to_pixel: Tensor, to_mean: Tensor) -> Tensor:
    """`adjust_saturation`, `adjust_contrast` or `adjust_brightness`: away from, or towards, another image, in float32.

    Args:
        images: uint8 (b, c, y, x).
        factor: Share of the image itself (b,).
        to_pixel: Where the other is the image's own grey, bool (b,); with one channel the image stays.
        to_mean: Where it is the mean of that grey, bool (b,); elsewhere it is black.
    """
    one = images.shape[1] == 1
    own = torch.where(to_pixel, 1.0, factor.double()) if one else factor.double()
    of_pixel, of_mean, own = (x[:, None, None, None] for x in (to_pixel, to_mean, own))
    of_grey = grey(images)
    other = of_grey * of_pixel + of_grey.mean((1, 2, 3), keepdim=True) * of_mean
    mixed = (images * own.float()).add_(other * (1 - own).float())
    return to_uint8(mixed.clamp_(0, LEVELS - 1))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """`adjust_sharpness`: away from, or towards, the image smoothed over 3 x 3 pixels; the border stays."""
    if min(images.shape[-2:]) <= 2:
        return images
    sharp = images.float()
    # the eight neighbours count once, the pixel five times: sums of whole numbers are exact
    rows = sharp[..., :-2, :] + sharp[..., 1:-1, :] + sharp[..., 2:, :]
    inner = sharp[..., 1:-1, 1:-1]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth.add_(inner, alpha=4).mul_(1 / 13).round_()
    inner.add_(smooth.sub_(inner).mul_((1 - factor.double()).float()[:, None, None, None]))
    return to_uint8(sharp.clamp_(0, LEVELS - 1))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """`posterize`: keeps the `bits` highest bits of every value, int64 in 0 to 8."""
    kept = (LEVELS - (1 << (8 - bits))).to(torch.uint8)
    return images & kept[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """`solarize`: inverts the values that reach `threshold`, in 0 to 255."""
    # whole numbers reach a threshold when they reach the next whole number
    reached = images >= threshold.float().ceil().to(torch.uint8)[:, None, None, None]
    # as uint8, minus one is all bits
    return images ^ reached.to(torch.uint8).neg_()


def autocontrast(images: Tensor) -> Tensor:
    """`autocontrast`: stretches each channel from its own darkest and brightest value to 0 and 255."""
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    flat = high == low
    scale = ((high - low) * (1 / (LEVELS - 1))).masked_fill_(flat, 1)
    return to_uint8(values.sub_(low.masked_fill_(flat, 0)).div_(scale).clamp_(0, LEVELS - 1))


def equalize(images: Tensor) -> Tensor:
    """`equalize`: gives each channel a flat histogram, by Pillow's rule."""
    b, c, height, width = images.shape
    values = images.flatten(2).long()
    places = torch.arange(b * c, device=images.device).view(b, c, 1) * LEVELS
    histogram = (values + places).flatten().bincount(minlength=b * c * LEVELS).view(b, c, LEVELS)
    below = histogram.cumsum(2) - histogram
    # the pixels of the brightest value that occurs do not count
    brightest = values.amax(2, keepdim=True)
    step = (height * width - histogram.gather(2, brightest)) // (LEVELS - 1)
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=LEVELS - 1)
    # too few pixels for a step: the channel stays as it is
    table = torch.where(step > 0, table, torch.arange(LEVELS, device=images.device)).to(torch.uint8)
    return table.gather(2, values).view_as(images)
