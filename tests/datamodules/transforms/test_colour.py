from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from datamodules.transforms import colour


def images(channels: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Noise, a narrow range of values, one value only, two values, and few values."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (12, channels, *size), dtype=torch.uint8, generator=generator)
    noise[3] = noise[3] // 8 + 90
    noise[4] = 77
    noise[5] = noise[5] // 128 * 255
    noise[6] = noise[6] // 64 * 60
    noise[7, 0] = 0
    return noise


FACTORS = torch.linspace(0.01, 1.99, 12, dtype=torch.float64)
THRESHOLDS = torch.tensor([0.0, 0.5, 1, 17, 100.2, 127.5, 128, 200, 254, 254.9, 255, 255], dtype=torch.float64)
BITS = torch.tensor([8, 7, 6, 5, 4, 3, 2, 1, 0, 8, 5, 4])


def blend(batch: Tensor, factor: Tensor, to: str) -> Tensor:
    """Towards the same other image in the whole batch."""
    return colour.blend(batch, factor, *(torch.full((len(batch),), to == other) for other in ("pixel", "mean")))


EXACT: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor | None]] = {
    "posterize": (colour.posterize, lambda image, bits: reference.posterize(image, int(bits)), BITS),
    "solarize": (colour.solarize, reference.solarize, THRESHOLDS),
    "autocontrast": (colour.autocontrast, reference.autocontrast, None),
    "equalize": (colour.equalize, reference.equalize, None),
    "brightness": (partial(blend, to="black"), reference.adjust_brightness, FACTORS),
}
BLENDS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Tensor | None]] = {
    "saturation": (partial(blend, to="pixel"), reference.adjust_saturation, FACTORS),
    "contrast": (partial(blend, to="mean"), reference.adjust_contrast, FACTORS),
    "sharpness": (colour.sharpness, reference.adjust_sharpness, FACTORS),
}


def compare(name: str, batch: Tensor) -> tuple[Tensor, Tensor]:
    ours, theirs, parameters = (EXACT | BLENDS)[name]
    if parameters is None:
        return ours(batch), torch.stack([theirs(image) for image in batch])
    expected = [theirs(image, float(value)) for image, value in zip(batch, parameters, strict=True)]
    return ours(batch, parameters), torch.stack(expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (5, 9), (2, 7), (40, 40)], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_it_equals_torchvision_exactly(name: str, size: tuple[int, int], channels: int) -> None:
    result, expected = compare(name, images(channels, size))
    assert result.equal(expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (5, 9), (2, 7), (40, 40)], ids=str)
@pytest.mark.parametrize("name", BLENDS)
def test_a_blend_equals_torchvision_to_one_level(name: str, size: tuple[int, int], channels: int) -> None:
    result, expected = compare(name, images(channels, size))
    # float32 rounds in another order: a value just below a whole number may be cut off to the one below
    torch.testing.assert_close(result, expected, atol=1, rtol=0)
    assert (result != expected).float().mean() < 0.005


@pytest.mark.parametrize("name", EXACT | BLENDS)
def test_the_batch_it_is_given_stays_as_it_was(name: str) -> None:
    batch = images(3)
    before = batch.clone()
    compare(name, batch)
    assert batch.equal(before)


@pytest.mark.parametrize("name", EXACT | BLENDS)
def test_an_image_is_changed_alike_in_any_batch(name: str) -> None:
    batch = images(3)
    function, _, parameters = (EXACT | BLENDS)[name]
    together = function(batch) if parameters is None else function(batch, parameters)
    for row in range(len(batch)):
        one = slice(row, row + 1)
        alone = function(batch[one]) if parameters is None else function(batch[one], parameters[one])
        assert alone[0].equal(together[row])


@pytest.mark.parametrize("channels", [1, 3])
def test_blends_of_different_kinds_in_one_batch_leave_each_other_alone(channels: int) -> None:
    batch, kind = images(channels), torch.arange(12) % 3
    together = colour.blend(batch, FACTORS, kind == 1, kind == 2)
    for row, to in enumerate(("black", "pixel", "mean")):
        assert together[kind == row].equal(blend(batch, FACTORS, to)[kind == row])
