import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from datamodules.transforms.geometry import crop_flip, inverse_map, rotate, warp

SIZES = [(32, 32), (8, 8), (7, 12)]


def images(count: int, size: tuple[int, int] = (32, 32), channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


def uniform(count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * (high - low) + low


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_equal_torchvision_exactly(size: tuple[int, int], padding: int) -> None:
    batch = images(16, size)
    top, left = torch.randint(0, 2 * padding + 1, (2, 16), generator=torch.Generator().manual_seed(2))
    flip = torch.arange(16) % 3 == 0
    for image, y, x, mirrored, result in zip(
        batch, top, left, flip, crop_flip(batch, top, left, flip, padding), strict=True
    ):
        expected = reference.crop(reference.pad(image, [padding] * 4), int(y), int(x), *size)
        assert result.equal(reference.horizontal_flip(expected) if mirrored else expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("move", ["shear_x", "shear_y", "shift_x", "shift_y", "degrees"])
def test_each_move_equals_torchvision_except_at_ties(move: str, size: tuple[int, int]) -> None:
    batch = images(64, size)
    amounts = dict.fromkeys(("shear_x", "shear_y", "shift_x", "shift_y", "degrees"), torch.zeros(64).double())
    largest = {"shear_x": 0.99, "shear_y": 0.99, "shift_x": 9, "shift_y": 9, "degrees": 135}[move]
    amounts[move] = uniform(64, -largest, largest)
    if move.startswith("shift"):
        amounts[move] = amounts[move].trunc()
    results = warp(batch, inverse_map(**amounts, height=size[0], width=size[1]))
    shear = torch.stack([amounts["shear_x"], amounts["shear_y"]], 1).atan().rad2deg()
    shift = torch.stack([amounts["shift_x"], amounts["shift_y"]], 1)
    expected = torch.stack(
        [
            reference.affine(
                image,
                angle=-float(amounts["degrees"][row]),
                translate=shift[row].tolist(),
                scale=1.0,
                shear=shear[row].tolist(),
                center=[0, 0] if move.startswith("shear") else None,
            )
            for row, image in enumerate(batch)
        ]
    )
    different = (results != expected).any(1).float().mean()
    # a source point halfway between two pixels, to within a rounding error of float32
    assert different == 0 if move.startswith("shift") else different < 2e-4


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_rotation_equals_torchvision(size: tuple[int, int], mode: str) -> None:
    batch, degrees = images(32, size, channels=1), uniform(32, -180, 180)
    results = rotate(batch, degrees, mode)
    interpolation = reference.InterpolationMode(mode)
    expected = torch.stack(
        [reference.rotate(image, float(a), interpolation) for image, a in zip(batch, degrees, strict=True)]
    )
    if mode == "bilinear":
        # a value may be rounded to its neighbour
        torch.testing.assert_close(results, expected, atol=1, rtol=0)
    assert (results != expected).float().mean() < 1e-3


def test_an_image_is_moved_alike_in_any_batch() -> None:
    batch, degrees = images(9), uniform(9, -30, 30)
    together = rotate(batch, degrees)
    for row in range(9):
        assert rotate(batch[row : row + 1], degrees[row : row + 1])[0].equal(together[row])
