import math

import pytest
import torch
from torchvision.transforms import v2

from datamodules.draws import Draws
from datamodules.transforms import RandomCropFlip, RandomErasing, RandomRotation

MANY = torch.arange(20_000)


def test_crops_and_flips_are_uniform_and_each_image_has_its_own() -> None:
    # one white pixel tells where it went
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[..., 4, 4] = 255
    results = RandomCropFlip(2, 0.0)(image.expand(len(MANY), -1, -1, -1), Draws(0, 0, MANY))
    place = results.flatten(1).argmax(1)
    counts = torch.stack([(place // 9), (place % 9)], 1) - 2
    for axis in (0, 1):
        # 4,000 each, standard deviation 57
        assert ((counts[:, axis].bincount(minlength=5) - 4000).abs() < 250).all()
    image[..., 4, 4] = 0
    image[..., 4, 0] = 255
    mirrored = RandomCropFlip(0, 0.3)(image.expand(len(MANY), -1, -1, -1), Draws(0, 0, MANY))[:, 0, 4, 8] > 0
    assert mirrored.float().mean() == pytest.approx(0.3, abs=0.015)


def test_rotations_reach_both_ways_as_far_as_allowed() -> None:
    image = torch.zeros(1, 1, 65, 65, dtype=torch.uint8)
    image[..., 32, 64] = 255
    results = RandomRotation(30)(image.expand(500, -1, -1, -1), Draws(0, 0, torch.arange(500)))
    rows = results.flatten(1).argmax(1) // 65
    reach = round(32 * math.sin(math.radians(30)))
    assert rows.min() >= 32 - reach - 1
    assert rows.max() <= 32 + reach + 1
    assert rows.min() < 32 - reach + 2
    assert rows.max() > 32 + reach - 2


def test_erased_rectangles_have_the_areas_and_ratios_of_torchvision() -> None:
    top, left, h, w = RandomErasing(0.25).boxes(Draws(0, 0, MANY), 32, 32)
    erased = h > 0
    assert erased.float().mean() == pytest.approx(0.25, abs=0.015)
    top, left, h, w = (value[erased] for value in (top, left, h, w))
    assert ((top >= 0) & (left >= 0) & (top + h <= 32) & (left + w <= 32)).all()
    torch.manual_seed(0)
    theirs = []
    image = torch.ones(3, 32, 32)
    for _ in range(3000):
        params = v2.RandomErasing(p=1.0).make_params([image])
        theirs.append((params["i"], params["j"], params["h"], params["w"]))
    expected = torch.tensor(theirs).double()
    ours = torch.stack([top, left, h, w], 1).double()
    # 3 standard errors of the mean over 3,000 rectangles are below half a pixel
    torch.testing.assert_close(ours.mean(0), expected.mean(0), atol=0.5, rtol=0)
    torch.testing.assert_close(ours.std(0), expected.std(0), atol=0.5, rtol=0)
    torch.testing.assert_close(
        (ours[:, 2] * ours[:, 3]).mean(), (expected[:, 2] * expected[:, 3]).mean(), atol=8, rtol=0
    )


def test_exactly_the_rectangle_becomes_zero() -> None:
    erasing, draws = RandomErasing(0.5), Draws(0, 0, torch.arange(64))
    images = torch.ones(64, 3, 16, 24)
    expected = images.clone()
    for row, (y, x, h, w) in enumerate(zip(*(v.tolist() for v in erasing.boxes(draws, 16, 24)), strict=True)):
        expected[row, :, y : y + h, x : x + w] = 0
    assert erasing(images, draws).equal(expected)
    assert 0 < (expected == 0).float().mean() < 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomCropFlip(-1),
        lambda: RandomCropFlip(0, 1.5),
        lambda: RandomErasing(2.0),
        lambda: RandomErasing(scale=(0.5, 0.1)),
        lambda: RandomErasing(ratio=(0.0, 1.0)),
        lambda: RandomRotation(-1),
    ],
)
def test_impossible_arguments_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="must be"):
        make()
