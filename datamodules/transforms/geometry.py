"""Moves of pixels, each image by its own amount: crop, flip, and affine maps.

Every function takes uint8 images (b, c, y, x) and one parameter for each image, (b,), and equals the function of
torchvision.transforms.v2.functional named in its docstring, called image by image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """`pad` with black on all sides, `crop` to the old size at (top, left), `horizontal_flip` where asked: one gather.

    Args:
        images: uint8 (b, c, y, x).
        top: Row of the padded image where the crop begins, int64 (b,).
        left: Column likewise.
        flip: Whether the cropped image is mirrored, bool (b,).
        padding: Pixels added on each side.

    Returns:
        Images of the same shape.
    """
    b, c, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding)) if padding else images
    y = top[:, None] + torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device).expand(b, width)
    x = torch.where(flip[:, None], width - 1 - x, x) + left[:, None]
    pixels = (y[:, :, None] * padded.shape[-1] + x[:, None, :]).flatten(1)
    return padded.flatten(2).gather(2, pixels[:, None].expand(b, c, -1)).view_as(images)


def inverse_affine(angle: Tensor, shear_x: Tensor, shear_y: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Maps from a pixel of the result to one of the source, about the centre, as `affine` builds them.

    Args:
        angle: Clockwise rotation of the image, radians, float64 (b,).
        shear_x: Angle of the shear along x, radians.
        shear_y: Angle of the shear along y, radians.
        shift_x: Pixels to the right.
        shift_y: Pixels down.

    Returns:
        float64 (b, 2, 3).
    """
    # rotation after both shears: entries of the forward 2 x 2 matrix, of determinant 1
    a = (angle - shear_y).cos() / shear_y.cos()
    c = (angle - shear_y).sin() / shear_y.cos()
    b = -(a * shear_x.tan() + angle.sin())
    d = angle.cos() - c * shear_x.tan()
    x = torch.stack([d, -b, -(d * shift_x - b * shift_y)], dim=-1)
    y = torch.stack([-c, a, -(a * shift_y - c * shift_x)], dim=-1)
    return torch.stack([x, y], dim=-2)


def about_corner(matrix: Tensor, height: int, width: int) -> Tensor:
    """The same map, its fixed point moved from the centre to the upper left corner (torchvision's `center=[0, 0]`)."""
    corner = matrix.new_tensor([-width / 2, -height / 2])
    offset = matrix[..., 2] + corner - matrix[..., :2] @ corner
    return torch.cat([matrix[..., :2], offset[..., None]], dim=-1)


def warp(images: Tensor, matrix: Tensor, mode: str = "nearest") -> Tensor:
    """`affine` with black outside, for the inverse maps of `inverse_affine`.

    Args:
        images: uint8 (b, c, y, x).
        matrix: One map for each image, (b, 2, 3).
        mode: "nearest" or "bilinear".

    Returns:
        Images of the same shape.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    points = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).flatten(0, 1)
    scale = matrix.new_tensor([[width / 2], [height / 2]])
    # float32 from here on, as torchvision has it: ties between two pixels fall alike
    grid = points @ (matrix.float() / scale.float()).mT
    grid = grid.view(-1, height, width, 2)
    return F.grid_sample(images.float(), grid, mode=mode, align_corners=False).round_().to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor, mode: str = "bilinear") -> Tensor:
    """`rotate`: counter-clockwise about the centre, black outside."""
    radians = -degrees.double() * (math.pi / 180)
    zero = torch.zeros_like(radians)
    return warp(images, inverse_affine(radians, zero, zero, zero, zero), mode)
