"""Moves of pixels, each image by its own amount: crop, mirror, and affine maps.

Every function takes uint8 images (b, c, y, x) and one parameter for each image, (b,), and equals the function of
torchvision.transforms.v2.functional named in its docstring, called image by image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.transforms.pixels import to_uint8


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """`pad` with black on all sides, `crop` to the old size at (top, left), `horizontal_flip` where asked.

    In memory a crop begins a few pixels after its padded image and has the same strides, so a batch of crops is a batch
    of copies of whole images from places of their own; mirrored ones come from a mirrored second half.

    Args:
        images: uint8 (b, c, y, x).
        top: Row of the padded image where the crop begins, 0 to twice the padding, int64 (b,).
        left: Column likewise.
        flip: Whether the cropped image is mirrored, bool (b,).
        padding: Pixels added on each side.

    Returns:
        Images of the same shape.
    """
    b, c, height, width = images.shape
    rows, columns = height + 2 * padding, width + 2 * padding
    size = c * rows * columns
    # the last image's crop may reach beyond its end, into what is cut off
    both = images.new_zeros((2 * b + 1) * size)
    padded = both[: 2 * b * size].view(2, b, c, rows, columns)[
        ..., padding : padding + height, padding : padding + width
    ]
    padded[0] = images
    padded[1] = images.flip(-1)
    image = torch.arange(b, device=images.device) + flip * b
    first = image * size + top * columns + torch.where(flip, 2 * padding - left, left)
    crops = both.as_strided((2 * b * size + 1, size), (1, 1)).index_select(0, first)
    return crops.view(b, c, rows, columns)[..., :height, :width].contiguous()


def inverse_map(
    shear_x: Tensor, shear_y: Tensor, shift_x: Tensor, shift_y: Tensor, degrees: Tensor, height: int, width: int
) -> Tensor:
    """Maps from the pixels of a result to those of its source, about the centre: one move for each image.

    Of the five amounts of an image all but one are zero. Shears are tangents and leave the upper left corner where it
    is, shifts are whole pixels to the right and down, rotations are counter-clockwise: as in torchvision's policies.

    Returns:
        float32 (b, 2, 3).
    """
    turn = -degrees.deg2rad()
    cos, sin = turn.cos(), turn.sin()
    x = (cos, sin + shear_x, shear_x * (height / 2) - shift_x)
    y = (shear_y - sin, cos, shear_y * (width / 2) - shift_y)
    return torch.stack(x + y, dim=-1).float().view(-1, 2, 3)


def warp(images: Tensor, matrix: Tensor, mode: str = "nearest") -> Tensor:
    """`affine` with black outside.

    Args:
        images: uint8 (b, c, y, x).
        matrix: Of `inverse_map`, float32 (b, 2, 3).
        mode: "nearest" or "bilinear".

    Returns:
        Images of the same shape.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    points = torch.stack([x.expand(height, width), y[:, None].expand(height, width), x.new_ones(height, width)])
    # in the order of torchvision's operations, so that ties between two pixels fall alike
    grid = (matrix / matrix.new_tensor([[width / 2], [height / 2]])).flatten(0, 1) @ points.flatten(1)
    grid = grid.view(-1, 2, height, width).permute(0, 2, 3, 1)
    return to_uint8(F.grid_sample(images.float(), grid, mode=mode, align_corners=False).round_())


def rotate(images: Tensor, degrees: Tensor, mode: str = "bilinear") -> Tensor:
    """`rotate`: counter-clockwise about the centre, black outside."""
    degrees = degrees.double()
    zero = torch.zeros_like(degrees)
    return warp(images, inverse_map(zero, zero, zero, zero, degrees, *images.shape[-2:]), mode)
